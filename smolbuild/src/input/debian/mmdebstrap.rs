//! Running mmdebstrap, which is killed when this process ends, and reading its output.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{ChildStderr, Command, Stdio};

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::geteuid;
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt};
use smol_host::apt::find_program;
use smol_host::child::{self, ProcessGroup};

/// Time given to files that have none of their own. Any value that never changes will do; the image
/// clamps times itself.
const EPOCH: &str = "1700000000";
/// Lines of mmdebstrap's output shown when it fails.
const LAST_LINES: usize = 15;
/// unshare(1), of util-linux.
const UNSHARE: &str = "unshare";

/// What a line begins with that says how far a download is: of apt (`APT::Status-Fd`), and of a hook
/// that says how many bytes it downloads.
pub const DOWNLOAD: &str = "dlstatus:";
/// See [`DOWNLOAD`].
pub const BYTES: &str = "download-bytes:";

/// What an mmdebstrap can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// What this host can.
    Host,
    /// Itself alone, where that can be had: without root, mmdebstrap keeps the network of the host.
    Loopback,
}

/// Sets `lo` up, which some scripts want (postfix's looks for interfaces): SIOCSIFFLAGS with IFF_UP.
/// In Perl, as mmdebstrap is, for not every host has ip(8).
const LOOPBACK_HOOK: &str = r#"perl -e 'socket(my $socket, 2, 2, 0) or die "socket: $!";
    my $up = pack("a16 s x22", "lo", 1); ioctl($socket, 0x8914, $up) or die "lo: $!"'"#;

