//! Tests of how much memory something takes.

use std::process::Command;

use rustix::process::{Resource, Rlimit, setrlimit};

/// Tells the process that does the work from the one that watches it.
const LIMITED: &str = "TEST_WITHIN_MEMORY";

/// Runs `work` in a process of its own that cannot allocate more than `bytes` (RLIMIT_DATA), and prints
/// the most that it had in memory. `test` is the test that calls this, as the harness names it: the
/// process is the same test program, with this test alone.
///
/// # Panics
/// If the work fails, or takes more.
#[track_caller]
pub fn within(bytes: u64, test: &str, work: impl FnOnce()) {
    if std::env::var_os(LIMITED).is_some() {
        let limit = Rlimit {
            current: Some(bytes),
            maximum: Some(bytes),
        };
        setrlimit(Resource::Data, limit).unwrap();
        work();
        println!("{test}: {} at most", resident());
        return;
    }
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command
        .args(["--exact", test, "--nocapture"])
        .env(LIMITED, "1");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("at most"),
        "{test} failed within {} MiB of memory ({}):\n{text}{errors}",
        bytes >> 20,
        output.status
    );
    println!("{text}");
}

/// Most memory that this process ever had in use, for people.
fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.map_or("unknown".into(), |kib| format!("{} MiB", kib >> 10))
}
