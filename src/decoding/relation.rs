//! What a decoding session knows of one table.

use super::Change;
use crate::postgres::row_filter::RowFilter;
use crate::postgres::values::Plain;

/// A table as it is sent: valid until the relation cache says that it changed.
pub(crate) struct Published {
    /// Its number in the stream: the provider's oid.
    pub(crate) id: u32,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// 'd', 'i', 'f' or 'n', as in pg_class.relreplident.
    pub(crate) replica_identity: u8,
    /// Old rows are complete, not just keys.
    pub(crate) full: bool,
    pub(crate) columns: Vec<Column>,
    pub(crate) membership: Membership,
    pub(crate) filter: Option<RowFilter>,
    /// The partitioned tables above it, by oid: what is known here changes with them.
    pub(crate) above: Vec<u32>,
    /// Tells this description from any other in the session; 0: it has no number yet.
    pub(crate) number: u64,
    /// As of when the subscriber has been told of it in this session, see [`super::streamed::Streams::era`]; 0: never.
    pub(crate) announced: u64,
    /// It has been said that its updates and deletes cannot be sent.
    pub(crate) warned: bool,
    /// For a table whose name stands for others too: what tells this description from another under the same number.
    pub(crate) shape: Option<u64>,
}

impl Published {
    /// Whether its sets send this kind of change, and the change holds what is needed to find the row again.
    pub(crate) fn lets_through(&self, change: Change, has_old: bool) -> bool {
        match change {
            Change::Insert => self.membership.insert,
            Change::Update => self.membership.update && self.columns.iter().any(|column| column.key),
            Change::Delete => self.membership.delete && has_old,
        }
    }

    /// Says, once per description of the table, that updates and deletes cannot be sent although its sets want them.
    pub(crate) fn warn_of_lost_identity(&mut self, change: Change) {
        let wanted = match change {
            Change::Insert => false,
            Change::Update => self.membership.update,
            Change::Delete => self.membership.delete,
        };
        if wanted && !self.warned {
            self.warned = true;
            pgrx::warning!(
                "pg_ha cannot replicate updates and deletes of table {}.{}: it has no primary key and no replica \
                 identity any more",
                self.namespace,
                self.name
            );
        }
    }

    /// How many columns a key row has.
    pub(crate) fn key_columns(&self) -> usize {
        self.columns.iter().filter(|column| column.key).count()
    }
}

pub(crate) struct Column {
    /// Place in the provider's tuple descriptor, from 0.
    pub(crate) index: usize,
    pub(crate) name: String,
    pub(crate) type_oid: u32,
    /// Schema and name.
    pub(crate) type_name: (String, String),
    pub(crate) typmod: i32,
    pub(crate) key: bool,
    pub(crate) varlena: bool,
    pub(crate) form: ColumnForm,
}

/// How a column's values are written.
#[derive(Clone, Copy)]
pub(crate) enum ColumnForm {
    Plain(Plain),
    /// The type's send function.
    Binary(pgrx::pg_sys::Oid),
    /// The type's output function.
    Text(pgrx::pg_sys::Oid),
}

/// Which changes the subscribed replication sets let through; all false for a table in none of them.
#[derive(Default, Clone, Copy)]
pub(crate) struct Membership {
    pub(crate) insert: bool,
    pub(crate) update: bool,
    pub(crate) delete: bool,
    pub(crate) truncate: bool,
}
