//! Digests of files that a Smolfile names: of everything that gets into the image, and of nothing
//! else.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};
use smol_cli::{ErrorExt, ExitKind, Interrupt};
use smol_rootfs::{Device, DirOptions, FileData, Inode, InodeId, Modes, Node, Owner, Tree};
use toml::Spanned;

use super::watch;
use crate::hash;
use crate::lock::{CopiedEntry, CopiedNode, CopySource};
use crate::source_dir::SourceDir;

/// SHA-256 over a whole root file system: names, metadata and contents, as the image takes them.
///
/// # Errors
/// A file cannot be read; the interrupt.
pub fn tree_sha256(tree: &Tree, interrupt: &Interrupt) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut put = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    let mut seen = HashMap::new();
    for (path, id, inode) in tree.walk() {
        interrupt.check()?;
        let (kind, value) = match first_name(&mut seen, &path, id, inode) {
            Some(first) => ("hardlink", first),
            None => node_value(&path, inode)?,
        };
        put(&path);
        put(kind.as_bytes());
        put(&value);
        let meta = &inode.meta;
        for number in [meta.mode, meta.uid, meta.gid] {
            put(&number.to_le_bytes());
        }
        put(&(meta.xattrs.len() as u64).to_le_bytes());
        for (name, value) in &meta.xattrs {
            put(name);
            put(value);
        }
    }
    Ok(hex::encode(hasher.finalize()))
}

/// Kind and value of what has a name.
fn node_value(path: &[u8], inode: &Inode) -> Result<(&'static str, Vec<u8>)> {
    let device = |device: &Device| format!("{}:{}", device.major, device.minor).into_bytes();
    Ok(match &inode.node {
        Node::File(source) => ("file", content(path, source)?.into_bytes()),
        Node::Directory(_) => ("folder", Vec::new()),
        Node::Symlink(target) => ("symlink", target.clone()),
        Node::CharDevice(number) => ("character device", device(number)),
        Node::BlockDevice(number) => ("block device", device(number)),
        Node::Fifo => ("pipe", Vec::new()),
        Node::Socket => ("socket", Vec::new()),
    })
}

/// The name that a file with several was first met under.
fn first_name(
    seen: &mut HashMap<InodeId, Vec<u8>>,
    path: &[u8],
    id: InodeId,
    inode: &Inode,
) -> Option<Vec<u8>> {
    if matches!(inode.node, Node::Directory(_)) {
        return None;
    }
    let first = seen.entry(id).or_insert_with(|| path.to_vec());
    (first != path).then(|| first.clone())
}

fn content(path: &[u8], data: &FileData) -> Result<String> {
    hash::sha256_of(|hasher| data.copy_to(hasher))
        .with_context(|| format!("cannot read {}", path.escape_ascii()))
}

/// What a `[[copy]]` of `src` copies out of the folder of the Smolfile, without what it excludes.
/// `fixed_mode` says that the Smolfile gives the mode, so that those of the files do not count.
///
/// # Errors
/// A file cannot be read; a name that a lock cannot hold; the interrupt.
pub fn copy(
    base: &SourceDir,
    src: &str,
    exclude: &[Spanned<String>],
    fixed_mode: bool,
    interrupt: &Interrupt,
) -> Result<CopySource> {
    // As the copy itself: symbolic links here are followed, further ones are copied as links.
    let place = base.require(src)?;
    let metadata = fs::symlink_metadata(&place);
    let metadata = metadata.with_context(|| format!("cannot read {}", place.display()))?;
    let contents = match metadata.is_dir() {
        true => {
            let modes = match fixed_mode {
                true => Modes::Fixed(0o644),
                false => Modes::Normal,
            };
            let options = DirOptions {
                owner: Owner::Fixed(0, 0),
                modes,
                ignore: base.ignore(src, exclude)?,
            };
            contents(&place, &options, interrupt)?
        }
        false => {
            let executable = !fixed_mode && metadata.permissions().mode() & 0o100 != 0;
            let node = CopiedNode::File {
                mode: if executable { 0o755 } else { 0o644 },
                sha256: base.sha256(src)?,
            };
            vec![CopiedEntry {
                path: ".".into(),
                node,
            }]
        }
    };
    Ok(CopySource {
        src: src.to_owned(),
        contents,
    })
}

