//! The tar around the OCI layout, in its one canonical form.
//!
//! A header is a function of name and size; the reader builds it anew and compares 512 bytes.
//! Source: POSIX.1-2017, pax, "ustar Interchange Format".

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::limits::{MAX_BLOB_SIZE, MAX_ENTRIES};
use crate::oci::blob_name;
use crate::{Digest, Error, Result};

/// Bytes in a block of a tar.
pub(crate) const BLOCK: u64 = 512;
/// Zero bytes after the last entry.
pub(crate) const TRAILER: u64 = 2 * BLOCK;

/// A file in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// Where its bytes begin.
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

impl Entry {
    /// Where the next header, or the trailer, begins.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.size.next_multiple_of(BLOCK)
    }
}

/// The one header of a file with this name and size.
fn header(name: &str, size: u64) -> std::io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_device_major(0)?;
    header.set_device_minor(0)?;
    header.set_cksum();
    Ok(header)
}

/// Reads every header of `file` (not the data); each must be canonical, data must lie inside the
/// file, and after the last one there must be exactly the trailer.
pub(crate) fn scan(file: &File, path: &Path) -> Result<Vec<Entry>> {
    let size = file
        .metadata()
        .map_err(|e| Error::io("read", path, e))?
        .len();
    let scan = Scan { file, path, size };
    let mut entries = Vec::new();
    let mut at = 0;
    while let Some(entry) = scan.entry(at)? {
        if entries.len() == MAX_ENTRIES {
            let (what, found) = (
                "the number of archive entries".into(),
                MAX_ENTRIES as u64 + 1,
            );
            return Err(Error::Limit {
                path: path.to_owned(),
                what,
                found,
                limit: MAX_ENTRIES as u64,
            });
        }
        at = entry.end();
        entries.push(entry);
    }
    Ok(entries)
}

struct Scan<'a> {
    file: &'a File,
    path: &'a Path,
    size: u64,
}

impl Scan<'_> {
    /// The entry whose header is at `at`; `None` if the trailer is there instead.
    fn entry(&self, at: u64) -> Result<Option<Entry>> {
        let block = self.block(at, at + TRAILER)?;
        if block == [0; BLOCK as usize] {
            return self.trailer(at).map(|()| None);
        }
        let (name, size) = parse_header(&block).map_err(|reason| self.corrupt(at, reason))?;
        let entry = Entry {
            name,
            offset: at + BLOCK,
            size,
        };
        if entry.end() > self.size {
            return Err(self.truncated(&entry.name, entry.end()));
        }
        Ok(Some(entry))
    }

    fn trailer(&self, at: u64) -> Result<()> {
        if self.block(at + BLOCK, at + TRAILER)? != [0; BLOCK as usize] {
            return Err(self.corrupt(at + BLOCK, "the second block of the trailer is not zero"));
        }
        match self.size - (at + TRAILER) {
            0 => Ok(()),
            rest => Err(self.corrupt(
                at + TRAILER,
                format!("{rest} bytes follow the end of the archive"),
            )),
        }
    }

    /// The block at `at`, of a file that must reach to `needed` at least.
    fn block(&self, at: u64, needed: u64) -> Result<[u8; BLOCK as usize]> {
        if at + BLOCK > self.size {
            return Err(self.truncated("the tar archive", needed));
        }
        let mut block = [0; BLOCK as usize];
        self.file
            .read_exact_at(&mut block, at)
            .map_err(|e| Error::io("read", self.path, e))?;
        Ok(block)
    }

    fn truncated(&self, section: &str, needed: u64) -> Error {
        let (path, section, size) = (self.path.to_owned(), section.into(), self.size);
        Error::Truncated {
            path,
            section,
            needed,
            size,
        }
    }

    fn corrupt(&self, offset: u64, reason: impl Into<String>) -> Error {
        let (path, section, reason) = (
            self.path.to_owned(),
            "the tar archive".into(),
            reason.into(),
        );
        Error::Corrupt {
            path,
            section,
            offset,
            reason,
        }
    }
}

