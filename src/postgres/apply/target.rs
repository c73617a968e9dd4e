//! How a remote table's columns map to a local table's, and how its rows are found there.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::rc::Rc;

use pg_ha_replication::codec::{self, ReplicaIdentity};
use pgrx::pg_sys;

use super::ApplyError;
use super::acting::{Acting, Actor, Operation, Rights};
use super::compose;
use crate::postgres::values::Plain;
use crate::postgres::{invalidation, values, version};

/// A table as the provider described it.
pub(crate) struct RemoteTable {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) full_identity: bool,
    pub(crate) columns: Vec<RemoteColumn>,
}

pub(crate) struct RemoteColumn {
    pub(crate) name: String,
    pub(crate) type_oid: pg_sys::Oid,
    pub(crate) type_name: String,
    pub(crate) typmod: i32,
    pub(crate) key: bool,
}

/// A local table that remote changes go to.
pub(crate) struct Target {
    /// Holds what functions keep between calls; deleted with the target.
    memory: pg_sys::MemoryContext,
    pub(crate) oid: pg_sys::Oid,
    /// Schema and name, for messages.
    pub(crate) name: String,
    /// For each remote column its local one.
    pub(crate) columns: Vec<LocalColumn>,
    /// Local columns (from 0) that the provider does not send and that have a default to be computed.
    pub(crate) defaulted: Vec<usize>,
    pub(crate) key: Key,
    /// Which of the remote columns a key row has, in order.
    pub(crate) key_columns: Vec<usize>,
    pub(crate) partitioned: bool,
    /// As whom its rows are changed, and with which rights.
    pub(super) actor: Actor,
    rights: Rights,
    /// What is sent, as partitions need it to be targets themselves.
    remote: Rc<RemoteTable>,
    partitions: RefCell<Partitions>,
}

/// The partitions of a target that were needed so far.
#[derive(Default)]
struct Partitions {
    /// As of when they are known: any change of any relation since then puts them all in doubt.
    generation: u64,
    known: HashMap<pg_sys::Oid, Rc<Target>>,
}

pub(crate) struct LocalColumn {
    /// Place in the local tuple descriptor, from 0.
    pub(crate) index: usize,
    pub(crate) name: String,
    /// The plain form can be taken as it is: same type, and no length to enforce.
    pub(crate) plain: Option<Plain>,
    pub(crate) typmod: i32,
    pub(super) output: pg_sys::Oid,
    /// In the target's memory.
    pub(crate) input: *mut pg_sys::FmgrInfo,
    pub(crate) receive: Option<*mut pg_sys::FmgrInfo>,
    pub(crate) io_param: pg_sys::Oid,
    /// For a local type that differs: how the provider's built-in type is read and turned into text.
    pub(super) foreign: Option<Foreign>,
}

/// A built-in type of the provider that is not, or not exactly, the local column's.
pub(super) struct Foreign {
    /// How it comes: plain,
    pub(super) plain: Option<Plain>,
    /// or binary.
    pub(super) receive: Option<*mut pg_sys::FmgrInfo>,
    pub(super) io_param: pg_sys::Oid,
    pub(super) output: pg_sys::Oid,
}

/// How rows are found.
pub(crate) enum Key {
    /// By a unique index: its oid, for each of its columns the place in the remote row, and as many scan keys (in the
    /// target's memory).
    Index {
        oid: pg_sys::Oid,
        columns: Vec<usize>,
        scan_keys: *mut pg_sys::ScanKeyData,
    },
    /// By comparing whole rows.
    Full,
    /// Not at all: only inserts and truncates can be applied.
    None,
}

impl Drop for Target {
    fn drop(&mut self) {
        // SAFETY: the context was made for this target alone, and no open table outlives its transaction.
        unsafe { pg_sys::MemoryContextDelete(self.memory) };
    }
}

