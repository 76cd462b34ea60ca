//! BLAKE3 of files, on all cores, in little memory.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};

/// Read at a time, bytes: enough to keep the cores busy. A mapping would be as fast, but counts as
/// memory of ours, as much as the file has.
const CHUNK: u64 = 4 << 20;

/// BLAKE3 of the file at `path`.
///
/// # Errors
/// If it cannot be read.
pub fn file(path: &Path) -> Result<blake3::Hash> {
    let cannot = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(cannot)?;
    let mut hasher = blake3::Hasher::new();
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
            assert_eq!(file(&path).unwrap(), blake3::hash(bytes), "{len}");
        }
        assert!(file(folder.path()).is_err());
    }
}
