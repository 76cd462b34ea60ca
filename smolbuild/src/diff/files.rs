//! Two file system trees compared: of root file systems and initramfs archives.

use std::collections::{HashMap, HashSet, btree_map};
use std::io::Read;
use std::iter::Peekable;

use anyhow::{Context, Result};
use serde::Serialize;
use smol_cli::Interrupt;
use smol_rootfs::{Device, FileData, Inode, InodeId, Name, Node, Tree};

/// A file that is not the same in both trees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// Absolute path.
    pub path: String,
    /// What happened to it.
    pub kind: Kind,
    /// What differs, a line each; empty for files that only one tree has.
    pub details: Vec<String>,
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Only the second tree has it.
    Added,
    /// Only the first tree has it.
    Removed,
    /// Both have it, not the same.
    Changed,
}

/// Files that differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// By path, the first [`MAX_CHANGES`] that were met.
    pub list: Vec<FileChange>,
    /// How many more there are.
    pub more: u64,
}

/// Most files that are told one by one.
pub const MAX_CHANGES: usize = 10_000;
/// Most bytes of names that are kept to recognise hard links. Of further ones it is not told to which
/// file they belong.
const MAX_LINK_NAMES: usize = 32 << 20;

/// Everything in which the trees differ.
///
/// # Errors
/// Contents that cannot be read; the interrupt.
pub fn compare(a: &Tree, b: &Tree, interrupt: &Interrupt) -> Result<Changes> {
    let mut comparison = Comparison {
        links: [first_names(a), first_names(b)],
        contents: Contents::of(a, b),
        trees: [a, b],
        changes: Changes::default(),
        interrupt,
    };
    comparison.entry(b"", Some(InodeId::ROOT), Some(InodeId::ROOT))?;
    let mut path = Vec::new();
    let mut stack = vec![Level::new([a, b], 0, [Some(InodeId::ROOT); 2])];
    while let Some(level) = stack.last_mut() {
        path.truncate(level.path);
        let Some((name, ids)) = level.next() else {
            stack.pop();
            continue;
        };
        path.extend_from_slice(name);
        comparison.entry(&path, ids[0], ids[1])?;
        path.push(b'/');
        stack.push(Level::new([a, b], path.len(), ids));
    }
    let mut changes = comparison.changes;
    changes.list.sort_by(|x, y| x.path.cmp(&y.path));
    Ok(changes)
}

type Children<'t> = Peekable<btree_map::Iter<'t, Box<[u8]>, Name>>;

/// A directory of either tree, or of both, whose names come in their order.
struct Level<'t> {
    /// Length of its path, with a slash at its end.
    path: usize,
    children: [Option<Children<'t>>; 2],
}

impl<'t> Level<'t> {
    fn new(trees: [&'t Tree; 2], path: usize, ids: [Option<InodeId>; 2]) -> Self {
        let children = |tree: &'t Tree, id: Option<InodeId>| match &tree.inode(id?).node {
            Node::Directory(children) => Some(children.iter().peekable()),
            _ => None,
        };
        let children = [children(trees[0], ids[0]), children(trees[1], ids[1])];
        Level { path, children }
    }

    /// The next name, and what has it in each tree.
    fn next(&mut self) -> Option<(&'t [u8], [Option<InodeId>; 2])> {
        let peek =
            |side: &mut Option<Children<'t>>| side.as_mut()?.peek().map(|(name, _)| &***name);
        let [a, b] = self.children.each_mut().map(peek);
        let name = a.into_iter().chain(b).min()?;
        let take = |side: &mut Option<Children<'t>>| {
            let found = side.as_mut()?.next_if(|(found, _)| &***found == name);
            found.map(|(_, name)| name.inode)
        };
        Some((name, self.children.each_mut().map(take)))
    }
}

/// The first name of each inode that has several, by which hard links are recognised.
fn first_names(tree: &Tree) -> HashMap<InodeId, Vec<u8>> {
    let mut counts = vec![0u32; tree.inode_slots()];
    tree.walk().for_each(|(_, id, _)| counts[id.index()] += 1);
    let (mut names, mut bytes) = (HashMap::new(), 0);
    for (path, id, _) in tree.walk() {
        if counts[id.index()] > 1 && bytes < MAX_LINK_NAMES && !names.contains_key(&id) {
            bytes += path.len();
            names.insert(id, path);
        }
    }
    names
}

struct Comparison<'t> {
    trees: [&'t Tree; 2],
    links: [HashMap<InodeId, Vec<u8>>; 2],
    contents: Contents<'t>,
    changes: Changes,
    interrupt: &'t Interrupt,
}

