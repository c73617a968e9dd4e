//! Column values between PostgreSQL's datums and the stream's forms.
//!
//! The common built-in types travel in the stream's own *plain* form (see the codec's documentation): little-endian
//! fixed-width numbers and raw text, which costs a copy and no function call on either side, and which all versions
//! and architectures understand. Other built-in types go in their binary send form between servers of one major
//! version, everything else as text.

use std::ffi::CStr;

use pg_ha_replication::codec::Encoder;
use pgrx::pg_sys;

use super::version;

/// Built-in types that have a plain form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Plain {
    Bool,
    Char,
    Int2,
    Int4,
    Int8,
    Oid,
    Uuid,
    /// Variable-length types whose content is what it is: text, varchar, bpchar, json in the session's encoding.
    Text,
    Bytea,
    Name,
}

impl Plain {
    /// The plain form of a type, if it has one.
    pub(crate) fn of(type_oid: pg_sys::Oid) -> Option<Plain> {
        Some(match type_oid {
            pg_sys::BOOLOID => Plain::Bool,
            pg_sys::CHAROID => Plain::Char,
            pg_sys::INT2OID => Plain::Int2,
            // Floats, dates and times are their integer images: IEEE bits, days or microseconds since 2000.
            pg_sys::INT4OID | pg_sys::FLOAT4OID | pg_sys::DATEOID => Plain::Int4,
            pg_sys::INT8OID
            | pg_sys::FLOAT8OID
            | pg_sys::TIMEOID
            | pg_sys::TIMESTAMPOID
            | pg_sys::TIMESTAMPTZOID
            | pg_sys::MONEYOID => Plain::Int8,
            pg_sys::OIDOID => Plain::Oid,
            pg_sys::UUIDOID => Plain::Uuid,
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID | pg_sys::JSONOID => Plain::Text,
            pg_sys::BYTEAOID => Plain::Bytea,
            pg_sys::NAMEOID => Plain::Name,
            _ => return None,
        })
    }

    /// Appends the plain form of a non-null value.
    ///
    /// # Safety
    /// `datum` is a value of the type, not an out-of-line TOAST pointer whose table cannot be read now.
    pub(crate) unsafe fn encode(self, datum: pg_sys::Datum, convert: bool, out: &mut Encoder) {
        match self {
            Plain::Bool | Plain::Char => out.plain(&[datum.value() as u8]),
            Plain::Int2 => out.plain(&(datum.value() as i16).to_le_bytes()),
            Plain::Int4 => out.plain(&(datum.value() as i32).to_le_bytes()),
            Plain::Int8 => out.plain(&(datum.value() as i64).to_le_bytes()),
            Plain::Oid => out.plain(&(datum.value() as u32).to_le_bytes()),
            Plain::Uuid => {
                // SAFETY: a uuid datum points to 16 bytes.
                out.plain(unsafe { core::slice::from_raw_parts(datum.cast_mut_ptr::<u8>(), 16) });
            }
            Plain::Text | Plain::Bytea => {
                // SAFETY: the datum is a varlena; detoasting gives one whose bytes can be read, and copies only
                // where the value was compressed or out of line.
                unsafe {
                    let value = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
                    let bytes = pgrx::varlena_to_byte_slice(value);
                    if convert && self == Plain::Text {
                        out.plain(to_client(bytes));
                    } else {
                        out.plain(bytes);
                    }
                }
            }
            Plain::Name => {
                // SAFETY: a name datum points to a nul-terminated array of NAMEDATALEN bytes.
                let bytes = unsafe { core::ffi::CStr::from_ptr(datum.cast_mut_ptr()).to_bytes() };
                if convert {
                    // SAFETY: `bytes` is text in the server's encoding.
                    out.plain(unsafe { to_client(bytes) });
                } else {
                    out.plain(bytes);
                }
            }
        }
    }

