//! Removing entries, such that none goes under its user, and that who is killed meanwhile leaves no half of
//! one.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use smol_cli::Interrupt;
use smol_host::cache;
use smol_host::lock_dir::{LockDir, ScratchDir};

use super::{Entry, Kind, REMOVING};

/// What must be locked to remove an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// The entry, a folder.
    Itself,
    /// The folder of all entries of its kind.
    Folder(PathBuf),
    /// This file.
    File(PathBuf),
    /// Nothing: nobody uses it but people.
    Nothing,
}

/// The outcome of locking what guards an entry.
enum Claimed {
    /// Nobody uses it, nor can as long as this is held.
    Free {
        _lock: Option<File>,
        _dir: Option<LockDir>,
    },
    InUse,
    /// It is not there any more. What is made under its name from now on is another one's.
    Gone,
}

impl Guard {
    /// Returns the guard of an entry that is this: what is no folder has no lock of its own.
    pub(super) fn of(self, entry: &Metadata) -> Guard {
        match self {
            Guard::Itself if !entry.is_dir() => Guard::Nothing,
            guard => guard,
        }
    }

    /// Whether a process holds it now.
    pub(super) fn is_held(&self, entry: &Path) -> bool {
        matches!(self.claim(entry), Ok(Claimed::InUse))
    }

    /// Returns what is locked.
    fn place<'a>(&'a self, entry: &'a Path) -> Option<&'a Path> {
        match self {
            Guard::Itself => Some(entry),
            Guard::Folder(path) | Guard::File(path) => Some(path),
            Guard::Nothing => None,
        }
    }

    fn claim(&self, entry: &Path) -> io::Result<Claimed> {
        let (mut lock, mut dir) = (None, None);
        match self {
            Guard::Nothing => {}
            Guard::Itself | Guard::Folder(_) => {
                let place = self.place(entry).unwrap_or(entry);
                dir = LockDir::if_abandoned(place);
                if dir.is_none() {
                    return Ok(match place.exists() {
                        true => Claimed::InUse,
                        false => Claimed::Gone,
                    });
                }
            }
            Guard::File(place) => {
                let file = cache::open_lock(place)?;
                match file.try_lock() {
                    Ok(()) => lock = Some(file),
                    Err(TryLockError::WouldBlock) => return Ok(Claimed::InUse),
                    Err(TryLockError::Error(error)) => return Err(error),
                }
            }
        }
        Ok(Claimed::Free {
            _lock: lock,
            _dir: dir,
        })
    }
}

/// Entries that are in use, so that they stayed.
#[derive(Debug, Default)]
pub struct InUseBy {
    /// Number of entries.
    pub entries: usize,
    /// What they take on the disk, bytes.
    pub size: u64,
    /// The processes that hold them, as far as that is known: name and id.
    pub processes: BTreeMap<u32, String>,
}

/// What was removed, and what was not.
#[derive(Debug, Default)]
pub struct Removal {
    /// Number and size of the entries of each kind that are gone.
    pub removed: BTreeMap<Kind, (usize, u64)>,
    /// Those that stayed because they are in use.
    pub in_use: BTreeMap<Kind, InUseBy>,
    /// What could not be removed, and why.
    pub failed: Vec<(PathBuf, io::Error)>,
}

impl Removal {
    /// Returns what was freed, bytes.
    pub fn freed(&self) -> u64 {
        self.removed.values().map(|(_, size)| size).sum()
    }
}

/// Removes entries in their order, as long as `go_on` wants more to go: it gets the number of entries that were
/// looked at, and what was freed so far, bytes. Ends early if the user wants to stop.
pub fn remove<'a>(
    entries: impl IntoIterator<Item = &'a Entry>,
    interrupt: &Interrupt,
    go_on: impl Fn(usize, u64) -> bool,
) -> Removal {
    let mut removal = Removal::default();
    let mut trash = Trash::default();
    for (number, entry) in entries.into_iter().enumerate() {
        if interrupt.is_set() || !go_on(number, removal.freed()) {
            break;
        }
        match trash.take(entry) {
            Ok(Taken::Gone) if entry.kind != Kind::Leftovers => {}
            // What was being removed, the first of our own folders beside it has removed.
            Ok(Taken::Removed | Taken::Gone) => {
                let (entries, size) = removal.removed.entry(entry.kind).or_default();
                *entries += 1;
                *size += entry.size;
            }
            Ok(Taken::InUse) => {
                let in_use = removal.in_use.entry(entry.kind).or_default();
                in_use.entries += 1;
                in_use.size += entry.size;
                let place = entry.guard.place(entry.path());
                in_use
                    .processes
                    .extend(place.map(holders).into_iter().flatten());
            }
            Err(error) => removal.failed.push((entry.path().to_owned(), error)),
        }
    }
    removal
}

/// What became of an entry.
enum Taken {
    Removed,
    InUse,
    /// Another process has removed it.
    Gone,
}

/// Folders for what is being removed, one beside the entries of each kind: a rename does not leave a disk.
#[derive(Default)]
struct Trash {
    folders: BTreeMap<PathBuf, ScratchDir>,
    taken: usize,
}

impl Trash {
    fn take(&mut self, entry: &Entry) -> io::Result<Taken> {
        let parent = entry.path().parent().unwrap_or(Path::new("/"));
        if !self.folders.contains_key(parent) {
            let folder = ScratchDir::create(parent, REMOVING)?;
            self.folders.insert(parent.to_owned(), folder);
        }
        let folder = self.folders[parent].path();
        let (_lock, _dir) = match entry.guard.claim(entry.path())? {
            Claimed::Free { _lock, _dir } => (_lock, _dir),
            Claimed::InUse => return Ok(Taken::InUse),
            Claimed::Gone => return Ok(Taken::Gone),
        };
        let mut away = Vec::new();
        for path in &entry.paths {
            let place = folder.join(self.taken.to_string());
            self.taken += 1;
            match fs::rename(path, &place) {
                Ok(()) => away.push(place),
                // Another process was faster.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        // From here on it is nobody's.
        drop((_lock, _dir));
        if away.is_empty() {
            return Ok(Taken::Gone);
        }
        for place in away {
            match fs::symlink_metadata(&place)?.is_dir() {
                true => fs::remove_dir_all(&place)?,
                false => fs::remove_file(&place)?,
            }
        }
        Ok(Taken::Removed)
    }
}

/// The processes that hold a lock on this, by the kernel's list (proc_locks(5)), as far as that tells.
fn holders(place: &Path) -> BTreeMap<u32, String> {
    let Ok(metadata) = fs::metadata(place) else {
        return BTreeMap::new();
    };
    let dev = metadata.dev();
    let id = format!(
        "{:02x}:{:02x}:{}",
        rustix::fs::major(dev),
        rustix::fs::minor(dev),
        metadata.ino()
    );
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let pids = locks.lines().filter_map(|line| {
        // 1: FLOCK  ADVISORY  READ 708 fd:00:13107 0 EOF
        let words: Vec<_> = line.split_whitespace().collect();
        (words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&id.as_str()))
            .then(|| words[4].parse::<u32>().ok())?
    });
    pids.filter(|pid| *pid != 0)
        .map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            (pid, name.trim().to_owned())
        })
        .collect()
}
