//! Source extraction: the sources of a bundle's `[[copy]]`s, taken back out of its root file system.
//!
//! The lock says what each of them was: names, modes, digests. What the root file system holds under
//! their destinations is used exactly where it is that. So a bundle can be built again from itself,
//! unless it needs a file that is in it in another shape: a kernel, archive or folder of one's own.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use smol_cli::Interrupt;

use crate::hash;
use crate::lock::{CopiedEntry, CopiedNode, CopySource};
use crate::smolfile;
use smol_rootfs::{Node, Tree};

/// Makes the sources of `copies` again in the empty folder `into`, from `rootfs`. `locked` are
/// those of the lock, one for each copy, in the same order. Returns the paths of what could not
/// be made: missing, or not what the lock says.
///
/// # Errors
/// A lock that belongs to another Smolfile or names places outside of its folder; a folder that
/// cannot be written.
pub fn restore(
    copies: &[smolfile::CopyStep],
    locked: &[CopySource],
    rootfs: &Tree,
    into: &Path,
    interrupt: &Interrupt,
) -> Result<Vec<String>> {
    ensure!(
        copies.len() == locked.len()
            && copies
                .iter()
                .zip(locked)
                .all(|(c, l)| *c.src.get_ref() == l.src),
        "the lock does not belong to the Smolfile: they name other files to copy"
    );
    let mut missing = Vec::new();
    let mut done = HashSet::new();
    for (copy, locked) in copies.iter().zip(locked) {
        if !done.insert(&locked.src) {
            continue;
        }
        for entry in &locked.contents {
            interrupt.check()?;
            let (place, dest) = places(copy, locked, entry, rootfs)?;
            let place = inside(into, &place)?;
            if !put(entry, locked, into, rootfs, &place, &dest)? {
                missing.push(place.strip_prefix(into)?.display().to_string());
            }
        }
    }
    Ok(missing)
}

/// Where an entry is to be made, relative to the Smolfile's folder, and where the root file system
/// has it.
fn places(
    copy: &smolfile::CopyStep,
    locked: &CopySource,
    entry: &CopiedEntry,
    rootfs: &Tree,
) -> Result<(String, String)> {
    let dest = copy.dest.trim_end_matches('/');
    if !locked.is_file() {
        let below = &entry.path;
        return Ok((format!("{}/{below}", locked.src), format!("{dest}/{below}")));
    }
    // As the copy itself: into a folder, under its own name.
    let into_folder = copy.dest.ends_with('/') || rootfs.is_directory(dest)?;
    let name = locked.src.rsplit('/').next().unwrap_or_default();
    let dest = match into_folder {
        true => format!("{dest}/{name}"),
        false => dest.to_owned(),
    };
    Ok((locked.src.clone(), dest))
}

/// A path below `folder` whose parent is there and not reached through a symbolic link: what a lock
/// or a Smolfile names is as hostile as the bundle that it came in. Folders on the way are made.
///
/// # Errors
/// A path that leads out of the folder; one that cannot be made.
pub fn inside(folder: &Path, path: &str) -> Result<PathBuf> {
    let plain = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    ensure!(
        plain,
        "the bundle names {path:?}, which is outside of the Smolfile's folder"
    );
    let place = folder.join(path);
    let parent = place.parent().context("a path without a folder")?;
    let mut walked = folder.to_owned();
    for part in parent.strip_prefix(folder)?.components() {
        walked.push(part);
        match fs::symlink_metadata(&walked) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                bail!(
                    "the bundle names {path:?}, which leads through something that is not a folder"
                )
            }
            Err(_) => fs::create_dir(&walked)
                .with_context(|| format!("cannot create {}", walked.display()))?,
        }
    }
    Ok(place)
}

