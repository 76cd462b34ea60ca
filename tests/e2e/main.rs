//! smol from end to end, as a user meets it: the real programs, real machines, real KVM.
//!
//! ```text
//! cargo test -p smol-tests --test e2e [-- WORDS]      only the tests whose names hold the words, or of a topic
//!                                     [-- --list]     their names
//!                                     [-- --rounds N] those of the inner half so many times, up to the first failure
//!
//! outer   on this host: builds the recipes' bundles, attacks them, interrupts builds
//! inner   in one emulated host, which has KVM: restores the bundles, side by side; builds that fail
//! ```
//! The inner half is this program again. It has a `main` of its own (`harness = false`) because
//! the emulated host runs the program that starts it.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "not a program for others"
)]

mod inner;
mod outer;

use std::process::ExitCode;

use smol_host::emulated;

/// Which tests are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Words that each name must hold.
    pub words: Vec<String>,
    /// How often the inner half is run.
    pub rounds: usize,
}

impl Selection {
    /// Everything, once.
    fn all() -> Self {
        Self {
            words: Vec::new(),
            rounds: 1,
        }
    }
}

fn main() -> ExitCode {
    emulated::init::main_if_requested();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if emulated::is_inside() {
        return inner::main(&arguments);
    }
    let mut selection = Selection::all();
    let mut list = false;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--list" => list = true,
            "--rounds" => {
                let number = arguments.next().and_then(|number| number.parse().ok());
                selection.rounds = number.expect("--rounds takes a number");
            }
            // Those of libtest, which cargo passes to all tests.
            option if option.starts_with('-') => {}
            word => selection.words.push(word.to_owned()),
        }
    }
    match list {
        true => outer::list(&selection),
        false => outer::main(&selection),
    }
}
