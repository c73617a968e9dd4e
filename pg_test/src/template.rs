//! One `initdb` per run; every node gets a copy with a system identifier of its own.
//!
//! The identifier tells servers apart, so copies must not share it. pg_resetwal cannot set it (and not every
//! build has pg_resetwal), so we write it ourselves: it is the first field of the control file, whose checksum
//! is then computed again, and it stands in the first page header of the WAL segment that initdb left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::install::{Install, run};

fn template_path(install: &Install) -> PathBuf {
    install.base.join("template")
}

pub(crate) fn create(install: &Install) -> Result<()> {
    let path = template_path(install);
    install.private_directory(&path)?;
    run(install
        .command("initdb", None)
        .arg("-D")
        .arg(install.inside(&path))
        .args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]))?;
    Ok(())
}

/// Copies the template to `data` (which may exist, empty) and makes it a server of its own.
pub(crate) fn copy_to(install: &Install, data: &Path) -> Result<()> {
    install.private_directory(data)?;
    let source = template_path(install).join(".");
    run(Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .arg(source)
        .arg(data))?;
    let identifier = fastrand::u64(1..1 << 63);
    let old = write_identifier(&data.join("global/pg_control"), identifier)?;
    for entry in fs::read_dir(data.join("pg_wal"))? {
        let path = entry?.path();
        if path.is_file() {
            write_wal_identifier(&path, old, identifier)?;
        }
    }
    Ok(())
}

fn write_identifier(control_file: &Path, identifier: u64) -> Result<u64> {
    let mut bytes = fs::read(control_file).with_context(|| format!("reading {}", control_file.display()))?;
    let Some(crc_at) = find_checksum(&bytes) else {
        bail!(
            "no checksum found in {}: a format that this harness does not know",
            control_file.display()
        );
    };
    let old = u64::from_le_bytes(field(&bytes, 0)?);
    bytes[..8].copy_from_slice(&identifier.to_le_bytes());
    let checksum = crc32c(&bytes[..crc_at]);
    bytes[crc_at..crc_at + 4].copy_from_slice(&checksum.to_le_bytes());
    fs::write(control_file, bytes)?;
    Ok(old)
}

/// Offset of `xlp_sysid` in the long header that opens every WAL segment.
const WAL_IDENTIFIER_AT: usize = 24;

fn write_wal_identifier(segment: &Path, old: u64, new: u64) -> Result<()> {
    let mut bytes = fs::read(segment)?;
    let found = u64::from_le_bytes(field(&bytes, WAL_IDENTIFIER_AT)?);
    if found != old {
        bail!(
            "{} bears system identifier {found}, its control file {old}",
            segment.display()
        );
    }
    bytes[WAL_IDENTIFIER_AT..WAL_IDENTIFIER_AT + 8].copy_from_slice(&new.to_le_bytes());
    fs::write(segment, bytes)?;
    Ok(())
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    match bytes.get(at..at + N).map(<[u8; N]>::try_from) {
        Some(Ok(found)) => Ok(found),
        _ => bail!("file too short: no {N} bytes at offset {at}"),
    }
}

/// Where the control data's own checksum stands differs between versions: it is where the checksum of
/// everything before it is.
fn find_checksum(bytes: &[u8]) -> Option<usize> {
    (64..bytes.len().min(1024)).step_by(4).find(|&at| {
        matches!(field::<4>(bytes, at), Ok(stored) if u32::from_le_bytes(stored) == crc32c(&bytes[..at]))
    })
}

fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0x82F6_3B78
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_of_the_standard_check_string() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn finds_the_checksum_where_it_matches() {
        let mut bytes = vec![7_u8; 512];
        let checksum = crc32c(&bytes[..288]);
        bytes[288..292].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(find_checksum(&bytes), Some(288));
    }
}