impl RemoteTable {
    pub(crate) fn new(relation: &codec::Relation<'_>) -> RemoteTable {
        RemoteTable {
            namespace: relation.namespace.to_owned(),
            name: relation.name.to_owned(),
            full_identity: relation.replica_identity == ReplicaIdentity::Full,
            columns: relation
                .columns
                .iter()
                .map(|column| RemoteColumn {
                    name: column.name.to_owned(),
                    type_oid: pg_sys::Oid::from_u32(column.type_oid),
                    type_name: format!("{}.{}", column.type_namespace, column.type_name),
                    typmod: column.typmod,
                    key: column.is_key(),
                })
                .collect(),
        }
    }

    pub(crate) fn qualified_name(&self) -> String {
        pgrx::spi::quote_qualified_identifier(&self.namespace, &self.name)
    }
}

impl Target {
    /// Finds the local table by name and maps its columns. In a transaction; keeps no lock beyond it.
    pub(crate) fn resolve(remote: &Rc<RemoteTable>) -> Result<Target, ApplyError> {
        let name = remote.qualified_name();
        let missing = || ApplyError::MissingTable(remote.qualified_name());
        let schema = CString::new(remote.namespace.as_str()).map_err(|_| missing())?;
        let table = CString::new(remote.name.as_str()).map_err(|_| missing())?;
        // SAFETY: catalog look-ups; the relation is opened with the lock that changes take and closed before return.
        unsafe {
            let namespace = pg_sys::get_namespace_oid(schema.as_ptr(), true);
            let oid = if namespace == pg_sys::InvalidOid {
                pg_sys::InvalidOid
            } else {
                pg_sys::get_relname_relid(table.as_ptr(), namespace)
            };
            if oid == pg_sys::InvalidOid {
                return Err(missing());
            }
            let relation = pg_sys::try_table_open(oid, pg_sys::RowExclusiveLock as i32);
            if relation.is_null() {
                return Err(missing());
            }
            let target = Self::of(relation, name, remote);
            pg_sys::table_close(relation, pg_sys::NoLock as i32);
            target
        }
    }

