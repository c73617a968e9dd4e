//! What is sent of a table: read from the catalogs as of the position in the WAL that is being decoded.
//!
//! A partition is sent under the name of the topmost table above it that is, with its partitions, in one of the
//! wanted sets. All sets that a change can come by count together: what one of them lets through is sent.

use std::ffi::{CStr, CString};
use std::hash::{DefaultHasher, Hash, Hasher};

use pgrx::pg_sys;

use super::row_filter::RowFilter;
use super::{values, version};
use crate::decoding::relation::{Column, Membership, Published};
use crate::decoding::{ColumnForm, Session};

// Exported by the server and not bound by pgrx.
unsafe extern "C-unwind" {
    pub(super) fn get_partition_ancestors(relation: pg_sys::Oid) -> *mut pg_sys::List;
}

/// What the changes of a table need.
///
/// # Safety
/// `relation` is open, under the historic snapshot.
pub(super) unsafe fn describe(relation: pg_sys::Relation, session: &Session) -> Published {
    // SAFETY: the caller's promise; the table above exists as of the snapshot, and is closed again.
    unsafe {
        let found = Found::look_up(relation, session.replication_sets());
        let root = if found.sent_as == (*relation).rd_id {
            core::ptr::null_mut()
        } else {
            pg_sys::RelationIdGetRelation(found.sent_as)
        };
        if root.is_null() {
            return published(relation, relation, found, session);
        }
        let published = published(relation, root, found, session);
        pg_sys::RelationClose(root);
        published
    }
}

/// A table under its own name whatever its changes are sent as: for truncating it alone.
///
/// # Safety
/// As [`describe`].
pub(super) unsafe fn describe_alone(relation: pg_sys::Relation, session: &Session) -> Published {
    // SAFETY: the caller's promise.
    unsafe {
        let mut found = Found::look_up(relation, session.replication_sets());
        if found.sent_as == (*relation).rd_id {
            found.above.clear();
        }
        published(relation, relation, found, session)
    }
}

/// What the sets say of a table.
struct Found {
    sent_as: pg_sys::Oid,
    /// The tables above, from the nearest to the one that it is sent as.
    above: Vec<pg_sys::Oid>,
    entries: Vec<Entry>,
}

/// A table's place in a wanted set.
struct Entry {
    actions: Membership,
    include_partitions: bool,
    /// None: all columns.
    columns: Option<Vec<String>>,
    filter: Option<CString>,
}

impl Found {
    /// # Safety
    /// As [`describe`].
    unsafe fn look_up(relation: pg_sys::Relation, wanted: &[String]) -> Found {
        // SAFETY: catalog look-ups under the historic snapshot.
        unsafe {
            let oid = (*relation).rd_id;
            let form = &*(*relation).rd_rel;
            let mut found = Found {
                sent_as: oid,
                above: Vec::new(),
                entries: Vec::new(),
            };
            let Some(catalog) = Catalog::find() else {
                return found;
            };
            let partitioned = form.relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE;
            let entries = catalog.entries(oid, wanted).into_iter();
            // A partitioned table without its partitions has no rows.
            found
                .entries
                .extend(entries.filter(|entry| entry.include_partitions || !partitioned));
            if form.relispartition {
                let list = pg_sys::ffi::pg_guard_ffi_boundary(|| get_partition_ancestors(oid));
                let count = if list.is_null() { 0 } else { (*list).length };
                for place in 0..count {
                    let ancestor = pg_sys::list_nth_oid(list, place);
                    found.above.push(ancestor);
                    let before = found.entries.len();
                    let entries = catalog.entries(ancestor, wanted).into_iter();
                    found
                        .entries
                        .extend(entries.filter(|entry| entry.include_partitions));
                    if found.entries.len() > before {
                        found.sent_as = ancestor;
                    }
                }
            }
            found
        }
    }
}

