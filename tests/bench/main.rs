//! The figures: `cargo xtask bench`, or `cargo bench -p smol-tests --bench figures [-- PART...] [--json FILE]`.
//!
//! | part, module | figure |
//! |---|---|
//! | [`sizes`] | what of a machine's memory is in its bundle, and where the time of a build goes |
//! | [`images`] | a container image into a root file system, against umoci and mkfs.erofs |
//! | [`net`] | the network of a guest: one TCP flow each way, and connections, against passt and slirp4netns |
//! | [`native`] | restoring the native guest on this host's own KVM, against the floor program |
//! | [`emulated`] | first starts in an emulated host of their own, against warm ones |
//! | [`inside`] | in one emulated host: restored against booted, built against booted, many side by side |
//!
//! A time is only worth something beside another one from the same run. A part that cannot be measured is
//! left out by its name, with the reason, and the others are there all the same.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "not a program for others"
)]

mod crowd;
mod emulated;
mod images;
mod inside;
mod native;
mod net;
mod sizes;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use smol_tests::host::Host;

/// A part of the figures, by name. It prints what it measures and gives it; a panic tells why it cannot.
type Part = (&'static str, fn(&Host) -> Value);

const PARTS: [Part; 6] = [
    ("sizes", sizes::measure),
    ("images", images::measure),
    ("net", net::measure),
    ("native", native::measure),
    ("emulated", emulated::measure),
    ("inside", inside::measure),
];

fn main() -> ExitCode {
    smol_host::emulated::init::main_if_requested();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if smol_host::emulated::is_inside() {
        inside::main(&arguments);
        return ExitCode::SUCCESS;
    }
    let json = arguments.iter().position(|argument| argument == "--json");
    let json = json.map(|at| arguments.get(at + 1).expect("--json names a file"));
    let named = |name: &str| arguments.iter().any(|argument| argument == name);
    let all = !PARTS.iter().any(|(name, _)| named(name));

    let host = Host::new(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench"));
    // The network is measured without a machine.
    if all || PARTS.iter().any(|(name, _)| *name != "net" && named(name)) {
        host.prepare(all);
    }
    let mut figures = json!({});
    let mut left_out = LeftOut::default();
    for (name, measure) in PARTS {
        if all || named(name) {
            figures[name] = left_out.unless_measured(name, || measure(&host));
        }
    }
    figures["leftOut"] = json!(left_out.0);
    if let Some(file) = json {
        let text = serde_json::to_string_pretty(&figures).expect("plain data");
        std::fs::write(file, text + "\n").unwrap_or_else(|e| panic!("{file}: {e}"));
    }
    left_out.report()
}

/// Parts that could not be measured.
#[derive(Default)]
struct LeftOut(Vec<&'static str>);

impl LeftOut {
    /// What `measure` gives; null, if it panics.
    fn unless_measured(&mut self, name: &'static str, measure: impl FnOnce() -> Value) -> Value {
        catch_unwind(AssertUnwindSafe(measure)).unwrap_or_else(|_| {
            println!("\n{name}: not measured, for the reason above");
            self.0.push(name);
            Value::Null
        })
    }

    fn report(&self) -> ExitCode {
        if self.0.is_empty() {
            return ExitCode::SUCCESS;
        }
        println!("\nleft out: {}", self.0.join(", "));
        ExitCode::FAILURE
    }
}

/// Median and least of what was measured.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Times {
    /// ms.
    median: f64,
    /// ms.
    least: f64,
}

impl Times {
    /// Of at least one time.
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self {
            median: times[times.len() / 2],
            least: times[0],
        }
    }

    fn show(&self) -> String {
        format!("{:9.1} ms  (least {:.1})", self.median, self.least)
    }
}