impl Comparison<'_> {
    /// Compares what has the name `path`.
    fn entry(&mut self, path: &[u8], a: Option<InodeId>, b: Option<InodeId>) -> Result<()> {
        self.interrupt.check()?;
        let shown = || format!("/{}", path.escape_ascii());
        let (kind, details) = match (a, b) {
            (Some(a), Some(b)) => {
                let details = self.details(path, a, b).with_context(shown)?;
                if details.is_empty() {
                    return Ok(());
                }
                (Kind::Changed, details)
            }
            (None, _) => (Kind::Added, Vec::new()),
            (_, None) => (Kind::Removed, Vec::new()),
        };
        if self.changes.list.len() == MAX_CHANGES {
            self.changes.more += 1;
            return Ok(());
        }
        self.changes.list.push(FileChange {
            path: shown(),
            kind,
            details,
        });
        Ok(())
    }

    fn details(&mut self, path: &[u8], a: InodeId, b: InodeId) -> Result<Vec<String>> {
        let (x, y) = (self.trees[0].inode(a), self.trees[1].inode(b));
        let mut out = nodes(&x.node, &y.node, &mut self.contents)?;
        out.extend(metadata(x, y));
        let names = [self.links[0].get(&a), self.links[1].get(&b)];
        let names = names.map(|name| name.map_or(path, |name| name));
        if names[0] != names[1] {
            let [x, y] = names.map(|name| format!("/{}", name.escape_ascii()));
            out.push(format!("the file of {x} -> {y}"));
        }
        Ok(out)
    }
}

fn metadata(a: &Inode, b: &Inode) -> Vec<String> {
    let (x, y) = (&a.meta, &b.meta);
    let mut out = Vec::new();
    if x.mode != y.mode {
        out.push(format!("mode {:o} -> {:o}", x.mode, y.mode));
    }
    if (x.uid, x.gid) != (y.uid, y.gid) {
        out.push(format!("owner {}:{} -> {}:{}", x.uid, x.gid, y.uid, y.gid));
    }
    if x.mtime != y.mtime {
        let show = |time: Option<u64>| time.map_or("none".into(), |time| time.to_string());
        out.push(format!("time {} -> {}", show(x.mtime), show(y.mtime)));
    }
    let names = x
        .xattrs
        .keys()
        .chain(y.xattrs.keys().filter(|n| !x.xattrs.contains_key(*n)));
    for name in names.filter(|name| x.xattrs.get(*name) != y.xattrs.get(*name)) {
        out.push(format!("attribute {}", name.escape_ascii()));
    }
    out
}

fn nodes<'t>(a: &'t Node, b: &'t Node, known: &mut Contents<'t>) -> Result<Vec<String>> {
    let device = |d: &Device| format!("{}:{}", d.major, d.minor);
    let change = match (a, b) {
        (Node::Directory(_), Node::Directory(_))
        | (Node::Fifo, Node::Fifo)
        | (Node::Socket, Node::Socket) => None,
        (Node::File(x), Node::File(y)) => known.compare(x, y)?,
        (Node::Symlink(x), Node::Symlink(y)) => {
            (x != y).then(|| format!("target {} -> {}", x.escape_ascii(), y.escape_ascii()))
        }
        (Node::CharDevice(x), Node::CharDevice(y))
        | (Node::BlockDevice(x), Node::BlockDevice(y)) => {
            (x != y).then(|| format!("device {} -> {}", device(x), device(y)))
        }
        _ => Some(format!("{} -> {}", type_name(a), type_name(b))),
    };
    Ok(change.into_iter().collect())
}

fn type_name(node: &Node) -> &'static str {
    match node {
        Node::Directory(_) => "directory",
        Node::File(_) => "file",
        Node::Symlink(_) => "symbolic link",
        Node::CharDevice(_) => "character device",
        Node::BlockDevice(_) => "block device",
        Node::Fifo => "fifo",
        Node::Socket => "socket",
    }
}

/// Contents that were compared. Any number of files may have one content, so that comparing each pair
/// anew would take longer than reading both images any number of times.
struct Contents<'t> {
    known: HashMap<[Content<'t>; 2], Option<u64>>,
    /// Bytes that may still be compared.
    left: u64,
}

/// A content by its place.
type Content<'t> = (u64, u64, Option<&'t [u8]>);

fn content(data: &FileData) -> Content<'_> {
    match data {
        FileData::Range { offset, len, .. } => (*offset, *len, None),
        FileData::Bytes(bytes) => (0, bytes.len() as u64, Some(bytes)),
    }
}

