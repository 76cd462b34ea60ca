//! A file on this host.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::{Error, ReadAt, Result};

/// Opens a regular file. Anything else is no bundle.
pub(crate) fn open(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let metadata = file.metadata().map_err(|e| Error::io("read", path, e))?;
    match metadata.is_file() {
        true => Ok(file),
        false => Err(Error::NotABundle {
            path: path.to_owned(),
            reason: "it is not a regular file".into(),
        }),
    }
}

impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}
