//! Digests of files: SHA-256 where others know them, BLAKE3 where they are ours alone.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Read at a time, bytes: enough to keep the cores busy. A mapping would be as fast, but counts as
/// memory of ours, as much as the file has.
const CHUNK: u64 = 4 << 20;

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// If it cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let cannot = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(cannot)?;
    sha256_file(file).with_context(cannot)
}

/// SHA-256 of what is in an open file from where it stands, in hexadecimal.
///
/// # Errors
/// If it cannot be read.
pub fn sha256_file(mut file: File) -> io::Result<String> {
    sha256_of(|hasher| io::copy(&mut file, hasher).map(drop))
}

/// SHA-256 of what `write` writes, in hexadecimal.
///
/// # Errors
/// Those of `write`.
pub fn sha256_of(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<String> {
    struct Hasher(Sha256);
    impl Write for Hasher {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut hasher = io::BufWriter::with_capacity(1 << 20, Hasher(Sha256::new()));
    write(&mut hasher)?;
    let Hasher(hasher) = hasher
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    Ok(hex::encode(hasher.finalize()))
}

/// BLAKE3 of the file at `path`, on all cores and in little memory.
///
/// # Errors
/// If it cannot be read.
pub fn blake3(path: &Path) -> Result<::blake3::Hash> {
    let cannot = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(cannot)?;
    let mut hasher = ::blake3::Hasher::new();
    let mut chunk = Vec::new();
    loop {
        chunk.clear();
        let read = (&mut file).take(CHUNK).read_to_end(&mut chunk);
        if read.with_context(cannot)? == 0 {
            return Ok(hasher.finalize());
        }
        hasher.update_rayon(&chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_digest_of_its_bytes_whatever_its_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let bytes: Vec<u8> = (0..2 * CHUNK + 5).map(|i| ((i * i) >> 7) as u8).collect();
        for len in [0, 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5] {
            let bytes = &bytes[..len as usize];
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(blake3(&path).unwrap(), ::blake3::hash(bytes), "{len}");
        }
        assert!(blake3(folder.path()).is_err());
    }
}
