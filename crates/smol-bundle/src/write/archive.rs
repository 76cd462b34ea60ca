//! Writes the archive, front to back.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::format::archive::{BLOCK, Entry, TRAILER, header};
use crate::format::limits::MAX_BLOB_SIZE;
use crate::format::oci::blob_name;
use crate::{Digest, Error, Result};

/// Writes an archive front to back into an empty file. Each blob is stored once.
pub(crate) struct ArchiveWriter<'a> {
    file: &'a File,
    /// The output's final name, for errors.
    path: &'a Path,
    at: u64,
    blobs: HashMap<Digest, u64>,
}

impl<'a> ArchiveWriter<'a> {
    pub(crate) fn new(file: &'a File, path: &'a Path) -> Self {
        ArchiveWriter {
            file,
            path,
            at: 0,
            blobs: HashMap::new(),
        }
    }

    /// Continues behind `entries`, which fill the file's beginning already.
    pub(crate) fn resume(file: &'a File, path: &'a Path, entries: &[Entry]) -> Self {
        let digest = |name: &str| {
            format!("sha256:{}", name.strip_prefix("blobs/sha256/")?)
                .parse()
                .ok()
        };
        let blobs = entries
            .iter()
            .filter_map(|e| Some((digest(&e.name)?, e.size)))
            .collect();
        ArchiveWriter {
            file,
            path,
            at: entries.last().map_or(0, Entry::end),
            blobs,
        }
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.file
            .write_all_at(bytes, at)
            .map_err(|e| Error::io("write", self.path, e))
    }

    fn write_header(&self, name: &str, size: u64, at: u64) -> Result<()> {
        let header = header(name, size).map_err(|e| Error::io("write", self.path, e))?;
        self.write_at(header.as_bytes(), at)
    }

    /// Adds a file that is not a blob.
    pub(crate) fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let size = bytes.len() as u64;
        self.write_header(name, size, self.at)?;
        self.write_at(bytes, self.at + BLOCK)?;
        self.pad(size)
    }

    /// Adds a blob, unless the archive holds it already.
    pub(crate) fn blob(&mut self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if self.blobs.insert(digest, bytes.len() as u64).is_none() {
            self.file(&blob_name(&digest), bytes)?;
        }
        Ok(digest)
    }

    /// Begins a blob whose length and digest are not known yet.
    pub(crate) fn stream(&mut self) -> BlobWriter<'_, 'a> {
        BlobWriter {
            archive: self,
            size: 0,
            hasher: Sha256::new(),
        }
    }

    /// Moves behind `size` bytes of data and fills the last block with zeros.
    fn pad(&mut self, size: u64) -> Result<()> {
        let padding = (size.next_multiple_of(BLOCK) - size) as usize;
        self.write_at(&[0; BLOCK as usize][..padding], self.at + BLOCK + size)?;
        self.at += BLOCK + size.next_multiple_of(BLOCK);
        Ok(())
    }

    /// Adds the trailer and returns the archive's size.
    pub(crate) fn finish(self) -> Result<u64> {
        self.write_at(&[0; TRAILER as usize], self.at)?;
        let size = self.at + TRAILER;
        self.file
            .set_len(size)
            .map_err(|e| Error::io("write", self.path, e))?;
        Ok(size)
    }
}

/// A blob that is being written; its header is filled in at the end.
pub(crate) struct BlobWriter<'w, 'a> {
    archive: &'w mut ArchiveWriter<'a>,
    size: u64,
    hasher: Sha256,
}

impl BlobWriter<'_, '_> {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let size = self.size + bytes.len() as u64;
        if size > MAX_BLOB_SIZE {
            return Err(Error::InvalidSpec(format!(
                "an image needs more than {MAX_BLOB_SIZE} bytes after compression"
            )));
        }
        self.archive
            .write_at(bytes, self.archive.at + BLOCK + self.size)?;
        self.hasher.update(bytes);
        self.size = size;
        Ok(())
    }

    /// Returns the blob's digest and size; `None` if nothing was written, for then there is no
    /// blob.
    pub(crate) fn finish(self) -> Result<Option<(Digest, u64)>> {
        if self.size == 0 {
            return Ok(None);
        }
        let digest = Digest::finish(self.hasher);
        // A blob that the archive holds already is overwritten by what comes next.
        if self.archive.blobs.insert(digest, self.size).is_none() {
            self.archive
                .write_header(&blob_name(&digest), self.size, self.archive.at)?;
            self.archive.pad(self.size)?;
        }
        Ok(Some((digest, self.size)))
    }
}
