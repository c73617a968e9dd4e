//! Files in which transactions that are in progress on a provider wait for their commit.
//!
//! They need not outlive the process that writes them: after a crash the provider sends those transactions again. So
//! a file loses its name as soon as it is open, and the system gives its room back whenever and however that process
//! ends.

use std::fs::{self, File};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::{Error, ensure_directory, private_file};
use crate::postgres::file_slot::FileSlot;

/// The frames of one transaction, each with its length before it.
pub(crate) struct SpoolFile {
    file: File,
    /// What its name was, for messages.
    path: PathBuf,
    _slot: FileSlot,
}

impl SpoolFile {
    /// An empty file.
    pub(crate) fn create(subscription_id: i32, xid: u32) -> Result<SpoolFile, Error> {
        let path = ensure_directory()?.join(format!("spool-{subscription_id}-{xid}"));
        let slot = FileSlot::take();
        let file = private_file()
            .read(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        fs::remove_file(&path).map_err(Error::io("remove the name of", &path))?;
        Ok(SpoolFile {
            file,
            path,
            _slot: slot,
        })
    }

    /// Appends a frame. After an error the file is of no use any more.
    pub(crate) fn append(&mut self, frame: &[u8]) -> Result<(), Error> {
        let length = u32::try_from(frame.len())
            .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
            .map_err(Error::io("write", &self.path))?
            .to_le_bytes();
        // One call for both as a rule; what it leaves is written after it.
        let written = self
            .file
            .write_vectored(&[IoSlice::new(&length), IoSlice::new(frame)])
            .map_err(Error::io("write", &self.path))?;
        let rest = match written.checked_sub(length.len()) {
            Some(of_frame) => self.file.write_all(&frame[of_frame..]),
            None => self
                .file
                .write_all(&length[written..])
                .and_then(|()| self.file.write_all(frame)),
        };
        rest.map_err(Error::io("write", &self.path))
    }

    /// Reads the frame at a place, and moves on to the next; false at the end.
    pub(crate) fn read(&self, place: &mut u64, frame: &mut Vec<u8>) -> Result<bool, Error> {
        let mut length = [0; 4];
        match self.file.read_exact_at(&mut length, *place) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(Error::io("read", &self.path)(error)),
        }
        frame.resize(u32::from_le_bytes(length) as usize, 0);
        self.file
            .read_exact_at(frame, *place + length.len() as u64)
            .map_err(Error::io("read", &self.path))?;
        *place += (length.len() + frame.len()) as u64;
        Ok(true)
    }
}
