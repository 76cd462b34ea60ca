//! QEMU's process: how it is started, and its logs.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use smol_sandbox::{Access, Filter, Mode};

use crate::child::{self, Kept};
use crate::error::{HostError, Result};

/// How many lines of a log an error shows.
pub(super) const SHOWN_LINES: usize = 20;
/// Messages of a kernel that has failed, or whose processor has.
const FAILURES: [&str; 7] = [
    "Kernel panic",
    "Oops: ",
    "BUG: ",
    "soft lockup",
    "hard LOCKUP",
    "self-detected stall",
    "detected stalls",
];

/// Files that QEMU writes to, in memory.
pub(super) struct Logs {
    /// The serial console of the emulated host.
    pub console: File,
    /// QEMU's stdout and stderr.
    pub qemu: File,
}

/// Makes QEMU's arguments of the descriptors that it inherits.
pub(super) type Arguments = Box<dyn Fn(&Fds) -> Vec<String> + Send>;

/// What it takes to start QEMU.
pub(super) struct Launch {
    pub qemu: PathBuf,
    pub initramfs: File,
    pub arguments: Arguments,
    /// What it may use of this host.
    pub access: Access,
    pub sandbox: Mode,
    /// How long the first boot may take, and the second.
    pub boot_timeouts: [Duration; 2],
    /// How long nothing may be received from it once it is up.
    pub silence_timeout: Duration,
    /// Where reports of faults are kept.
    pub cache: PathBuf,
}

/// A QEMU that was started.
pub(super) struct Booting {
    /// The host's end of the port.
    pub port: UnixStream,
    /// Its pidfd.
    pub process: OwnedFd,
    /// Receives how it ended.
    pub ended: mpsc::Receiver<ExitStatus>,
    pub logs: Logs,
}

/// Starts QEMU; the init in it must send its first frame within `timeout`.
pub(super) fn boot(launch: &Launch, timeout: Duration) -> Result<Booting> {
    let logs = Logs {
        console: memory_file("console", &[])?,
        qemu: memory_file("qemu", &[])?,
    };
    let (port, inner) = UnixStream::pair().map_err(HostError::io("cannot create a socket"))?;
    let clone = |file: &File| {
        file.try_clone()
            .map_err(HostError::io("cannot duplicate a file descriptor"))
    };
    let fds = Fds {
        initramfs: clone(&launch.initramfs)?,
        console: clone(&logs.console)?,
        port: inner.as_raw_fd(),
    };

    let mut command = Command::new(&launch.qemu);
    command
        .args((launch.arguments)(&fds))
        .stdin(Stdio::null())
        .process_group(0);
    command
        .stdout(clone(&logs.qemu)?)
        .stderr(clone(&logs.qemu)?);
    let inherited = [fds.initramfs.as_raw_fd(), fds.console.as_raw_fd(), fds.port];
    child::inherit(&mut command, &inherited);

    // On a thread of its own: the one that starts it may end before the machine does. QEMU's end of
    // the socket must be the only one, so that its end is seen.
    let (access, sandbox) = (launch.access.clone(), launch.sandbox);
    let confine = move || {
        access.restrict_thread(sandbox)?;
        Filter::Local.restrict_thread(sandbox)
    };
    let Kept { process, ended } =
        child::spawn_on_keeper("qemu-keeper", command, confine, (fds, inner)).map_err(
            HostError::io(format!("cannot start {}", launch.qemu.display())),
        )?;
    port.set_read_timeout(Some(timeout))
        .map_err(HostError::io("cannot set a time limit"))?;
    Ok(Booting {
        port,
        process,
        ended,
        logs,
    })
}

/// Creates a file in memory with these contents: it needs no removal, however this process ends.
pub(super) fn memory_file(name: &str, contents: &[u8]) -> Result<File> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC);
    let file = fd.map_err(std::io::Error::from).and_then(|fd| {
        let mut file = File::from(fd);
        file.write_all(contents)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(file)
    });
    file.map_err(HostError::io(format!(
        "cannot create the file {name} in memory"
    )))
}

/// Returns the text of a log without control characters.
pub(super) fn text(log: &File) -> String {
    let mut bytes = Vec::new();
    // Our own offset: QEMU writes through a description of its own or appends to the shared one.
    let read = File::open(format!("/proc/self/fd/{}", log.as_raw_fd()))
        .and_then(|mut log| log.read_to_end(&mut bytes));
    if read.is_err() {
        return String::new();
    }
    let shown = |c: &char| !c.is_control() || *c == '\n';
    String::from_utf8_lossy(&bytes)
        .chars()
        .filter(shown)
        .collect()
}

/// Returns whether a kernel reports a failure on its console.
pub(super) fn has_failed(console: &str) -> bool {
    FAILURES.iter().any(|words| console.contains(words))
}

/// Returns the most useful lines: those from the kernel's first failure on, else the last ones.
pub(super) fn excerpt(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines
        .iter()
        .position(|line| has_failed(line))
        .unwrap_or(lines.len().saturating_sub(SHOWN_LINES));
    let shown = lines[from..].iter().take(SHOWN_LINES);
    shown
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The file descriptors that QEMU inherits, each under its own number.
pub(super) struct Fds {
    pub initramfs: File,
    pub console: File,
    pub port: i32,
}

impl Fds {
    /// Returns the path by which QEMU opens one of them.
    pub fn path(&self, file: &File) -> String {
        format!("/proc/self/fd/{}", file.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_log_the_last_lines_are_shown_without_control_characters() {
        let log: String = (0..100).map(|n| format!("\x1b[1mline {n}\r\n\n")).collect();
        let shown = excerpt(&text(&memory_file("log", log.as_bytes()).unwrap()));
        assert_eq!(shown.lines().count(), SHOWN_LINES);
        assert!(shown.ends_with("line 99"), "{shown}");
        assert!(!shown.contains('\x1b'));
    }

    #[test]
    fn of_a_kernel_that_has_failed_its_first_words_are_shown() {
        let log: String = (0..100)
            .map(|n| match n {
                30 | 90 => format!("[ {n}] Oops: 0002\n"),
                _ => format!("[ {n}] more\n"),
            })
            .collect();
        let shown = excerpt(&log);
        assert!(shown.starts_with("  [ 30] Oops: 0002\n"), "{shown}");
        assert_eq!(shown.lines().count(), SHOWN_LINES);
    }
}
