//! `cargo xtask dist`: a release, as one archive and as a Debian package, the same bytes whenever the
//! same is packed.
//!
//! ```text
//! programs, documents, kernel ──collect──> Content ─┬─archive──> smol-VERSION-ARCH-linux.tar.gz
//!                                                   └─deb──────> smol_VERSION_ARCH.deb
//! ```
//!
//! | module | purpose |
//! |---|---|
//! | `content` | the files of a release, by their paths in the archive |
//! | `archive` | the archive, with SHA256SUMS |
//! | `deb` | the Debian package, by dpkg-deb |
//!
//! Entries are sorted; owner, mode and time of a file do not depend on who packs it, and when.

mod archive;
mod content;
mod deb;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::shell::{self, capture, cargo, command};

/// The programs of a release, each in a package of its name.
const PROGRAMS: [&str; 2] = ["smolbuild", "smolrun"];
/// Documents at the top of the archive.
const DOCUMENTS: [&str; 4] = ["CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT", "README.md"];
/// Folders of documents and examples, to which the README leads.
const FOLDERS: [&str; 2] = ["docs", "recipes"];
/// Digests of files, in the form of sha256sum(1).
const SUMS: &str = "SHA256SUMS";

/// Builds the programs and their kernel, and packs them into target/dist.
///
/// # Errors
/// If something cannot be built or written.
pub fn run() -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--release", "--locked"]);
    shell::run(build.args(PROGRAMS.map(|name| format!("--package={name}"))))?;
    let programs = shell::build_folder("release")?;
    // <target>/<triple>/release
    let triple = programs.parent().and_then(Path::file_name);
    let arch = triple.and_then(|triple| triple.to_str()?.split('-').next());
    let arch = arch.context("cargo builds for no target")?;

    let out = shell::target()?.join("dist");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot empty {}", out.display()))?;
    }
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let (content, time) = (content::collect(&programs, &shell::workspace())?, time()?);
    let mut made = vec![archive::write(&content, arch, time, &out)?];
    if deb::possible() {
        made.push(deb::write(&content, arch, time, &out)?);
    } else {
        println!("no Debian package is made: there is no dpkg-deb");
    }
    let sums = sums_of(&made)?;
    write(&out.join(SUMS), sums.as_bytes())?;
    print!("{}:\n{sums}", out.display());
    Ok(())
}

/// The time of all files: SOURCE_DATE_EPOCH, or that of the commit.
fn time() -> Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => capture(command("git").args(["log", "-1", "--format=%ct"]))?,
    };
    let seconds = text.trim().parse();
    seconds.with_context(|| format!("{text:?} is no number of seconds"))
}

fn sums_of(files: &[PathBuf]) -> Result<String> {
    let mut contents = BTreeMap::new();
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str());
        contents.insert(name.context("UTF-8")?, read(file)?);
    }
    Ok(sums(
        contents.iter().map(|(name, bytes)| (*name, &bytes[..])),
    ))
}

fn sums<'a>(files: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let line = |(name, bytes)| format!("{}  {name}\n", hex::encode(Sha256::digest(bytes)));
    files.map(line).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    ensure!(path.is_file(), "there is no {}", path.display());
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// The content of a release whose programs only print how they were called.
    pub fn content() -> content::Content {
        let folder = tempfile::tempdir().unwrap();
        let script = r#"#!/bin/sh
case $1 in
completions) echo "complete $(basename $0) in $2" ;;
internal-man) echo "page of $(basename $0)" > $2/$(basename $0).1 ;;
internal-release-kernel) mkdir $2/smol-1 && echo Linux > $2/smol-1/vmlinux.zst ;;
esac
"#;
        for name in PROGRAMS {
            write(&folder.path().join(name), script.as_bytes()).unwrap();
            let mode = fs::Permissions::from_mode(0o775);
            fs::set_permissions(folder.path().join(name), mode).unwrap();
        }
        let kernels = folder.path().join("kernels");
        fs::create_dir_all(kernels.join("smol-1/patches")).unwrap();
        for name in [
            "COPYING",
            "GPL-2.0",
            "smol-1/kernel.toml",
            "smol-1/patches/1",
        ] {
            write(&kernels.join(name), name.as_bytes()).unwrap();
        }
        for name in DOCUMENTS {
            write(&folder.path().join(name), name.as_bytes()).unwrap();
        }
        for name in FOLDERS {
            let inner = folder.path().join(name).join("inner");
            fs::create_dir_all(&inner).unwrap();
            write(&inner.join("start"), name.as_bytes()).unwrap();
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(inner.join("start"), mode).unwrap();
            write(&inner.join("Smolfile.lock"), b"of a build").unwrap();
        }
        content::collect(folder.path(), folder.path()).unwrap()
    }

    #[test]
    fn digests_are_in_the_form_of_sha256sum() {
        let line = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  empty\n";
        assert_eq!(sums([("empty", &[][..])].into_iter()), line);
    }

    #[test]
    fn a_release_brings_documents_and_recipes_without_what_builds_leave() {
        let content = content();
        assert!(content["recipes/inner/start"].executable);
        assert!(!content.contains_key("recipes/inner/Smolfile.lock"));
    }

    #[test]
    fn a_release_brings_its_kernel_with_the_licence_and_the_recipe() {
        let content = content();
        for (path, words) in [
            ("share/smol/kernels/smol-1/vmlinux.zst", "Linux\n"),
            ("share/smol/kernels/smol-1/COPYING", "COPYING"),
            ("share/smol/kernels/smol-1/GPL-2.0", "GPL-2.0"),
            (
                "share/smol/kernels/smol-1/source/patches/1",
                "smol-1/patches/1",
            ),
        ] {
            assert_eq!(content[path].bytes, words.as_bytes(), "{path}");
        }
    }
}
