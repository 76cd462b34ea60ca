//! `cargo xtask dist`: a release in one archive, the same bytes whenever the same is packed.
//!
//! ```text
//! programs, documents ──stage──> a tree of files, with SHA256SUMS ──pack──> smol-VERSION-ARCH-linux.tar.gz
//! ```
//! Entries are sorted; owner, mode and time of a file do not depend on who packs it, and when.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};

use crate::shell::{self, capture, cargo, command};

/// The programs of a release, each in a package of its name.
const PROGRAMS: [&str; 2] = ["smolbuild", "smolrun"];
/// Documents at the top of the archive.
const DOCUMENTS: [&str; 4] = ["CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT", "README.md"];
/// Shells, and where each of them looks for the completions of a program, with `{}` for its name.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/{}"),
    ("fish", "share/fish/vendor_completions.d/{}.fish"),
    ("zsh", "share/zsh/site-functions/_{}"),
];
const MAN_PAGES: &str = "share/man/man1";
/// Digests of files, in the form of sha256sum(1).
const SUMS: &str = "SHA256SUMS";

/// Builds the programs, and packs them into target/dist.
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
    let name = format!("smol-{}-{arch}-linux", env!("CARGO_PKG_VERSION"));

    let out = shell::target()?.join("dist");
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let tree = tempfile::tempdir_in(&out).context("cannot create a folder in target/dist")?;
    stage(&programs, &shell::workspace(), tree.path())?;
    let archive = out.join(format!("{name}.tar.gz"));
    pack(tree.path(), &name, time()?, &archive)?;
    let sums = sums(&BTreeMap::from([(
        format!("{name}.tar.gz"),
        read(&archive)?,
    )]));
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

/// Lays out the files of a release in the folder `tree`: `programs` holds the programs, `documents`
/// the texts.
fn stage(programs: &Path, documents: &Path, tree: &Path) -> Result<()> {
    let make = |folder: &Path| {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
    };
    make(&tree.join("bin"))?;
    make(&tree.join(MAN_PAGES))?;
    for name in PROGRAMS {
        let program = programs.join(name);
        copy(&program, &tree.join("bin").join(name))?;
        let mut man = Command::new(&program);
        shell::run(man.arg("internal-man").arg(tree.join(MAN_PAGES)))?;
        for (shell, place) in COMPLETIONS {
            let place = tree.join(place.replace("{}", name));
            make(place.parent().context("it is in the tree")?)?;
            let script = capture(Command::new(&program).args(["completions", shell]))?;
            write(&place, script.as_bytes())?;
        }
    }
    for name in DOCUMENTS {
        copy(&documents.join(name), &tree.join(name))?;
    }
    let mut contents = BTreeMap::new();
    for path in files(tree)? {
        contents.insert(path.clone(), read(&tree.join(path))?);
    }
    write(&tree.join(SUMS), sums(&contents).as_bytes())
}

/// Packs all files of `tree` below the folder `top`, as a compressed tar archive.
fn pack(tree: &Path, top: &str, time: u64, archive: &Path) -> Result<()> {
    let cannot = || format!("cannot write {}", archive.display());
    let file = BufWriter::new(File::create(archive).with_context(cannot)?);
    // The gzip header holds neither a time nor a name.
    let compressed = GzBuilder::new().write(file, Compression::best());
    let mut tar = tar::Builder::new(compressed);
    for path in files(tree)? {
        let bytes = read(&tree.join(&path))?;
        let mode = fs::metadata(tree.join(&path))?.permissions().mode();
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(if mode & 0o100 == 0 { 0o644 } else { 0o755 });
        header.set_mtime(time);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, Path::new(top).join(&path), bytes.as_slice())
            .with_context(cannot)?;
    }
    let compressed = tar.into_inner().with_context(cannot)?;
    let mut file = compressed.finish().with_context(cannot)?;
    file.flush().with_context(cannot)
}

/// Paths of the files below `folder`, relative to it, sorted by their bytes.
fn files(folder: &Path) -> Result<Vec<String>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        let cannot = || format!("cannot read {}", next.display());
        for entry in fs::read_dir(&next).with_context(cannot)? {
            let path = entry.with_context(cannot)?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let relative = path.strip_prefix(folder)?.to_str().context("UTF-8")?;
                found.push(relative.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn sums(contents: &BTreeMap<String, Vec<u8>>) -> String {
    let line = |(name, bytes)| format!("{}  {name}\n", hex::encode(Sha256::digest(bytes)));
    contents.iter().map(line).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    ensure!(from.is_file(), "there is no {}", from.display());
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    /// Programs that only print how they were called, and documents.
    fn release() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let script = r#"#!/bin/sh
case $1 in
completions) echo "complete $(basename $0) in $2" ;;
internal-man) echo "page of $(basename $0)" > $2/$(basename $0).1 ;;
esac
"#;
        for name in PROGRAMS {
            write(&folder.path().join(name), script.as_bytes()).unwrap();
            let mode = fs::Permissions::from_mode(0o775);
            fs::set_permissions(folder.path().join(name), mode).unwrap();
        }
        for name in DOCUMENTS {
            write(&folder.path().join(name), name.as_bytes()).unwrap();
        }
        folder
    }

    fn packed(release: &Path) -> Vec<u8> {
        let place = tempfile::tempdir().unwrap();
        let tree = place.path().join("tree");
        stage(release, release, &tree).unwrap();
        let archive = place.path().join("x.tar.gz");
        pack(&tree, "smol-1", 1_234_567, &archive).unwrap();
        read(&archive).unwrap()
    }

    #[test]
    fn a_release_has_the_same_bytes_each_time() {
        let release = release();
        assert!(packed(release.path()) == packed(release.path()));
    }

    #[test]
    fn a_release_holds_programs_pages_completions_and_digests_of_all() {
        let release = release();
        let archive = packed(release.path());
        let mut tar = tar::Archive::new(GzDecoder::new(archive.as_slice()));
        let (mut contents, mut order) = (BTreeMap::new(), Vec::new());
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let path = path.strip_prefix("smol-1/").unwrap().to_owned();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            assert_eq!(header.mtime().unwrap(), 1_234_567);
            let program = path.starts_with("bin/");
            let mode = if program { 0o755 } else { 0o644 };
            assert_eq!(header.mode().unwrap(), mode, "{path}");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            order.push(path.clone());
            contents.insert(path, bytes);
        }
        assert!(order.is_sorted());
        for (path, words) in [
            ("share/man/man1/smolrun.1", "page of smolrun"),
            (
                "share/bash-completion/completions/smolbuild",
                "smolbuild in bash",
            ),
            ("share/zsh/site-functions/_smolrun", "smolrun in zsh"),
            ("LICENSE-MIT", "LICENSE-MIT"),
        ] {
            let text = String::from_utf8_lossy(&contents[path]);
            assert!(text.contains(words), "{path}: {text}");
        }
        let told = contents.remove(SUMS).unwrap();
        assert_eq!(String::from_utf8(told).unwrap(), sums(&contents));
        assert_eq!(contents.len(), 2 * (1 + 1 + 3) + DOCUMENTS.len());
    }

    #[test]
    fn digests_are_in_the_form_of_sha256sum() {
        let line = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  empty\n";
        assert_eq!(sums(&BTreeMap::from([("empty".into(), vec![])])), line);
    }
}
