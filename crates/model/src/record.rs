//! Checksummed records for the files of the state directory.
//!
//! A record is, with all integers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | magic `pHA1` |
//! | 4 | length of the payload in bytes |
//! | 4 | CRC-32 (IEEE) of the length's four bytes and the payload |
//! | length | payload |
//!
//! An append-only file is a concatenation of records ([`encode`], [`decode_all`]); a file that is replaced as a
//! whole holds exactly one ([`seal`], [`unseal`]).

use thiserror::Error;

/// The largest payload in bytes (256 MiB): far above what the state directory holds, far below what a broken length
/// could make a reader allocate.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 28;
/// Bytes before each payload.
pub const HEADER_BYTES: usize = 12;
const MAGIC: [u8; 4] = *b"pHA1";

/// Why a payload cannot become a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a record can hold {max} bytes, this payload has {found}", max = MAX_PAYLOAD_BYTES)]
pub struct PayloadTooLarge {
    /// The payload's length in bytes.
    pub found: usize,
}

/// How reading an append-only file ended. Offsets are bytes from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadEnd {
    /// The file ends where its last record ends.
    Clean,
    /// From `offset` on there is the rest of an append that a crash interrupted: no whole record follows. Cut the file
    /// there before appending again. (Damage to the very last record looks the same: nothing can tell them apart.)
    TornTail {
        /// Where the interrupted record begins.
        offset: usize,
    },
    /// What stands at `offset` is no record and not the trace of an interrupted append either: the file was damaged or
    /// is something else. Records behind it may have been acknowledged, so that cutting would lose them.
    Corrupt {
        /// Where the damage begins.
        offset: usize,
    },
}

/// Why a one-record file is not to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UnsealError {
    /// It does not begin as a record.
    #[error("not a pg_ha state file")]
    NotARecord,
    /// It ends before its record does.
    #[error("the file is cut off: {wanted} bytes expected, {found} found")]
    Truncated {
        /// Bytes that the record should have, header included.
        wanted: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// The length in the header is above the limit.
    #[error("the header's length of {found} bytes is above the limit of {max}", max = MAX_PAYLOAD_BYTES)]
    LengthOutOfRange {
        /// The length that the header claims.
        found: usize,
    },
    /// The content does not match its checksum.
    #[error("the checksum does not match")]
    Checksum,
    /// Something follows the record.
    #[error("{found} bytes follow the end of the record")]
    TrailingBytes {
        /// How many.
        found: usize,
    },
}

/// Appends a record with this payload to `out`; on an error `out` is unchanged.
pub fn encode(payload: &[u8], out: &mut Vec<u8>) -> Result<(), PayloadTooLarge> {
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err(PayloadTooLarge { found: payload.len() });
    }
    let length = (payload.len() as u32).to_le_bytes();
    out.reserve(HEADER_BYTES + payload.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&length);
    out.extend_from_slice(&checksum(length, payload).to_le_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// All payloads of an append-only file from its beginning up to the first thing that is no whole record, and how the
/// reading ended.
pub fn decode_all(file: &[u8]) -> (Vec<&[u8]>, ReadEnd) {
    let mut payloads = Vec::new();
    let mut rest = file;
    while !rest.is_empty() {
        match first_record(rest) {
            Ok((payload, after)) => {
                payloads.push(payload);
                rest = after;
            }
            Err(_) => {
                let offset = file.len() - rest.len();
                let end = if looks_interrupted(rest) {
                    ReadEnd::TornTail { offset }
                } else {
                    ReadEnd::Corrupt { offset }
                };
                return (payloads, end);
            }
        }
    }
    (payloads, ReadEnd::Clean)
}

/// The content of a file that holds this payload as its only record.
pub fn seal(payload: &[u8]) -> Result<Vec<u8>, PayloadTooLarge> {
    let mut out = Vec::new();
    encode(payload, &mut out)?;
    Ok(out)
}

/// The payload of a file made by [`seal`].
pub fn unseal(file: &[u8]) -> Result<&[u8], UnsealError> {
    let (payload, after) = first_record(file)?;
    if !after.is_empty() {
        return Err(UnsealError::TrailingBytes { found: after.len() });
    }
    Ok(payload)
}

fn checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&length);
    crc.update(payload);
    crc.finalize()
}

/// The payload of the record that `bytes` begins with, and what follows it.
fn first_record(bytes: &[u8]) -> Result<(&[u8], &[u8]), UnsealError> {
    let truncated = |wanted| UnsealError::Truncated {
        wanted,
        found: bytes.len(),
    };
    let seen = bytes.len().min(MAGIC.len());
    if bytes.get(..seen) != MAGIC.get(..seen) {
        return Err(UnsealError::NotARecord);
    }
    let after_magic = bytes.get(MAGIC.len()..).ok_or(truncated(HEADER_BYTES))?;
    let (&length, after_length) = after_magic
        .split_first_chunk::<4>()
        .ok_or(truncated(HEADER_BYTES))?;
    let (&crc, body) = after_length
        .split_first_chunk::<4>()
        .ok_or(truncated(HEADER_BYTES))?;
    let payload_bytes = u32::from_le_bytes(length) as usize;
    if payload_bytes > MAX_PAYLOAD_BYTES {
        return Err(UnsealError::LengthOutOfRange { found: payload_bytes });
    }
    let (payload, after) = body
        .split_at_checked(payload_bytes)
        .ok_or(truncated(HEADER_BYTES + payload_bytes))?;
    if checksum(length, payload) != u32::from_le_bytes(crc) {
        return Err(UnsealError::Checksum);
    }
    Ok((payload, after))
}

