//! Programs whose output is read line by line, and which end with all that they have started when
//! this one ends, however it does ([`smol_host::child`]).

use std::ffi::OsStr;
use std::io::{self, PipeReader};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use smol_cli::Interrupt;
use smol_host::child::{self, ProcessGroup};

/// A command, for [`run`], to which arguments, environment and folder can be added.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    child::guarded(program)
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
    let mut group = ProcessGroup::spawn(&mut command).context("cannot start /bin/sh")?;
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
    group.wait().context("cannot wait for a program")
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

#[cfg(test)]
mod tests {
    use smol_testing::ends;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = command("sh");
        command.args(["-c", script]);
        command
    }

    fn pid(text: &str) -> u32 {
        text.trim().parse().unwrap()
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
}