fn parse_header(block: &[u8; BLOCK as usize]) -> std::result::Result<(String, u64), String> {
    let parsed = tar::Header::from_byte_slice(block);
    let size = parsed
        .entry_size()
        .map_err(|e| format!("not a tar header: {e}"))?;
    let name = str::from_utf8(&parsed.path_bytes())
        .map_err(|_| "a name that is not text")?
        .to_owned();
    if size > MAX_BLOB_SIZE {
        return Err(format!(
            "{name:?} has {size} bytes, the limit is {MAX_BLOB_SIZE}"
        ));
    }
    match header(&name, size) {
        Ok(canonical) if canonical.as_bytes() == block => Ok((name, size)),
        _ => Err(format!("the header of {name:?} is not in canonical form")),
    }
}

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

    /// Goes on behind `entries`, which fill the file's beginning already.
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

    /// The blob's digest and size; `None` if nothing was written, for then there is no blob.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(build: impl FnOnce(&mut ArchiveWriter<'_>)) -> File {
        let file = tempfile::tempfile().unwrap();
        let mut writer = ArchiveWriter::new(&file, Path::new("x"));
        build(&mut writer);
        writer.finish().unwrap();
        file
    }

    #[test]
    fn what_is_written_is_what_is_found() {
        let file = archive(|w| {
            w.file("oci-layout", b"abc").unwrap();
            let mut blob = w.stream();
            blob.write(&[7; 600]).unwrap();
            blob.write(&[8; 1]).unwrap();
            blob.finish().unwrap().unwrap();
            w.blob(b"").unwrap();
        });
        let entries = scan(&file, Path::new("x")).unwrap();
        let sizes: Vec<_> = entries.iter().map(|e| (e.offset, e.size)).collect();
        assert_eq!(sizes, [(512, 3), (1536, 601), (3072, 0)]);
    }

    #[test]
    fn a_blob_is_stored_once_however_it_comes() {
        let file = archive(|w| {
            w.blob(b"same").unwrap();
            let mut again = w.stream();
            again.write(b"same").unwrap();
            assert_eq!(again.finish().unwrap(), Some((Digest::of(b"same"), 4)));
            w.blob(b"same").unwrap();
            assert_eq!(w.stream().finish().unwrap(), None);
            w.file("index.json", b"{}").unwrap();
        });
        let names: Vec<_> = scan(&file, Path::new("x"))
            .unwrap()
            .into_iter()
            .map(|e| e.name)
            .collect();
        assert_eq!(
            names,
            [blob_name(&Digest::of(b"same")), "index.json".into()]
        );
    }

    #[test]
    fn any_other_header_for_the_same_file_is_refused() {
        let file = archive(|w| w.file("a", b"abc").unwrap());
        let changes: [fn(&mut tar::Header); 5] = [
            |h| h.set_mode(0o600),
            |h| h.set_uid(1),
            |h| h.set_mtime(1),
            |h| h.set_username("root").unwrap(),
            |h| h.set_entry_type(tar::EntryType::Symlink),
        ];
        for change in changes {
            let mut other = header("a", 3).unwrap();
            change(&mut other);
            other.set_cksum();
            file.write_all_at(other.as_bytes(), 0).unwrap();
            let error = scan(&file, Path::new("x")).unwrap_err();
            assert!(error.to_string().contains("canonical"), "{error}");
        }
    }

    #[test]
    fn a_file_that_ends_early_or_late_is_refused() {
        let whole = 4 * BLOCK;
        for size in [
            0,
            1,
            511,
            512,
            600,
            1024,
            1536,
            whole - 1,
            whole + 1,
            whole + 512,
        ] {
            let file = archive(|w| w.file("a", b"abc").unwrap());
            assert_eq!(file.metadata().unwrap().len(), whole);
            file.set_len(size).unwrap();
            let error = scan(&file, Path::new("x")).expect_err(&format!("{size}"));
            assert!(error.is_verification_failure(), "{size}: {error}");
        }
    }
}
