//! Paths from outside: split, checked, and resolved inside a tree.

use anyhow::{Result, ensure};

use crate::limits::{MAX_LINKS, MAX_NAME, MAX_PATH};
use crate::{InodeId, Node, Tree};

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
    Missing {
        parent: InodeId,
        name: Box<[u8]>,
    },
    /// A file is where the path needs a directory.
    File {
        parent: InodeId,
        name: Box<[u8]>,
    },
}

/// Path resolution inside the tree, as in a chroot, except that `..` above the root is refused and
/// not ignored: an archive that tries it is broken or hostile.
pub(crate) struct Route {
    /// Components still to go, the next one last.
    todo: Vec<Box<[u8]>>,
    /// Directories from the root to where we are, with the lengths of their paths.
    trail: Vec<(InodeId, usize)>,
    links: usize,
}

impl Route {
    pub fn new(path: &[&[u8]]) -> Route {
        let todo = path.iter().rev().map(|&name| name.into()).collect();
        Route {
            todo,
            trail: vec![(InodeId::ROOT, 0)],
            links: 0,
        }
    }

    pub fn directory(&self) -> InodeId {
        self.trail[self.trail.len() - 1].0
    }

    /// Whether the last step was about the last name of the path.
    pub fn is_at_end(&self) -> bool {
        self.todo.is_empty()
    }

    /// Goes into the directory `id`, which has this name where we are.
    pub fn enter(&mut self, id: InodeId, name: &[u8]) -> Result<()> {
        let len = self.path_len(name)?;
        self.trail.push((id, len));
        Ok(())
    }

    /// The length of the path of `name` where we are, with a slash in front. Links make paths longer
    /// than those that are written.
    ///
    /// # Errors
    /// No system call could name it.
    pub fn path_len(&self, name: &[u8]) -> Result<usize> {
        let len = self.trail[self.trail.len() - 1].1 + 1 + name.len();
        ensure!(
            len <= MAX_PATH,
            "directories are nested to a path of more than {MAX_PATH} bytes"
        );
        Ok(len)
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
            Node::Directory(_) => self.enter(id, &name)?,
            Node::Symlink(target) => self.follow(target, tree)?,
            _ => return Ok(Some(Step::File { parent, name })),
        }
        Ok(Some(Step::Entered))
    }

    fn follow(&mut self, target: &[u8], tree: &Tree) -> Result<()> {
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
        tree.budget().link_names(1 + self.todo.len() - at)
    }
}
/// A path below another, which may be empty.
pub(crate) fn below(folder: &[u8], path: &[u8]) -> Vec<u8> {
    match folder.is_empty() {
        true => path.to_vec(),
        false => [folder, b"/", path].concat(),
    }
}
