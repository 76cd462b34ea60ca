//! smol from end to end, as a user meets it: the real programs, real machines, real KVM.
//!
//! ```text
//! cargo test --test e2e [-- WORDS]      only the tests whose names hold the words
//!
//! outer   on this host: builds the recipes' bundles, attacks them, interrupts builds
//! inner   in one emulated host, which has KVM: restores the bundles, side by side; builds that fail
//! ```
//! The inner half is this program again. It has a `main` of its own (`harness = false`) because
//! the emulated host runs the program that starts it.

mod host;
mod inner;
mod outer;
mod suite;
mod support;
mod tools;

use std::process::ExitCode;

use smol_host::emulated;

fn main() -> ExitCode {
    emulated::init::main_if_requested();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if emulated::is_inside() {
        return inner::main(&arguments);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        println!("0 tests, 0 benchmarks");
        return ExitCode::SUCCESS;
    }
    let words: Vec<String> = arguments
        .into_iter()
        .filter(|a| !a.starts_with('-'))
        .collect();
    outer::main(&words)
}
