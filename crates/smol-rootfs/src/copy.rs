//! `[[copy]]` steps.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::Tree;
use crate::dir::{DirOptions, Modes, Owner};
use crate::host::Entry;
use crate::ignore::Ignore;
use crate::limits::MAX_ACCOUNTS;

/// A `[[copy]]` step: a file or the content of a directory from the build host into the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopySpec {
    /// Host path, as `fs::canonicalize` returns it: links in it are refused, and those in a
    /// directory are copied as links.
    pub src: PathBuf,
    /// Its name in the tree, where `dest` is a directory; without, that of `src`.
    pub name: Option<OsString>,
    /// Path in the tree. A file goes to this name, or into it if it is a directory or ends in a
    /// slash; of a directory the content goes into it.
    pub dest: String,
    /// Permissions, at most 0o7777; without, 0755 for directories and executable files and 0644 for
    /// the rest.
    pub mode: Option<u32>,
    /// `USER` or `USER:GROUP`, by number or by name in the image's /etc/passwd and /etc/group;
    /// without, root's. A user alone brings his group, or one of the same number if he is not in
    /// /etc/passwd.
    pub owner: Option<String>,
    /// What of a directory is left out.
    pub ignore: Ignore,
}

impl Tree {
    /// Carries out a copy step. Times become the epoch of the image, extended attributes are left
    /// behind.
    pub fn copy(&mut self, spec: &CopySpec) -> Result<()> {
        self.copy_spec(spec).with_context(|| {
            format!(
                "cannot copy {} to {} in the image",
                spec.src.display(),
                spec.dest
            )
        })
    }

    fn copy_spec(&mut self, spec: &CopySpec) -> Result<()> {
        ensure!(
            spec.mode.is_none_or(|mode| mode <= 0o7777),
            "the mode is more than 7777 (octal)"
        );
        let (uid, gid) = match &spec.owner {
            Some(owner) => self.resolve_owner(owner)?,
            None => (0, 0),
        };
        let modes = spec.mode.map_or(Modes::Normal, Modes::Fixed);
        let options = DirOptions {
            owner: Owner::Fixed(uid, gid),
            modes,
            ignore: spec.ignore.clone(),
        };
        let src = &spec.src;
        let mut dest = spec.dest.as_bytes().to_vec();
        let kind = Entry::at(src)?.metadata()?.file_type();
        ensure!(!kind.is_symlink(), "it became a symbolic link");
        if kind.is_dir() {
            if !self.is_directory(&dest)? {
                let id = self.mkdir(
                    &dest,
                    spec.mode.map_or(0o755, |mode| mode | (mode & 0o444) >> 2),
                )?;
                let meta = self.meta_mut(id);
                (meta.uid, meta.gid) = (uid, gid);
            }
            self.apply_children(src, &dest, &options)?;
            return Ok(());
        }
        if dest.ends_with(b"/") || self.is_directory(&dest)? {
            let name = spec.name.as_deref().or(src.file_name());
            dest.push(b'/');
            dest.extend(
                name.map(OsStr::as_bytes)
                    .context("the source has no file name")?,
            );
        }
        self.put_file(src, &dest, &options)
    }

    /// Returns the numbers of a `USER` or `USER:GROUP`, as [`CopySpec::owner`] describes it.
    ///
    /// # Errors
    /// A name that the tree's account files do not have.
    pub fn resolve_owner(&self, owner: &str) -> Result<(u32, u32)> {
        let (user, group) = match owner.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (owner, None),
        };
        // name:password:uid:gid:... and name:password:gid:...
        let entry = self.account("etc/passwd", user)?;
        let uid = number(&entry, 2).or(user.parse().ok());
        let uid = uid.with_context(|| format!("the image has no user '{user}' in /etc/passwd"))?;
        let gid = match group {
            None => number(&entry, 3).unwrap_or(uid),
            Some(group) => number(&self.account("etc/group", group)?, 2)
                .or(group.parse().ok())
                .with_context(|| format!("the image has no group '{group}' in /etc/group"))?,
        };
        Ok((uid, gid))
    }

    /// The fields of the entry with this name, or this number, in an account file of the image.
    fn account(&self, file: &str, name: &str) -> Result<Vec<String>> {
        let content = self.read(file, MAX_ACCOUNTS)?.unwrap_or_default();
        let content = String::from_utf8_lossy(&content);
        let entries = content
            .lines()
            .map(|line| line.split(':').map(String::from));
        let entries: Vec<Vec<_>> = entries.map(Iterator::collect).collect();
        let with = |field: usize| {
            entries
                .iter()
                .find(|e| e.get(field).is_some_and(|f| f == name))
        };
        Ok(with(0).or(with(2)).cloned().unwrap_or_default())
    }
}

fn number(entry: &[String], field: usize) -> Option<u32> {
    entry.get(field)?.parse().ok()
}
