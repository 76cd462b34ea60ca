//! Chores of the workspace, so that there is one command for each: `cargo xtask demo|test|bench`.

mod demo;
mod packages;
mod steps;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Chores of the smol workspace.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build recipes/redis, restore it, and read back a key that was stored before the snapshot
    Demo,
    /// Everything that has to pass: format, lints, unit tests, end-to-end tests
    Test,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().chore {
        Chore::Demo => demo::run_demo(),
        Chore::Test => test::run_all(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
