//! The tar around the OCI layout, in its one canonical form.
//!
//! A header is a function of name and size; the reader builds it anew and compares 512 bytes.
//! Source: POSIX.1-2017, pax, "ustar Interchange Format".

use crate::format::limits::MAX_BLOB_SIZE;

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
    /// Returns where the next header, or the trailer, begins.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.size.next_multiple_of(BLOCK)
    }
}

/// Returns the one header of a file with this name and size.
pub(crate) fn header(name: &str, size: u64) -> std::io::Result<tar::Header> {
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

/// Returns the name and size of the file whose header this is; it must be [`header`] of the two.
pub(crate) fn parse_header(
    block: &[u8; BLOCK as usize],
) -> std::result::Result<(String, u64), String> {
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
