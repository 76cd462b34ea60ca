//! Namespaces of a service that is an init: made by its process before it is executed, entered by what is
//! started later. A PID namespace is one of the children of whoever asks for it, so that part is done
//! by us, around the fork; the rest by the child.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, PidfdFlags};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags, move_into_link_name_space,
    move_into_thread_name_spaces, unshare_unsafe,
};

const NO_SUID_EXEC: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Starts a process as PID 1 of a PID namespace: the first that `spawn` starts.
pub(in super::super) fn in_new_pid_namespace<T>(
    spawn: impl FnOnce() -> Result<T, String>,
) -> Result<T, String> {
    let failed = |e: rustix::io::Errno| format!("cannot make a PID namespace: {e}");
    around(spawn, || {
        // SAFETY: no descriptors are unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWPID) }.map_err(failed)
    })
}

/// Calls `spawn` between `enter` and the way back, of which only the namespace of children is meant.
fn around<T>(
    spawn: impl FnOnce() -> Result<T, String>,
    enter: impl FnOnce() -> Result<(), String>,
) -> Result<T, String> {
    let ours = File::open("/proc/self/ns/pid").map_err(|e| format!("/proc/self/ns/pid: {e}"))?;
    enter()?;
    let spawned = spawn();
    move_into_link_name_space(ours.as_fd(), Some(LinkNameSpaceType::ProcessID))
        .map_err(|e| format!("cannot return to our PID namespace: {e}"))?;
    spawned
}

/// Makes the mount and the cgroup namespace of this process, which is PID 1 of its PID namespace. It only
/// makes system calls, for it runs between fork and exec.
pub(in super::super) fn create() -> rustix::io::Result<()> {
    // SAFETY: no descriptors are unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP) }?;
    // The old ones would stay visible below the new ones, as mounts of the init.
    rustix::mount::unmount(c"/sys/fs/cgroup", UnmountFlags::DETACH)?;
    let cgroup = c"/sys/fs/cgroup";
    rustix::mount::mount(c"cgroup2", cgroup, c"cgroup2", NO_SUID_EXEC, None)?;
    rustix::mount::mount_remount(
        c"/sys",
        MountFlags::BIND | MountFlags::RDONLY | NO_SUID_EXEC,
        c"",
    )?;
    rustix::mount::unmount(c"/dev", UnmountFlags::DETACH)?;
    rustix::mount::mount_move(super::files::DEVICES, c"/dev")?;
    rustix::mount::unmount(c"/proc", UnmountFlags::DETACH)?;
    rustix::mount::mount(c"proc", c"/proc", c"proc", NO_SUID_EXEC, None)?;
    // What the init mounts appears in the mount namespaces of its units, as it does where systemd boots.
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", shared)
}

/// The namespaces of an init that runs.
#[derive(Debug)]
pub(in super::super) struct Namespaces {
    init: OwnedFd,
    /// Its root directory, with what is mounted there.
    root: OwnedFd,
}

impl Namespaces {
    /// Those of this process.
    pub(super) fn of(pid: Pid) -> io::Result<Self> {
        let init = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let path = format!("/proc/{}/root", pid.as_raw_nonzero());
        let root = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Namespaces { init, root })
    }

    /// What a child enters the rest by.
    pub(in super::super) fn rest(&self) -> io::Result<Rest> {
        Ok(Rest {
            init: self.init.try_clone()?,
            root: self.root.try_clone()?,
        })
    }

    /// Starts a process in the PID namespace.
    pub(in super::super) fn spawn<T>(
        &self,
        spawn: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        around(spawn, || {
            move_into_thread_name_spaces(self.init.as_fd(), ThreadNameSpaceType::PROCESS_ID)
                .map_err(|e| format!("cannot enter the PID namespace of the init: {e}"))
        })
    }

    /// Whether there is something at this path, as the init sees it; a link at its end is something.
    pub(in super::super) fn holds(&self, path: &str) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve)?;
        Ok(())
    }
}

/// The mount and the cgroup namespace of an init, and its root.
pub(in super::super) struct Rest {
    init: OwnedFd,
    root: OwnedFd,
}

impl Rest {
    /// Enters them. It only makes system calls, for it runs between fork and exec.
    pub(in super::super) fn enter(&self) -> rustix::io::Result<()> {
        let both = ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::CONTROL_GROUP;
        move_into_thread_name_spaces(self.init.as_fd(), both)?;
        // The root of a mount namespace is not that of its processes, if they were started by chroot.
        rustix::process::fchdir(&self.root)?;
        rustix::process::chroot(c".")
    }
}
