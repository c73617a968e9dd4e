//! The portable form of the common built-in types ([`super::Column::Plain`]): the same bytes on every server version
//! and architecture, close to what PostgreSQL has in memory, so that neither end calls a type's functions.
//!
//! | types | bytes |
//! |---|---|
//! | bool | 1: 0 or 1 |
//! | int2 | 2, little-endian |
//! | int4 | 4, little-endian |
//! | int8 | 8, little-endian |
//! | oid | 4, little-endian, unsigned |
//! | float4, float8 | 4, 8: the IEEE 754 bits, little-endian |
//! | date | 4: days since 2000-01-01, little-endian |
//! | time | 8: microseconds since midnight, little-endian |
//! | timestamp, timestamptz | 8: microseconds since 2000-01-01 (UTC), little-endian; the extremes are the infinities |
//! | money | 8: the smallest units of the currency, little-endian |
//! | uuid | 16, in the order in which it is printed |
//! | text, varchar, bpchar, name, json | the characters, in the stream's encoding; bpchar with its padding, name without |
//! | bytea | the bytes |
//!
//! A domain has the form of its base type. Any other type (numeric, jsonb, arrays, enums, …) is sent binary or as
//! text. The functions below read the forms of fixed length.

use thiserror::Error;

/// A plain value whose length is not that of its type, or a bool other than 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("invalid plain value for {type_name}: {found} bytes")]
pub struct PlainError {
    /// The type that was expected.
    pub type_name: &'static str,
    /// The value's length in bytes.
    pub found: usize,
}

fn fixed<const N: usize>(bytes: &[u8], type_name: &'static str) -> Result<[u8; N], PlainError> {
    <[u8; N]>::try_from(bytes).map_err(|_| PlainError {
        type_name,
        found: bytes.len(),
    })
}

/// Reads a bool.
pub fn to_bool(bytes: &[u8]) -> Result<bool, PlainError> {
    match bytes {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(PlainError {
            type_name: "bool",
            found: bytes.len(),
        }),
    }
}

/// Reads an int2.
pub fn to_i16(bytes: &[u8]) -> Result<i16, PlainError> {
    fixed(bytes, "int2").map(i16::from_le_bytes)
}

/// Reads an int4 or date.
pub fn to_i32(bytes: &[u8]) -> Result<i32, PlainError> {
    fixed(bytes, "int4").map(i32::from_le_bytes)
}

/// Reads an oid.
pub fn to_u32(bytes: &[u8]) -> Result<u32, PlainError> {
    fixed(bytes, "oid").map(u32::from_le_bytes)
}

/// Reads an int8, time, timestamp, timestamptz or money.
pub fn to_i64(bytes: &[u8]) -> Result<i64, PlainError> {
    fixed(bytes, "int8").map(i64::from_le_bytes)
}

/// Reads a float4.
pub fn to_f32(bytes: &[u8]) -> Result<f32, PlainError> {
    fixed(bytes, "float4").map(f32::from_le_bytes)
}

/// Reads a float8.
pub fn to_f64(bytes: &[u8]) -> Result<f64, PlainError> {
    fixed(bytes, "float8").map(f64::from_le_bytes)
}

/// Reads a uuid.
pub fn to_uuid(bytes: &[u8]) -> Result<[u8; 16], PlainError> {
    fixed(bytes, "uuid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked() {
        assert_eq!(to_bool(&[1]), Ok(true));
        assert_eq!(to_bool(&[0]), Ok(false));
        assert_eq!(
            to_bool(&[2]),
            Err(PlainError {
                type_name: "bool",
                found: 1
            })
        );
        assert_eq!(to_i16(&[0xFE, 0xFF]), Ok(-2));
        assert_eq!(to_i32(&[1, 0, 0, 0x80]), Ok(i32::MIN + 1));
        assert_eq!(to_u32(&[0xFF; 4]), Ok(u32::MAX));
        assert_eq!(to_i64(&[0xFF; 8]), Ok(-1));
        assert_eq!(to_f32(&1.5f32.to_le_bytes()), Ok(1.5));
        assert_eq!(to_f64(&1.5f64.to_le_bytes()), Ok(1.5));
        assert_eq!(to_uuid(&[7; 16]), Ok([7; 16]));
        assert_eq!(
            to_i64(&[0; 4]).unwrap_err().to_string(),
            "invalid plain value for int8: 4 bytes"
        );
        assert!(to_uuid(&[]).is_err());
    }
}
