//! The outer half: on this host, as a user without hardware virtualization.

mod bundles;
mod diff;
mod emulated;
mod emulated_host;
mod images;
mod inside;
mod interrupts;
mod mistakes;
mod native;
mod packages;
mod tampering;
mod twice;

pub use emulated_host::job;

use std::path::Path;
use std::process::ExitCode;

use crate::Selection;
use crate::inner;
use smol_tests::host::Host;
use smol_tests::suite::{Suite, Tally};

/// All of this half, what fails fast first.
fn tests(host: &Host) -> Suite<'_> {
    let mut suite = Suite::default();
    mistakes::tests(&mut suite, host);
    native::tests(&mut suite, host);
    emulated_host::tests(&mut suite, host);
    bundles::tests(&mut suite, host);
    tampering::tests(&mut suite, host);
    diff::tests(&mut suite, host);
    emulated::tests(&mut suite, host);
    interrupts::tests(&mut suite, host);
    packages::tests(&mut suite, host);
    twice::tests(&mut suite, host);
    suite
}

/// This host, with a folder for the tests in cargo's.
fn this_host() -> Host {
    Host::new(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e"))
}

/// Prints the names of the tests.
pub fn list(selection: &Selection) -> ExitCode {
    let host = this_host();
    let outer = tests(&host).filter(&selection.words);
    let inside = inner::InnerHost::new();
    let inner = inner::tests(&inside, selection);
    for test in outer.tests().iter().chain(inner.tests()) {
        println!("{}: {}", test.group, test.name);
    }
    ExitCode::SUCCESS
}

/// Runs the tests. All of them begin with nothing; single ones take the bundles from the cache of the
/// last run, if nothing has changed that decides about them.
pub fn main(selection: &Selection) -> ExitCode {
    let fresh = selection.words.is_empty();
    let host = this_host();
    let outer = tests(&host).filter(&selection.words);
    let inside = inner::InnerHost::new();
    let inner = inner::tests(&inside, selection);
    let mut tally = Tally::default();
    if !outer.tests().is_empty() || !inner.tests().is_empty() {
        host.prepare(fresh);
        if !fresh {
            bundles::provide(&host);
        }
        for test in outer.tests() {
            tally.run(test, || host.faults());
        }
        inside::run(&mut tally, &host, inner.tests(), selection);
    }
    match tally.finish() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
