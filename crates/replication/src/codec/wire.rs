//! Reading and writing the primitive forms.

use pg_ha_model::{Lsn, NodeId};

use super::MAX_BODY_BYTES;
use super::error::{EncodeError, Fault};

/// Reads a body from its beginning; never beyond its end, never allocating.
#[derive(Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (chunk, rest) = self.rest.split_first_chunk::<N>().ok_or(Fault::UnexpectedEnd)?;
        self.rest = rest;
        Ok(*chunk)
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Fault::UnexpectedEnd)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Result<u8, Fault> {
        let (&byte, rest) = self.rest.split_first().ok_or(Fault::UnexpectedEnd)?;
        self.rest = rest;
        Ok(byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Fault> {
        self.chunk().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.chunk().map(u32::from_le_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, Fault> {
        self.chunk().map(i32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        self.chunk().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, Fault> {
        self.chunk().map(i64::from_le_bytes)
    }

    pub(super) fn lsn(&mut self) -> Result<Lsn, Fault> {
        self.u64().map(Lsn)
    }

    pub(super) fn node_id(&mut self) -> Result<NodeId, Fault> {
        Ok(NodeId::new(u32::from(self.u16()?))?)
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u32, Fault> {
        let first = self.u8()?;
        if first < 0x80 {
            return Ok(u32::from(first));
        }
        self.long_varint(first)
    }

    fn long_varint(&mut self, first: u8) -> Result<u32, Fault> {
        let mut value = u64::from(first & 0x7F);
        for shift in [7, 14, 21, 28] {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                // A last group of zero would be a longer spelling of a shorter number.
                let shortest = byte != 0;
                return u32::try_from(value)
                    .ok()
                    .filter(|_| shortest)
                    .ok_or(Fault::Varint);
            }
        }
        Err(Fault::Varint)
    }

    #[inline]
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Fault> {
        let length = self.varint()?;
        self.take(length as usize)
    }

    pub(super) fn string(&mut self) -> Result<&'a str, Fault> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Fault::NotUtf8)
    }
}

#[inline]
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), EncodeError> {
    put_count(out, bytes.len())?;
    out.extend_from_slice(bytes);
    Ok(())
}

pub(super) fn put_string(out: &mut Vec<u8>, text: &str) -> Result<(), EncodeError> {
    put_bytes(out, text.as_bytes())
}

/// A length or count; above the body limit the message cannot fit anyway.
pub(super) fn put_count(out: &mut Vec<u8>, count: usize) -> Result<(), EncodeError> {
    if count > MAX_BODY_BYTES {
        return Err(EncodeError::BodyTooLong);
    }
    put_varint(out, count as u32);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn varints_have_one_spelling() {
        for wrong in [
            &[0x80, 0][..],
            &[0xFF, 0x80, 0],
            &[0xFF; 6],
            &[0x80, 0x80, 0x80, 0x80, 0x10],
        ] {
            assert_eq!(Reader::new(wrong).varint(), Err(Fault::Varint), "{wrong:?}");
        }
        assert_eq!(Reader::new(&[0x80]).varint(), Err(Fault::UnexpectedEnd));
        assert_eq!(
            Reader::new(&[0xFF, 0xFF, 0xFF, 0xFF, 0x0F]).varint(),
            Ok(u32::MAX)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn varint_round_trip(value in any::<u32>(), shift in 0..32u32) {
            let mut out = Vec::new();
            put_varint(&mut out, value >> shift);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.varint(), Ok(value >> shift));
            prop_assert!(reader.rest().is_empty());
        }
    }
}
