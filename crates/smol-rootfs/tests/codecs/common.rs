//! What the tests share: trees to try, a canonical listing to compare them by, the EROFS tools.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use smol_rootfs::erofs::{self, Options, Stats};
use smol_rootfs::{Device, FileData, Inode, Meta, Node, Tree};
use smol_rootfs::{DirOptions, Ignore, Modes, Owner};
use smol_testing::left_out;

/// Everything that matters of a tree, a line a name: compare two of these.
pub fn listing(tree: &Tree) -> String {
    let mut out = String::new();
    let mut first = HashMap::new();
    for (path, id, inode) in tree.walk() {
        let Meta {
            mode,
            uid,
            gid,
            xattrs,
            ..
        } = &inode.meta;
        let content = match &inode.node {
            Node::Directory(_) => "directory".into(),
            Node::File(source) => format!("file {} {}", source.len(), digest(source)),
            Node::Symlink(target) => format!("link {}", target.escape_ascii()),
            Node::CharDevice(Device { major, minor }) => format!("char {major}:{minor}"),
            Node::BlockDevice(Device { major, minor }) => format!("block {major}:{minor}"),
            Node::Fifo => "fifo".into(),
            Node::Socket => continue,
        };
        let same = first.entry(id).or_insert_with(|| path.clone());
        let same = if *same == path {
            String::new()
        } else {
            format!(" = {}", same.escape_ascii())
        };
        writeln!(
            out,
            "{} {mode:o} {uid}:{gid} {content}{same}",
            path.escape_ascii()
        )
        .unwrap();
        for (name, value) in xattrs {
            writeln!(out, "    {}={}", name.escape_ascii(), value.escape_ascii()).unwrap();
        }
    }
    out
}

/// The listing without what fsck.erofs 1.5 does not unpack: hard links (it makes two files),
/// attributes, set-id bits (it changes the owner last).
pub fn plain_listing(tree: &Tree) -> String {
    let mut plain = Tree::new();
    for (path, _, inode) in tree.walk() {
        let meta = Meta {
            mode: inode.meta.mode & 0o1777,
            xattrs: Default::default(),
            ..inode.meta.clone()
        };
        let node = if let Node::Directory(_) = inode.node {
            Node::directory()
        } else {
            inode.node.clone()
        };
        plain.insert(path, Inode { meta, node }).unwrap();
    }
    listing(&plain)
}

/// Compare two listings, and show the first lines that differ.
#[track_caller]
pub fn assert_same(found: &str, expected: &str) {
    let differs = found.lines().zip(expected.lines()).find(|(a, b)| a != b);
    if let Some((found, expected)) = differs {
        panic!("trees differ\n   found {found}\nexpected {expected}");
    }
    assert_eq!(
        found.lines().count(),
        expected.lines().count(),
        "one tree has more names"
    );
}

fn digest(source: &FileData) -> String {
    let mut bytes = Vec::new();
    source.copy_to(&mut bytes).unwrap();
    blake3::hash(&bytes).to_hex()[..16].to_string()
}

/// Write `tree` as an image to `path`.
pub fn write_image(tree: &Tree, path: &Path, options: &Options) -> Stats {
    let mut file = File::create(path).unwrap();
    erofs::write(tree, &mut file, options).unwrap()
}

/// Whether a tool is installed; says so if it is not and the test is skipped.
pub fn have(tool: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {tool}")])
        .output()
        .unwrap()
        .status
        .success();
    if !found {
        left_out(format!("{tool} is not installed"));
    }
    found
}

/// Whether tests may make devices and give files away.
pub fn am_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        left_out("needs root");
    }
    root
}

/// Run a command that must succeed; gives what it said.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command:?} failed: {said}");
    said
}

/// Check the image and unpack it with the EROFS tools; gives the tree they find in it.
pub fn extract(image: &Path, to: &Path) -> Tree {
    run(Command::new("fsck.erofs")
        .arg(format!("--extract={}", to.display()))
        .arg(image));
    host_tree(to)
}

