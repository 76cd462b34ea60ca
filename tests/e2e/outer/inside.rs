//! The inner half is run in an emulated host, and in a fresh one from where that died or hung.

use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use smol_host::HostError;
use smol_host::emulated::{Controller, EmulatedHost, Event, RunningHost, SELF};

use super::images;
use crate::Selection;
use crate::inner;
use smol_tests::host::Host;
use smol_tests::suite::{self, Tally, Test, TestOutcome};
use smol_tests::support::free_port;

/// Memory of the emulated host for its tmpfs and guests, MiB.
const MEMORY: u32 = 4096;
/// Longer than any test takes, whatever it waits for: it ends what hangs.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Why the inner half has ended early.
enum BrokenOff {
    /// The emulated host died or hung by itself, or its kernel says that something is broken.
    Fault(String),
    /// Anything else.
    Broken(String),
}

/// Runs these tests of the inner half.
pub fn run(tally: &mut Tally, host: &Host, tests: &[Test], selection: &Selection) {
    if tests.iter().any(|test| test.group == "images") {
        images::inner(host);
    }
    let mut progress = InnerRun {
        tally,
        tests,
        done: 0,
        begin: Instant::now(),
    };
    let mut unlucky = None;
    while let Some(test) = progress.next() {
        let name = &test.name;
        match inner_half(&mut progress, host, selection) {
            Ok(()) if progress.next().is_none() => return,
            Ok(()) => return progress.give_up("it ended before its tests did"),
            Err(BrokenOff::Broken(why)) => return progress.give_up(&why),
            Err(BrokenOff::Fault(what)) => {
                host.faults();
                // The one that it was in, which may be another one than the first of this host.
                let name = progress.next().map_or(name, |test| &test.name);
                if unlucky.replace(progress.done) == Some(progress.done) {
                    progress.ended(TestOutcome::Failed);
                } else {
                    progress.tally.flaky(name, &what);
                }
            }
        }
    }
}

/// How far the inner half has come.
struct InnerRun<'p, 't> {
    tally: &'p mut Tally,
    tests: &'p [Test<'t>],
    /// Tests that have ended.
    done: usize,
    /// Of the one that runs.
    begin: Instant,
}

impl<'p, 't> InnerRun<'p, 't> {
    /// The test that runs, or is the next to run.
    fn next(&self) -> Option<&'p Test<'t>> {
        self.tests.get(self.done)
    }

    fn ended(&mut self, outcome: TestOutcome) {
        if let Some(test) = self.next() {
            self.tally.ended(&test.name, outcome, self.begin.elapsed());
            self.done += 1;
            self.begin = Instant::now();
        }
    }

    fn give_up(mut self, why: &str) {
        eprintln!("the inner half: {why}");
        self.ended(TestOutcome::Failed);
        while self.next().is_some() {
            self.ended(TestOutcome::LeftOut(
                "the inner half broke off before".into(),
            ));
        }
    }
}

/// Boots one emulated host and runs the tests that have not ended yet.
fn inner_half(
    progress: &mut InnerRun,
    host: &Host,
    selection: &Selection,
) -> Result<(), BrokenOff> {
    let job = inner::arguments(selection, progress.done);
    let emulated = EmulatedHost::new(host.cache())
        .memory(MEMORY)
        .share(&host.tools.programs, inner::PROGRAMS, true)
        .share(&host.bundles, inner::BUNDLES, true)
        .share(&host.machines, inner::MACHINES, true)
        // Nobody comes by it: without a forwarded port there is no loopback interface inside.
        .forward(Ipv4Addr::LOCALHOST, free_port(), 1)
        .job([SELF.to_owned()].into_iter().chain(job));
    let mut running = emulated.spawn().map_err(|e| broken(&e))?;
    let watchdog = Watchdog::new(running.controller());
    let mut lines = Vec::new();
    progress.begin = Instant::now();
    loop {
        let event = match running.next_event() {
            Ok(event) => event,
            Err(e) => return Err(watchdog.explain(&e)),
        };
        match event {
            Event::Stdout(bytes) => {
                watchdog.seen();
                lines.extend(bytes);
                take_lines(&mut lines, progress, &running)?;
            }
            Event::Stderr(bytes) => drop(std::io::stderr().write_all(&bytes)),
            Event::Started | Event::Channel(_) => {}
            Event::Exited(status) if status.code == Some(0) => return Ok(()),
            Event::Exited(status) => {
                return Err(BrokenOff::Broken(format!("it ended with {status:?}")));
            }
        }
    }
}

fn take_lines(
    bytes: &mut Vec<u8>,
    progress: &mut InnerRun,
    running: &RunningHost,
) -> Result<(), BrokenOff> {
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = bytes.drain(..=end).collect();
        let line = String::from_utf8_lossy(&line[..end]).into_owned();
        match suite::parse(&line) {
            None => println!("{line}"),
            Some((name, outcome)) => {
                let expected = progress.next().map(|test| test.name.as_str());
                assert_eq!(expected, Some(name), "both halves have the same tests");
                if outcome == TestOutcome::Failed && running.has_failed() {
                    return Err(BrokenOff::Fault(running.console()));
                }
                progress.ended(outcome);
            }
        }
    }
    Ok(())
}

fn broken(error: &HostError) -> BrokenOff {
    match error.fault {
        true => BrokenOff::Fault(error.to_string()),
        false => BrokenOff::Broken(error.to_string()),
    }
}

/// Kills an emulated host whose tests report nothing any more.
struct Watchdog {
    /// A message for each line; dropped, it ends the thread.
    heard: mpsc::Sender<()>,
    /// Returns whether it has killed the host.
    thread: JoinHandle<bool>,
}

impl Watchdog {
    fn new(control: Controller) -> Self {
        let (heard, hears) = mpsc::channel();
        let watch = move || {
            loop {
                match hears.recv_timeout(SILENCE_TIMEOUT) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Disconnected) => return false,
                    Err(RecvTimeoutError::Timeout) => {
                        control.kill();
                        return true;
                    }
                }
            }
        };
        Self {
            heard,
            thread: thread::spawn(watch),
        }
    }

    fn seen(&self) {
        let _ = self.heard.send(());
    }

    /// Returns what has ended the host.
    fn explain(self, error: &HostError) -> BrokenOff {
        drop(self.heard);
        match self.thread.join() {
            Ok(true) => BrokenOff::Broken(format!(
                "no test ended within {} s",
                SILENCE_TIMEOUT.as_secs()
            )),
            _ => broken(error),
        }
    }
}
