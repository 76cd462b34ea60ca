//! Progress on a real terminal, as the kernel makes one (pty(7)): which display is chosen, and what the
//! screen shows in the end.
//!
//! Each test starts this test binary again with `child_builds`, whose stderr is the terminal.

#![allow(clippy::disallowed_methods, reason = "not a program for others")]

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::process::{Command, Stdio};

use rustix::fs::{Mode as FileMode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use smol_cli::{ExitKind, Failure, Mode, Progress};

const ROWS: u16 = 12;
const COLUMNS: u16 = 50;

#[test]
#[ignore = "run by another test"]
fn child_builds() {
    let progress = Progress::titled(Mode::Auto, "Building");
    progress.stage("kernel", "kernel smol-6.1").cached("");
    progress.note("warning: not reproducible");
    let run = progress.stage("run", "make");
    for n in 0..100 {
        run.output(&format!("line {n}\x1b[2J \u{4e2d}\u{6587}"));
    }
    let part = run.child("part", "");
    part.set_bytes(1, 2);
    part.finish("");
    run.fail("exit code 2");
    let _ = smol_cli::report(&Failure::new(ExitKind::Failed, "make failed").into());
}

/// What the child writes on a terminal, with these variables and no others that count.
fn on_terminal(variables: &[(&str, &str)]) -> String {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let size = Winsize {
        ws_row: ROWS,
        ws_col: COLUMNS,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&master, size).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let slave = open(name.as_c_str(), flags, FileMode::empty()).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    for name in ["LC_ALL", "LC_CTYPE", "LANG", "TERM", "NO_COLOR"] {
        command.env_remove(name);
    }
    let child = command
        .args(["--exact", "child_builds", "--ignored", "--nocapture"])
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(slave)
        .spawn();
    // Its ends of the terminal are closed with it.
    drop(command);
    let mut written = Vec::new();
    let mut master = File::from(master);
    let mut piece = [0; 4096];
    loop {
        match master.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => written.extend(&piece[..read]),
            // The other end is closed: EIO.
            Err(error) if error.raw_os_error() == Some(5) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(child.unwrap().wait().unwrap().success());
    String::from_utf8(written).unwrap()
}

/// The screen at the end, with all that has scrolled away, without the times.
fn shown(written: &str) -> Vec<String> {
    let mut terminal = vt100::Parser::new(100, COLUMNS, 0);
    terminal.process(written.as_bytes());
    let screen = terminal.screen().contents();
    let lines = screen.lines().map(|line| match line.rsplit_once(' ') {
        Some((before, time)) if time.ends_with('s') && time.contains('.') => before.trim_end(),
        _ => line,
    });
    lines.map(str::to_owned).collect()
}

#[test]
fn a_terminal_shows_a_tree_and_the_error_below_it() {
    let written = on_terminal(&[("TERM", "xterm-256color"), ("LC_ALL", "C.UTF-8")]);
    assert!(
        written.contains("\x1b[32m") || written.contains("\x1b[31m"),
        "{written:?}"
    );
    let lines = shown(&written);
    assert_eq!(lines[0], "warning: not reproducible");
    assert!(
        lines[1].starts_with("[+] Building ") && lines[1].ends_with(" (2/2)"),
        "{lines:?}"
    );
    assert_eq!(lines[2], " ✔ kernel       kernel smol-6.1: cached");
    assert_eq!(lines[3], " ✘ run          make: failed: exit code 2");
    assert_eq!(lines[4], "     | line 80\\u{1b}[2J \u{4e2d}\u{6587}");
    assert_eq!(lines[23], "     | line 99\\u{1b}[2J \u{4e2d}\u{6587}");
    assert_eq!(lines[24..], ["error: make failed"]);
}

#[test]
fn without_colours_and_unicode_the_tree_does_without_them() {
    let written = on_terminal(&[("TERM", "xterm"), ("NO_COLOR", "1"), ("LANG", "C")]);
    // Select Graphic Rendition, which colours are.
    let coloured = written.split("\x1b[").skip(1).any(|code| {
        let end = code.find(|c: char| !c.is_ascii_digit() && !matches!(c, ';' | '?'));
        end.is_some_and(|end| code[end..].starts_with('m'))
    });
    assert!(!coloured, "{written:?}");
    let lines = shown(&written);
    assert_eq!(lines[2], " = kernel       kernel smol-6.1: cached");
    assert_eq!(lines[3], " x run          make: failed: exit code 2");
}

#[test]
fn a_terminal_that_can_do_nothing_gets_plain_lines() {
    for term in [&[("TERM", "dumb")][..], &[]] {
        let written = on_terminal(term);
        let lines: Vec<_> = written.split("\r\n").collect();
        assert_eq!(lines[0], "kernel       kernel smol-6.1");
        assert!(lines[1].starts_with("kernel       cached ("), "{written}");
        assert_eq!(lines[2], "warning: not reproducible");
        assert!(written.contains("make failed"), "{written}");
        // The heading of an error may have colours.
        let lines = written.replace("\x1b[1;31m", "").replace("\x1b[0m", "");
        assert!(!lines.contains('\x1b'), "{written:?}");
    }
}
