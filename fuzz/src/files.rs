//! Files in memory.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};

/// A file without a name in any folder, and a path by which this process can open it.
pub struct MemoryFile {
    /// The file, open for reading and writing.
    pub file: File,
    path: PathBuf,
}

impl MemoryFile {
    /// Makes a file with this content.
    pub fn new(content: &[u8]) -> Self {
        let file = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a file in memory");
        let mut file = File::from(file);
        file.write_all(content).expect("memory takes it");
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        MemoryFile { file, path }
    }

    /// Returns the path, which is good as long as the file is there.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
