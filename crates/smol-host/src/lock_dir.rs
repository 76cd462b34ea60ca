//! Folders that belong to one process for as long as it lives.
//!
//! The owner holds flock(2) on the folder itself. The kernel releases it however the process ends,
//! so a folder whose lock is free was left by a process that has ended: no process id has to be
//! trusted, and nothing has to be cleaned up by hand.
//!
//! [`LockDir`] is a folder of a known name, which stays; [`ScratchDir`] is one of a new name for
//! what is temporary, removed on drop, or by the next process that makes one in the same place.
//! [`lock_file`] is for what many processes share, of which one at a time may change it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use smol_cli::Interrupt;

use crate::cache::InUse;

/// How often it is tried again to get a lock that another process holds.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often it is tried again to claim a folder.
const WAIT_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A folder that this process owns until this is dropped or the process ends.
#[derive(Debug)]
pub struct LockDir {
    path: PathBuf,
    file: File,
}

impl LockDir {
    /// Creates the folder (mode 0700), or takes over one whose owner has ended, with its contents.
    /// Returns `None` if its owner lives.
    ///
    /// # Errors
    /// Those of the file system; in place of the folder there is something else.
    pub fn try_claim(path: &Path) -> io::Result<Option<Self>> {
        Self::create_and_lock(path, Wait::No)
    }

    /// Does the same, but waits until a living owner has released the folder.
    ///
    /// # Errors
    /// As [`LockDir::try_claim`].
    pub fn claim(path: &Path) -> io::Result<Self> {
        let claimed = Self::create_and_lock(path, Wait::Yes)?;
        claimed.ok_or_else(|| ErrorKind::WouldBlock.into())
    }

    /// Takes over a folder that exists and that nobody owns; `None` if it is owned or missing.
    pub fn if_abandoned(path: &Path) -> Option<Self> {
        match Self::lock(path, Wait::No) {
            Ok(LockAttempt::Locked(dir)) => Some(dir),
            _ => None,
        }
    }

    fn create_and_lock(path: &Path, wait: Wait) -> io::Result<Option<Self>> {
        loop {
            match DirBuilder::new().mode(0o700).create(path) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            match Self::lock(path, wait)? {
                LockAttempt::Locked(dir) => return Ok(Some(dir)),
                LockAttempt::Owned => return Ok(None),
                LockAttempt::Gone => {}
            }
        }
    }

    /// Locks a folder that exists.
    fn lock(path: &Path, wait: Wait) -> io::Result<LockAttempt> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(LockAttempt::Gone),
            other => other?,
        };
        let path = path.to_owned();
        let dir = Self { path, file };
        loop {
            match (dir.file.try_lock(), wait) {
                (Ok(()), _) => break,
                (Err(TryLockError::WouldBlock), Wait::No) => return Ok(LockAttempt::Owned),
                // Its owner may rename it and keep it.
                (Err(TryLockError::WouldBlock), Wait::Yes) if dir.is_in_place() => {
                    thread::sleep(WAIT_POLL_INTERVAL);
                }
                (Err(TryLockError::WouldBlock), Wait::Yes) => return Ok(LockAttempt::Gone),
                (Err(TryLockError::Error(e)), _) if e.kind() == ErrorKind::Interrupted => {}
                (Err(TryLockError::Error(e)), _) => return Err(e),
            }
        }
        // Between opening and locking, its last owner may have removed or renamed it.
        match dir.is_in_place() {
            true => Ok(LockAttempt::Locked(dir)),
            false => Ok(LockAttempt::Gone),
        }
    }

    fn is_in_place(&self) -> bool {
        match (self.file.metadata(), fs::symlink_metadata(&self.path)) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a short path to something in it, valid in this process: a Unix socket's address holds
    /// 107 bytes, a folder's path may be longer.
    pub fn short_path(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.file.as_raw_fd()).into()
    }

    /// Removes its contents.
    ///
    /// # Errors
    /// Those of the file system.
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

    /// Writes the names in it to the disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Renames it and releases it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn rename(self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)
    }

    /// Renames it, and shares it from then on with all who use what it has become: `None` if it was
    /// removed in the moment between the two.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn rename_into_use(self, to: &Path) -> io::Result<Option<InUse>> {
        fs::rename(&self.path, to)?;
        InUse::shared(self.file, to)
    }

    /// Removes it with its contents.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(&self.path)
    }
}

