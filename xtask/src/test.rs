//! `cargo xtask test`: what is cheap and fails often comes first.

use anyhow::Result;

use crate::packages;
use crate::steps::{cargo, run, step};

/// Runs everything.
///
/// # Errors
/// The first step that fails.
pub fn run_all() -> Result<()> {
    step("packages", packages::for_testing)?;
    step("format", || run(cargo().args(["fmt", "--all", "--check"])))?;
    step("lints", || {
        run(cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ]))
    })?;
    // One cargo call builds everything once; the end-to-end tests are the last of smolbuild's.
    step("tests", || {
        run(cargo().args(["test", "--workspace", "--locked"]))
    })?;
    println!("all tests passed");
    Ok(())
}
