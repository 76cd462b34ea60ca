//! The folders of all machines, seen from any smolrun.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use smol_bundle::open_regular;
use smol_cli::{ErrorExt, ExitKind, Failure};
use smol_host::lock_dir::LockDir;

use super::record::{EndRecord, Record, State};
use super::{LOG, SOCKET};

/// How many machines that have ended stay listed: their logs take memory.
const MAX_ENDED: usize = 16;
/// A smolrun that checks whether a folder is abandoned locks it for a moment: how often another one
/// tries to lock it, and the time in between.
pub(super) const LOCK_TRIES: usize = 20;
pub(super) const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// How long those who wait for the end of a machine may take to notice it, when nothing of it is to
/// stay.
const HOLD_TIMEOUT: Duration = Duration::from_secs(1);
const HOLD_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The folder of all instances, created when absent.
///
/// # Errors
/// If it cannot be created or is not ours alone.
pub fn root() -> anyhow::Result<PathBuf> {
    let root = smol_cli::paths::runtime_dir()?.join("instances");
    let created = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&root);
    created
        .with_context(|| format!("cannot create {}", root.display()))
        .kind(ExitKind::Host)?;
    Ok(root)
}

/// Returns the record of the machine in this folder, running or ended; none if there is no machine
/// in it, or none yet. If its process died without a word, the record says so from here on; or
/// the folder is removed, if nothing of the machine is to stay.
fn look(folder: &Path) -> Option<Record> {
    let record = Record::read(folder);
    // Once it has ended, what the folder's lock says is of no importance.
    let stays = |record: &Record| record.end.is_some() && !record.auto_remove;
    if record.as_ref().is_some_and(stays) {
        return record;
    }
    let Some(left) = LockDir::if_abandoned(folder) else {
        return record;
    };
    // Its process may have recorded the end, and released the folder, in between.
    match Record::read(folder) {
        Some(record) if stays(&record) => Some(record),
        Some(record) if !record.auto_remove => {
            let record = record.ended(EndRecord::killed());
            // If that cannot be written, the next smolrun tries again.
            let _ = record.write(left.path());
            Some(record)
        }
        _ => {
            let _ = left.remove();
            None
        }
    }
}

/// Returns the machines by name, running or ended.
pub fn list(root: &Path) -> Vec<Record> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut records: Vec<_> = entries.filter_map(|entry| look(&entry.path())).collect();
    records.sort_by(|a, b| a.name.cmp(&b.name));
    records
}

/// Removes what is left of machines that have ended and that nobody can ask for any more: half-made
/// folders, and, of those that stay listed, the oldest if there are too many.
pub fn sweep(root: &Path) {
    let mut ended: Vec<_> = list(root)
        .into_iter()
        .filter_map(|record| Some((record.end.as_ref()?.ended, record)))
        .collect();
    ended.sort_by_key(|(when, _)| std::cmp::Reverse(*when));
    for (_, record) in ended.iter().skip(MAX_ENDED) {
        // If that fails, the next start tries again.
        let _ = remove(root, record);
    }
}

/// Removes what is left of the machine of this record, if it has ended; returns whether it had.
///
/// # Errors
/// If the folder cannot be removed.
pub fn remove(root: &Path, record: &Record) -> anyhow::Result<bool> {
    let folder = root.join(&record.name);
    for _ in 0..LOCK_TRIES {
        let left = LockDir::if_abandoned(&folder);
        // It may be gone, or have made way for a new machine of that name.
        let Some(now) = Record::read(&folder).filter(|now| now.is_of(record)) else {
            return Ok(true);
        };
        if let Some(left) = left {
            let what = || format!("cannot remove {}", folder.display());
            return left.remove().map(|()| true).with_context(what);
        }
        if now.end.is_none() {
            return Ok(false);
        }
        thread::sleep(LOCK_PAUSE);
    }
    Ok(false)
}