/// Whether `tail`, which does not begin with a whole record, is what a crash in the middle of an append leaves: some
/// of the record's bytes, or (where the file system had grown the file before it wrote) zeros, and nothing whole
/// behind them.
fn looks_interrupted(tail: &[u8]) -> bool {
    if tail.iter().all(|&byte| byte == 0) {
        return true;
    }
    let seen = tail.len().min(MAGIC.len());
    tail.get(..seen) == MAGIC.get(..seen) && !whole_record_within(tail.get(1..).unwrap_or_default())
}

fn whole_record_within(bytes: &[u8]) -> bool {
    bytes
        .windows(MAGIC.len())
        .enumerate()
        .filter(|(_, window)| *window == MAGIC)
        .any(|(at, _)| bytes.get(at..).is_some_and(|from| first_record(from).is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file_of(payloads: &[Vec<u8>]) -> Vec<u8> {
        let mut file = Vec::new();
        for payload in payloads {
            encode(payload, &mut file).unwrap();
        }
        file
    }

    #[test]
    fn the_layout_is_fixed() {
        assert_eq!(seal(b"123").unwrap(), b"pHA1\x03\0\0\0\x23\x7F\x8D\xDB123");
    }

    #[test]
    fn sealed_files_are_checked() {
        let file = seal(b"identity").unwrap();
        assert_eq!(unseal(&file), Ok(&b"identity"[..]));
        assert_eq!(unseal(b""), Err(UnsealError::Truncated { wanted: 12, found: 0 }));
        assert_eq!(
            unseal(&file[..15]),
            Err(UnsealError::Truncated {
                wanted: 20,
                found: 15
            })
        );
        assert_eq!(unseal(b"{\"node\": 1}.."), Err(UnsealError::NotARecord));
        assert_eq!(
            unseal(&[&file[..], b"x"].concat()),
            Err(UnsealError::TrailingBytes { found: 1 })
        );
        let mut huge = file.clone();
        huge[7] = 0xFF;
        assert!(matches!(unseal(&huge), Err(UnsealError::LengthOutOfRange { .. })));
        let mut flipped = file;
        flipped[14] ^= 1;
        assert_eq!(unseal(&flipped), Err(UnsealError::Checksum));
    }

    #[test]
    fn zeros_behind_the_last_record_are_a_torn_tail() {
        let mut file = file_of(&[b"one".to_vec(), vec![]]);
        let whole = file.len();
        file.extend_from_slice(&[0; 40]);
        assert_eq!(
            decode_all(&file),
            (vec![&b"one"[..], b""], ReadEnd::TornTail { offset: whole })
        );
    }

    #[test]
    fn a_broken_length_does_not_hide_what_follows() {
        let mut file = file_of(&[b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]);
        let second = 15;
        file[second + 6] = 0x10; // claims a megabyte
        assert_eq!(
            decode_all(&file),
            (vec![&b"one"[..]], ReadEnd::Corrupt { offset: second })
        );
    }

    #[test]
    fn foreign_bytes_are_corrupt() {
        assert_eq!(decode_all(b"hello"), (vec![], ReadEnd::Corrupt { offset: 0 }));
        assert_eq!(decode_all(b""), (vec![], ReadEnd::Clean));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whole_files_read_back(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let file = file_of(&payloads);
            let (read, end) = decode_all(&file);
            prop_assert_eq!(end, ReadEnd::Clean);
            prop_assert_eq!(read, payloads.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }

        #[test]
        fn a_cut_at_any_byte_loses_only_the_cut_record(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let file = file_of(&payloads);
            let cut = cut.index(file.len());
            let mut whole = 0;
            let mut bytes = 0;
            for payload in &payloads {
                if bytes + HEADER_BYTES + payload.len() > cut {
                    break;
                }
                bytes += HEADER_BYTES + payload.len();
                whole += 1;
            }
            let (read, end) = decode_all(&file[..cut]);
            prop_assert_eq!(read.len(), whole);
            let expected = if bytes == cut { ReadEnd::Clean } else { ReadEnd::TornTail { offset: bytes } };
            prop_assert_eq!(end, expected);
        }

        #[test]
        fn a_flipped_bit_never_passes(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..8),
            at in any::<prop::sample::Index>(),
            bit in 0..8u8,
        ) {
            let mut file = file_of(&payloads);
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
            let (read, end) = decode_all(&file);
            prop_assert_ne!(end, ReadEnd::Clean);
            prop_assert!(read.len() < payloads.len());
            prop_assert!(read.iter().zip(&payloads).all(|(read, written)| *read == written.as_slice()));
        }

        #[test]
        fn any_bytes_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_all(&bytes);
            let _ = unseal(&bytes);
        }
    }
}
