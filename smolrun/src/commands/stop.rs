//! `smolrun stop`.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use smol_cli::{ExitKind, Failure};

use crate::cli::MAX_GRACE;
use crate::host::control::{self, Answer};
use crate::host::instance::{self, Record};
use crate::run::request::ControlRequest;

/// How long past the grace time the machine's process may take to answer and to end.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(25);
/// How long a killed process may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is checked whether the machine has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Stops machines, all at once, and returns when they have ended. Prints their names. One that has
/// ended already is as it should be.
///
/// # Errors
/// If there is no such machine, or it cannot be stopped.
pub fn stop(names: &[String], all: bool, seconds: u64) -> anyhow::Result<ExitCode> {
    let root = instance::root()?;
    let grace = Duration::from_secs(seconds).min(MAX_GRACE);
    let records = super::named(&root, names, all, |record| record.end.is_none());
    let stop = |record: anyhow::Result<Record>| {
        let record = record?;
        stop_machine(&root, &record, grace).map(|()| record.name)
    };
    thread::scope(|scope| {
        let stops = records.into_iter().map(|r| scope.spawn(|| stop(r)));
        let stops: Vec<_> = stops.collect();
        super::each(stops.into_iter().map(|stopped| {
            let name = stopped.join().ok().context("a thread has died")??;
            smol_cli::print(&format!("{name}\n")).map_err(Into::into)
        }))
    })
}

/// Stops the machine, and returns when it has ended.
///
/// # Errors
/// If it cannot be stopped.
pub fn stop_machine(root: &Path, record: &Record, grace: Duration) -> anyhow::Result<()> {
    if record.end.is_some() {
        return Ok(());
    }
    match ask(root, &record.name, grace) {
        Ok(Answer::Accepted) => {}
        Ok(Answer::OtherVersion(version)) => return Err(other_version(record, version)),
        // The machine has ended meanwhile, or its process does not listen.
        Ok(Answer::Refused(_)) | Err(_) => {
            if instance::runs(root, record) {
                kill(record)?;
            }
        }
    }
    wait_until_released(root, record)
}

/// Makes the request and waits for the process to end, which closes the connection.
fn ask(root: &Path, name: &str, grace: Duration) -> io::Result<Answer> {
    let mut stream = instance::connect(root, name)?;
    stream.set_read_timeout(Some(grace + ANSWER_TIMEOUT))?;
    let answer = control::send(&stream, ControlRequest::stop(grace))?;
    if answer == Answer::Accepted {
        io::copy(&mut stream, &mut io::sink())?;
    }
    Ok(answer)
}

fn other_version(record: &Record, version: Option<u32>) -> anyhow::Error {
    let Record { name, pid, .. } = record;
    let ours = control::VERSION;
    let takes = match version {
        Some(theirs) => format!("control requests of version {theirs}, not {ours}"),
        None => format!("no control requests of version {ours}"),
    };
    let message = format!("{name} is run by another version of smolrun, which takes {takes}");
    Failure::new(ExitKind::Failed, message)
        .hint(format!(
            "stop it with the smolrun that started it, or with: kill {pid}"
        ))
        .into()
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
    // Checked after the pidfd was opened: from then on it means one and the same process.
    if !record.process_runs() {
        return Ok(());
    }
    match pidfd_send_signal(process, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(e).with_context(what),
    }
}

fn wait_until_released(root: &Path, record: &Record) -> anyhow::Result<()> {
    let until = Instant::now() + KILL_TIMEOUT;
    while !instance::is_released(root, record) {
        if Instant::now() > until {
            let message = format!("{} still runs (process {})", record.name, record.pid);
            return Err(Failure::new(ExitKind::Failed, message).into());
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}
