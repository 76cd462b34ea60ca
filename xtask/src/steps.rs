//! Running commands, one after the other, and telling how long each took.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a member")
        .to_owned()
}

/// Cargo, the one that runs us.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Where release binaries are, built for the target that .cargo/config.toml names.
pub fn release_folder() -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join(format!(
        "{}-unknown-linux-gnu/release",
        std::env::consts::ARCH
    ))
}

/// Builds smolbuild and smolrun, optimised.
///
/// # Errors
/// If that fails.
pub fn build_release() -> Result<PathBuf> {
    step("release build", || {
        run(cargo().args([
            "build",
            "--release",
            "--locked",
            "-p",
            "smolbuild",
            "-p",
            "smolrun",
        ]))
    })?;
    Ok(release_folder())
}

/// Runs a command to its end.
///
/// # Errors
/// If it cannot be started or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let name = describe(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

/// Runs a command to its end and returns what it wrote to stdout.
///
/// # Errors
/// If it cannot be started or fails.
pub fn output(command: &mut Command) -> Result<String> {
    let name = describe(command);
    let result = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    if !result.status.success() {
        bail!("{name} failed ({})", result.status);
    }
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|w| w.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Does one step, and says how long it took.
///
/// # Errors
/// Those of the step, with its name.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("== {name}");
    let start = Instant::now();
    let result = work().with_context(|| name.to_owned());
    println!("== {name}: {:.1} s", start.elapsed().as_secs_f64());
    result
}

/// Whether we may install packages.
pub fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|uid| uid.trim() == "0")
}
