//! The root file system: from an input and what is done to it to one reproducible EROFS image.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use smol_cli::{ErrorExt, ExitKind};
use smol_rootfs::erofs::{self, Mtimes, Options, Stats};
use smol_rootfs::{CopySpec, Tree};
use tempfile::NamedTempFile;

use crate::folder;
use crate::smolfile::keys::nearest;

/// virtio-pmem regions are mapped in units of this many bytes.
const ALIGN: u64 = 2 << 20;
/// Most of an account file that is looked through for similar names, bytes.
const MAX_ACCOUNTS: u64 = 1 << 20;

/// A built image.
#[derive(Clone, Debug)]
pub struct RootfsImage {
    /// The image file.
    pub path: PathBuf,
    /// Its length in bytes, a multiple of 2 MiB.
    pub size: u64,
    /// What went into it.
    pub stats: Stats,
}

/// Makes folders of the root file system unless they are there.
///
/// # Errors
/// There is something else.
pub fn make_folders(tree: &mut Tree, folders: &[&str]) -> Result<()> {
    for folder in folders {
        let made = tree.mkdir(folder, 0o755);
        made.with_context(|| format!("cannot make the folder {folder} of the image"))
            .kind(ExitKind::Usage)?;
    }
    Ok(())
}

/// Puts files of the host over the root file system; `what` asks for it.
///
/// # Errors
/// The owner is no user of the root file system; a file cannot be read.
pub fn copy(tree: &mut Tree, copy: &CopySpec, what: &str) -> Result<()> {
    if let Some(owner) = &copy.owner {
        require_user(tree, owner, &format!("`owner` of {what}"))?;
    }
    tree.copy(copy)
}

/// Writes the root file system image `out`, which is replaced when the new one is complete. `user` is the
/// service's, who must be there; no file is younger than `epoch`, seconds since 1970.
///
/// The image depends on the tree alone: the same input gives the same bytes.
///
/// # Errors
/// There is no such user; a full disk. Then `out` is as it was, and no temporary file is left.
pub fn write(
    tree: &mut Tree,
    user: Option<&str>,
    epoch: u64,
    mtimes: Mtimes,
    out: &Path,
) -> Result<RootfsImage> {
    if let Some(user) = user {
        require_user(tree, user, "`user` of [service]")?;
    }
    add_runtime_files(tree)?;
    write_image(tree, out, &options(epoch, mtimes))
        .with_context(|| format!("cannot write {}", out.display()))
}

/// Writes the image that a build step finds: as [`write`] does, with the files that its machine puts files
/// of its own over. The tree stays as it is.
///
/// # Errors
/// As for [`write`].
pub fn write_step_image(
    tree: &Tree,
    user: Option<&str>,
    epoch: u64,
    mtimes: Mtimes,
    out: &Path,
) -> Result<RootfsImage> {
    if let Some(user) = user {
        require_user(tree, user, "`user` of [[run]]")?;
    }
    let mut tree = tree.clone();
    add_runtime_files(&mut tree)?;
    for path in ["etc/hostname", "etc/resolv.conf"] {
        if tree.lookup(path)?.is_none() {
            tree.file(path, 0o644, Vec::new())?;
        }
    }
    write_image(&tree, out, &options(epoch, mtimes))
        .with_context(|| format!("cannot write {}", out.display()))
}

fn options(epoch: u64, mtimes: Mtimes) -> Options {
    Options {
        epoch,
        mtimes,
        align_image: ALIGN,
        ..Options::default()
    }
}

/// Checks that the root file system has the user, before a machine boots in vain.
fn require_user(tree: &Tree, user: &str, what: &str) -> Result<()> {
    let cannot = || format!("cannot use {user:?} as {what}");
    let found = tree.resolve_owner(user).with_context(cannot);
    let found = found.kind(ExitKind::Usage);
    let similar = found.is_err().then(|| similar_names(tree, user)).flatten();
    let found = match similar.filter(|similar| similar != user) {
        Some(similar) => found.hint(format!("did you mean {similar:?}?")),
        None => found,
    };
    found
        .hint(
            "Debian packages make their users; else write numbers, such as \"1000:1000\", or copy an \
             /etc/passwd and /etc/group of your own by [[copy]]",
        )
        .map(drop)
}

