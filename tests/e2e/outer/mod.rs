//! The outer half: on this host, as a user without hardware virtualization.

mod builds;
mod bundles;
mod diff;
mod emulated;
mod interrupts;
mod native;
mod tampering;
mod twice;

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use smol_host::HostError;
use smol_host::emulated::{Controller, EmulatedHost, Event, SELF};

use crate::host::{self, Host};
use crate::inner;
use crate::suite::Suite;
use crate::support::free_port;

/// Memory of the emulated host for its tmpfs and guests, MiB.
const MEMORY: u32 = 4096;
/// Longer than any test of the inner half takes: a hanging emulated host is told from a slow one.
const SILENCE: Duration = Duration::from_secs(10 * 60);

/// Runs all tests whose names hold the words.
pub fn main(words: &[String]) -> ExitCode {
    let host = host::prepare("e2e");
    let mut suite = Suite::new(words);
    builds::tests(&mut suite, &host);
    native::tests(&mut suite, &host);
    bundles::tests(&mut suite, &host);
    twice::tests(&mut suite, &host);
    tampering::tests(&mut suite, &host);
    diff::tests(&mut suite, &host);
    emulated::tests(&mut suite, &host);
    interrupts::tests(&mut suite, &host);
    run_inner(&mut suite, &host, words);
    suite.finish()
}

/// Runs the inner half. It is no test, and no failure of a filter: it runs whatever the words are.
fn run_inner(suite: &mut Suite, host: &Host, words: &[String]) {
    let before = suite.ended();
    let why = match inner_half(suite, host, words) {
        Ok(()) if suite.ended() > before || !words.is_empty() => return,
        Ok(()) => "it ran no test".into(),
        Err(why) => why,
    };
    suite.fail(&format!("the inner half runs to its end ({why})"));
}

/// Boots one emulated host and runs the inner half there.
fn inner_half(suite: &mut Suite, host: &Host, words: &[String]) -> Result<(), String> {
    let job = [SELF, inner::ARGUMENT].map(str::to_owned).into_iter();
    let job = job.chain(words.iter().cloned());
    let emulated = EmulatedHost::new(host.cache())
        .memory(MEMORY)
        .share(&host.tools.programs, inner::PROGRAMS, true)
        .share(&host.bundles, inner::BUNDLES, true)
        .share(&host.machines, inner::MACHINES, true)
        // Nobody comes by it: without a forwarded port there is no loopback interface inside.
        .forward(Ipv4Addr::LOCALHOST, free_port(), 1)
        .job(job);
    let mut running = emulated.spawn().map_err(|e| e.to_string())?;
    let watch = Watch::new(running.controller());
    let mut lines = Vec::new();
    loop {
        let event = match running.next_event() {
            Ok(event) => event,
            Err(e) => return Err(watch.explain(&e)),
        };
        match event {
            Event::Stdout(bytes) => {
                watch.seen();
                lines.extend(bytes);
                take_lines(&mut lines, suite);
            }
            Event::Stderr(bytes) => drop(std::io::stderr().write_all(&bytes)),
            Event::Started | Event::Channel(_) => {}
            Event::Exited(status) if status.code == Some(0) => return Ok(()),
            Event::Exited(status) => return Err(format!("it ended with {status:?}")),
        }
    }
}

/// Ends an emulated host of which nothing is heard any more.
struct Watch {
    /// Dropped, it ends the watch.
    heard: mpsc::Sender<()>,
    /// Whether it had to end the host.
    thread: JoinHandle<bool>,
}

impl Watch {
    fn new(control: Controller) -> Self {
        let (heard, hears) = mpsc::channel();
        let watch = move || {
            loop {
                match hears.recv_timeout(SILENCE) {
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

    /// What has ended the host.
    fn explain(self, error: &HostError) -> String {
        drop(self.heard);
        match self.thread.join() {
            Ok(true) => format!("no test ended within {} s", SILENCE.as_secs()),
            _ => error.to_string(),
        }
    }
}

fn take_lines(bytes: &mut Vec<u8>, suite: &mut Suite) {
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
        bytes.drain(..=end);
        suite.line(&line);
    }
}
