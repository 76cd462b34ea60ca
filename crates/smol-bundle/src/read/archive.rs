//! Finds the files in the archive, and refuses any other form of it than the canonical one.

use crate::format::archive::{BLOCK, Entry, TRAILER, parse_header};
use crate::format::limits::MAX_ENTRIES;
use crate::source::Named;
use crate::{ReadAt, Result};

/// What errors call the part that is read here.
const SECTION: &str = "the tar archive";

/// Reads every header (not the data); each must be canonical, data must lie inside the source, and
/// after the last one there must be exactly the trailer.
pub(crate) fn scan<S: ReadAt>(source: &Named<S>) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut at = 0;
    while let Some(entry) = entry(source, at)? {
        if entries.len() == MAX_ENTRIES {
            let (found, limit) = (MAX_ENTRIES as u64 + 1, MAX_ENTRIES as u64);
            return Err(source.too_large("the number of archive entries", found, limit));
        }
        at = entry.end();
        entries.push(entry);
    }
    Ok(entries)
}

/// Returns the entry whose header is at `at`; `None` if the trailer is there instead.
fn entry<S: ReadAt>(source: &Named<S>, at: u64) -> Result<Option<Entry>> {
    let header = block(source, at, at + TRAILER)?;
    if header == [0; BLOCK as usize] {
        return trailer(source, at).map(|()| None);
    }
    let (name, size) =
        parse_header(&header).map_err(|reason| source.corrupt(SECTION, at, reason))?;
    let entry = Entry {
        name,
        offset: at + BLOCK,
        size,
    };
    if entry.end() > source.size() {
        return Err(source.truncated(&entry.name, entry.end()));
    }
    Ok(Some(entry))
}

/// Checks that the archive ends with the trailer at `at`, of which the first block is read.
fn trailer<S: ReadAt>(source: &Named<S>, at: u64) -> Result<()> {
    if block(source, at + BLOCK, at + TRAILER)? != [0; BLOCK as usize] {
        let reason = "the second block of the trailer is not zero";
        return Err(source.corrupt(SECTION, at + BLOCK, reason));
    }
    match source.size() - (at + TRAILER) {
        0 => Ok(()),
        rest => {
            let reason = format!("{rest} bytes follow the end of the archive");
            Err(source.corrupt(SECTION, at + TRAILER, reason))
        }
    }
}

/// Returns the block at `at`, of a source that must reach to `needed` at least.
fn block<S: ReadAt>(source: &Named<S>, at: u64, needed: u64) -> Result<[u8; BLOCK as usize]> {
    if at + BLOCK > source.size() {
        return Err(source.truncated(SECTION, needed));
    }
    let mut block = [0; BLOCK as usize];
    source.read(&mut block, at)?;
    Ok(block)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use super::*;
    use crate::Digest;
    use crate::format::archive::header;
    use crate::format::oci::blob_name;
    use crate::write::archive::ArchiveWriter;

    fn entries(file: &File) -> Result<Vec<Entry>> {
        scan(&Named::new(file, "x".into())?)
    }

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
        let sizes: Vec<_> = entries(&file)
            .unwrap()
            .iter()
            .map(|e| (e.offset, e.size))
            .collect();
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
        let names: Vec<_> = entries(&file)
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
            let error = entries(&file).unwrap_err();
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
            let error = entries(&file).expect_err(&format!("{size}"));
            assert!(error.is_verification_failure(), "{size}: {error}");
        }
    }
}
