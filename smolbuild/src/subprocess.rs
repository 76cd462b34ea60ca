//! Programs that we start and that must not outlive us, however we end.
//!
//! The program and its descendants form a process group. A shell leads it, and with the shell runs
//! a watcher that reads from a pipe whose other end only this process holds: when we end, be it by
//! SIGKILL, the kernel closes the pipe and the watcher kills the group. A parent death signal alone
//! would reach the child only, and a `make` that dies leaves its sub-makes at work for minutes.

use std::ffi::OsStr;
use std::io::{self, PipeReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use smol_cli::Interrupt;

/// Runs its arguments as a command with the watcher beside it; stdin is the pipe that we hold.
/// Descriptor 3, because a shell gives its background commands /dev/null as stdin.
const GUARD: &str = r#"
exec 3<&0
{ read -r _; kill -s KILL 0; } <&3 >/dev/null 2>&1 &
"$@" 3<&- </dev/null
status=$?
kill $! && wait $! 2>/dev/null
exit $status"#;

/// A command, for [`run`], to which arguments, environment and folder can be added.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", GUARD, "sh"])
        .arg(program)
        .stdin(Stdio::piped())
        .process_group(0);
    command
}

/// Runs a [`command`] to its end, calling `line` with each line of its stdout and stderr. Nothing
/// of it runs on when this returns.
///
/// # Errors
/// If it cannot be started, or when the user wants us to stop. How it ended is the result.
pub fn run(
    mut command: Command,
    interrupt: &Interrupt,
    line: &mut dyn FnMut(&str),
) -> Result<ExitStatus> {
    let (mut output, writer) = io::pipe().context("cannot create a pipe")?;
    command
        .stdout(writer.try_clone().context("cannot duplicate a pipe")?)
        .stderr(writer);
    let mut group = Group::new(command.spawn().context("cannot start /bin/sh")?);
    drop(command); // it holds the writing ends, and the output would never end
    let mut rest = Vec::new();
    while read(&mut output, &mut rest, interrupt)? {
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            line(&String::from_utf8_lossy(&rest[..end]));
            rest.drain(..=end);
        }
    }
    if !rest.is_empty() {
        line(&String::from_utf8_lossy(&rest));
    }
    group.shell.wait().context("cannot wait for a program")
}

/// Waits for more output; `false` at its end.
fn read(output: &mut PipeReader, bytes: &mut Vec<u8>, interrupt: &Interrupt) -> Result<bool> {
    let mut fds = [
        PollFd::new(output, PollFlags::IN),
        PollFd::new(interrupt, PollFlags::IN),
    ];
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => interrupt.check()?,
        Err(error) => return Err(error).context("cannot wait for a program"),
    }
    if fds[0].revents().is_empty() {
        return Ok(true);
    }
    let mut buffer = [0; 16 << 10];
    let read =
        rustix::io::read(&*output, &mut buffer).context("cannot read what a program says")?;
    bytes.extend(&buffer[..read]);
    Ok(read > 0)
}

/// The shell that leads the group, and our end of the pipe. It is kept apart because waiting for a
/// [`Child`] closes its stdin, at which the watcher would kill a program that is about to end well.
struct Group {
    shell: Child,
    _pipe: Option<ChildStdin>,
}

impl Group {
    fn new(mut shell: Child) -> Group {
        Group {
            _pipe: shell.stdin.take(),
            shell,
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The number is ours as long as the shell was not waited for.
        if let Ok(None) = self.shell.try_wait() {
            if let Some(group) = Pid::from_raw(self.shell.id().cast_signed()) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = self.shell.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::process::test_kill_process;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = command("sh");
        command.args(["-c", script]);
        command
    }

    fn pid(text: &str) -> Pid {
        Pid::from_raw(text.trim().parse().unwrap()).unwrap()
    }

    /// A zombie has ended; whether it is reaped is not up to us.
    fn runs(pid: Pid) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
            .unwrap_or_default();
        test_kill_process(pid).is_ok() && !stat.contains(") Z ")
    }

    fn ends(pid: Pid) -> bool {
        let begin = Instant::now();
        while runs(pid) && begin.elapsed() < smol_testing::LIMIT {
            std::thread::sleep(Duration::from_millis(10));
        }
        !runs(pid)
    }

    #[test]
    fn lines_of_both_streams_and_the_status_come_through() {
        let mut lines = Vec::new();
        let script = "echo one; echo two >&2; cat; printf 'no newline'; exit 7";
        let status = run(
            shell(script),
            &Interrupt::detached().unwrap(),
            &mut |line| lines.push(line.to_owned()),
        )
        .unwrap();
        assert_eq!(lines, ["one", "two", "no newline"]);
        assert_eq!(status.code(), Some(7));
    }

    #[test]
    fn an_interrupt_ends_the_program_and_what_it_started() {
        let interrupt = Interrupt::detached().unwrap();
        let mut grandchild = None;
        let result = run(
            shell("sleep 600 & echo $!; wait"),
            &interrupt,
            &mut |line| {
                grandchild = Some(pid(line));
                interrupt.trigger();
            },
        );
        assert_eq!(
            smol_cli::exit_kind(&result.unwrap_err()),
            smol_cli::ExitKind::Terminated
        );
        assert!(ends(grandchild.unwrap()));
    }

    #[test]
    fn nothing_is_left_when_we_are_killed() {
        // The shell stands for us: its end closes the pipe as ours would.
        let mut us = shell("sleep 600 & echo $!; wait")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut text = String::new();
        io::BufRead::read_line(
            &mut io::BufReader::new(us.stdout.take().unwrap()),
            &mut text,
        )
        .unwrap();
        let grandchild = pid(&text);
        assert!(runs(grandchild));
        drop(us.stdin.take());
        assert!(ends(grandchild));
        us.wait().unwrap();
    }
}
