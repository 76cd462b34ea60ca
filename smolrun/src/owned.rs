//! A folder that belongs to one process as long as that runs.
//!
//! The owner holds flock(2) on the folder itself. The kernel lets go of it however the process
//! ends, so a folder that is not locked was left by a process that has ended: no process id has to be
//! trusted, and nothing is left to be removed by hand.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// A folder that is ours until this is dropped or the process ends.
#[derive(Debug)]
pub struct OwnedDir {
    path: PathBuf,
    file: File,
}

impl OwnedDir {
    /// Creates the folder (mode 0700), or takes over one that its owner left behind, with what
    /// is in it. `None` if its owner still runs.
    pub fn try_claim(path: &Path) -> io::Result<Option<Self>> {
        Self::create_and_lock(path, FlockOperation::NonBlockingLockExclusive)
    }

    /// The same, but waits until a running owner is done with it.
    pub fn claim(path: &Path) -> io::Result<Self> {
        match Self::create_and_lock(path, FlockOperation::LockExclusive)? {
            Some(dir) => Ok(dir),
            None => Err(ErrorKind::WouldBlock.into()),
        }
    }

    /// A folder that is there and that nobody owns; `None` if it is owned or gone.
    pub fn if_abandoned(path: &Path) -> Option<Self> {
        let file = open(path).ok()?;
        lock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        let dir = Self {
            path: path.to_owned(),
            file,
        };
        dir.is_in_place().then_some(dir)
    }

    fn create_and_lock(path: &Path, how: FlockOperation) -> io::Result<Option<Self>> {
        loop {
            match DirBuilder::new().mode(0o700).create(path) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            let file = match open(path) {
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                other => other?,
            };
            match lock(&file, how) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                other => other?,
            }
            let dir = Self {
                path: path.to_owned(),
                file,
            };
            // Between opening and locking, its last owner may have removed or renamed it.
            if dir.is_in_place() {
                return Ok(Some(dir));
            }
        }
    }

    fn is_in_place(&self) -> bool {
        match (self.file.metadata(), fs::symlink_metadata(&self.path)) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A short path to something in it, valid in this process: a Unix socket's address holds 107
    /// bytes, a folder's path may be longer.
    pub fn short_path(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.file.as_raw_fd()).into()
    }

    /// Removes what is in it.
    pub fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }

    /// Brings the names in it to the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Gives it another name, and up.
    pub fn rename(self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)
    }

    /// Removes it with all that is in it.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(&self.path)
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn lock(file: &File, how: FlockOperation) -> io::Result<()> {
    loop {
        match flock(file, how) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner_at_a_time_and_can_be_taken_over_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let first = OwnedDir::try_claim(&path).unwrap().unwrap();
        assert!(OwnedDir::try_claim(&path).unwrap().is_none());
        assert!(OwnedDir::if_abandoned(&path).is_none());
        drop(first);
        fs::write(path.join("left"), "behind").unwrap();
        let second = OwnedDir::if_abandoned(&path).unwrap();
        assert!(second.path().join("left").exists());
        second.clear().unwrap();
        assert!(!path.join("left").exists());
        second.remove().unwrap();
        assert!(OwnedDir::if_abandoned(&path).is_none());
    }

    #[test]
    fn who_waits_for_a_folder_that_is_renamed_gets_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let first = OwnedDir::claim(&path).unwrap();
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || OwnedDir::claim(&path).unwrap()
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        first.rename(&dir.path().join("y")).unwrap();
        let second = waiter.join().unwrap();
        assert!(second.is_in_place());
        assert!(dir.path().join("y").exists() && path.exists());
    }

    #[test]
    fn a_symlink_in_place_of_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("x")).unwrap();
        assert!(OwnedDir::try_claim(&dir.path().join("x")).is_err());
    }
}