    /// The datum of a plain form, allocated in the current memory context; None when the length does not fit.
    pub(crate) fn decode(self, bytes: &[u8]) -> Option<pg_sys::Datum> {
        Some(match self {
            Plain::Bool => pg_sys::Datum::from(*single(bytes)? != 0),
            Plain::Char => pg_sys::Datum::from(*single(bytes)? as i8),
            Plain::Int2 => pg_sys::Datum::from(i16::from_le_bytes(bytes.try_into().ok()?)),
            Plain::Int4 => pg_sys::Datum::from(i32::from_le_bytes(bytes.try_into().ok()?)),
            Plain::Int8 => pg_sys::Datum::from(i64::from_le_bytes(bytes.try_into().ok()?)),
            Plain::Oid => pg_sys::Datum::from(u32::from_le_bytes(bytes.try_into().ok()?)),
            Plain::Uuid => {
                if bytes.len() != 16 {
                    return None;
                }
                // SAFETY: palloc gives 16 writable bytes.
                unsafe { copy(bytes, pg_sys::palloc(16).cast()) }
            }
            Plain::Text | Plain::Bytea => {
                let size = bytes.len() + pg_sys::VARHDRSZ;
                // SAFETY: palloc gives `size` writable, aligned bytes: header, then content.
                unsafe {
                    let value: *mut pg_sys::varlena = pg_sys::palloc(size).cast();
                    pgrx::set_varsize_4b(value, size as i32);
                    copy(bytes, value.cast::<u8>().add(pg_sys::VARHDRSZ));
                    pg_sys::Datum::from(value)
                }
            }
            Plain::Name => {
                const NAME: usize = pg_sys::NAMEDATALEN as usize;
                if bytes.len() >= NAME {
                    return None;
                }
                // SAFETY: palloc0 gives NAMEDATALEN zeroed bytes, more than the name is long.
                unsafe { copy(bytes, pg_sys::palloc0(NAME).cast()) }
            }
        })
    }
}

fn single(bytes: &[u8]) -> Option<&u8> {
    (bytes.len() == 1).then(|| bytes.first()).flatten()
}

/// # Safety
/// `to` has room for `bytes`.
unsafe fn copy(bytes: &[u8], to: *mut u8) -> pg_sys::Datum {
    // SAFETY: the caller's promise; fresh memory does not overlap the input.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    pg_sys::Datum::from(to)
}

/// Whether a datum is a pointer to a value that stands in a TOAST table.
///
/// # Safety
/// `datum` is a varlena.
pub(crate) unsafe fn is_external_ondisk(datum: pg_sys::Datum) -> bool {
    // SAFETY: the first bytes of every varlena tell its kind (postgres.h: VARATT_IS_EXTERNAL_ONDISK).
    unsafe {
        let value = datum.cast_mut_ptr::<pg_sys::varlena>();
        pgrx::varatt_is_1b_e(value)
            && (*value.cast::<pg_sys::varattrib_1b_e>()).va_tag as u32
                == pg_sys::vartag_external::VARTAG_ONDISK
    }
}

/// Replaces values of a decoded row that the WAL holds no copy of by those of the old row, where that has them: an
/// update logs a TOAST value that it left alone with the old key only.
///
/// # Safety
/// Both arrays hold a row with this descriptor; `old` is another one, and outlives the use of the arrays.
pub(crate) unsafe fn complete_from(
    desc: pg_sys::TupleDesc,
    datums: *mut pg_sys::Datum,
    nulls: *mut bool,
    old: pg_sys::HeapTuple,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for index in 0..(*desc).natts as usize {
            if *nulls.add(index)
                || version::attribute(desc, index).attlen != -1
                || !is_external_ondisk(*datums.add(index))
            {
                continue;
            }
            let mut null = true;
            let datum = pg_sys::heap_getattr(old, index as i32 + 1, desc, &mut null);
            if !null {
                *datums.add(index) = datum;
            }
        }
    }
}

/// Settings under which a value as text means the same to whoever writes and whoever reads it.
pub(crate) const CANONICAL: [(&CStr, &CStr); 10] = [
    (c"datestyle", c"ISO"),
    (c"intervalstyle", c"postgres"),
    (c"timezone", c"GMT"),
    (c"extra_float_digits", c"3"),
    (c"bytea_output", c"hex"),
    // Money is a number of the smallest units; how many there are in a unit depends on this.
    (c"lc_monetary", c"C"),
    (c"xmloption", c"content"),
    (c"array_nulls", c"on"),
    (c"quote_all_identifiers", c"off"),
    // Names of objects come qualified.
    (c"search_path", c""),
];