    /// # Safety
    /// `relation` is open and locked.
    unsafe fn of(
        relation: pg_sys::Relation,
        name: String,
        remote: &Rc<RemoteTable>,
    ) -> Result<Target, ApplyError> {
        // SAFETY: the relation's descriptor is valid while it is open.
        unsafe {
            let form = &*(*relation).rd_rel;
            let partitioned = form.relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE;
            if !partitioned && form.relkind as u8 != pg_sys::RELKIND_RELATION {
                return Err(ApplyError::NotATable(name, kind_name(form.relkind as u8)));
            }
            let memory = pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"pg_ha target table".as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            );
            let actor = Actor::for_owner(form.relowner);
            let mut target = Target {
                memory,
                oid: (*relation).rd_id,
                name: name.clone(),
                columns: Vec::new(),
                defaulted: Vec::new(),
                key: Key::None,
                key_columns: (0..remote.columns.len())
                    .filter(|place| remote.columns[*place].key)
                    .collect(),
                partitioned,
                actor,
                rights: actor.rights((*relation).rd_id),
                remote: Rc::clone(remote),
                partitions: RefCell::default(),
            };
            let desc = (*relation).rd_att;
            let natts = (*desc).natts as usize;
            let mut columns = Vec::with_capacity(remote.columns.len());
            let mut sent = vec![false; natts];
            for column in &remote.columns {
                let index = (0..natts).find(|index| {
                    let attribute = version::attribute(desc, *index);
                    !attribute.attisdropped
                        && attribute.attgenerated == 0
                        && values::identifier(attribute.attname.data.as_ptr()) == column.name
                });
                let Some(index) = index else {
                    return Err(ApplyError::MissingColumn {
                        table: name,
                        column: column.name.clone(),
                    });
                };
                sent[index] = true;
                columns.push(LocalColumn::new(
                    version::attribute(desc, index),
                    index,
                    column,
                    &name,
                    memory,
                )?);
            }
            target.defaulted = (0..natts)
                .filter(|index| {
                    let attribute = version::attribute(desc, *index);
                    !sent[*index]
                        && !attribute.attisdropped
                        && attribute.attgenerated == 0
                        && (attribute.atthasdef || attribute.attidentity != 0)
                })
                .collect();
            target.key = key_of(relation, remote, &columns, memory);
            target.columns = columns;
            Ok(target)
        }
    }

    /// One of the table's partitions as a target of the same changes. In a transaction; locks the partition.
    pub(super) fn partition(&self, oid: pg_sys::Oid) -> Result<Rc<Target>, ApplyError> {
        // SAFETY: the partition was found by routing or in the catalog, and is closed before return.
        unsafe {
            let relation = pg_sys::table_open(oid, pg_sys::RowExclusiveLock as i32);
            // Taking the lock has told of every change.
            let generation = invalidation::generation();
            let known = {
                let mut partitions = self.partitions.borrow_mut();
                if partitions.generation != generation {
                    partitions.generation = generation;
                    partitions.known.clear();
                }
                partitions.known.get(&oid).cloned()
            };
            let target = match known {
                Some(target) => Ok(target),
                None => {
                    let form = &*(*relation).rd_rel;
                    let schema = pg_sys::get_namespace_name(form.relnamespace);
                    let schema = if schema.is_null() {
                        String::new()
                    } else {
                        values::identifier(schema)
                    };
                    let table = values::identifier(form.relname.data.as_ptr());
                    let name = pgrx::spi::quote_qualified_identifier(&schema, &table);
                    Self::of(relation, name, &self.remote).map(|target| {
                        let target = Rc::new(target);
                        let mut partitions = self.partitions.borrow_mut();
                        partitions.known.insert(oid, Rc::clone(&target));
                        target
                    })
                }
            };
            pg_sys::table_close(relation, pg_sys::NoLock as i32);
            target
        }
    }

    /// A value of a remote column as text, as the local column's type writes it; None is null.
    ///
    /// # Errors
    /// The value does not fit; what PostgreSQL raises comes as a panic.
    pub(crate) fn text_of(
        &self,
        place: usize,
        value: &codec::Column<'_>,
    ) -> Result<Option<String>, ApplyError> {
        let Some(column) = self.columns.get(place) else {
            return Ok(None);
        };
        let acting = self.act();
        // SAFETY: in a transaction, with a snapshot for functions that want one.
        let text = unsafe {
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            let text = compose::text_of(self, column, value);
            pg_sys::PopActiveSnapshot();
            text
        };
        acting.end();
        text
    }

    /// Whether the provider's type of a column is built in, with the same operators everywhere.
    pub(crate) fn key_is_built_in(&self, place: usize) -> bool {
        self.remote
            .columns
            .get(place)
            .is_some_and(|column| column.type_oid.to_u32() < pg_sys::FirstGenbkiObjectId)
    }

    /// The provider's table, quoted.
    pub(crate) fn remote_name(&self) -> String {
        self.remote.qualified_name()
    }

    pub(super) fn incomplete(&self, place: usize) -> ApplyError {
        let column = self.columns.get(place);
        ApplyError::Incomplete {
            table: self.name.clone(),
            column: column.map_or_else(String::new, |column| column.name.clone()),
        }
    }

    /// Whether the acting user may make this change.
    pub(crate) fn check(&self, operation: Operation) -> Result<(), ApplyError> {
        self.rights.check(self.actor, &self.name, operation)
    }

    /// Begins to act as whoever changes the table.
    pub(crate) fn act(&self) -> Acting {
        self.actor.begin()
    }

    pub(crate) fn no_key(&self) -> ApplyError {
        ApplyError::NoKey(self.name.clone())
    }
}

