//! Finds the files in the archive, and refuses any other form of it than the canonical one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::format::archive::{BLOCK, Entry, TRAILER, parse_header};
use crate::format::limits::MAX_ENTRIES;
use crate::{Error, Result};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;
    use crate::format::archive::header;
    use crate::format::oci::blob_name;
    use crate::write::archive::ArchiveWriter;

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