/// An mmdebstrap that writes a tar archive, to which the rest of its arguments can be added. As root
/// it works in the folder `work`.
///
/// # Errors
/// It is not installed (exit kind Host).
pub fn command(work: &Path, network: Network) -> Result<Command, Failure> {
    let Some(mmdebstrap) = find_program("mmdebstrap") else {
        let missing =
            "mmdebstrap, which installs the packages of [rootfs] debian, is not installed";
        return Err(Failure::new(ExitKind::Host, missing)
            .hint("install it: apt-get install mmdebstrap")
            .hint("or give [rootfs] a `tar` archive or a `dir` instead"));
    };
    let mut command = confined(mmdebstrap.as_os_str(), network);
    command.args(["--format=tar", "--aptopt=Acquire::Languages \"none\""]);
    if geteuid().is_root() {
        command.arg("--mode=root").env("TMPDIR", work);
        if network == Network::Loopback && find_program(UNSHARE).is_some() {
            command.arg(format!("--setup-hook={LOOPBACK_HOOK}"));
        }
    } else {
        // The user that mmdebstrap becomes may not look into our cache: leave it in /tmp.
        command.arg("--mode=unshare");
    }
    command
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .env("LC_ALL", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .current_dir("/");
    Ok(command)
}

/// Runs a [`command`] to its end, or until the interrupt. What it says of its steps and of downloads
/// goes to `progress`, its last lines into the error if it fails.
///
/// # Errors
/// It fails, or the user wants to stop.
pub fn run(command: Command, progress: &mut dyn FnMut(&str), interrupt: &Interrupt) -> Result<()> {
    let done = watch(command, progress, interrupt);
    if geteuid().is_root() {
        return done;
    }
    done.hint(
        "without root mmdebstrap needs the package uidmap, and a range of users for you in \
         /etc/subuid and /etc/subgid",
    )
}

/// A word for the shell that mmdebstrap starts hooks with.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Whether a [`command`] has a UTS namespace of its own, so that its hooks can give it another name.
pub fn has_own_host_name() -> bool {
    // Without root mmdebstrap makes one.
    !geteuid().is_root() || find_program(UNSHARE).is_some()
}

/// A command that runs `program` such that it is killed when this process ends, however it ends: as
/// root in a PID and mount namespace of its own, whose first process dies with its parent and takes
/// all others and their mounts along, and in a UTS namespace, so that it can have another host name.
fn confined(program: &OsStr, network: Network) -> Command {
    let mut command = match find_program(UNSHARE) {
        Some(unshare) if geteuid().is_root() => {
            let mut command = Command::new(unshare);
            command.args(["--mount", "--pid", "--uts", "--fork", "--kill-child=KILL"]);
            if network == Network::Loopback {
                command.arg("--net");
            }
            command.arg("--").arg(program);
            command
        }
        _ => Command::new(program),
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    child::kill_with_parent(&mut command);
    command
}

fn watch(
    mut command: Command,
    progress: &mut dyn FnMut(&str),
    interrupt: &Interrupt,
) -> Result<()> {
    let mut group = ProcessGroup::spawn(&mut command).context("cannot start mmdebstrap")?;
    let mut stderr = group.take_stderr().context("mmdebstrap has no output")?;
    let mut said = Said::default();
    while said.read(&mut stderr, interrupt)? {
        said.lines(progress);
    }
    let status = group.wait().context("cannot wait for mmdebstrap")?;
    if status.success() {
        return Ok(());
    }
    let error = said.first_error.unwrap_or_else(|| status.to_string());
    let last = Vec::from(said.last).join("\n  ");
    Err(anyhow!("mmdebstrap: {error}\nits last lines:\n  {last}"))
        .hint("check the package names and the network")
}

/// What a running mmdebstrap has said.
#[derive(Default)]
struct Said {
    /// Bytes that are not a whole line yet.
    rest: Vec<u8>,
    last: VecDeque<String>,
    first_error: Option<String>,
}

impl Said {
    /// Wait for more; `false` at the end.
    fn read(&mut self, stderr: &mut ChildStderr, interrupt: &Interrupt) -> Result<bool> {
        let mut fds = [
            PollFd::new(stderr, PollFlags::IN),
            PollFd::new(interrupt, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => interrupt.check()?,
            Err(error) => return Err(error).context("cannot wait for mmdebstrap"),
        }
        if fds[0].revents().is_empty() {
            return Ok(true);
        }
        let mut buffer = [0; 8192];
        let read = rustix::io::read(&*stderr, &mut buffer);
        let read = read.context("cannot read what mmdebstrap says")?;
        self.rest.extend(&buffer[..read]);
        Ok(read > 0)
    }

    /// Take note of the whole lines.
    fn lines(&mut self, progress: &mut dyn FnMut(&str)) {
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            // Progress bars overwrite themselves.
            let shown = line
                .rsplit('\r')
                .map(str::trim)
                .find(|part| !part.is_empty());
            let line = shown.unwrap_or_default();
            if line.starts_with(DOWNLOAD) || line.starts_with(BYTES) {
                progress(line);
                continue;
            }
            // "I: installing essential packages...": the rest is about mmdebstrap itself.
            if let Some(step) = line
                .strip_prefix("I: ")
                .and_then(|step| step.strip_suffix("..."))
            {
                progress(step);
            }
            if line.starts_with("E: ") {
                self.first_error.get_or_insert_with(|| line.to_owned());
            }
            if self.last.len() == LAST_LINES {
                self.last.pop_front();
            }
            self.last.push_back(line.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = confined(OsStr::new("/bin/sh"), Network::Host);
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failing_command_reports_its_first_error_and_its_last_lines() {
        let script = "echo E: first >&2; for n in $(seq 50); do echo I: line $n... >&2; done;
             for n in $(seq 20); do echo dlstatus:$n:1:x >&2; done; exit 3";
        let mut lines = Vec::new();
        let interrupt = Interrupt::detached().unwrap();
        let error = run(
            shell(script),
            &mut |line| lines.push(line.to_string()),
            &interrupt,
        );
        let error = format!("{:#}", error.unwrap_err());
        assert_eq!((lines.len(), lines[49].as_str()), (70, "line 50"));
        assert_eq!(lines[69], "dlstatus:20:1:x");
        assert!(
            error.contains("E: first") && error.contains("line 50"),
            "{error}"
        );
        assert!(
            error.contains("line 36") && !error.contains("line 35"),
            "{error}"
        );
    }

    #[test]
    fn an_interrupt_ends_the_command_and_its_children() {
        let scratch = tempfile::tempdir().unwrap();
        let alive = scratch.path().join("alive");
        let script = "(while sleep 0.1; do date +%N > $0; done) & wait";
        let mut command = shell(script);
        command.arg(&alive);
        let interrupt = Interrupt::detached().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !alive.exists() {
                    std::thread::sleep(Duration::from_millis(20));
                }
                interrupt.trigger();
            });
            let error = run(command, &mut |_| {}, &interrupt).unwrap_err();
            assert_eq!(smol_cli::exit_kind(&error), ExitKind::Terminated);
        });
        let before = fs::read(&alive).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(fs::read(&alive).unwrap(), before, "a child lives on");
    }
}
