//! Files in memory.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use tempfile::{NamedTempFile, TempPath};

/// Where files are in memory, on most hosts.
const MEMORY: &str = "/dev/shm";

/// A file in memory, and a path by which it can be opened without following a link.
pub struct MemoryFile {
    /// The file, open for reading and writing.
    pub file: File,
    path: TempPath,
}

impl MemoryFile {
    /// Makes a file with this content.
    pub fn new(content: &[u8]) -> Self {
        let file = NamedTempFile::with_prefix_in("smol-fuzz-", MEMORY);
        let file = file.or_else(|_| NamedTempFile::new());
        let (mut file, path) = file.expect("a temporary file").into_parts();
        file.write_all(content).expect("memory takes it");
        MemoryFile { file, path }
    }

    /// Returns the path, which is good as long as this is there.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
