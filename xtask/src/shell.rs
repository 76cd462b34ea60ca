//! Running programs, with their command lines shown.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Returns the folder of the checkout.
pub fn workspace() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask
        .parent()
        .expect("xtask is a member of the workspace")
        .to_owned()
}

/// Returns the folder where cargo builds for `profile`, derived from the path of this program,
/// `<target>/<triple>/debug`.
pub fn build_folder(profile: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let triple = own
        .ancestors()
        .nth(2)
        .context("this program was not built by cargo")?;
    Ok(triple.join(profile))
}

/// Returns cargo's target folder.
pub fn target() -> Result<PathBuf> {
    let folder = build_folder("release")?;
    Ok(folder
        .ancestors()
        .nth(2)
        .context("this program was not built by cargo")?
        .to_owned())
}

/// Returns a command in the checkout.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(workspace());
    command
}

/// Returns the command of the cargo that runs this program.
pub fn cargo() -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs it; its output is shown.
///
/// # Errors
/// If it does not end well.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    println!("$ {line}");
    let status = command
        .status()
        .with_context(|| format!("cannot run {line}"))?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}

/// Runs it and returns its stdout; its stderr is shown.
///
/// # Errors
/// If it does not end well.
pub fn capture(command: &mut Command) -> Result<String> {
    let line = line(command);
    println!("$ {line}");
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {line}"))?;
    if !output.status.success() {
        bail!("{line}: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the command line; paths in the checkout are shortened.
pub fn line(command: &Command) -> String {
    let workspace = workspace();
    let words = std::iter::once(command.get_program())
        .chain(command.get_args())
        .enumerate();
    let short = |(n, word): (usize, &OsStr)| {
        let path = Path::new(word);
        let shown = if n == 0 {
            path.file_name().map(Path::new).unwrap_or(path)
        } else {
            path.strip_prefix(&workspace).unwrap_or(path)
        };
        shown.display().to_string()
    };
    words.map(short).collect::<Vec<_>>().join(" ")
}
