//! What only a whole process can show: exit codes after a panic and after signals.
//!
//! Each test starts this test binary again with one of the `child_*` functions.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "not a program for others"
)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use smol_cli::Interrupt;
use smol_testing::LIMIT;

fn child(name: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            name,
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "run by another test"]
fn child_panics() {
    smol_cli::install_panic_hook();
    std::thread::spawn(|| panic!("index {} out of range", 7))
        .join()
        .ok();
}

#[test]
fn a_panic_on_any_thread_ends_the_process_with_code_70_and_asks_for_a_report() {
    let output = child("child_panics").wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(70), "{stderr}");
    assert!(
        stderr.contains("error: internal failure\n  because: index 7 out of range\n  at: "),
        "{stderr}"
    );
    assert!(stderr.contains("hint: this is a bug in smol"), "{stderr}");
}

#[test]
#[ignore = "run by another test"]
fn child_waits_for_signals_and_goes_on() {
    let interrupt = Interrupt::install().unwrap();
    println!("ready");
    std::io::stdout().flush().unwrap();
    assert!(interrupt.wait(Some(LIMIT)).unwrap());
    println!("caught");
    std::io::stdout().flush().unwrap();
    std::thread::sleep(LIMIT);
}

#[test]
fn the_first_sigint_is_caught_and_the_second_ends_the_process_with_code_130() {
    let mut child = child("child_waits_for_signals_and_goes_on");
    let pid = Pid::from_child(&child);
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    // The test harness writes its own text on the same lines.
    lines.find(|line| line.ends_with("ready")).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    lines.find(|line| line == "caught").unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(130), None));
}
