//! A file on this host.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::{Error, ReadAt, Result};

/// Opens a regular file, `None` if it is something else: a folder, a device, a FIFO, which would make
/// whoever opens or reads it wait for a writer.
///
/// # Errors
/// Those of the operating system.
pub fn open_regular(path: &Path) -> io::Result<Option<File>> {
    // To open a device may have effects of its own, so it is looked at first; between the two it may
    // become a FIFO.
    if !std::fs::metadata(path)?.is_file() {
        return Ok(None);
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    Ok(file.metadata()?.is_file().then_some(file))
}

/// Opens a file that may be a bundle.
pub(crate) fn open(path: &Path) -> Result<File> {
    let file = open_regular(path).map_err(|e| Error::io("open", path, e))?;
    file.ok_or_else(|| Error::NotABundle {
        path: path.to_owned(),
        reason: "it is not a regular file".into(),
    })
}

impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    #[test]
    fn what_is_no_regular_file_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for other in [&fifo, &socket, folder.path(), Path::new("/dev/zero")] {
            assert!(
                open_regular(other).unwrap().is_none(),
                "{}",
                other.display()
            );
            let error = open(other).unwrap_err();
            assert!(error.to_string().contains("not a regular file"), "{error}");
            assert!(crate::PublicKey::load(other).is_err());
        }
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        std::os::unix::fs::symlink(&file, folder.path().join("link")).unwrap();
        let link = open_regular(&folder.path().join("link")).unwrap().unwrap();
        assert_eq!(ReadAt::size(&link).unwrap(), 1);
        assert!(open_regular(&folder.path().join("none")).is_err());
    }
}
