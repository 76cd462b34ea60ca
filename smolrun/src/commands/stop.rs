//! `smolrun stop`.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use smol_cli::{ExitKind, Failure};

use crate::cli::MAX_GRACE;
use crate::host::control;
use crate::host::instance::{self, Record};
use crate::run::request::ControlRequest;

/// How long past the grace time the machine's own process is left to do it.
const PATIENCE: Duration = Duration::from_secs(25);
/// How long a killed process may take to be gone.
const DEATH: Duration = Duration::from_secs(10);

/// Stops a machine, and returns when it is gone. Prints its name.
///
/// # Errors
/// If there is no such machine, or it cannot be stopped.
pub fn stop(name: &str, seconds: u64) -> anyhow::Result<ExitCode> {
    let root = instance::root()?;
    let record = instance::find(&root, name)?;
    let grace = Duration::from_secs(seconds).min(MAX_GRACE);
    // A machine that ends meanwhile, or whose process does not listen, shows below.
    let asked = ask(&root, name, grace);
    if asked.is_err() && instance::runs(&root, &record) {
        kill(&record)?;
    }
    wait_until_gone(&root, &record)?;
    super::print(&format!("{name}\n"))
}

/// Gives the order and waits for the process to end, which closes the connection.
fn ask(root: &Path, name: &str, grace: Duration) -> io::Result<()> {
    let mut stream = instance::connect(root, name)?;
    stream.write_all(control::encode(ControlRequest::stop(grace)).as_bytes())?;
    stream.set_read_timeout(Some(grace + PATIENCE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.as_str() {
        "ok\n" => Ok(()),
        other => Err(io::Error::other(other.trim().to_owned())),
    }
}

/// Ends the machine's process, if it is still the one of the record.
fn kill(record: &Record) -> anyhow::Result<()> {
    let what = || {
        format!(
            "cannot end process {}, which runs {}",
            record.pid, record.name
        )
    };
    let pid = i32::try_from(record.pid)
        .ok()
        .and_then(Pid::from_raw)
        .with_context(what)?;
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other.with_context(what)?,
    };
    // Looked at after the process was taken hold of: it cannot become another one any more.
    if !record.process_lives() {
        return Ok(());
    }
    match pidfd_send_signal(process, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(e).with_context(what),
    }
}

fn wait_until_gone(root: &Path, record: &Record) -> anyhow::Result<()> {
    let until = Instant::now() + DEATH;
    while instance::runs(root, record) {
        if Instant::now() > until {
            let message = format!("{} still runs (process {})", record.name, record.pid);
            return Err(Failure::new(ExitKind::Failed, message).into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