impl LocalColumn {
    /// # Safety
    /// In a transaction.
    unsafe fn new(
        attribute: &pg_sys::FormData_pg_attribute,
        index: usize,
        remote: &RemoteColumn,
        table: &str,
        memory: pg_sys::MemoryContext,
    ) -> Result<LocalColumn, ApplyError> {
        let local_type = attribute.atttypid;
        let (mut input, mut io_param) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
        // SAFETY: look-ups of an existing type; function descriptions live in the target's memory.
        unsafe {
            pg_sys::getTypeInputInfo(local_type, &mut input, &mut io_param);
            let input_call = function(input, memory);
            let (mut local_output, mut varlena) = (pg_sys::InvalidOid, false);
            pg_sys::getTypeOutputInfo(local_type, &mut local_output, &mut varlena);
            let same = local_type == remote.type_oid;
            // A length or precision that may not hold the value is enforced by way of text, so that an error can show
            // the value.
            let as_is = same && (attribute.atttypmod == -1 || attribute.atttypmod == remote.typmod);
            let binary = values::has_binary_form(remote.type_oid);
            let receive_call = |memory| {
                let (mut receive, mut io_param) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
                pg_sys::getTypeBinaryInputInfo(remote.type_oid, &mut receive, &mut io_param);
                (function(receive, memory), io_param)
            };
            let remote_plain = Plain::of(remote.type_oid);
            let foreign = match remote_plain {
                plain if !as_is && (plain.is_some() || binary) => {
                    if !same && !text_converts(local_type, remote.type_oid) {
                        return Err(ApplyError::TypeMismatch {
                            table: table.to_owned(),
                            column: remote.name.clone(),
                            local: format_type(local_type),
                            remote: remote.type_name.clone(),
                        });
                    }
                    let (mut output, mut varlena) = (pg_sys::InvalidOid, false);
                    pg_sys::getTypeOutputInfo(remote.type_oid, &mut output, &mut varlena);
                    let receive = binary.then(|| receive_call(memory));
                    Some(Foreign {
                        plain,
                        receive: receive.map(|(function, _)| function),
                        io_param: receive.map_or(pg_sys::InvalidOid, |(_, io_param)| io_param),
                        output,
                    })
                }
                _ => None,
            };
            Ok(LocalColumn {
                index,
                name: remote.name.clone(),
                plain: if as_is { remote_plain } else { None },
                typmod: attribute.atttypmod,
                output: local_output,
                input: input_call,
                receive: (as_is && binary).then(|| receive_call(memory).0),
                io_param,
                foreign,
            })
        }
    }
}

/// A function, ready to be called any number of times.
///
/// # Safety
/// The function exists.
unsafe fn function(oid: pg_sys::Oid, memory: pg_sys::MemoryContext) -> *mut pg_sys::FmgrInfo {
    // SAFETY: allocated and filled in the target's memory, where the function may keep things of its own.
    unsafe {
        let call = pg_sys::MemoryContextAllocZero(memory, core::mem::size_of::<pg_sys::FmgrInfo>())
            .cast::<pg_sys::FmgrInfo>();
        pg_sys::fmgr_info_cxt(oid, call, memory);
        call
    }
}

/// Whether values of one built-in type can be read by another's input function without surprise: the same category,
/// or text on the receiving side.
///
/// # Safety
/// Both types exist.
unsafe fn text_converts(local: pg_sys::Oid, remote: pg_sys::Oid) -> bool {
    let category = |type_oid| {
        let (mut category, mut preferred) = (0, false);
        // SAFETY: a look-up of an existing type.
        unsafe { pg_sys::get_type_category_preferred(type_oid, &mut category, &mut preferred) };
        category as u8
    };
    let local = category(local);
    local == b'S' || local == category(remote)
}

/// # Safety
/// The type exists.
unsafe fn format_type(type_oid: pg_sys::Oid) -> String {
    // SAFETY: palloc'd, nul-terminated text.
    unsafe {
        core::ffi::CStr::from_ptr(pg_sys::format_type_be(type_oid))
            .to_string_lossy()
            .into_owned()
    }
}

