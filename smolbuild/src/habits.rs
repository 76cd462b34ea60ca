//! What smolbuild answers to those who know docker or podman.

use smol_cli::Failure;
use smol_cli::habits::{self, Habit};

use crate::cli::Cli;

/// Reads the command line of this process.
///
/// # Errors
/// As [`habits::parse`].
pub fn parse() -> Result<Cli, Failure> {
    habits::parse(TABLE)
}

const TABLE: &[Habit] = &[];
