//! Machines as others find them: each has a folder, which is locked by the process that runs it.
//!
//! ```text
//! <runtime>/instances/<name>/   locked (see smol_host::lock_dir) as long as the machine runs
//!   instance.json               what it is, and how it ended; appears whole
//!   log                         the service's output
//!   control.sock                takes control requests (see crate::host::control)
//! ```
//! The folder of a machine in the background stays when it ends, without the socket: its process
//! writes into the record how it ended, then releases the folder. A folder that is not locked and
//! whose record names no end is one of a process that died without a word; the first smolrun that
//! notices writes that into the record. All other folders are removed, by their process or by the
//! next smolrun that lists them, and of the ended machines the oldest.
//!
//! Who waits for the end of a machine holds a shared lock on its log: before a process removes its
//! folder, it waits until nobody does.

mod folders;
mod name;
mod record;

pub use folders::{
    check_free, connect, current, find, hold, is_released, list, open_log, remove, root, runs,
    sweep,
};
pub use name::{check_name, invent_name};
pub use record::{EndRecord, Record, State, now};

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::Context as _;
use smol_host::lock_dir::LockDir;

use crate::host::control::ControlSocket;
use crate::run::output::Log;
use crate::run::publish::Publish;

const LOG: &str = "log";
const SOCKET: &str = "control.sock";

/// A machine of this process.
pub struct Instance {
    /// Taken at its end.
    dir: Option<LockDir>,
    record: Mutex<Record>,
}

impl Instance {
    /// Takes the name, with the folder and its record. What is left there of a machine that has
    /// ended is removed.
    ///
    /// # Errors
    /// Of kind [`smol_cli::ExitKind::Usage`] if a running machine has it.
    pub fn claim(root: &Path, record: Record) -> anyhow::Result<Self> {
        let path = root.join(&record.name);
        let what = || format!("cannot make {}", path.display());
        let mut dir = None;
        for _ in 0..folders::LOCK_TRIES {
            dir = LockDir::try_claim(&path).with_context(what)?;
            if dir.is_some() {
                break;
            }
            thread::sleep(folders::LOCK_PAUSE);
        }
        let dir = dir.ok_or_else(|| folders::in_use(&record.name))?;
        dir.clear().with_context(what)?;
        record.write(dir.path()).with_context(what)?;
        Ok(Self {
            dir: Some(dir),
            record: Mutex::new(record),
        })
    }

    /// Returns the folder of all records.
    pub fn root(&self) -> &Path {
        let root = self.dir().path().parent();
        root.expect("it was made in there")
    }

    fn dir(&self) -> &LockDir {
        self.dir.as_ref().expect("it is taken at the end alone")
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the service runs, and where.
    pub fn set_running(&self, ports: &[Publish]) {
        let mut record = self.record();
        record.state = State::Running;
        record.ports = ports.to_vec();
        // `ps` would go on showing the machine as starting; the machine itself is well.
        let _ = record.write(self.dir().path());
    }

    /// Records how the machine ended, and releases its folder. If nothing of the machine is to stay,
    /// the folder is removed, once all who wait for the end have read the record.
    pub fn end(mut self, end: EndRecord) {
        let record = self.record().clone();
        let keep = !record.auto_remove;
        let Some(dir) = self.dir.take() else { return };
        let _ = std::fs::remove_file(dir.path().join(SOCKET));
        // If that cannot be written, the machine counts as killed.
        let _ = record.ended(end).write(dir.path());
        if keep {
            let path = dir.path().to_owned();
            drop(dir);
            path.parent().map_or((), sweep)
        } else {
            let _log = folders::await_readers(dir.path());
            // If that fails, the next smolrun that lists the folders removes it.
            let _ = dir.remove();
        }
    }

    /// Its log, new.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create_log(&self) -> anyhow::Result<Log> {
        let path = self.dir().path().join(LOG);
        Log::create(&path).with_context(|| format!("cannot create {}", path.display()))
    }

    /// Creates the control socket. Connections wait until it is served.
    ///
    /// # Errors
    /// If the socket cannot be created.
    pub fn control(&self) -> anyhow::Result<ControlSocket> {
        let listener = UnixListener::bind(self.dir().short_path(SOCKET)).with_context(|| {
            format!("cannot create {}", self.dir().path().join(SOCKET).display())
        })?;
        Ok(ControlSocket::new(listener))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take() {
            // If that fails, the next smolrun that lists the folders removes it.
            let _ = dir.remove();
        }
    }
}

#[cfg(test)]
mod tests;
