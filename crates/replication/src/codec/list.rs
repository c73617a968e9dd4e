//! Lists inside messages: given as a slice by the writer, read from the frame by the reader, without allocation.

use std::fmt;

use pg_ha_model::{NodeId, PgTimestamp};

use super::error::{EncodeError, Fault};
use super::message::Seen;
use super::wire::{Reader, put_count};

/// What a [`List`] can hold: relation ids, nodes, positions of origins, relation columns.
pub trait ListItem<'a>: Copy + PartialEq + fmt::Debug {
    #[doc(hidden)]
    fn read(reader: &mut Reader<'a>) -> Result<Self, Fault>;
    #[doc(hidden)]
    fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError>;
}

/// Some items of a message. Make one with `List::from(&[…][..])`; a decoded one reads from the frame as it goes.
#[derive(Clone, Copy)]
pub struct List<'a, T> {
    source: Source<'a, T>,
}

#[derive(Clone, Copy)]
enum Source<'a, T> {
    Given(&'a [T]),
    /// `bytes` are `count` valid items: the decoder has read them once.
    Frame {
        count: usize,
        bytes: &'a [u8],
    },
}

impl<T> List<'_, T> {
    /// The list without items.
    pub const EMPTY: Self = List {
        source: Source::Given(&[]),
    };

    /// The number of items.
    pub fn len(&self) -> usize {
        match self.source {
            Source::Given(items) => items.len(),
            Source::Frame { count, .. } => count,
        }
    }

    /// Whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a, T: ListItem<'a>> List<'a, T> {
    /// The items in order.
    pub fn iter(&self) -> ListIter<'a, T> {
        match self.source {
            Source::Given(items) => ListIter {
                given: items.iter(),
                frame: Reader::new(&[]),
                left: items.len(),
            },
            Source::Frame { count, bytes } => ListIter {
                given: [].iter(),
                frame: Reader::new(bytes),
                left: count,
            },
        }
    }

    pub(super) fn read(reader: &mut Reader<'a>) -> Result<List<'a, T>, Fault> {
        let count = reader.varint()? as usize;
        let start = reader.rest();
        for _ in 0..count {
            T::read(reader)?;
        }
        let length = start.len() - reader.rest().len();
        Ok(List {
            source: Source::Frame {
                count,
                bytes: start.get(..length).unwrap_or_default(),
            },
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        put_count(out, self.len())?;
        self.iter().try_for_each(|item| item.write(out))
    }
}

impl<'a, T> From<&'a [T]> for List<'a, T> {
    fn from(items: &'a [T]) -> List<'a, T> {
        List {
            source: Source::Given(items),
        }
    }
}

impl<'a, T: ListItem<'a>> PartialEq for List<'a, T> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl<'a, T: ListItem<'a>> fmt::Debug for List<'a, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a, T: ListItem<'a>> IntoIterator for List<'a, T> {
    type Item = T;
    type IntoIter = ListIter<'a, T>;

    fn into_iter(self) -> ListIter<'a, T> {
        self.iter()
    }
}

/// The items of a [`List`].
#[derive(Clone)]
pub struct ListIter<'a, T> {
    given: std::slice::Iter<'a, T>,
    frame: Reader<'a>,
    left: usize,
}

impl<'a, T: ListItem<'a>> Iterator for ListIter<'a, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.left = self.left.checked_sub(1)?;
        match self.given.next() {
            Some(item) => Some(*item),
            None => T::read(&mut self.frame).ok(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<'a, T: ListItem<'a>> ExactSizeIterator for ListIter<'a, T> {}

impl<'a> ListItem<'a> for u32 {
    fn read(reader: &mut Reader<'a>) -> Result<u32, Fault> {
        reader.u32()
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.extend_from_slice(&self.to_le_bytes());
        Ok(())
    }
}

impl<'a> ListItem<'a> for NodeId {
    fn read(reader: &mut Reader<'a>) -> Result<NodeId, Fault> {
        reader.node_id()
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.extend_from_slice(&self.get().to_le_bytes());
        Ok(())
    }
}

impl<'a> ListItem<'a> for Seen {
    fn read(reader: &mut Reader<'a>) -> Result<Seen, Fault> {
        Ok(Seen {
            origin: reader.node_id()?,
            lsn: reader.lsn()?,
            timestamp: PgTimestamp(reader.i64()?),
        })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.extend_from_slice(&self.origin.get().to_le_bytes());
        out.extend_from_slice(&self.lsn.0.to_le_bytes());
        out.extend_from_slice(&self.timestamp.0.to_le_bytes());
        Ok(())
    }
}
