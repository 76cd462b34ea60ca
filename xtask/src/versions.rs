//! `cargo xtask versions`: how many bytes of a bundle its next version has, too.
//!
//! The recipe python is built as it is, with a word of its application changed, and with a text of
//! some pages added to it, so that all files behind it move. Counted are the frames of the later
//! bundle that the first one has as well: what need not be stored or sent again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use smol_bundle::Bundle;

use crate::packages::{self, For};
use crate::shell::{self, build_folder, cargo, command};

const RECIPE: &str = "recipes/python";
const FILE: &str = "app.py";
/// A version must have so many hundredths of its frames' bytes in common with the one before.
const LEAST: u64 = 80;

/// A later version: its name, and what becomes of the application.
type Version = (&'static str, fn(&str) -> String);

const VERSIONS: [Version; 2] = [
    ("word", |app| app.replacen("\"ok\"", "\"well\"", 1)),
    ("text", |app| {
        let text: String = (0..200)
            .map(|line| format!("# Line {line} of a text that came with this version.\n"))
            .collect();
        text + app
    }),
];

/// Builds, and prints the table.
///
/// # Errors
/// If a build fails, or a version shares less than [`LEAST`] hundredths.
pub fn run() -> Result<()> {
    packages::install(For::Build)?;
    shell::run(cargo().args(["build", "--release", "--locked", "--package", "smolbuild"]))?;
    let folder = shell::target()?.join("versions");
    let _ = fs::remove_dir_all(&folder);
    let first_folder = folder.join("first");
    let first = build(&first_folder, &shell::workspace().join(RECIPE), None)?;
    let mut least = 100;
    for version in VERSIONS {
        let later = build(&folder.join(version.0), &first_folder, Some(version))?;
        println!("\n{:<22} {:>11} {:>11}", version.0, "frames KiB", "shared");
        let (mut all, mut shared) = (0, 0);
        for image in later.index().shared_with(first.index()) {
            let kind = image.kind.name();
            println!("{}", row(kind, image.bytes, image.shared_bytes));
            all += image.bytes;
            shared += image.shared_bytes;
        }
        println!("{}", row("together", all, shared));
        least = least.min(percent(all, shared));
    }
    ensure!(
        least >= LEAST,
        "a version shares {least}% with the one before, less than {LEAST}%"
    );
    Ok(())
}

fn row(name: &str, all: u64, shared: u64) -> String {
    let percent = percent(all, shared);
    format!("{name:<22} {:>11} {percent:>10}%", all >> 10)
}

/// Hundredths, rounded down.
fn percent(all: u64, part: u64) -> u64 {
    (part * 100).checked_div(all).unwrap_or(100)
}

/// Builds what is in the folder `from` in another one; with the lock that is there, so that all
/// versions have the same packages.
fn build(folder: &Path, from: &Path, version: Option<Version>) -> Result<Bundle> {
    fs::create_dir_all(folder)?;
    for name in ["Smolfile", "Smolfile.lock", FILE] {
        let from = from.join(name);
        if name == "Smolfile.lock" && !from.exists() {
            continue;
        }
        fs::copy(&from, folder.join(name))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    if let Some((name, change)) = version {
        let path = folder.join(FILE);
        let before = fs::read_to_string(&path)?;
        let after = change(&before);
        ensure!(after != before, "the version {name} changes nothing");
        fs::write(&path, after)?;
    }
    let bundle: PathBuf = folder.join("python.smolmachine");
    let mut build = command(build_folder("release")?.join("smolbuild"));
    shell::run(build.arg(folder).arg("-o").arg(&bundle))?;
    Ok(Bundle::open(&bundle)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_another_one() {
        let app = fs::read_to_string(shell::workspace().join(RECIPE).join(FILE)).unwrap();
        let versions = VERSIONS.map(|(_, change)| change(&app));
        assert!(versions.iter().all(|version| *version != app));
        assert_ne!(versions[0], versions[1]);
        assert!(versions[1].len() - app.len() > 2 * 4096);
    }

    #[test]
    fn hundredths_are_rounded_down() {
        assert_eq!(percent(0, 0), 100);
        assert_eq!(percent(1000, 799), 79);
        assert_eq!(percent(1000, 1000), 100);
    }
}
