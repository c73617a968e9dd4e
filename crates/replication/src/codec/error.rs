//! What can be wrong with a frame, and with the use of the encoder.

use pg_ha_model::NodeIdError;
use thiserror::Error;

use super::{MAX_BODY_BYTES, MAX_COLUMNS};

/// Why a frame could not be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("change stream: {fault} in {message} at byte {offset} of the frame")]
pub struct CodecError {
    /// What is wrong.
    pub fault: Fault,
    /// The kind of message, e.g. `Insert`.
    pub message: &'static str,
    /// Where that message begins in the frame, in bytes.
    pub offset: usize,
}

/// What is wrong in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Fault {
    /// A length or count reaches beyond the end.
    #[error("unexpected end")]
    UnexpectedEnd,
    /// The body is longer than allowed.
    #[error("body of {length} bytes, above the limit of {max},", max = MAX_BODY_BYTES)]
    BodyTooLong {
        /// The length that the header claims, in bytes.
        length: usize,
    },
    /// A required message that this version does not know.
    #[error("unknown message tag 0x{tag:02X}")]
    UnknownTag {
        /// The tag.
        tag: u8,
    },
    /// The body goes on behind the message's last field.
    #[error("{count} left-over bytes")]
    LeftOver {
        /// How many bytes.
        count: usize,
    },
    /// A length or count is not in its shortest form, or above 2^32 - 1.
    #[error("malformed varint")]
    Varint,
    /// An identifier or other string is not UTF-8.
    #[error("string that is not UTF-8")]
    NotUtf8,
    /// A number that no node can have.
    #[error("invalid origin ({0})")]
    NodeId(#[from] NodeIdError),
    /// A byte that is none of the codes defined for its field.
    #[error("unknown {field} 0x{found:02X}")]
    UnknownCode {
        /// The field.
        field: &'static str,
        /// The byte.
        found: u8,
    },
    /// More columns than a PostgreSQL tuple can have.
    #[error("{found} columns, above the limit of {max},", max = MAX_COLUMNS)]
    TooManyColumns {
        /// The count that the message claims.
        found: u32,
    },
}

/// Why a message was not encoded. The encoder then holds what it held before that message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// The message would be longer than allowed.
    #[error("a change stream message can have {max} bytes, this one has more", max = MAX_BODY_BYTES)]
    BodyTooLong,
    /// More columns than a PostgreSQL tuple can have.
    #[error("a tuple can have {max} columns, this one has {found}", max = MAX_COLUMNS)]
    TooManyColumns {
        /// The number asked for.
        found: usize,
    },
    /// The number of columns written is not the number announced, or a tuple is missing.
    #[error("the columns written are not the columns announced")]
    ColumnCount,
    /// A message was begun before the previous one was finished, or finished without being begun. Both are discarded.
    #[error("a message was begun before the previous one was finished, or finished without being begun")]
    Unfinished,
}