/// Whether to wait for a living owner.
#[derive(Clone, Copy)]
enum Wait {
    Yes,
    No,
}

/// The outcome of locking a folder.
enum LockAttempt {
    Locked(LockDir),
    Owned,
    /// It was removed or renamed meanwhile.
    Gone,
}

/// A folder of a new name for temporary files, removed on drop.
#[derive(Debug)]
pub struct ScratchDir(LockDir);

impl ScratchDir {
    /// Creates a folder in `parent` whose name begins with `prefix` (mode 0700), after removing those
    /// of this prefix whose owners have ended.
    ///
    /// # Errors
    /// If `parent` is missing or cannot be written.
    pub fn create(parent: &Path, prefix: &str) -> io::Result<Self> {
        Self::create_with_mode(parent, prefix, 0o700)
    }

    /// Does the same with another mode.
    ///
    /// # Errors
    /// As [`ScratchDir::create`].
    pub fn create_with_mode(parent: &Path, prefix: &str, mode: u32) -> io::Result<Self> {
        sweep(parent, prefix);
        loop {
            let made = tempfile::Builder::new()
                .prefix(prefix)
                .permissions(Permissions::from_mode(mode))
                .tempdir_in(parent)?;
            // Before it is locked, another process may take it for an abandoned one and remove it.
            if let LockAttempt::Locked(dir) = LockDir::lock(&made.keep(), Wait::No)? {
                return Ok(Self(dir));
            }
        }
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.path());
    }
}

/// Removes the folders in `parent` whose names begin with `prefix` and whose owners have ended. In
/// folders that all users share, only those of this user.
fn sweep(parent: &Path, prefix: &str) {
    let user = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix)
            && entry.metadata().is_ok_and(|found| found.uid() == user)
            && let Some(left) = LockDir::if_abandoned(&entry.path())
        {
            // What cannot be removed now (a process of the dead owner's may still write) is next time.
            let _ = left.remove();
        }
    }
}

