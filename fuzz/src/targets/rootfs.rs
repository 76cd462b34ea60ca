//! Root file systems: archives, layers and images into a tree, and back.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use flate2::write::GzEncoder;
use liblzma::read::XzEncoder;
use smol_rootfs::compression::Compression;
use smol_rootfs::ignore::Patterns;
use smol_rootfs::{Device, FileData, HostFile, Ignore, Inode, Node, Tree, Watch, cpio, erofs};

use super::samples;
use crate::files::MemoryFile;
use crate::input::{MAX_EXPANDED, Repeated, expand, join, parts, plan};

const BLOCK: usize = 512;
/// Larger trees are not written again.
const MOST_NAMES: usize = 500;
const MOST_CONTENT: u64 = 1 << 20;

/// A tar archive, by [`expand`]: repeated members may have a number of their own in their names. The
/// checksums of all headers are repaired, and the end mark.
///
/// Holds: no name leads out of the tree, all contents lie in the archive; what was read is written as
/// EROFS and as cpio, and read back as the same.
pub fn tar(data: &[u8]) -> bool {
    let archive = MemoryFile::new(&repaired(data));
    let mut tree = Tree::new();
    if tree.apply_tar(archive.path()).is_err() {
        return false;
    }
    check(&tree, [&archive]);
    round_trips(&tree);
    true
}

/// A compressed archive.
///
/// Holds: what is unpacked is not longer than it may be, and a tree is read out of it as by [`tar()`].
pub fn compressed(data: &[u8]) -> bool {
    const MOST: u64 = 4 << 20;
    let Some(compression) = Compression::of(data) else {
        return false;
    };
    let mut plain = MemoryFile::new(&[]);
    let watch = Watch::default();
    let see = &mut |_: &[u8]| {};
    let unpacked = smol_rootfs::unpack(Some(compression), data, &mut plain.file, MOST, see, &watch);
    let len = plain.file.metadata().expect("it is open").len();
    assert!(len <= MOST);
    if unpacked.is_err() {
        return false;
    }
    let mut tree = Tree::new();
    if tree.apply_tar(plain.path()).is_ok() {
        check(&tree, [&plain]);
    }
    true
}

/// Up to four layers, each as for [`tar()`], one over the other.
///
/// Holds: as for [`tar()`], and no whiteout is left as a file.
pub fn layers(data: &[u8]) -> bool {
    let mut tree = Tree::new();
    let layers: Vec<_> = parts(data, 4)
        .into_iter()
        .map(|layer| MemoryFile::new(&repaired(layer)))
        .collect();
    for layer in &layers {
        if tree.apply_layer(layer.path()).is_err() {
            return false;
        }
        for (path, _, inode) in tree.walk() {
            let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            let is_directory = matches!(inode.node, Node::Directory(_));
            assert!(is_directory || !name.starts_with(b".wh."), "{path:?}");
        }
    }
    check(&tree, &layers);
    round_trips(&tree);
    true
}

/// A tree as for [`tar()`], and what was written to an overlay over it.
///
/// Holds: as for [`tar()`], and no whiteout and no attribute of overlayfs is left of the overlay.
pub fn overlay(data: &[u8]) -> bool {
    let parts: Vec<_> = parts(data, 2)
        .into_iter()
        .map(|part| MemoryFile::new(&repaired(part)))
        .collect();
    let [base, upper] = parts.as_slice() else {
        return false;
    };
    let mut tree = Tree::new();
    if tree.apply_tar(base.path()).is_err() {
        return false;
    }
    let before = tree.clone();
    if tree.apply_overlay(upper.path(), &["run", "tmp"]).is_err() {
        return false;
    }
    for (path, id, inode) in tree.walk() {
        let is_new = id.index() >= before.inode_slots();
        let of_overlay = |name: &Vec<u8>| name.starts_with(b"trusted.overlay.");
        assert!(
            !is_new || !inode.meta.xattrs.keys().any(of_overlay),
            "{path:?}"
        );
        let none = Device { major: 0, minor: 0 };
        assert!(
            !is_new || !matches!(&inode.node, Node::CharDevice(device) if *device == none),
            "{path:?}"
        );
    }
    check(&tree, &parts);
    round_trips(&tree);
    true
}