/// Composes what is known of `relation` when it is sent as `named`.
///
/// # Safety
/// Both are open, under the historic snapshot.
unsafe fn published(
    relation: pg_sys::Relation,
    named: pg_sys::Relation,
    found: Found,
    session: &Session,
) -> Published {
    // SAFETY: the relations' own descriptors and catalogs, read with the server's functions.
    unsafe {
        let (desc, order) = ((*relation).rd_att, (*named).rd_att);
        let identity = (*(*relation).rd_rel).relreplident as u8;
        let full = identity == pg_sys::REPLICA_IDENTITY_FULL;
        let key = pg_sys::RelationGetIdentityKeyBitmap(relation);
        let entries = &found.entries;
        let any = |action: fn(&Membership) -> bool| entries.iter().any(|entry| action(&entry.actions));
        let membership = Membership {
            insert: any(|actions| actions.insert),
            update: any(|actions| actions.update),
            delete: any(|actions| actions.delete),
            truncate: any(|actions| actions.truncate),
        };
        let all_columns = entries.iter().any(|entry| entry.columns.is_none());
        let listed = |name: &String| {
            entries
                .iter()
                .flat_map(|entry| &entry.columns)
                .any(|list| list.contains(name))
        };
        // Without its key a row would not be found: a column that became part of it is sent though no list has it.
        let needs_key = membership.update || membership.delete;
        let mut columns = Vec::with_capacity((*order).natts as usize);
        for place in 0..(*order).natts as usize {
            let wanted = version::attribute(order, place);
            if wanted.attisdropped || wanted.attgenerated != 0 {
                continue;
            }
            let index = if named == relation {
                place
            } else {
                let name = CStr::from_ptr(wanted.attname.data.as_ptr());
                match column_named(desc, name) {
                    Some(index) => index,
                    None => continue,
                }
            };
            let attribute = version::attribute(desc, index);
            let member = i32::from(attribute.attnum) - pg_sys::FirstLowInvalidHeapAttributeNumber;
            let key = full || pg_sys::bms_is_member(member, key);
            let name = values::identifier(attribute.attname.data.as_ptr());
            if !(all_columns || listed(&name) || key && needs_key) {
                continue;
            }
            columns.push(Column {
                index,
                name,
                type_oid: attribute.atttypid.to_u32(),
                type_name: type_name(attribute.atttypid),
                typmod: attribute.atttypmod,
                key,
                varlena: attribute.attlen == -1,
                form: column_form(attribute.atttypid, session.binary()),
            });
        }
        let form = &*(*named).rd_rel;
        let namespace = pg_sys::get_namespace_name(form.relnamespace);
        let mut published = Published {
            id: (*named).rd_id.to_u32(),
            namespace: if namespace.is_null() {
                String::new()
            } else {
                values::identifier(namespace)
            },
            name: values::identifier(form.relname.data.as_ptr()),
            replica_identity: identity,
            full,
            columns,
            membership,
            filter: RowFilter::prepare(relation, filters(entries)),
            above: found.above.iter().map(|oid| oid.to_u32()).collect(),
            announced: 0,
            number: 0,
            warned: false,
            shape: None,
        };
        if named != relation || form.relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE {
            published.shape = Some(shape(&published));
        }
        published
    }
}

/// A number for what the subscriber is told of a table that several are sent as.
fn shape(table: &Published) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&table.namespace, &table.name, table.replica_identity).hash(&mut hasher);
    for column in &table.columns {
        (&column.name, column.type_oid, column.typmod, column.key).hash(&mut hasher);
    }
    hasher.finish()
}

/// Per insert, update and delete: the filters of the sets that send it; None where one of them has no filter.
fn filters(entries: &[Entry]) -> [Option<Vec<CString>>; 3] {
    let of = |action: fn(&Membership) -> bool| -> Option<Vec<CString>> {
        let mut sending = entries.iter().filter(|entry| action(&entry.actions)).peekable();
        sending.peek()?;
        sending.map(|entry| entry.filter.clone()).collect()
    };
    [
        of(|actions| actions.insert),
        of(|actions| actions.update),
        of(|actions| actions.delete),
    ]
}