/// Locks a file for this process alone, and returns whether it did: not if the user wants to stop
/// while another process holds the lock. Before it waits for that process, `on_wait` is called.
///
/// # Errors
/// Those of the file system.
pub fn lock_file(file: &File, interrupt: &Interrupt, on_wait: impl FnOnce()) -> io::Result<bool> {
    let mut on_wait = Some(on_wait);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) => match on_wait.take() {
                Some(on_wait) => on_wait(),
                None if interrupt.wait(Some(LOCK_POLL_INTERVAL))? => return Ok(false),
                None => {}
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_waits_for_a_lock_says_so_once_and_can_be_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let open = || File::create(folder.path().join("lock")).unwrap();
        let (held, interrupt) = (open(), Interrupt::detached().unwrap());
        assert!(lock_file(&held, &interrupt, || panic!("nobody holds it")).unwrap());
        let (mut told, waiting) = (0, open());
        let locked = lock_file(&waiting, &interrupt, || {
            told += 1;
            interrupt.trigger();
        });
        assert_eq!((locked.unwrap(), told), (false, 1));
        drop(held);
        assert!(lock_file(&waiting, &interrupt, || panic!("nobody holds it")).unwrap());
    }

    /// Tells [`an_owner`] where to make its folder.
    const PARENT: &str = "LOCK_DIR_TEST_PARENT";

    fn names(parent: &Path) -> Vec<String> {
        let entries = fs::read_dir(parent).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_has_one_owner_at_a_time_and_can_be_taken_over_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let first = LockDir::try_claim(&path).unwrap().unwrap();
        assert!(LockDir::try_claim(&path).unwrap().is_none());
        assert!(LockDir::if_abandoned(&path).is_none());
        drop(first);
        fs::write(path.join("left"), "behind").unwrap();
        let second = LockDir::if_abandoned(&path).unwrap();
        assert!(second.path().join("left").exists());
        second.clear().unwrap();
        assert!(!path.join("left").exists());
        second.remove().unwrap();
        assert!(LockDir::if_abandoned(&path).is_none());
    }

    #[test]
    fn who_waits_for_a_folder_that_is_renamed_gets_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let first = LockDir::claim(&path).unwrap();
        let waiter = thread::spawn({
            let path = path.clone();
            move || LockDir::claim(&path).unwrap()
        });
        thread::sleep(Duration::from_millis(50));
        first.rename(&dir.path().join("y")).unwrap();
        let second = waiter.join().unwrap();
        assert!(second.is_in_place());
        assert!(dir.path().join("y").exists() && path.exists());
    }

    #[test]
    fn a_symlink_in_place_of_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("x")).unwrap();
        assert!(LockDir::try_claim(&dir.path().join("x")).is_err());
        assert!(LockDir::if_abandoned(&dir.path().join("x")).is_none());
    }

    #[test]
    fn the_folder_of_a_dead_owner_goes_and_those_of_living_ones_and_of_others_stay() {
        let parent = tempfile::tempdir().unwrap();
        let living = ScratchDir::create(parent.path(), "new-").unwrap();
        for left in ["new-dead", "other"] {
            fs::create_dir(parent.path().join(left)).unwrap();
            fs::write(parent.path().join(left).join("file"), "x").unwrap();
        }
        let next = ScratchDir::create(parent.path(), "new-").unwrap();
        assert!(living.path().exists() && next.path().exists());
        assert!(!parent.path().join("new-dead").exists());
        assert!(parent.path().join("other/file").exists());
        drop((living, next));
        assert_eq!(names(parent.path()), ["other"]);
    }

    #[test]
    fn a_scratch_folder_has_the_mode_that_is_asked_for() {
        let parent = tempfile::tempdir().unwrap();
        let mode = |dir: &ScratchDir| fs::metadata(dir.path()).unwrap().mode() & 0o777;
        assert_eq!(
            mode(&ScratchDir::create(parent.path(), "a").unwrap()),
            0o700
        );
        let open = ScratchDir::create_with_mode(parent.path(), "a", 0o755).unwrap();
        assert_eq!(mode(&open), 0o755);
    }

    #[test]
    fn whoever_makes_and_sweeps_at_the_same_time_keeps_what_is_its_own() {
        let parent = tempfile::tempdir().unwrap();
        thread::scope(|scope| {
            for n in 0..4 {
                let parent = parent.path();
                scope.spawn(move || {
                    for round in 0..200 {
                        let own = ScratchDir::create(parent, "new-").unwrap();
                        let file = own.path().join("file");
                        fs::write(&file, format!("{n} {round}")).unwrap();
                        sweep(parent, "new-");
                        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{n} {round}"));
                    }
                });
            }
        });
        assert!(names(parent.path()).is_empty());
    }

    /// Makes a folder, says so, and hangs.
    #[test]
    #[ignore = "run by another test"]
    fn an_owner() {
        let parent = PathBuf::from(std::env::var_os(PARENT).unwrap());
        let own = ScratchDir::create(&parent, "new-").unwrap();
        fs::write(own.path().join("file"), "x").unwrap();
        println!("\nmade");
        thread::sleep(smol_testing::LIMIT);
    }

    #[test]
    fn what_a_killed_process_leaves_is_removed_by_the_next() {
        let parent = tempfile::tempdir().unwrap();
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "lock_dir::tests::an_owner",
                "--ignored",
                "--nocapture",
            ])
            .env(PARENT, parent.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "made"));
        let left = names(parent.path());
        let meanwhile = ScratchDir::create(parent.path(), "new-").unwrap();
        assert_eq!(names(parent.path()).len(), 2, "a living owner's stays");
        drop(meanwhile);
        owner.kill().unwrap(); // SIGKILL
        owner.wait().unwrap();
        assert_eq!(names(parent.path()), left, "nobody was there to remove it");
        let next = ScratchDir::create(parent.path(), "new-").unwrap();
        assert_eq!(names(parent.path()).len(), 1);
        assert!(next.path().exists() && !parent.path().join(&left[0]).exists());
    }
}