/// An EROFS image, by [`expand`], with the superblock's checksum repaired.
///
/// Holds: as for [`tar()`]; and files together have no more content than the image has bytes, unless
/// they are the same.
pub fn erofs(data: &[u8]) -> bool {
    let plan = Repeated::new(data);
    if plan.len() > MAX_EXPANDED as u64 {
        // Too large for more than its directories.
        return erofs::read_from(&plan, plan.len(), Path::new("image")).is_ok();
    }
    let mut image = expand(data, |_, _| {});
    if let Some(flags) = image.get_mut(1024 + 8) {
        *flags &= !1; // it has no checksum
    }
    let file = MemoryFile::new(&image);
    let read = erofs::read_from(&image.as_slice(), image.len() as u64, file.path());
    let Ok(tree) = read else {
        return false;
    };
    check(&tree, [&file]);
    round_trips(&tree);
    true
}

impl erofs::ReadAt for Repeated<'_> {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
        if !self.read(bytes, offset) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let flags = 1024 + 8;
        if let Some(flags) = usize::try_from(flags - offset as i64)
            .ok()
            .and_then(|at| bytes.get_mut(at))
        {
            *flags &= !1; // it has no checksum
        }
        Ok(())
    }
}

/// A cpio archive, by [`expand`].
///
/// Holds: as for [`tar()`].
pub fn cpio(data: &[u8]) -> bool {
    let archive = expand(data, |piece, time| {
        // The name of the first member of a piece.
        if time > 0
            && let Some(name) = piece.get_mut(110..116)
        {
            name.copy_from_slice(&format!("{time:06x}").into_bytes()[..6]);
        }
    });
    let file = MemoryFile::new(&archive);
    let Ok(tree) = cpio::read(&archive, file.path()) else {
        return false;
    };
    check(&tree, [&file]);
    round_trips(&tree);
    true
}

/// The text of an ignore file, then paths, a line each.
///
/// Holds: patterns that are accepted are accepted again by themselves, and mean the same.
pub fn ignore(data: &[u8]) -> bool {
    let parts = parts(data, 2);
    let text = String::from_utf8_lossy(parts[0]);
    let Ok(patterns) = Patterns::parse(&text) else {
        return false;
    };
    let again = Patterns::new(patterns.lines()).expect("they are patterns");
    let (one, other) = (
        Ignore::default().and(Arc::new(patterns), ""),
        Ignore::default().and(Arc::new(again), ""),
    );
    let paths = String::from_utf8_lossy(parts.get(1).copied().unwrap_or_default());
    for path in paths.lines().filter(|path| !path.is_empty()).take(20) {
        let path = Path::new(path.trim_start_matches('/'));
        let found = |ignore: &Ignore| ignore.ignoring(path).map(|(_, p)| p.text.clone());
        assert_eq!(found(&one), found(&other));
    }
    true
}