/// Text of the server's encoding in the session's.
///
/// # Safety
/// In a process with a database; the result lives as long as the current memory context.
pub(crate) unsafe fn to_client(bytes: &[u8]) -> &[u8] {
    // SAFETY: the conversion returns its input, or nul-terminated memory of the current context.
    unsafe {
        let converted = pg_sys::pg_server_to_client(bytes.as_ptr().cast(), bytes.len() as i32);
        if converted.cast_const().cast() == bytes.as_ptr() {
            bytes
        } else {
            core::ffi::CStr::from_ptr(converted).to_bytes()
        }
    }
}

/// Text in the server's encoding.
pub(crate) fn to_server(text: &str) -> Vec<u8> {
    // SAFETY: the conversion returns its input, or nul-terminated memory of the current context, copied at once.
    unsafe {
        let converted = pg_sys::pg_any_to_server(
            text.as_ptr().cast(),
            text.len() as i32,
            pg_sys::pg_enc::PG_UTF8 as i32,
        );
        if converted.cast_const().cast() == text.as_ptr() {
            text.as_bytes().to_vec()
        } else {
            CStr::from_ptr(converted).to_bytes().to_vec()
        }
    }
}

/// Text of the server (an identifier, say) in UTF-8.
///
/// # Safety
/// `name` is nul-terminated text in the server's encoding.
pub(crate) unsafe fn identifier(name: *const core::ffi::c_char) -> String {
    // SAFETY: the caller's promise; the conversion returns its input or nul-terminated memory.
    unsafe {
        let length = core::ffi::CStr::from_ptr(name).count_bytes() as i32;
        let converted = pg_sys::pg_server_to_any(name, length, pg_sys::pg_enc::PG_UTF8 as i32);
        core::ffi::CStr::from_ptr(converted)
            .to_string_lossy()
            .into_owned()
    }
}

/// Whether values of the type may travel in PostgreSQL's binary form: a built-in type (only those have the same number
/// everywhere, and binary forms name types by number; what initdb makes by SQL has not) with functions both ways. In a
/// transaction.
pub(crate) fn has_binary_form(type_oid: pg_sys::Oid) -> bool {
    if type_oid.to_u32() >= pg_sys::FirstGenbkiObjectId
        || names_objects(type_oid)
        || reads_back_less(type_oid)
    {
        return false;
    }
    // SAFETY: a catalog look-up, released again.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::TYPEOID as i32,
            pg_sys::Datum::from(type_oid),
        );
        if tuple.is_null() {
            return false;
        }
        let form: *const pg_sys::FormData_pg_type = pg_sys::GETSTRUCT(tuple).cast();
        let both = (*form).typsend != pg_sys::InvalidOid && (*form).typreceive != pg_sys::InvalidOid;
        pg_sys::ReleaseSysCache(tuple);
        both
    }
}

/// Types whose receive function refuses some of what their send function gives: vectors without members and, in recent
/// minor releases, queries of text search without terms.
fn reads_back_less(type_oid: pg_sys::Oid) -> bool {
    matches!(
        type_oid,
        pg_sys::INT2VECTOROID
            | pg_sys::OIDVECTOROID
            | pg_sys::INT2VECTORARRAYOID
            | pg_sys::OIDVECTORARRAYOID
            | pg_sys::TSQUERYOID
            | pg_sys::TSQUERYARRAYOID
    )
}

/// Types whose values are numbers of objects, which differ from server to server; as text they are names.
fn names_objects(type_oid: pg_sys::Oid) -> bool {
    matches!(
        type_oid,
        pg_sys::REGPROCOID
            | pg_sys::REGPROCEDUREOID
            | pg_sys::REGOPEROID
            | pg_sys::REGOPERATOROID
            | pg_sys::REGCLASSOID
            | pg_sys::REGCOLLATIONOID
            | pg_sys::REGTYPEOID
            | pg_sys::REGROLEOID
            | pg_sys::REGNAMESPACEOID
            | pg_sys::REGCONFIGOID
            | pg_sys::REGDICTIONARYOID
            | pg_sys::REGPROCARRAYOID
            | pg_sys::REGPROCEDUREARRAYOID
            | pg_sys::REGOPERARRAYOID
            | pg_sys::REGOPERATORARRAYOID
            | pg_sys::REGCLASSARRAYOID
            | pg_sys::REGCOLLATIONARRAYOID
            | pg_sys::REGTYPEARRAYOID
            | pg_sys::REGROLEARRAYOID
            | pg_sys::REGNAMESPACEARRAYOID
            | pg_sys::REGCONFIGARRAYOID
            | pg_sys::REGDICTIONARYARRAYOID
    )
}
