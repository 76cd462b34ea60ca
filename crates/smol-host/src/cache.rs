//! The cache that smolbuild and smolrun share: its folders, and entries of it that are in use.
//!
//! Who uses an entry holds flock(2) on it, shared; who removes one holds it alone, renames the entry away
//! and only then deletes it. So an entry is whole or absent, and is never removed under its user, whatever
//! process ends when. The lock is that of the entry's own folder, or of the folder of all entries of its
//! kind: the table in smolbuild's `cache` says which.
//!
//! The time of the last use is the entry's time of modification.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Folder of what was downloaded: files by their SHA-256.
pub const DOWNLOADS: &str = "downloads";
/// Folder of kernels.
pub const KERNELS: &str = "kernels";
/// Folder of installed Debian systems: tar archives.
pub const SYSTEMS: &str = "debian";
/// Folder of the layers of container images and build steps: tar archives.
pub const LAYERS: &str = "layers";
/// Folder of what build steps have made: the digests of their layers.
pub const STEPS: &str = "steps";
/// Folder of bundles that were built before.
pub const BUILT: &str = "built";
/// Folder of the images of bundles that smolrun has started.
pub const IMAGES: &str = "bundles";
/// Folder of kernels of the emulated host.
pub const HOST_KERNELS: &str = "emulated-host";
/// Folder of reports about emulated hosts that died by themselves.
pub const HOST_FAULTS: &str = "emulated-host-faults";
/// Folder of what builds that run are making.
pub const WORK: &str = "work";

/// How exactly the last use of an entry is recorded. Less would write to the disk at each start.
const USE_PRECISION: Duration = Duration::from_secs(3600);

/// An entry, or a folder of entries, that nobody removes until this is dropped or the process ends.
#[derive(Debug)]
pub struct InUse {
    _lock: File,
}

impl InUse {
    /// Takes an entry that is a folder into use, and records that; `None` if it is not there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn of(entry: &Path) -> io::Result<Option<InUse>> {
        let options = libc::O_DIRECTORY;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(options)
            .open(entry);
        let file = match opened {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        InUse::shared(file, entry)
    }

    /// Takes what was opened or locked at `entry` into use; `None` if it is not there any more.
    pub(crate) fn shared(file: File, entry: &Path) -> io::Result<Option<InUse>> {
        // Who holds it alone renames it, which takes no time.
        lock_shared(&file)?;
        let Some(found) = in_place(&file, entry)? else {
            return Ok(None);
        };
        record(&file, &found);
        Ok(Some(InUse { _lock: file }))
    }

    /// Takes a folder of entries into use, which is made if it is missing (mode 0755).
    ///
    /// # Errors
    /// Those of the file system.
    pub fn of_folder(folder: &Path) -> io::Result<InUse> {
        loop {
            smol_cli::paths::create_in_cache(folder)?;
            if let Some(in_use) = InUse::of(folder)? {
                return Ok(in_use);
            }
        }
    }

    /// Takes an entry into use whose lock is the file `lock`, which is made if it is missing.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn of_lock(lock: &Path) -> io::Result<InUse> {
        loop {
            let file = open_lock(lock)?;
            lock_shared(&file)?;
            if in_place(&file, lock)?.is_some() {
                return Ok(InUse { _lock: file });
            }
        }
    }
}

/// Opens the file that is the lock of an entry.
///
/// # Errors
/// Those of the file system.
pub fn open_lock(lock: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(lock)
}

/// Returns what a file or folder that was opened at `path` is, if it is there still: between opening and
/// locking it, its last owner may have removed or renamed it.
///
/// # Errors
/// Those of the file system.
pub fn in_place(file: &File, path: &Path) -> io::Result<Option<Metadata>> {
    let (ours, there) = match (file.metadata()?, fs::metadata(path)) {
        (_, Err(e)) if e.kind() == ErrorKind::NotFound => return Ok(None),
        (ours, there) => (ours, there?),
    };
    let same = (ours.dev(), ours.ino()) == (there.dev(), there.ino());
    Ok(same.then_some(ours))
}