/// A `USER` or `USER:GROUP` of names that the root file system has, and of which `user` is probably a misspelling.
fn similar_names(tree: &Tree, user: &str) -> Option<String> {
    let names = |file: &str| {
        let content = tree.read(file, MAX_ACCOUNTS).ok().flatten();
        let content = String::from_utf8_lossy(&content.unwrap_or_default()).into_owned();
        let names = content.lines().filter_map(|line| line.split(':').next());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let similar = |name: &str, file: &str| {
        let known = names(file);
        if name.parse::<u32>().is_ok() || known.iter().any(|known| known == name) {
            return Some(name.to_owned());
        }
        nearest(name, known.iter().map(String::as_str)).map(str::to_owned)
    };
    match user.split_once(':') {
        None => similar(user, "etc/passwd"),
        Some((user, group)) => {
            let (user, group) = (similar(user, "etc/passwd")?, similar(group, "etc/group")?);
            Some(format!("{user}:{group}"))
        }
    }
}

/// Adds mount points, and the one file without which `localhost` has no address. The image is mounted
/// read-only, so nobody can make them later. What is there stays as it is.
fn add_runtime_files(tree: &mut Tree) -> Result<()> {
    for (path, mode) in [
        ("proc", 0o555),
        ("sys", 0o555),
        ("dev", 0o755),
        ("run", 0o755),
        ("tmp", 0o1777),
        ("etc", 0o755),
    ] {
        tree.mkdir(path, mode)
            .with_context(|| format!("/{path} must be a directory in a root file system"))?;
    }
    if tree.lookup("etc/hosts")?.is_none() {
        let hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        tree.file("etc/hosts", 0o644, hosts.as_bytes().to_vec())?;
    }
    Ok(())
}

/// Writes the image in the folder of `out` and renames it.
fn write_image(tree: &Tree, out: &Path, options: &Options) -> Result<RootfsImage> {
    let mut temporary = NamedTempFile::with_prefix_in(".rootfs-", folder::of(out))?;
    let file: &mut File = temporary.as_file_mut();
    let stats = erofs::write(tree, file, options)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.sync_all()?;
    temporary.persist(out)?;
    Ok(RootfsImage {
        path: out.to_owned(),
        size: stats.image_bytes,
        stats,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_that_is_not_there_is_refused_with_the_one_that_may_be_meant() {
        let mut tree = Tree::new();
        let passwd =
            b"root:x:0:0::/:/bin/sh\nwww-data:x:33:33::/:/bin/sh\nredis:x:101:102::/:/bin/sh\n";
        tree.file("etc/passwd", 0o644, passwd.to_vec()).unwrap();
        let group = b"root:x:0:\nwww-data:x:33:\nredis:x:102:\n";
        tree.file("etc/group", 0o644, group.to_vec()).unwrap();
        let told = |user: &str| {
            let error = require_user(&tree, user, "`user` of [service]").unwrap_err();
            assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
            smol_cli::error::render(&error, false)
        };
        for (user, similar) in [
            ("wwwdata", "\"www-data\""),
            ("rediss", "\"redis\""),
            ("redis:redsi", "\"redis:redis\""),
            ("wwwdata:www-data", "\"www-data:www-data\""),
            ("1000:redi", "\"1000:redis\""),
        ] {
            let told = told(user);
            assert!(told.contains(&format!("did you mean {similar}?")), "{told}");
            assert!(told.contains(&format!("cannot use {user:?} as `user` of [service]")));
        }
        for user in ["postgres", "postgres:redis", "redis:postgres"] {
            assert!(!told(user).contains("did you mean"));
        }
        require_user(&tree, "redis:www-data", "`user`").unwrap();
    }
}
