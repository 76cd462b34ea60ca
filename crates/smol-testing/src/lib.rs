//! What the tests of all crates share; no program depends on it.

#![allow(clippy::print_stdout, reason = "in no program")]

pub mod backdoor;
pub mod docker;
pub mod kernel;
pub mod memory;
pub mod messages;
pub mod oci;
pub mod registry;

use std::fmt;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes that a test waits for, on a machine that is busy with other things: it ends
/// what hangs. No test judges by time.
pub const LIMIT: Duration = Duration::from_secs(10 * 60);

/// Says that the test that calls it, or a part of it, cannot be tried here, and why. Rust's harness
/// knows no such outcome; `cargo xtask test` takes it from this line, and counts the test as left out.
pub fn left_out(why: impl fmt::Display) {
    // The harness names a test's thread after it.
    let thread = thread::current();
    let name = thread.name().unwrap_or("a test").to_owned();
    let why = why.to_string().replace('\n', " ");
    // Past the harness, which shows only what failing tests print.
    #[expect(clippy::disallowed_methods, reason = "in no program")]
    let _ = writeln!(std::io::stdout(), "\ntest {name} ... left out: {why}");
}

/// Whether the process with this number runs. A zombie does not: when it is waited for is up to its
/// parent. But a process whose first thread has ended holds its files and locks until the last one has.
pub fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    stat.is_ok_and(|stat| !stat.contains(") Z ") || threads() > 1)
}

/// Waits until the process with this number has ended; returns whether it has.
pub fn ends(pid: u32) -> bool {
    let begin = Instant::now();
    while runs(pid) && begin.elapsed() < LIMIT {
        thread::sleep(Duration::from_millis(10));
    }
    !runs(pid)
}
