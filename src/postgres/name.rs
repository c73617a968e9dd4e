//! PostgreSQL's `name` type for result columns: pgrx would hand out text, which is another thing on disk.

use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::datum::{FromDatum, IntoDatum};
use pgrx::pg_sys;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};

/// A value of type `name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(pub(crate) String);

impl IntoDatum for Name {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        let room = pg_sys::NAMEDATALEN as usize;
        let bytes = self.0.as_bytes();
        let mut length = bytes.len().min(room - 1);
        while !self.0.is_char_boundary(length) {
            length -= 1;
        }
        // SAFETY: palloc0 returns `room` zeroed bytes or raises; `length` is less than `room`, so that a zero byte
        // ends the name.
        unsafe {
            let target = pg_sys::palloc0(room).cast::<u8>();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, length);
            Some(pg_sys::Datum::from(target))
        }
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::NAMEOID
    }
}

impl FromDatum for Name {
    // SAFETY: the caller promises a Datum of type name, which points to a zero-terminated string.
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _typoid: pg_sys::Oid,
    ) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: as promised by the caller.
        let text = unsafe { std::ffi::CStr::from_ptr(datum.cast_mut_ptr()) };
        Some(Name(text.to_string_lossy().into_owned()))
    }
}

// SAFETY: unboxes exactly what FromDatum above does, from the argument's own Datum.
unsafe impl<'fcx> ArgAbi<'fcx> for Name {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        let index = arg.index();
        // SAFETY: our handwritten SQL declares the argument as `name`.
        unsafe { arg.unbox_arg_using_from_datum() }
            .unwrap_or_else(|| unreachable!("argument {index} is null, though it is not declared as Option"))
    }
}

// SAFETY: hands the Datum made above to the function call it is the result of.
unsafe impl BoxRet for Name {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        match self.into_datum() {
            // SAFETY: a Datum of the declared type, allocated in the current memory context.
            Some(datum) => unsafe { fcinfo.return_raw_datum(datum) },
            None => fcinfo.return_null(),
        }
    }
}

// SAFETY: the type is SQL's `name`, built in.
unsafe impl SqlTranslatable for Name {
    const TYPE_IDENT: &'static str = "pg_ha::Name";
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal("name"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> = Ok(ReturnsRef::One(SqlMappingRef::literal("name")));
}