/// Records that the file at `path` is used now. It does not matter if that fails.
pub fn record_use(path: &Path) {
    if let Ok(file) = File::open(path)
        && let Ok(found) = file.metadata()
    {
        record(&file, &found);
    }
}

fn record(file: &File, found: &Metadata) {
    let now = SystemTime::now();
    // A time that is to come is no better than an old one.
    let age = found.modified().map(|used| now.duration_since(used));
    if !matches!(age, Ok(Ok(age)) if age < USE_PRECISION) {
        let _ = file.set_modified(now);
    }
}

fn lock_shared(file: &File) -> io::Result<()> {
    loop {
        match file.lock_shared() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::lock_dir::LockDir;

    fn age(path: &Path, age: Duration) {
        let then = SystemTime::now() - age;
        File::open(path).unwrap().set_modified(then).unwrap();
    }

    fn last_use(path: &Path) -> Duration {
        let used = fs::metadata(path).unwrap().modified().unwrap();
        SystemTime::now().duration_since(used).unwrap_or_default()
    }

    #[test]
    fn what_is_in_use_by_many_is_claimed_by_nobody_until_all_are_done() {
        let folder = tempfile::tempdir().unwrap();
        let entry = folder.path().join("entry");
        assert!(InUse::of(&entry).unwrap().is_none());
        fs::create_dir(&entry).unwrap();
        let first = InUse::of(&entry).unwrap().unwrap();
        let second = InUse::of(&entry).unwrap().unwrap();
        drop(first);
        assert!(LockDir::if_abandoned(&entry).is_none());
        drop(second);
        assert!(LockDir::if_abandoned(&entry).is_some());
    }

    #[test]
    fn an_entry_that_is_renamed_while_one_waits_for_it_is_absent() {
        let folder = tempfile::tempdir().unwrap();
        let entry = folder.path().join("entry");
        fs::create_dir(&entry).unwrap();
        let removing = LockDir::if_abandoned(&entry).unwrap();
        let waiting = std::thread::spawn({
            let entry = entry.clone();
            move || InUse::of(&entry).unwrap().is_none()
        });
        std::thread::sleep(Duration::from_millis(50));
        removing.rename(&folder.path().join("away")).unwrap();
        assert!(waiting.join().unwrap());
    }

    #[test]
    fn a_folder_and_a_lock_that_are_missing_are_made_such_that_the_cache_is_not_refused() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("downloads");
        let in_use = InUse::of_folder(&folder).unwrap();
        let mode = fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o022, 0);
        assert!(LockDir::if_abandoned(&folder).is_none());
        drop(in_use);
        let lock = folder.join("x.lock");
        let in_use = InUse::of_lock(&lock).unwrap();
        assert!(open_lock(&lock).unwrap().try_lock().is_err());
        drop(in_use);
        open_lock(&lock).unwrap().try_lock().unwrap();
    }

    #[test]
    fn the_last_use_is_recorded_at_most_once_an_hour() {
        let folder = tempfile::tempdir().unwrap();
        let entry = folder.path().join("entry");
        fs::create_dir(&entry).unwrap();
        let minute = Duration::from_secs(60);
        age(&entry, 30 * minute);
        drop(InUse::of(&entry).unwrap());
        assert!(last_use(&entry) >= 30 * minute, "written for nothing");
        age(&entry, 90 * minute);
        drop(InUse::of(&entry).unwrap());
        assert!(last_use(&entry) < 30 * minute);
        // Of a file, whose time a download sets to that of its server.
        let file = folder.path().join("x.deb");
        fs::write(&file, "").unwrap();
        age(&file, 90 * minute);
        record_use(&file);
        assert!(last_use(&file) < 30 * minute);
        let tomorrow = SystemTime::now() + 24 * 60 * minute;
        File::open(&file).unwrap().set_modified(tomorrow).unwrap();
        record_use(&file);
        assert!(fs::metadata(&file).unwrap().modified().unwrap() < tomorrow);
    }
}
