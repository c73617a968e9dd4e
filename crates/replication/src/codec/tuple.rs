//! Rows in the stream.

use std::fmt;

use super::MAX_COLUMNS;
use super::error::Fault;
use super::wire::Reader;

/// The codes of the column states.
pub(super) mod state {
    pub(in super::super) const NULL: u8 = 0;
    pub(in super::super) const UNCHANGED: u8 = 1;
    pub(in super::super) const PLAIN: u8 = 2;
    pub(in super::super) const BINARY: u8 = 3;
    pub(in super::super) const TEXT: u8 = 4;
}

/// One column of a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column<'a> {
    /// SQL NULL.
    Null,
    /// The value is stored out of line, was not changed and is not sent: keep what is there.
    Unchanged,
    /// pg_ha's own portable form, see [`super::plain`]: the same on every server version.
    Plain(&'a [u8]),
    /// What the type's send function gives: between servers of one major version only.
    Binary(&'a [u8]),
    /// What the type's output function gives under pg_ha's fixed session settings.
    Text(&'a [u8]),
}

impl<'a> Column<'a> {
    /// The value's bytes, in whatever form; none for null and unchanged.
    pub fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Column::Null | Column::Unchanged => None,
            Column::Plain(bytes) | Column::Binary(bytes) | Column::Text(bytes) => Some(bytes),
        }
    }

    #[inline]
    fn read(reader: &mut Reader<'a>) -> Result<Column<'a>, Fault> {
        match reader.u8()? {
            state::NULL => Ok(Column::Null),
            state::UNCHANGED => Ok(Column::Unchanged),
            state::PLAIN => reader.bytes().map(Column::Plain),
            state::BINARY => reader.bytes().map(Column::Binary),
            state::TEXT => reader.bytes().map(Column::Text),
            found => Err(Fault::UnknownCode {
                field: "column state",
                found,
            }),
        }
    }
}

/// A row, borrowed from a frame and checked when it was decoded. Two tuples are equal if their columns are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    count: u16,
    bytes: &'a [u8],
}

impl<'a> Tuple<'a> {
    /// The number of columns, at most [`MAX_COLUMNS`].
    pub fn column_count(&self) -> u16 {
        self.count
    }

    /// The columns in the relation's order.
    #[inline]
    pub fn columns(&self) -> Columns<'a> {
        Columns {
            reader: Reader::new(self.bytes),
            left: self.count,
        }
    }

    /// The size in bytes as encoded, without the count.
    pub fn encoded_len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Tuple<'a>, Fault> {
        let count = reader.u16()?;
        if count > MAX_COLUMNS {
            return Err(Fault::TooManyColumns {
                found: u32::from(count),
            });
        }
        let start = reader.rest();
        for _ in 0..count {
            Column::read(reader)?;
        }
        let length = start.len() - reader.rest().len();
        Ok(Tuple {
            count,
            bytes: start.get(..length).unwrap_or_default(),
        })
    }
}

impl fmt::Debug for Tuple<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.columns()).finish()
    }
}

/// The columns of a [`Tuple`]. They were checked when the message was decoded, hence no errors here.
#[derive(Clone)]
pub struct Columns<'a> {
    reader: Reader<'a>,
    left: u16,
}

impl<'a> Iterator for Columns<'a> {
    type Item = Column<'a>;

    #[inline]
    fn next(&mut self) -> Option<Column<'a>> {
        self.left = self.left.checked_sub(1)?;
        Column::read(&mut self.reader).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Columns<'_> {}