/// The place of a column, from 0.
///
/// # Safety
/// `desc` is a valid descriptor.
unsafe fn column_named(desc: pg_sys::TupleDesc, name: &CStr) -> Option<usize> {
    // SAFETY: the caller's promise; names are nul-terminated.
    unsafe {
        (0..(*desc).natts as usize).find(|index| {
            let attribute = version::attribute(desc, *index);
            !attribute.attisdropped && CStr::from_ptr(attribute.attname.data.as_ptr()) == name
        })
    }
}

/// Which form a type takes in this session.
///
/// # Safety
/// The type exists.
unsafe fn column_form(type_oid: pg_sys::Oid, binary: bool) -> ColumnForm {
    if let Some(plain) = values::Plain::of(type_oid) {
        return ColumnForm::Plain(plain);
    }
    let mut function = pg_sys::InvalidOid;
    let mut varlena = false;
    // SAFETY: catalog look-ups of an existing type.
    unsafe {
        if binary && values::has_binary_form(type_oid) {
            pg_sys::getTypeBinaryOutputInfo(type_oid, &mut function, &mut varlena);
            return ColumnForm::Binary(function);
        }
        pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut varlena);
    }
    ColumnForm::Text(function)
}

/// Schema and name of a type.
///
/// # Safety
/// In a transaction.
unsafe fn type_name(type_oid: pg_sys::Oid) -> (String, String) {
    // SAFETY: a syscache look-up, released again; names are nul-terminated.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::TYPEOID as i32,
            pg_sys::Datum::from(type_oid),
        );
        if tuple.is_null() {
            return (String::new(), String::new());
        }
        let form: *const pg_sys::FormData_pg_type = pg_sys::GETSTRUCT(tuple).cast();
        let name = values::identifier((*form).typname.data.as_ptr());
        let namespace = pg_sys::get_namespace_name((*form).typnamespace);
        let namespace = if namespace.is_null() {
            String::new()
        } else {
            values::identifier(namespace)
        };
        pg_sys::ReleaseSysCache(tuple);
        (namespace, name)
    }
}

/// The tables that hold the replication sets; declared as user catalogs, so that they can be read here.
struct Catalog {
    sets: pg_sys::Oid,
    members: pg_sys::Oid,
    members_index: pg_sys::Oid,
}

impl Catalog {
    /// None: the extension does not exist as of this position.
    ///
    /// # Safety
    /// In a decoding callback.
    unsafe fn find() -> Option<Catalog> {
        // SAFETY: catalog look-ups.
        unsafe {
            let schema = pg_sys::get_namespace_oid(c"ha".as_ptr(), true);
            let of = |name: &CStr| pg_sys::get_relname_relid(name.as_ptr(), schema);
            let catalog = Catalog {
                sets: of(c"replication_sets"),
                members: of(c"replication_set_tables"),
                members_index: of(c"replication_set_tables_pkey"),
            };
            let all = [schema, catalog.sets, catalog.members, catalog.members_index];
            (!all.contains(&pg_sys::InvalidOid)).then_some(catalog)
        }
    }

    /// The places of a table in the wanted sets.
    ///
    /// # Safety
    /// In a decoding callback.
    unsafe fn entries(&self, relation: pg_sys::Oid, wanted: &[String]) -> Vec<Entry> {
        let mut members = Vec::new();
        let mut entries = Vec::new();
        // SAFETY: catalog scans with the server's functions; every scan is ended and every relation closed.
        unsafe {
            scan(self.members, self.members_index, Some(relation), |row| {
                let entry = Entry {
                    actions: Membership::default(),
                    include_partitions: row.boolean(c"include_partitions"),
                    columns: row.names(c"columns"),
                    filter: row.text(c"row_filter"),
                };
                members.push((row.integer(c"set_id"), entry));
            });
            if members.is_empty() {
                return entries;
            }
            scan(self.sets, pg_sys::InvalidOid, None, |row| {
                let id = row.integer(c"set_id");
                let Some(place) = members.iter().position(|(set, _)| *set == id) else {
                    return;
                };
                let name = row.name(c"set_name");
                if wanted.contains(&name) {
                    let (_, mut entry) = members.swap_remove(place);
                    entry.actions = Membership {
                        insert: row.boolean(c"replicate_insert"),
                        update: row.boolean(c"replicate_update"),
                        delete: row.boolean(c"replicate_delete"),
                        truncate: row.boolean(c"replicate_truncate"),
                    };
                    entries.push(entry);
                }
            });
        }
        entries
    }
}