/// The archive of an input: its headers follow each other as their sizes say, and each gets its
/// checksum.
fn repaired(data: &[u8]) -> Vec<u8> {
    let mut archive = expand(data, |piece, time| {
        if time > 0 && piece.len() >= BLOCK {
            let number = format!("{time:x}");
            piece[..number.len()].copy_from_slice(number.as_bytes());
        }
    });
    let mut at = 0;
    while at + BLOCK <= archive.len() && archive[at..at + BLOCK].iter().any(|byte| *byte != 0) {
        let mut bytes = [0; BLOCK];
        bytes.copy_from_slice(&archive[at..at + BLOCK]);
        let header = tar::Header::from_byte_slice(&bytes);
        let mut header = header.clone();
        let size = header.entry_size().unwrap_or(0);
        header.set_cksum();
        archive[at..at + BLOCK].copy_from_slice(header.as_bytes());
        let content = match header.entry_type().is_file() || header.entry_type().as_byte() >= b'K' {
            true => size.div_ceil(BLOCK as u64).min(1 << 20) as usize,
            false => 0,
        };
        at += BLOCK * (1 + content);
    }
    archive.resize(archive.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    archive
}

/// Nothing leads out of the tree or out of the files that it was read from.
fn check<'a>(tree: &Tree, from: impl IntoIterator<Item = &'a MemoryFile>) {
    let len = |file: &MemoryFile| file.file.metadata().expect("a file in memory").len();
    let lengths: BTreeMap<&Path, u64> = from.into_iter().map(|f| (f.path(), len(f))).collect();
    for (path, _, inode) in tree.walk() {
        if !path.is_empty() {
            for name in path.split(|byte| *byte == b'/') {
                let good = !name.is_empty() && name.len() <= 255 && !name.contains(&0);
                assert!(good && name != b"." && name != b"..", "{path:?}");
            }
        }
        if let Node::File(FileData::Range {
            file,
            offset,
            len: size,
        }) = &inode.node
        {
            let (HostFile::Named(path) | HostFile::Open(_, path)) = file;
            let len = lengths.get(&**path).expect("what was read");
            assert!(offset.checked_add(*size).is_some_and(|end| end <= *len));
        }
    }
}

/// Name, kind, owner and content of everything; `None` if that is too much to be written.
fn listing(tree: &Tree, with_names: bool) -> Option<Vec<String>> {
    let mut left = MOST_CONTENT;
    let mut lines = Vec::new();
    for (path, _, inode) in tree.walk() {
        if lines.len() > MOST_NAMES {
            return None;
        }
        let content = match &inode.node {
            Node::File(data) => {
                left = left.checked_sub(data.len())?;
                let mut content = Vec::new();
                data.open().ok()?.read_to_end(&mut content).ok()?;
                blake3::hash(&content).to_string()
            }
            Node::Directory(_) => String::new(),
            Node::Socket => continue, // left out of images
            other => format!("{other:?}"),
        };
        let Inode { meta, node } = inode;
        let bits = node.type_bits() | meta.mode;
        let attributes = if with_names {
            format!("{:?}", meta.xattrs)
        } else {
            String::new()
        };
        let path = path.escape_ascii();
        lines.push(format!(
            "{path} {bits:o} {}:{} {content} {attributes}",
            meta.uid, meta.gid
        ));
    }
    Some(lines)
}