impl<'t> Contents<'t> {
    /// None was compared; each byte may be four times.
    fn of(a: &'t Tree, b: &'t Tree) -> Self {
        let size = |tree: &'t Tree| {
            let files = tree.walk().filter_map(|(_, _, inode)| match &inode.node {
                Node::File(data) => Some(content(data)),
                _ => None,
            });
            let unique: HashSet<Content<'t>> = files.collect();
            unique.into_iter().map(|(_, len, _)| len).sum::<u64>()
        };
        Contents {
            known: HashMap::new(),
            left: 4 * (size(a) + size(b)) + (1 << 20),
        }
    }

    /// Says where two contents begin to differ, and their sizes if these do.
    fn compare(&mut self, a: &'t FileData, b: &'t FileData) -> Result<Option<String>> {
        let (x, y) = (a.len(), b.len());
        let pair = [content(a), content(b)];
        let first = match self.known.get(&pair) {
            Some(first) => *first,
            None if self.left < x.min(y) => {
                return Ok((x != y).then(|| format!("content, {x} -> {y} bytes")));
            }
            None => {
                self.left -= x.min(y);
                let first = first_difference(a, b)?;
                self.known.insert(pair, first);
                first
            }
        };
        Ok(match first {
            None => None,
            Some(at) if x == y => Some(format!("content, from byte {at} of {x} on")),
            Some(at) => Some(format!("content, {x} -> {y} bytes, from byte {at} on")),
        })
    }
}

fn first_difference(a: &FileData, b: &FileData) -> Result<Option<u64>> {
    const PIECE: u64 = 1 << 16;
    let (mut x, mut y) = (a.open()?, b.open()?);
    let (mut left, mut right) = (Vec::new(), Vec::new());
    let mut at = 0;
    loop {
        for (input, piece) in [(&mut x, &mut left), (&mut y, &mut right)] {
            piece.clear();
            input.take(PIECE).read_to_end(piece)?;
        }
        if left != right {
            let same = left.iter().zip(&right).take_while(|(l, r)| l == r).count();
            return Ok(Some(at + same as u64));
        }
        if left.is_empty() {
            return Ok(None);
        }
        at += left.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(a: &Tree, b: &Tree) -> Vec<String> {
        let line = |c: FileChange| format!("{:?} {} {}", c.kind, c.path, c.details.join("; "));
        let interrupt = Interrupt::detached().unwrap();
        let changes = compare(a, b, &interrupt).unwrap();
        changes.list.into_iter().map(line).collect()
    }

    #[test]
    fn every_kind_of_difference_between_files_is_told() {
        let mut a = Tree::new();
        a.file("etc/motd", 0o644, b"hello".to_vec()).unwrap();
        a.file("etc/gone", 0o644, Vec::new()).unwrap();
        a.file("etc/mode", 0o644, Vec::new()).unwrap();
        a.file("etc/one", 0o644, Vec::new()).unwrap();
        a.symlink("bin", "usr/bin").unwrap();
        let mut b = a.clone();
        assert_eq!(told(&a, &b), Vec::<String>::new());

        b.file("etc/motd", 0o644, b"help!".to_vec()).unwrap();
        b.remove("etc/gone").unwrap();
        b.file("new", 0o644, Vec::new()).unwrap();
        let id = b.lookup("etc/mode").unwrap().unwrap();
        let meta = b.meta_mut(id);
        (meta.mode, meta.gid, meta.mtime) = (0o4755, 7, Some(3));
        meta.xattrs.insert(b"user.x".to_vec(), Vec::new());
        b.remove("etc/one").unwrap();
        b.hard_link("etc/one", "etc/mode").unwrap();
        b.symlink("bin", "usr/sbin").unwrap();
        assert_eq!(
            told(&a, &b),
            [
                "Changed /bin target usr/bin -> usr/sbin",
                "Removed /etc/gone ",
                "Changed /etc/mode mode 644 -> 4755; owner 0:0 -> 0:7; time none -> 3; attribute user.x",
                "Changed /etc/motd content, from byte 3 of 5 on",
                "Changed /etc/one mode 644 -> 4755; owner 0:0 -> 0:7; time none -> 3; attribute user.x; \
                 the file of /etc/one -> /etc/mode",
                "Added /new ",
            ]
        );
    }

    #[test]
    fn contents_of_different_length_and_type_differ() {
        let mut a = Tree::new();
        a.file("x", 0o644, vec![1; 100_000]).unwrap();
        a.file("y", 0o644, Vec::new()).unwrap();
        let mut b = Tree::new();
        b.file("x", 0o644, vec![1; 70_000]).unwrap();
        b.mkdir("y", 0o644).unwrap();
        assert_eq!(
            told(&a, &b),
            [
                "Changed /x content, 100000 -> 70000 bytes, from byte 70000 on",
                "Changed /y file -> directory",
            ]
        );
    }
}
