//! The files of a release: programs, man pages, completions, the kernel, documents.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{DOCUMENTS, FOLDERS, PROGRAMS, read};
use crate::shell::{self, capture};

/// Shells, and where each of them looks for the completions of a program, with `{}` for its name.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/{}"),
    ("fish", "share/fish/vendor_completions.d/{}.fish"),
    ("zsh", "share/zsh/site-functions/_{}"),
];
/// Where smolbuild looks for kernels, seen from the folder above its own.
const KERNELS: &str = "share/smol/kernels";
/// What belongs to every kernel: its licence, and where its source is.
const KERNEL_LICENCE: [&str; 2] = ["COPYING", "GPL-2.0"];

/// What builds leave next to a Smolfile.
const LEFT_BY_BUILDS: [&str; 2] = [".lock", ".smolmachine"];

/// A file of a release.
pub struct Entry {
    pub bytes: Vec<u8>,
    pub executable: bool,
}

/// The files of a release, by their paths in the archive.
pub type Content = BTreeMap<String, Entry>;

/// Collects the files of a release: `programs` holds the programs, `workspace` documents and kernel
/// recipes. The kernel is compiled, if it is not in the cache.
///
/// # Errors
/// A program fails, or a file cannot be read.
pub fn collect(programs: &Path, workspace: &Path) -> Result<Content> {
    let mut content = Content::new();
    for name in PROGRAMS {
        let program = programs.join(name);
        let entry = Entry {
            bytes: read(&program)?,
            executable: true,
        };
        content.insert(format!("bin/{name}"), entry);
        let pages = made_by(Command::new(&program).arg("internal-man"))?;
        content.extend(below("share/man/man1", pages));
        for (shell, place) in COMPLETIONS {
            let script = capture(Command::new(&program).args(["completions", shell]))?;
            content.insert(place.replace("{}", name), text(script.into_bytes()));
        }
    }
    content.extend(kernels(&programs.join("smolbuild"), workspace)?);
    for name in DOCUMENTS {
        content.insert(name.to_owned(), text(read(&workspace.join(name))?));
    }
    for folder in FOLDERS {
        let mut found = files(&workspace.join(folder))?;
        found.retain(|path, _| !LEFT_BY_BUILDS.iter().any(|ending| path.ends_with(ending)));
        content.extend(below(folder, found));
    }
    Ok(content)
}

/// The kernels, each with its licence and its recipe, which is a part of its source.
fn kernels(smolbuild: &Path, workspace: &Path) -> Result<Content> {
    let kernels = made_by(Command::new(smolbuild).arg("internal-release-kernel"))?;
    let recipes = workspace.join("kernels");
    let mut content = Content::new();
    let names: Vec<&str> = kernels
        .keys()
        .filter_map(|path| path.strip_suffix("/vmlinux.zst"))
        .collect();
    for name in names {
        for file in KERNEL_LICENCE {
            content.insert(format!("{name}/{file}"), text(read(&recipes.join(file))?));
        }
        let recipe = files(&recipes.join(name))?;
        content.extend(below(&format!("{name}/source"), recipe));
    }
    content.extend(kernels);
    Ok(below(KERNELS, content))
}

/// The files that a command makes in the folder that is its last argument.
fn made_by(command: &mut Command) -> Result<Content> {
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    shell::run(command.arg(folder.path()))?;
    files(folder.path())
}

fn text(bytes: Vec<u8>) -> Entry {
    Entry {
        bytes,
        executable: false,
    }
}

fn below(folder: &str, content: Content) -> Content {
    let moved = |(path, entry)| (format!("{folder}/{path}"), entry);
    content.into_iter().map(moved).collect()
}

/// The files below `folder`, by their paths in it.
fn files(folder: &Path) -> Result<Content> {
    let (mut found, mut folders) = (Content::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        let cannot = || format!("cannot read {}", next.display());
        for entry in fs::read_dir(&next).with_context(cannot)? {
            let path = entry.with_context(cannot)?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let relative = path.strip_prefix(folder)?.to_str().context("UTF-8")?;
                let executable = path.metadata().with_context(cannot)?.mode() & 0o100 != 0;
                let bytes = read(&path)?;
                found.insert(relative.to_owned(), Entry { bytes, executable });
            }
        }
    }
    Ok(found)
}