/// Makes one entry; `false` if the root file system does not have it as it was.
fn put(
    entry: &CopiedEntry,
    locked: &CopySource,
    into: &Path,
    rootfs: &Tree,
    place: &Path,
    dest: &str,
) -> Result<bool> {
    let cannot = || format!("cannot create {}", place.display());
    match &entry.node {
        // Another source may lie in it.
        CopiedNode::Directory if fs::symlink_metadata(place).is_ok_and(|it| it.is_dir()) => {}
        CopiedNode::Directory => fs::create_dir(place).with_context(cannot)?,
        CopiedNode::Symlink(target) => symlink(target, place).with_context(cannot)?,
        CopiedNode::HardLink(first) => {
            let first = inside(into, &format!("{}/{first}", locked.src))?;
            if !first.is_file() {
                return Ok(false);
            }
            fs::hard_link(first, place).with_context(cannot)?;
        }
        CopiedNode::Special(_) => return Ok(false),
        CopiedNode::File { mode, sha256 } => {
            // It may have been made as part of another source, of which it is as well.
            if fs::symlink_metadata(place).is_ok_and(|it| it.is_file()) {
                return Ok(hash::sha256(place)? == *sha256);
            }
            let Some(id) = rootfs.lookup(dest)? else {
                return Ok(false);
            };
            let Node::File(source) = &rootfs.inode(id).node else {
                return Ok(false);
            };
            let mut file = create(place).with_context(cannot)?;
            source.copy_to(&mut file).with_context(cannot)?;
            file.flush().with_context(cannot)?;
            file.set_permissions(PermissionsExt::from_mode(*mode))
                .with_context(cannot)?;
            if hash::sha256(place)? != *sha256 {
                fs::remove_file(place).with_context(cannot)?;
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// A new file, never one that is there, and never through a link.
fn create(place: &Path) -> std::io::Result<File> {
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::files;
    use crate::source_dir::SourceDir;

    const SMOLFILE: &str = r#"
        name = "x"
        [rootfs]
        tar = "base.tar"
        [[copy]]
        src = "app"
        dest = "/srv"
        [[copy]]
        src = "conf/app.conf"
        dest = "/etc/"
        [service]
        cmd = ["x"]
        [ready]
        tcp = 1
    "#;

    fn copies() -> Vec<smolfile::CopyStep> {
        let smolfile = smolfile::parse(SMOLFILE).unwrap();
        smolfile.copies().cloned().collect()
    }

    fn file(path: &str, content: &[u8]) -> CopiedEntry {
        let digest = <sha2::Sha256 as sha2::Digest>::digest(content);
        let node = CopiedNode::File {
            mode: 0o755,
            sha256: hex::encode(digest),
        };
        CopiedEntry {
            path: path.into(),
            node,
        }
    }

    fn entry(path: &str, node: CopiedNode) -> CopiedEntry {
        CopiedEntry {
            path: path.into(),
            node,
        }
    }

    fn locked(app: Vec<CopiedEntry>) -> Vec<CopySource> {
        let conf = vec![file(".", b"key = 1\n")];
        [("app", app), ("conf/app.conf", conf)]
            .map(|(src, contents)| CopySource {
                src: src.into(),
                contents,
            })
            .into()
    }

    fn rootfs() -> Tree {
        let mut tree = Tree::new();
        for (path, content) in [
            ("srv/run", "#!/bin/sh\n"),
            ("srv/lib/data", "abc"),
            ("etc/app.conf", "key = 1\n"),
        ] {
            tree.file(path, 0o600, content.as_bytes().to_vec()).unwrap();
        }
        tree
    }

    fn restored(app: Vec<CopiedEntry>) -> (tempfile::TempDir, Result<Vec<String>>) {
        let into = tempfile::tempdir().unwrap();
        let interrupt = Interrupt::detached().unwrap();
        let missing = restore(&copies(), &locked(app), &rootfs(), into.path(), &interrupt);
        (into, missing)
    }

    #[test]
    fn files_folders_and_links_are_made_as_the_lock_has_them() {
        let (into, missing) = restored(vec![
            entry("alias", CopiedNode::Symlink("lib/data".into())),
            entry("lib", CopiedNode::Directory),
            file("lib/data", b"abc"),
            entry("lib/more", CopiedNode::HardLink("lib/data".into())),
            file("run", b"#!/bin/sh\n"),
        ]);
        assert_eq!(missing.unwrap(), Vec::<String>::new());
        let path = |name: &str| into.path().join(name);
        assert_eq!(fs::read(path("app/alias")).unwrap(), b"abc");
        assert_eq!(fs::read(path("app/lib/more")).unwrap(), b"abc");
        let mode = fs::metadata(path("app/run")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "the lock's, not the image's");
        assert_eq!(fs::read(path("conf/app.conf")).unwrap(), b"key = 1\n");
    }

    #[test]
    fn what_the_root_file_system_has_otherwise_is_missing_and_not_made() {
        let (into, missing) = restored(vec![
            file("gone", b"abc"),
            file("run", b"#!/bin/sh\necho other\n"),
            entry("tape", CopiedNode::Special("pipe".into())),
        ]);
        assert_eq!(missing.unwrap(), ["app/gone", "app/run", "app/tape"]);
        assert!(!into.path().join("app/run").exists());
    }

    #[test]
    fn nothing_is_made_outside_of_the_folder() {
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().display().to_string();
        for hostile in [
            vec![
                entry("way", CopiedNode::Symlink(target.clone())),
                file("way/data", b"abc"),
            ],
            vec![file("../data", b"abc")],
            vec![file("/data", b"abc")],
        ] {
            let (_, outcome) = restored(hostile);
            assert!(!matches!(outcome, Ok(missing) if missing.is_empty()));
            assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_was_ignored_is_in_neither_lock_nor_image_and_the_rest_is_locked_alike_once_extracted() {
        let scratch = tempfile::tempdir().unwrap();
        for file in [
            "app/run",
            "app/lib/data",
            "app/lib/x.pyc",
            "app/log",
            "conf/app.conf",
        ] {
            let file = scratch.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "x").unwrap();
        }
        fs::write(scratch.path().join(".smolignore"), "app/log").unwrap();
        let smolfile = SMOLFILE.replace("/srv\"", "/srv\"\nexclude = [\"**/*.pyc\"]");
        let smolfile = smolfile::parse(&smolfile).unwrap();
        let copies: Vec<_> = smolfile.copies().cloned().collect();
        let interrupt = Interrupt::detached().unwrap();
        let lock = |dir: &SourceDir| -> Vec<CopySource> {
            let locked = copies.iter().map(|copy| {
                let src = copy.src.get_ref();
                files::copy(dir, src, &copy.exclude, false, &interrupt).unwrap()
            });
            locked.collect()
        };
        let dir = SourceDir::open(scratch.path(), "Smolfile.lock", None).unwrap();
        let locked = lock(&dir);
        let mut image = Tree::new();
        for copy in &copies {
            let src = copy.src.get_ref();
            let spec = smol_rootfs::CopySpec {
                src: dir.join(src),
                name: None,
                dest: copy.dest.clone(),
                mode: None,
                owner: None,
                ignore: dir.ignore(src, &copy.exclude).unwrap(),
            };
            image.copy(&spec).unwrap();
        }
        let names: Vec<String> = image
            .walk()
            .map(|(path, ..)| String::from_utf8(path).unwrap())
            .collect();
        let expected = [
            "",
            "etc",
            "etc/app.conf",
            "srv",
            "srv/lib",
            "srv/lib/data",
            "srv/run",
        ];
        assert_eq!(names, expected);
        let into = tempfile::tempdir().unwrap();
        let missing = restore(&copies, &locked, &image, into.path(), &interrupt).unwrap();
        assert_eq!(missing, [""; 0]);
        assert_eq!(lock(&SourceDir::bare(into.path())), locked);
    }

    #[test]
    fn the_lock_of_another_smolfile_is_refused() {
        let mut other = locked(Vec::new());
        other[0].src = "other".into();
        let into = tempfile::tempdir().unwrap();
        let interrupt = Interrupt::detached().unwrap();
        let outcome = restore(&copies(), &other, &rootfs(), into.path(), &interrupt);
        assert!(outcome.unwrap_err().to_string().contains("does not belong"));
    }
}
