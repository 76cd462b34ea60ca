//! The tools of a kernel build: are they here, which are they, and running them.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt};
use smol_host::apt;

/// Programs of the build with the Debian packages that bring them.
const TOOLS: &[(&str, &str)] = &[
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("patch", "patch"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
    ("strip", "binutils"),
];

/// Headers of the build's own helper objtool, and their package.
const HEADERS: &[(&str, &str)] = &[("libelf.h", "libelf-dev"), ("stdlib.h", "libc6-dev")];

/// Lines of make's output that an error shows.
const TAIL_LINES: usize = 30;

/// What make prints for a step that makes an object.
const STEPS: &[&str] = &["CC", "AS", "AR", "LD", "HOSTCC", "HOSTLD"];

/// Checks that all tools are here.
///
/// # Errors
/// With all that is missing and the command that installs it.
pub fn check_tools() -> Result<()> {
    let programs = TOOLS.iter().filter(|(program, _)| apt::find_program(program).is_none());
    let mut missing: Vec<_> = programs.copied().collect();
    if !missing.iter().any(|(program, _)| *program == "gcc") {
        missing.extend(HEADERS.iter().filter(|(header, _)| !has_header(header)));
    }
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
    let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    Err(Failure::new(ExitKind::Host, format!("building a kernel needs {}, which is not here", names.join(", ")))
        .hint(apt::install_command(&packages))
        .into())
}

fn has_header(header: &str) -> bool {
    let child = Command::new("gcc")
        .args(["-E", "-x", "c", "-include", header, "/dev/null", "-o", "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    child.is_ok_and(|status| status.success())
}

/// The versions of compiler, assembler and linker: they decide the bytes of the kernel.
///
/// # Errors
/// If they cannot be asked.
pub fn tool_versions() -> Result<String> {
    // `gcc -v` speaks on stderr; its last line names the version, others this host's folders.
    let gcc = Command::new("gcc").arg("-v").env("LC_ALL", "C").output().context("cannot run gcc")?;
    let gcc = String::from_utf8_lossy(&gcc.stderr).lines().last().unwrap_or_default().to_owned();
    let first_line = |program: &str| -> Result<String> {
        let output = Command::new(program).arg("--version").env("LC_ALL", "C").output();
        let output = output.with_context(|| format!("cannot run {program}"))?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
    };
    Ok(format!("{gcc}\n{}\n{}\n", first_line("as")?, first_line("ld")?))
}

/// A program of the build in the folder `dir`, in an environment that is the same everywhere.
pub fn command(program: impl AsRef<OsStr>, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir).env_clear().env("LC_ALL", "C").env("TZ", "UTC").stdin(Stdio::null());
    for name in ["PATH", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Where the commands of a build write what they say, and who can stop them.
pub struct Session<'a> {
    /// File that takes all output.
    pub log: &'a Path,
    /// Ends the command that is running.
    pub interrupt: &'a Interrupt,
}

impl Session<'_> {
    /// Runs `command` to its end; `step` hears of each object that was made.
    ///
    /// # Errors
    /// If it cannot be run or fails: with its last lines, and where all of them are. If it was interrupted.
    pub fn run(&self, command: &mut Command, what: &str, step: &mut dyn FnMut()) -> Result<()> {
        self.interrupt.check()?;
        let mut log = File::options()
            .create(true)
            .append(true)
            .open(self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let (output, ours) = std::io::pipe().context("cannot make a pipe")?;
        let both = ours.try_clone().context("cannot make a pipe")?;
        // In a group of its own, so that what make has started ends with it.
        let child = command.process_group(0).stdout(ours).stderr(both).spawn();
        let mut child = child.with_context(|| format!("cannot run {what}"))?;
        // The command keeps its copies of the pipe's end: without them the child's are the last.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let group = Pid::from_child(&child);
        let (done, finished) = mpsc::channel();
        let (tail, status) = std::thread::scope(|scope| {
            scope.spawn(move || kill_when_interrupted(self.interrupt, group, &finished));
            let tail = follow(output, &mut log, step);
            if tail.is_err() {
                let _ = kill_process_group(group, Signal::TERM);
            }
            let status = child.wait();
            drop::<mpsc::Sender<()>>(done);
            (tail, status)
        });
        self.interrupt.check()?;
        let tail = tail.with_context(|| format!("cannot keep the output of {what} in {}", self.log.display()))?;
        let status = status.with_context(|| format!("cannot wait for {what}"))?;
        if status.success() {
            return Ok(());
        }
        Err(anyhow::Error::msg(tail))
            .with_context(|| format!("{what} failed ({status}); its last lines:"))
            .hint(format!("the whole log is {}", self.log.display()))
    }
}

fn kill_when_interrupted(interrupt: &Interrupt, group: Pid, finished: &mpsc::Receiver<()>) {
    while let Err(mpsc::RecvTimeoutError::Timeout) = finished.recv_timeout(Duration::from_millis(100)) {
        if interrupt.is_set() {
            // It may have ended in this moment.
            let _ = kill_process_group(group, Signal::TERM);
            return;
        }
    }
}

/// Copies lines to `log` until the output ends; gives the last ones.
fn follow(output: impl Read, log: &mut File, step: &mut dyn FnMut()) -> std::io::Result<String> {
    let mut tail = VecDeque::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        log.write_all(&[&line[..], b"\n"].concat())?;
        let line = String::from_utf8_lossy(&line).into_owned();
        if is_step(&line) {
            step();
        }
        tail.push_back(line);
        if tail.len() > TAIL_LINES {
            tail.pop_front();
        }
    }
    Ok(Vec::from(tail).join("\n"))
}

/// Whether a line of make says that it makes an object: two blanks, the step, the file.
fn is_step(line: &str) -> bool {
    let Some(rest) = line.strip_prefix("  ") else { return false };
    rest.split_once(' ').is_some_and(|(step, _)| STEPS.contains(&step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_from_other_output() {
        assert!(is_step("  CC      init/main.o"));
        assert!(is_step("  LD      vmlinux"));
        assert!(!is_step("  SYNC    include/config/auto.conf"));
        assert!(!is_step("  CCC     x.o"));
        assert!(!is_step("make[1]: Leaving directory '/x'"));
        assert!(!is_step(""));
    }

    #[test]
    fn a_failing_command_shows_its_last_lines_and_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut steps = 0;
        let script = "for i in $(seq 40); do echo \"  CC      $i.o\"; done; echo wrong >&2; exit 3";
        let interrupt = Interrupt::detached().unwrap();
        let session = Session { log: &log, interrupt: &interrupt };
        let error = session.run(command("sh", dir.path()).args(["-c", script]), "the script", &mut || steps += 1).unwrap_err();
        let text = smol_cli::error::render(&error, false);
        assert!(text.contains("the script failed (exit status: 3)") && text.contains("wrong"), "{text}");
        assert!(text.contains("CC      40.o") && !text.contains("CC      5.o"), "{text}");
        assert!(text.contains(&log.display().to_string()), "{text}");
        assert_eq!(steps, 40);
        assert_eq!(std::fs::read_to_string(&log).unwrap().lines().count(), 41);
    }

    #[test]
    fn an_interrupt_ends_the_command_and_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let interrupt = Interrupt::detached().unwrap();
        let session = Session { log: &dir.path().join("log"), interrupt: &interrupt };
        let begin = std::time::Instant::now();
        // The pipe stays open until the inner sleep has ended too.
        let mut script = command("sh", dir.path());
        script.args(["-c", "echo '  CC      a.o'; sleep 60 & wait"]);
        let error = session.run(&mut script, "the script", &mut || interrupt.trigger()).unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Terminated);
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn the_environment_of_the_caller_does_not_reach_the_build() {
        let dir = tempfile::tempdir().unwrap();
        let output = command("env", dir.path()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut names: Vec<_> = text.lines().filter_map(|l| l.split_once('=')).map(|(name, _)| name).collect();
        names.retain(|n| !["PATH", "TMPDIR"].contains(n));
        assert_eq!(names, ["LC_ALL", "TZ"]);
    }

    #[test]
    fn headers_are_found_by_the_compiler() {
        assert!(has_header("stdlib.h"));
        assert!(!has_header("no-such-header.h"));
    }
}