/// How rows of the table are found with what the provider sends of them: by the replica identity index, else by the
/// primary key, else by any other unique index of key columns alone; the two nodes need not have chosen the same one.
///
/// # Safety
/// `relation` is open and locked.
unsafe fn key_of(
    relation: pg_sys::Relation,
    remote: &RemoteTable,
    columns: &[LocalColumn],
    memory: pg_sys::MemoryContext,
) -> Key {
    // SAFETY: the relation's own list of indexes, a copy that is freed again.
    unsafe {
        let mut candidates = vec![
            pg_sys::RelationGetReplicaIndex(relation),
            version::primary_key_index(relation),
        ];
        // Whole rows may have nulls, of which such an index can have many.
        if !remote.full_identity {
            let list = pg_sys::RelationGetIndexList(relation);
            let count = if list.is_null() { 0 } else { (*list).length };
            candidates.extend((0..count).map(|place| pg_sys::list_nth_oid(list, place)));
            pg_sys::list_free(list);
        }
        candidates.retain(|oid| *oid != pg_sys::InvalidOid);
        let found = candidates
            .into_iter()
            .find_map(|oid| key_by_index(oid, remote, columns, memory));
        found.unwrap_or(if remote.full_identity {
            Key::Full
        } else {
            Key::None
        })
    }
}

/// # Safety
/// The index belongs to a relation that is open and locked.
unsafe fn key_by_index(
    oid: pg_sys::Oid,
    remote: &RemoteTable,
    columns: &[LocalColumn],
    memory: pg_sys::MemoryContext,
) -> Option<Key> {
    // SAFETY: index metadata is read while the index is open; operators come from its own operator families.
    unsafe {
        let index = pg_sys::index_open(oid, pg_sys::AccessShareLock as i32);
        let form = &*(*index).rd_index;
        let usable = form.indisunique
            && form.indimmediate
            && form.indisvalid
            // Of another access method's strategies it is not known which one is equality.
            && (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID
            && pg_sys::RelationGetIndexPredicate(index).is_null();
        let count = if usable { form.indnkeyatts as usize } else { 0 };
        let attributes = form.indkey.values.as_slice(count);
        // The functions of the keys may keep things of their own in the context that is current here.
        let previous = pg_sys::MemoryContextSwitchTo(memory);
        let scan_keys: *mut pg_sys::ScanKeyData =
            pg_sys::palloc0(count.max(1) * core::mem::size_of::<pg_sys::ScanKeyData>()).cast();
        let mut places = Vec::with_capacity(count);
        for (position, attribute) in attributes.iter().enumerate() {
            let place = columns
                .iter()
                .position(|column| column.index + 1 == *attribute as usize)
                .filter(|place| remote.full_identity || remote.columns[*place].key);
            let input_type = *(*index).rd_opcintype.add(position);
            let operator = pg_sys::get_opfamily_member(
                *(*index).rd_opfamily.add(position),
                input_type,
                input_type,
                pg_sys::BTEqualStrategyNumber as i16,
            );
            let (Some(place), true) = (place, operator != pg_sys::InvalidOid) else {
                break;
            };
            pg_sys::ScanKeyEntryInitialize(
                scan_keys.add(position),
                0,
                position as i16 + 1,
                pg_sys::BTEqualStrategyNumber as u16,
                pg_sys::InvalidOid,
                *(*index).rd_indcollation.add(position),
                pg_sys::get_opcode(operator),
                pg_sys::Datum::from(0),
            );
            places.push(place);
        }
        pg_sys::MemoryContextSwitchTo(previous);
        pg_sys::index_close(index, pg_sys::AccessShareLock as i32);
        (usable && places.len() == count).then_some(Key::Index {
            oid,
            columns: places,
            scan_keys,
        })
    }
}

fn kind_name(kind: u8) -> &'static str {
    match kind {
        pg_sys::RELKIND_VIEW => "view",
        pg_sys::RELKIND_MATVIEW => "materialized view",
        pg_sys::RELKIND_FOREIGN_TABLE => "foreign table",
        pg_sys::RELKIND_SEQUENCE => "sequence",
        pg_sys::RELKIND_PARTITIONED_TABLE => "partitioned table",
        pg_sys::RELKIND_INDEX | pg_sys::RELKIND_PARTITIONED_INDEX => "index",
        pg_sys::RELKIND_COMPOSITE_TYPE => "composite type",
        _ => "relation of another kind",
    }
}