/// A row of a small catalog table, read column by column.
struct CatalogRow {
    tuple: pg_sys::HeapTuple,
    desc: pg_sys::TupleDesc,
}

impl CatalogRow {
    fn value(&self, column: &CStr) -> Option<pg_sys::Datum> {
        // SAFETY: the tuple belongs to the descriptor; the attribute number was found in it.
        unsafe {
            for index in 0..(*self.desc).natts as usize {
                let attribute = version::attribute(self.desc, index);
                if CStr::from_ptr(attribute.attname.data.as_ptr()) == column {
                    let mut null = true;
                    let datum = pg_sys::heap_getattr(self.tuple, index as i32 + 1, self.desc, &mut null);
                    return (!null).then_some(datum);
                }
            }
        }
        None
    }

    fn integer(&self, column: &CStr) -> i32 {
        self.value(column).map_or(0, |datum| datum.value() as i32)
    }

    fn boolean(&self, column: &CStr) -> bool {
        self.value(column).is_some_and(|datum| datum.value() as u8 != 0)
    }

    fn text(&self, column: &CStr) -> Option<CString> {
        // SAFETY: the column is of type text; the copy lives until the current memory context is reset.
        self.value(column)
            .map(|datum| unsafe { CStr::from_ptr(pg_sys::text_to_cstring(datum.cast_mut_ptr())).to_owned() })
    }

    /// The elements of a column of type text[], as identifiers.
    fn names(&self, column: &CStr) -> Option<Vec<String>> {
        let datum = self.value(column)?;
        let (mut elements, mut nulls, mut count) = (core::ptr::null_mut(), core::ptr::null_mut(), 0);
        // SAFETY: the array is detoasted, its elements are text; both live until the current memory context is reset.
        unsafe {
            pg_sys::deconstruct_array(
                pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast(),
                pg_sys::TEXTOID,
                -1,
                false,
                pg_sys::TYPALIGN_INT as core::ffi::c_char,
                &mut elements,
                &mut nulls,
                &mut count,
            );
            let names = (0..count as usize)
                .filter(|index| !*nulls.add(*index))
                .map(|index| {
                    let element: pg_sys::Datum = *elements.add(index);
                    values::identifier(pg_sys::text_to_cstring(element.cast_mut_ptr()))
                });
            Some(names.collect())
        }
    }

    fn name(&self, column: &CStr) -> String {
        // SAFETY: the column is of type name, whose datum points to a nul-terminated array.
        self.value(column).map_or_else(String::new, |datum| unsafe {
            values::identifier(datum.cast_mut_ptr::<pg_sys::NameData>().cast())
        })
    }
}

/// Scans a catalog table, by its index's first column (an oid) where a key is given.
///
/// # Safety
/// In a transaction; the relations exist.
unsafe fn scan(
    table: pg_sys::Oid,
    index: pg_sys::Oid,
    key: Option<pg_sys::Oid>,
    mut each: impl FnMut(CatalogRow),
) {
    // SAFETY: the server's own way to read catalogs under the current catalog snapshot.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
        let mut keys = [pg_sys::ScanKeyData::default()];
        if let Some(key) = key {
            pg_sys::ScanKeyInit(
                &mut keys[0],
                1,
                pg_sys::BTEqualStrategyNumber as u16,
                pg_sys::F_OIDEQ.into(),
                pg_sys::Datum::from(key),
            );
        }
        let count = i32::from(key.is_some());
        let scan = pg_sys::systable_beginscan(
            relation,
            index,
            key.is_some(),
            core::ptr::null_mut(),
            count,
            keys.as_mut_ptr(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            each(CatalogRow {
                tuple,
                desc: (*relation).rd_att,
            });
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
}
