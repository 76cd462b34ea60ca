//! `cargo xtask bench`: what is measured is in tests/bench.

use std::path::Path;

use anyhow::{Context, Result};

use crate::packages::{self, For};
use crate::shell;

/// Measures, and prints the figures, or these parts of them.
///
/// # Errors
/// If something cannot be built or run, or a part cannot be measured; the others are there all the same.
pub fn run(parts: &[String], json: Option<&Path>) -> Result<()> {
    packages::install(For::Bench)?;
    let mut cargo = shell::cargo();
    cargo.args([
        "bench",
        "--locked",
        "--quiet",
        "--package",
        "smol-tests",
        "--bench",
        "figures",
        "--",
    ]);
    cargo.args(parts);
    if let Some(file) = json {
        let file = std::path::absolute(file)
            .with_context(|| format!("cannot make {} absolute", file.display()))?;
        cargo.arg("--json").arg(file);
    }
    shell::run(&mut cargo)
}
