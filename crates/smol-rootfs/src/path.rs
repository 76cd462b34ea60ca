//! Paths from outside: split, checked, and resolved inside a tree.

use anyhow::{Result, bail, ensure};

use crate::{InodeId, Node, Tree};

/// Longest file name in bytes (`NAME_MAX` of Linux, and of EROFS).
pub const MAX_NAME: usize = 255;
/// Longest path and longest symbolic link target in bytes (`PATH_MAX` less its NUL).
pub const MAX_PATH: usize = 4095;
/// Deepest nesting of directories: no longer path can be named by a system call.
const MAX_DEPTH: usize = MAX_PATH / 2;
/// Symbolic links followed in one path before it counts as a loop, as in Linux.
const MAX_LINKS: usize = 40;

/// Splits a path into its names: leading slashes, empty names and `.` vanish, `..` is refused.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>> {
    ensure!(
        path.len() <= MAX_PATH,
        "a path of {} bytes (at most {MAX_PATH})",
        path.len()
    );
    ensure!(
        !path.contains(&0),
        "{} has a NUL byte in its name",
        show(path)
    );
    let names: Vec<_> = path
        .split(|&byte| byte == b'/')
        .filter(|n| !n.is_empty() && *n != b".")
        .collect();
    for name in &names {
        ensure!(*name != b"..", "{} has a '..' in its path", show(path));
        ensure!(
            name.len() <= MAX_NAME,
            "a file name of {} bytes (at most {MAX_NAME}): {}",
            name.len(),
            show(name)
        );
    }
    Ok(names)
}

/// A path for a message: printable, and not longer than a line or two.
pub(crate) fn show(path: &[u8]) -> String {
    const SHOWN: usize = 200;
    let dots = if path.len() > SHOWN { "..." } else { "" };
    format!("'{}{dots}'", path[..path.len().min(SHOWN)].escape_ascii())
}

/// One step of a [`Route`].
pub(crate) enum Step {
    Entered,
    Missing { parent: InodeId, name: Box<[u8]> },
}

/// A file is where a path needs a directory.
#[derive(Debug)]
pub(crate) struct NotADirectory(String);

impl std::fmt::Display for NotADirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is not a directory", self.0)
    }
}

impl std::error::Error for NotADirectory {}

/// Path resolution inside the tree, as in a chroot, except that `..` above the root is refused and
/// not ignored: an archive that tries it is broken or hostile.
pub(crate) struct Route {
    /// Components still to go, the next one last.
    todo: Vec<Box<[u8]>>,
    /// Directories from the root to where we are.
    trail: Vec<InodeId>,
    links: usize,
}

impl Route {
    pub fn new(path: &[&[u8]]) -> Route {
        let todo = path.iter().rev().map(|&name| name.into()).collect();
        Route {
            todo,
            trail: vec![InodeId::ROOT],
            links: 0,
        }
    }

    pub fn directory(&self) -> InodeId {
        self.trail[self.trail.len() - 1]
    }

    pub fn enter(&mut self, id: InodeId) -> Result<()> {
        ensure!(
            self.trail.len() < MAX_DEPTH,
            "directories are nested more than {MAX_DEPTH} deep"
        );
        self.trail.push(id);
        Ok(())
    }

    pub fn next(&mut self, tree: &Tree) -> Result<Option<Step>> {
        let Some(name) = self.todo.pop() else {
            return Ok(None);
        };
        if &*name == b".." {
            ensure!(
                self.trail.len() > 1,
                "a symbolic link in the path leads out of the tree"
            );
            self.trail.pop();
            return Ok(Some(Step::Entered));
        }
        let parent = self.directory();
        let Some(id) = tree.child(parent, &name) else {
            return Ok(Some(Step::Missing { parent, name }));
        };
        match &tree.inode(id).node {
            Node::Directory(_) => self.enter(id)?,
            Node::Symlink(target) => self.follow(target)?,
            _ => bail!(NotADirectory(show(&name))),
        }
        Ok(Some(Step::Entered))
    }

    fn follow(&mut self, target: &[u8]) -> Result<()> {
        self.links += 1;
        ensure!(
            self.links <= MAX_LINKS,
            "more than {MAX_LINKS} symbolic links in one path: a loop?"
        );
        if target.starts_with(b"/") {
            self.trail.truncate(1);
        }
        let names = target
            .split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".");
        let at = self.todo.len();
        self.todo.extend(names.map(Box::from));
        self.todo[at..].reverse();
        Ok(())
    }
}
/// A path below another, which may be empty.
pub(crate) fn below(folder: &[u8], path: &[u8]) -> Vec<u8> {
    match folder.is_empty() {
        true => path.to_vec(),
        false => [folder, b"/", path].concat(),
    }
}