/// What was accepted is written, and what was written is read as the same.
fn round_trips(tree: &Tree) {
    let Some(wanted) = listing(tree, true) else {
        return;
    };
    let image = MemoryFile::new(&[]);
    let mut out = &image.file;
    if erofs::write(
        tree,
        &mut out.try_clone().expect("a descriptor"),
        &erofs::Options::default(),
    )
    .is_ok()
    {
        let again = erofs::read(image.path()).expect("we have written it");
        assert_eq!(listing(&again, true).as_ref(), Some(&wanted));
    }
    let mut archive = Vec::new();
    if cpio::write(tree, &mut archive).is_ok() {
        let file = MemoryFile::new(&archive);
        out = &file.file;
        out.flush().expect("memory");
        let again = cpio::read(&archive, file.path()).expect("we have written it");
        let kept = |tree: &Tree| {
            let lines = listing(tree, false);
            lines.map(|lines| {
                lines
                    .into_iter()
                    .filter(|l| !l.contains(" 140"))
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(kept(&again), kept(tree));
    }
}

/// A member of a tar archive.
fn member(name: &[u8], kind: tar::EntryType, link: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(content.len() as u64);
    header.set_device_major(1).expect("ustar");
    header.set_device_minor(3).expect("ustar");
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// A pax record (POSIX.1-2001).
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

/// Archives with all that there is; and with members, names, attributes and links repeated.
pub fn tar_seeds() -> Vec<Vec<u8>> {
    use tar::EntryType as Kind;
    let xattr = record("SCHILY.xattr.user.x", &[7; 300]);
    let members = [
        member(b"dir/", Kind::Directory, b"", b""),
        member(b"dir/file", Kind::Regular, b"", b"content"),
        member(b"hard", Kind::Link, b"dir/file", b""),
        member(b"soft", Kind::Symlink, b"dir", b""),
        member(b"null", Kind::Char, b"", b""),
        member(b"pipe", Kind::Fifo, b"", b""),
        member(b"././@LongLink", Kind::GNULongName, b"", &[b'n'; 200]),
        member(b"n", Kind::Regular, b"", b"long"),
        member(
            b"x",
            Kind::XHeader,
            b"",
            &[record("path", b"soft/pax"), xattr.clone()].concat(),
        ),
        member(b"y", Kind::Regular, b"", b"pax"),
    ];
    let all = members.concat();
    let file = member(b"000000", Kind::Regular, b"", b"");
    let large = record("SCHILY.xattr.user.x", &[7; 40_000]);
    let global = member(b"g", Kind::XGlobalHeader, b"", &large);
    let blocks = (global.len() / BLOCK) as u8;
    let link = member(b"0000", Kind::Symlink, b"0000/0000", b"");
    let long = record("path", &b"d/".repeat(1500));
    let deep = [member(b"x", Kind::XHeader, b"", &long), file.clone()].concat();
    let mut seeds = vec![
        plan(&[], &all),
        plan(&[(0, 1, 9000)], &file),
        // Many members under attributes of their archive.
        plan(
            &[(0, blocks, 1), (blocks, 1, 30_000)],
            &[global, file].concat(),
        ),
        plan(&[(0, 1, 200)], &link),
        plan(&[(0, (deep.len() / BLOCK) as u8, 500)], &deep),
    ];
    // One kind of member each, which is fast.
    seeds.extend(members.iter().map(|member| plan(&[], member)));
    seeds
}

/// An archive of each compression; of zstd in several parts, one of which is to be skipped.
pub fn compressed_seeds() -> Vec<Vec<u8>> {
    let members = ["dir/a", "dir/b"].map(|name| {
        let content = name.repeat(200);
        member(
            name.as_bytes(),
            tar::EntryType::Regular,
            b"",
            content.as_bytes(),
        )
    });
    let archive = [&members.concat()[..], &[0; 2 * BLOCK]].concat();
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&archive).expect("memory");
    let mut xz = Vec::new();
    let mut encoder = XzEncoder::new(&archive[..], 1);
    encoder.read_to_end(&mut xz).expect("memory");
    let frame = |content: &[u8]| zstd::encode_all(content, 1).expect("memory");
    let skipped = [0x5a, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 1, 2];
    let (a, b) = archive.split_at(BLOCK);
    vec![
        gzip.finish().expect("memory"),
        [&frame(a)[..], &skipped, &frame(b)].concat(),
        xz,
        frame(&vec![0; 2 << 20]),
    ]
}

/// Two layers with whiteouts.
pub fn layer_seeds() -> Vec<Vec<u8>> {
    use tar::EntryType as Kind;
    let lower = [
        member(b"etc/a", Kind::Regular, b"", b"a"),
        member(b"etc/b", Kind::Regular, b"", b"b"),
        member(b"var/c", Kind::Regular, b"", b"c"),
    ];
    let upper = [
        member(b"etc/.wh.a", Kind::Regular, b"", b""),
        member(b"var/.wh..wh..opq", Kind::Regular, b"", b""),
        member(b"var/d", Kind::Link, b"etc/b", b""),
    ];
    let many = member(b"000000", Kind::Regular, b"", b"");
    vec![
        join(&[&plan(&[], &lower.concat()), &plan(&[], &upper.concat())]),
        join(&[&plan(&[(0, 1, 300)], &many), &plan(&[], &upper.concat())]),
    ]
}

/// A whiteout, an opaque directory, and files over a tree.
pub fn overlay_seeds() -> Vec<Vec<u8>> {
    use tar::EntryType as Kind;
    let base = [
        member(b"etc/a", Kind::Regular, b"", b"a"),
        member(b"var/b", Kind::Regular, b"", b"b"),
        member(b"tmp/c", Kind::Regular, b"", b"c"),
    ];
    // A member without a device number has 0:0.
    let opaque = b"41 SCHILY.xattr.trusted.overlay.opaque=y\n";
    let upper = [
        member(b"etc/a", Kind::Char, b"", b""),
        member(b"pax", Kind::XHeader, b"", opaque),
        member(b"var/", Kind::Directory, b"", b""),
        member(b"var/d", Kind::Regular, b"", b"d"),
        member(b"e", Kind::Link, b"var/d", b""),
        member(b"tmp/f", Kind::Regular, b"", b"f"),
    ];
    vec![join(&[
        &plan(&[], &base.concat()),
        &plan(&[], &upper.concat()),
    ])]
}

/// An image of [`samples::tree`]; and one whose root directory has the same block many times.
pub fn erofs_seeds() -> Vec<Vec<u8>> {
    let image = MemoryFile::new(&[]);
    let write = |tree: &Tree| {
        let mut out = image.file.try_clone().expect("a descriptor");
        erofs::write(tree, &mut out, &erofs::Options::default()).expect("an image");
        std::fs::read(image.path()).expect("memory")
    };
    let small = write(&samples::tree());
    let mut names = Tree::new();
    for n in 0..300 {
        names
            .file(format!("{n:012}"), 0o644, Vec::new())
            .expect("a good path");
    }
    let wide = write(&names);
    let blocks = (small.len() / BLOCK) as u8;
    vec![
        plan(&[], &small),
        plan(&[(0, blocks, 1), (8, 8, 2000)], &small),
        plan(&[], &wide),
        plan(&[(0, 8, 1), (8, 8, 1500), (16, 40, 1)], &wide),
        circle(),
    ]
}

/// An image whose root directory has one block of 340 names very many times.
fn circle() -> Vec<u8> {
    const TIMES: u16 = 60_000;
    let mut names = vec![0; 4096];
    let count = 4096 / 13;
    for n in 0..count {
        let entry = &mut names[n * 12..];
        entry[..8].copy_from_slice(&1u64.to_le_bytes());
        entry[8..10].copy_from_slice(&((count * 12 + n) as u16).to_le_bytes());
        names[count * 12 + n] = b'a' + (n % 26) as u8;
    }
    let mut head = vec![0; 2 * 4096];
    let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
    put(1024, &0xe0f5_e1e2u32.to_le_bytes());
    put(1024 + 12, &[12]);
    put(1024 + 40, &1u32.to_le_bytes()); // inodes from block 1 on
    // The root: a directory, extended, whose data are whole blocks from block 2 on.
    put(4096, &[1, 0, 0, 0]);
    put(4096 + 4, &0o040_755u16.to_le_bytes());
    put(4096 + 8, &(u64::from(TIMES) * 4096).to_le_bytes());
    put(4096 + 16, &2u32.to_le_bytes());
    plan(&[(0, 16, 1), (16, 8, TIMES)], &[head, names].concat())
}

/// An archive of [`samples::tree`].
pub fn cpio_seeds() -> Vec<Vec<u8>> {
    let mut archive = Vec::new();
    cpio::write(&samples::tree(), &mut archive).expect("an archive");
    let mut one = Vec::new();
    let mut tree = Tree::new();
    tree.file("0".repeat(BLOCK - 111), 0o644, Vec::new())
        .unwrap_or(smol_rootfs::InodeId::ROOT);
    tree.file("000000", 0o644, vec![1; 384])
        .expect("a good path");
    cpio::write(&tree, &mut one).expect("an archive");
    vec![
        plan(&[], &archive),
        plan(&[], &one),
        plan(&[(0, 1, 4000)], &one),
    ]
}

/// Patterns of all kinds.
pub fn ignore_seeds() -> Vec<Vec<u8>> {
    let patterns =
        b"# a comment\n*.log\n!keep.log\n**/target\n/a/**/b\n[a-z]x\n\\!literal\ndir/\n{a,b}\n";
    vec![join(&[
        patterns,
        b"a.log\nkeep.log\nx/target/y\na/q/b\nqx\n",
    ])]
}