/// What a folder holds.
fn contents(
    folder: &Path,
    options: &DirOptions,
    interrupt: &Interrupt,
) -> Result<Vec<CopiedEntry>> {
    let mut tree = Tree::watched(watch(interrupt));
    tree.apply_dir(folder, "", options)?;
    let text = |bytes: &[u8]| {
        String::from_utf8(bytes.to_vec())
            .map_err(|_| {
                anyhow!(
                    "the name {} in {} is not UTF-8, and a lock file cannot hold it",
                    bytes.escape_ascii(),
                    folder.display()
                )
            })
            .kind(ExitKind::Usage)
            .hint("rename it, or bring it along in a `[rootfs] tar` archive")
    };
    let mut seen = HashMap::new();
    let mut entries = Vec::new();
    for (path, id, inode) in tree.walk().skip(1) {
        interrupt.check()?;
        let node = match (first_name(&mut seen, &path, id, inode), &inode.node) {
            (Some(first), _) => CopiedNode::HardLink(text(&first)?),
            (None, Node::Directory(_)) => CopiedNode::Directory,
            (None, Node::Symlink(target)) => CopiedNode::Symlink(text(target)?),
            (None, Node::File(source)) => CopiedNode::File {
                mode: inode.meta.mode,
                sha256: content(&path, source)?,
            },
            (None, _) => {
                let (kind, number) = node_value(&path, inode)?;
                let what = format!("{kind} {}", text(&number)?);
                CopiedNode::Special(what.trim_end().to_owned())
            }
        };
        entries.push(CopiedEntry {
            path: text(&path)?,
            node,
        });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn scratch() -> tempfile::TempDir {
        let scratch = tempfile::tempdir().unwrap();
        let app = scratch.path().join("app");
        fs::create_dir_all(app.join("lib")).unwrap();
        fs::write(app.join("run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(app.join("run"), PermissionsExt::from_mode(0o775)).unwrap();
        fs::write(app.join("lib/data"), "abc").unwrap();
        fs::hard_link(app.join("lib/data"), app.join("lib/more")).unwrap();
        symlink("lib/data", app.join("alias")).unwrap();
        scratch
    }

    fn copied(scratch: &Path, src: &str, fixed: bool) -> Vec<String> {
        let interrupt = Interrupt::detached().unwrap();
        let copy = copy(&SourceDir::bare(scratch), src, &[], fixed, &interrupt).unwrap();
        assert_eq!(copy.src, src);
        let shown = copy.contents.into_iter().map(|CopiedEntry { path, node }| {
            let node = match node {
                CopiedNode::File { mode, sha256 } => format!("{mode:o} {}", &sha256[..8]),
                other => format!("{other:?}"),
            };
            format!("{path} {node}")
        });
        shown.collect()
    }

    #[test]
    fn a_copied_folder_is_known_by_name_mode_and_content_of_all_that_is_in_it() {
        let scratch = scratch();
        assert_eq!(
            copied(scratch.path(), "app", false),
            [
                "alias Symlink(\"lib/data\")",
                "lib Directory",
                "lib/data 644 ba7816bf",
                "lib/more HardLink(\"lib/data\")",
                "run 755 a8076d3d",
            ]
        );
        // Where the Smolfile gives the mode, that of the file does not count.
        assert_eq!(copied(scratch.path(), "app/run", true), [". 644 a8076d3d"]);
        assert_eq!(copied(scratch.path(), "app/run", false), [". 755 a8076d3d"]);
        assert_eq!(
            copied(scratch.path(), "app/alias", false),
            [". 644 ba7816bf"]
        );
    }

    #[test]
    fn a_name_that_a_lock_cannot_hold_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let scratch = scratch();
        let odd = std::ffi::OsStr::from_bytes(b"odd-\xff");
        fs::write(scratch.path().join("app").join(odd), "").unwrap();
        let interrupt = Interrupt::detached().unwrap();
        let base = SourceDir::bare(scratch.path());
        let error = copy(&base, "app", &[], false, &interrupt).unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
        assert!(format!("{error:#}").contains(r"odd-\xff"), "{error:#}");
    }

    #[test]
    fn the_digest_of_a_root_file_system_follows_all_that_reaches_the_image_and_nothing_else() {
        let scratch = scratch();
        let app = scratch.path().join("app");
        let digest = || {
            let options = DirOptions {
                owner: Owner::of_root_filesystem(),
                modes: Modes::Keep,
                ignore: Default::default(),
            };
            let mut tree = Tree::new();
            tree.apply_dir(&app, "", &options).unwrap();
            tree_sha256(&tree, &Interrupt::detached().unwrap()).unwrap()
        };
        let first = digest();
        fs::File::open(app.join("run"))
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH)
            .unwrap();
        assert_eq!(digest(), first, "times do not count");
        let mut seen = vec![first];
        let mut changed = |what: &str| {
            let now = digest();
            assert!(!seen.contains(&now), "{what}");
            seen.push(now);
        };
        fs::set_permissions(app.join("run"), PermissionsExt::from_mode(0o755)).unwrap();
        changed("mode");
        fs::write(app.join("lib/data"), "abd").unwrap();
        changed("content");
        fs::remove_file(app.join("lib/more")).unwrap();
        fs::copy(app.join("lib/data"), app.join("lib/more")).unwrap();
        changed("a second name that became a file");
        fs::remove_file(app.join("alias")).unwrap();
        symlink("lib/more", app.join("alias")).unwrap();
        changed("target of a link");
        fs::rename(app.join("run"), app.join("ran")).unwrap();
        changed("name");
        fs::create_dir(app.join("empty")).unwrap();
        changed("an empty folder");
    }
}
