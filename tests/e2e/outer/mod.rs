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

use smol_host::emulated::{EmulatedHost, Event, SELF};

use crate::host::{self, Host};
use crate::inner;
use crate::suite::Suite;
use crate::support::free_port;

/// Memory of the emulated host for its tmpfs and guests, MiB.
const MEMORY: u32 = 4096;

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

/// Boots one emulated host and runs the inner half there.
fn run_inner(suite: &mut Suite, host: &Host, words: &[String]) {
    let job = [SELF, inner::ARGUMENT]
        .into_iter()
        .map(str::to_owned)
        .chain(words.iter().cloned());
    let emulated = EmulatedHost::new(host.cache())
        .memory(MEMORY)
        .share(&host.tools.programs, inner::PROGRAMS, true)
        .share(&host.bundles, inner::BUNDLES, true)
        .share(&host.machines, inner::MACHINES, true)
        // Nobody comes by it: without a forwarded port there is no loopback interface inside.
        .forward(Ipv4Addr::LOCALHOST, free_port(), 1)
        .job(job);
    let before = suite.ended();
    let mut ended = None;
    // Not a test, and no failure of a filter: it runs whatever the words are.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut running = emulated.spawn().unwrap_or_else(|e| panic!("{e}"));
        let mut lines = Vec::new();
        while ended.is_none() {
            match running.next_event().unwrap_or_else(|e| panic!("{e}")) {
                Event::Stdout(bytes) => {
                    lines.extend(bytes);
                    take_lines(&mut lines, suite);
                }
                Event::Stderr(bytes) => drop(std::io::stderr().write_all(&bytes)),
                Event::Started | Event::Channel(_) => {}
                Event::Exited(status) => ended = Some(status),
            }
        }
    }));
    let tested = suite.ended() > before || !words.is_empty();
    let well = outcome.is_ok() && tested && ended.is_some_and(|status| status.code == Some(0));
    if !well {
        suite.fail(&format!("the inner half runs to its end ({ended:?})"));
    }
}

fn take_lines(bytes: &mut Vec<u8>, suite: &mut Suite) {
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
        bytes.drain(..=end);
        suite.line(&line);
    }
}
