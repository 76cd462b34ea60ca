//! The service's cgroup (v2): joined before exec, frozen around the snapshot, killed at the end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::time::Timespec;

/// A cgroup that holds the service and everything it started.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// cgroup.procs, open for writing: a child writes `0` to it to join.
    pub procs: File,
}

impl Cgroup {
    /// Makes the cgroup `name` under the mounted hierarchy.
    pub fn create(hierarchy: &Path, name: &str) -> io::Result<Self> {
        let path = hierarchy.join(name);
        match fs::create_dir(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let procs = open_procs(&path)?;
        Ok(Cgroup { path, procs })
    }

    /// Lets what runs in it limit the cgroups that it makes, as far as the kernel can: by the number of
    /// processes. It is the root of a hierarchy to the service.
    pub(super) fn delegate(&self) {
        if let Some(hierarchy) = self.path.parent() {
            // A kernel of one's own may have no such controller, and nothing needs it.
            let _ = fs::write(hierarchy.join("cgroup.subtree_control"), "+pids");
        }
    }

    /// The cgroup.procs of a cgroup below it, for what is started next to an init: that may have put
    /// controllers in force, and then no process can be in a cgroup that has others below it.
    pub(super) fn commands(&self) -> io::Result<File> {
        let path = self.path.join("smol-commands");
        match fs::create_dir(&path) {
            // The init may have removed it, as one that is empty.
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        open_procs(&path)
    }

    /// Stops every process in it, and returns when all of them have stopped.
    pub fn freeze(&self, limit: Duration) -> io::Result<()> {
        fs::write(self.path.join("cgroup.freeze"), "1")?;
        self.wait_for("frozen 1", limit)
    }

    /// Lets them run on.
    pub fn thaw(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.freeze"), "0")
    }

    /// Kills every process in it. An empty cgroup is no error.
    pub fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// Waits for a line of cgroup.events. The kernel marks the file with POLLPRI at each
    /// change (Documentation/admin-guide/cgroup-v2.rst).
    fn wait_for(&self, line: &str, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        let mut events = File::open(self.path.join("cgroup.events"))?;
        loop {
            let mut text = String::new();
            events.rewind()?;
            events.read_to_string(&mut text)?;
            if text.lines().any(|l| l == line) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::other(format!(
                    "{}: no {line:?} within {limit:?}",
                    self.path.display()
                )));
            }
            let left = Timespec::try_from(left).ok();
            match rustix::event::poll(
                &mut [PollFd::new(&events.as_fd(), PollFlags::PRI)],
                left.as_ref(),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn open_procs(cgroup: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .open(cgroup.join("cgroup.procs"))
}
