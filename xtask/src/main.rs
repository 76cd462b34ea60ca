//! What is done with this repository: `cargo xtask demo`, `test`, `bench`, `fuzz`, `dist`,
//! `repeat`, `versions`, `cast`.
//!
//! | module | purpose |
//! |---|---|
//! | [`packages`] | the Debian packages that are needed, installed when root |
//! | [`shell`] | running programs, with their command lines shown |
//! | [`demo`] | a service built, restored and asked, from nothing |
//! | [`test`](mod@test) | everything that must pass |
//! | [`tally`] | the outcomes of tests, counted |
//! | [`fuzz`] | hostile input for every reader |
//! | [`bench`](mod@bench) | the figures |
//! | [`dist`] | a release: an archive and a Debian package |
//! | [`repeat`] | builds repeated, and compared byte for byte |
//! | [`versions`] | how much two versions of a machine share |
//! | [`cast`] | the README's picture of a terminal |

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "not a program for others"
)]

mod bench;
mod cast;
mod demo;
mod dist;
mod fuzz;
mod packages;
mod repeat;
mod shell;
mod tally;
mod test;
mod versions;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Work on smol.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build a redis that holds a key, restore it, and read the key back
    Demo,
    /// Format, lints, unit tests, end-to-end tests; or only those of a name
    Test(test::TestOptions),
    /// Run the fuzz targets with libFuzzer, one after the other
    Fuzz(fuzz::FuzzOptions),
    /// Measure, and print the figures
    Bench {
        /// Only these parts of them
        #[arg(value_parser = ["sizes", "images", "native", "emulated", "inside"])]
        parts: Vec<String>,
        /// Write them to this file, as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Pack a release in target/dist: both programs, their kernel, man pages and completions, as an
    /// archive and as a Debian package
    Dist,
    /// Build recipes again and again, in emulated hosts of their own, and compare every byte
    Repeat(repeat::RepeatOptions),
    /// Build python in three versions of its application, and tell how many bytes they share
    Versions,
    /// Run the first commands of the README, and draw what the terminal shows: docs/cast.svg
    Cast,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo => demo::run(),
        Command::Test(options) => test::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Bench { parts, json } => bench::run(&parts, json.as_deref()),
        Command::Dist => dist::run(),
        Command::Repeat(options) => repeat::run(&options),
        Command::Versions => versions::run(),
        Command::Cast => cast::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