/// Mounts an image with the host's kernel; unmounted when dropped.
pub struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    /// Mount `image` at the directory `at`, or say why the test is skipped.
    pub fn new(image: &Path, at: &'a Path) -> Option<Mounted<'a>> {
        let mount = Command::new("mount")
            .args(["-t", "erofs", "-o", "loop,ro"])
            .arg(image)
            .arg(at)
            .output()
            .unwrap();
        if mount.status.success() {
            return Some(Mounted(at));
        }
        left_out(format!(
            "this host cannot mount EROFS images: {}",
            String::from_utf8_lossy(&mount.stderr).trim()
        ));
        None
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.0));
    }
}

/// The tree of a host directory.
pub fn host_tree(path: &Path) -> Tree {
    let mut tree = Tree::new();
    tree.apply_dir(
        path,
        "",
        &DirOptions {
            owner: Owner::Keep,
            modes: Modes::Keep,
            ignore: Ignore::default(),
        },
    )
    .unwrap();
    tree
}

/// An inode with this mode and owner.
pub fn inode(mode: u32, uid: u32, gid: u32, node: Node) -> Inode {
    Inode {
        meta: Meta {
            uid,
            gid,
            ..Meta::root(mode)
        },
        node,
    }
}

/// Bytes that differ with `seed` and do not repeat.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut reader = blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof();
    let mut bytes = vec![0; len];
    reader.fill(&mut bytes);
    bytes
}

/// A tree with one of everything that is awkward.
pub fn awkward_tree() -> Tree {
    let mut tree = Tree::new();
    tree.mkdir("empty", 0o700).unwrap();
    tree.file("zero", 0o644, Vec::new()).unwrap();
    for (name, len) in [
        ("one", 1),
        ("block", 4096),
        ("block1", 4097),
        ("piece", 1 << 20),
        ("large", (2 << 20) + 5),
    ] {
        tree.file(format!("sizes/{name}"), 0o640, noise(len as u64, len))
            .unwrap();
        tree.file(format!("sizes/{name}.copy"), 0o600, noise(len as u64, len))
            .unwrap();
    }
    // Directories of one block less a little, one block, two blocks, many.
    for count in [150, 156, 157, 158, 330, 2000] {
        for n in 0..count {
            tree.symlink(format!("dirs/{count}/entry-{n:08}"), "x")
                .unwrap();
        }
    }
    for length in [1, 100, 2047, 2048, 2049, 4000, 4094] {
        tree.symlink(format!("links/{length}"), "t".repeat(length))
            .unwrap();
    }
    // Names around "." in byte order, bytes above ASCII, the longest name.
    for name in [
        &b"!"[..],
        b"-",
        b".a",
        b"..b",
        b"...",
        b"\xff\xfe",
        "ümläut".as_bytes(),
        &[b'n'; 255],
    ] {
        tree.file([b"names/", name].concat(), 0o755, name.to_vec())
            .unwrap();
    }
    tree.insert(
        "dev/console",
        inode(0o600, 0, 5, Node::CharDevice(Device { major: 5, minor: 1 })),
    )
    .unwrap();
    tree.insert(
        "dev/big",
        inode(
            0o660,
            0,
            6,
            Node::BlockDevice(Device {
                major: 259,
                minor: 70000,
            }),
        ),
    )
    .unwrap();
    tree.insert("dev/pipe", inode(0o622, 1, 2, Node::Fifo))
        .unwrap();
    tree.insert("dev/socket", inode(0o777, 0, 0, Node::Socket))
        .unwrap();
    tree.insert(
        "owned",
        inode(0o4755, 70000, 100, Node::File(noise(9, 10).into())),
    )
    .unwrap();
    tree.insert("owned2", inode(0o2755, 3, 4_000_000_000, Node::directory()))
        .unwrap();
    tree.mkdir("tmp", 0o1777).unwrap();
    tree.hard_link("tmp/link", "sizes/one").unwrap();
    tree.hard_link("another", "links/100").unwrap();
    tree
}