/// Returns the machine of this name, running or ended.
///
/// # Errors
/// With the names that there are.
pub fn find(root: &Path, name: &str) -> anyhow::Result<Record> {
    let records = list(root);
    if let Some(record) = records.iter().find(|record| record.name == name) {
        return Ok(record.clone());
    }
    let names = |ended: bool| {
        let of_kind = records
            .iter()
            .filter(|r| (r.state == State::Ended) == ended);
        let names: Vec<_> = of_kind.map(|record| record.name.as_str()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let running = names(false).map(|names| format!("running: {names}"));
    let ended = names(true).map(|names| format!("ended: {names}"));
    let hint: Vec<_> = running.into_iter().chain(ended).collect();
    let hint = match hint.is_empty() {
        true => "no machine is running, and none has ended".to_owned(),
        false => hint.join("; "),
    };
    let message = format!("there is no machine named {name}");
    Err(Failure::new(ExitKind::Failed, message).hint(hint).into())
}

/// The error of a name that a running machine has.
pub fn in_use(name: &str) -> Failure {
    Failure::new(
        ExitKind::Usage,
        format!("a machine named {name} is running already"),
    )
    .hint(format!(
        "choose another --name, or stop that one: smolrun stop {name}"
    ))
}

/// Fails early if a running machine has this name; [`super::Instance::claim`] decides.
///
/// # Errors
/// As [`super::Instance::claim`].
pub fn check_free(root: &Path, name: &str) -> anyhow::Result<()> {
    match look(&root.join(name)) {
        Some(record) if record.state != State::Ended => Err(in_use(name).into()),
        _ => Ok(()),
    }
}

/// Opens the log of a machine.
///
/// # Errors
/// If it is gone.
pub fn open_log(root: &Path, name: &str) -> anyhow::Result<File> {
    let path = root.join(name).join(LOG);
    let what = || format!("cannot open {}", path.display());
    let log = open_regular(&path).with_context(what)?;
    log.context("it is not a regular file").with_context(what)
}

/// Holds the end of the machine of this record: its process removes nothing until this is dropped, or
/// a short time has passed. `None` if the machine is just being started or removed.
pub fn hold(root: &Path, record: &Record) -> Option<File> {
    let log = open_regular(&root.join(&record.name).join(LOG)).ok()??;
    log.lock_shared().ok()?;
    (log.metadata().ok()?.nlink() > 0).then_some(log)
}

/// Waits until nobody holds the end of the machine in this folder any more; nobody can until the
/// returned lock is dropped.
pub(super) fn await_readers(folder: &Path) -> Option<File> {
    let log = open_regular(&folder.join(LOG)).ok()??;
    for _ in 0..HOLD_TIMEOUT.as_millis() / HOLD_POLL_INTERVAL.as_millis() {
        match log.try_lock() {
            Err(TryLockError::WouldBlock) => thread::sleep(HOLD_POLL_INTERVAL),
            _ => break,
        }
    }
    Some(log)
}

/// Connects to the control socket of a running machine.
///
/// # Errors
/// If it is gone.
pub fn connect(root: &Path, name: &str) -> std::io::Result<UnixStream> {
    let dir = File::open(root.join(name))?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
    UnixStream::connect(path).map_err(|e| match e.kind() {
        // The folder was removed after it was opened.
        ErrorKind::NotFound => ErrorKind::ConnectionRefused.into(),
        _ => e,
    })
}

/// Whether the machine of this record still runs.
pub fn runs(root: &Path, record: &Record) -> bool {
    current(root, record).is_some_and(|now| now.end.is_none())
}

/// Returns what is known by now of the machine of this record, if anything is left of it.
pub fn current(root: &Path, record: &Record) -> Option<Record> {
    look(&root.join(&record.name)).filter(|now| now.is_of(record))
}

/// Whether the process of this record's machine is done with its folder.
pub fn is_released(root: &Path, record: &Record) -> bool {
    let folder = root.join(&record.name);
    let is_there = || Record::read(&folder).is_some_and(|now| now.is_of(record));
    !is_there() || LockDir::if_abandoned(&folder).is_some() || !is_there()
}
