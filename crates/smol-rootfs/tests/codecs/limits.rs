//! Small inputs that would take much memory or time.

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use flate2::read::GzEncoder;
use smol_rootfs::compression::Compression;
use smol_rootfs::erofs::{self, Options, ReadAt};
use smol_rootfs::limits::{MAX_ENTRIES, MAX_UNPACKED};
use smol_rootfs::{FileData, HostFile, Inode, Meta, Node, Tree, Watch, unpack};
use smol_testing::memory;
use tar::{Builder, EntryType, Header};

use crate::common::*;

const MIB: u64 = 1 << 20;
/// What all of it stays below.
const BOUND: u64 = 512 * MIB;

type Tar = Builder<io::BufWriter<fs::File>>;

fn archive(folder: &Path, fill: impl FnOnce(&mut Tar)) -> PathBuf {
    let path = folder.join("input.tar");
    let mut tar = Builder::new(io::BufWriter::new(fs::File::create(&path).unwrap()));
    fill(&mut tar);
    tar.into_inner().unwrap();
    path
}

fn member(tar: &mut Tar, name: &str, kind: EntryType, link: &str, content: &[u8]) {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    let ustar = header.as_ustar_mut().unwrap();
    ustar.name[..name.len()].copy_from_slice(name.as_bytes());
    ustar.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    tar.append(&header, content).unwrap();
}

fn pax(key: &str, value: &[u8]) -> Vec<u8> {
    let body = 1 + key.len() + 1 + value.len() + 1;
    let mut len = body + 1;
    while body + len.to_string().len() != len {
        len = body + len.to_string().len();
    }
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

fn error(result: anyhow::Result<()>) -> String {
    format!("{:#}", result.unwrap_err())
}

/// A tar archive of so many empty files, made while it is read.
struct Endless {
    members: u64,
    made: Arc<AtomicU64>,
    block: io::Cursor<Vec<u8>>,
}

impl io::Read for Endless {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.block.read(bytes)?;
        let made = self.made.load(Relaxed);
        if count > 0 || made == self.members {
            return Ok(count);
        }
        self.made.store(made + 1, Relaxed);
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_path(format!("{:02x}/{made}", made & 0xff))?;
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        header.set_cksum();
        self.block = io::Cursor::new(header.as_bytes().to_vec());
        self.block.read(bytes)
    }
}

/// Unpacks a compressed archive of so many files; returns the error, and how many were read.
fn unpack_endless(members: u64) -> (String, u64) {
    let made = Arc::new(AtomicU64::new(0));
    let block = io::Cursor::new(Vec::new());
    let files = Endless {
        members,
        made: made.clone(),
        block,
    };
    let archive = GzEncoder::new(io::BufReader::new(files), flate2::Compression::fast());
    let mut file = tempfile::tempfile().unwrap();
    let (see, watch) = (&mut |_: &[u8]| {}, Watch::default());
    let compression = Some(Compression::Gzip);
    let unpacked = unpack(compression, archive, &mut file, MAX_UNPACKED, see, &watch);
    let told = unpacked.err().map(|error| format!("{error:#}"));
    (told.unwrap_or_default(), made.load(Relaxed))
}

#[test]
fn ten_million_files_are_refused_as_soon_as_there_are_more_than_a_tree_holds() {
    let test = "limits::ten_million_files_are_refused_as_soon_as_there_are_more_than_a_tree_holds";
    memory::within(64 * MIB, test, || {
        let (told, read) = unpack_endless(10_000_000);
        assert_eq!(told, "it holds more than 1000000 names");
        // What encoder and decoder hold is a few MiB of the archive.
        assert!(read < MAX_ENTRIES + 20_000, "{read}");
    });
    let (told, read) = unpack_endless(1000);
    assert_eq!((told.as_str(), read), ("", 1000));
}

#[test]
fn a_tar_with_global_xattrs_stays_below_its_memory_bound() {
    let test = "limits::a_tar_with_global_xattrs_stays_below_its_memory_bound";
    memory::within(BOUND, test, || {
        let scratch = tempfile::tempdir().unwrap();
        let path = archive(scratch.path(), |tar| {
            let all = [b'a', b'b'].map(|name| {
                let key = format!("SCHILY.xattr.user.{}", char::from(name));
                pax(&key, &[name; 60_000])
            });
            member(tar, "global", EntryType::XGlobalHeader, "", &all.concat());
            for n in 0..20_000 {
                member(tar, &n.to_string(), EntryType::Regular, "", b"");
            }
        });
        assert!(fs::metadata(&path).unwrap().len() < 20 * MIB);
        let error = error(Tree::new().apply_tar(&path));
        assert!(error.contains("of memory"), "{error}");
    });
}

#[test]
fn global_records_and_records_of_one_member_do_not_pile_up() {
    let test = "limits::global_records_and_records_of_one_member_do_not_pile_up";
    memory::within(64 * MIB, test, || {
        for kind in [EntryType::XGlobalHeader, EntryType::XHeader] {
            let scratch = tempfile::tempdir().unwrap();
            let path = archive(scratch.path(), |tar| {
                for n in 0..2000 {
                    let records = pax(&format!("SCHILY.xattr.user.{n}"), &[b'x'; 60_000]);
                    member(tar, "x", kind, "", &records);
                }
                member(tar, "file", EntryType::Regular, "", b"");
            });
            let error = error(Tree::new().apply_tar(&path));
            assert!(error.contains("bytes of extended attributes"), "{error}");
        }
    });
}

#[test]
fn what_an_archive_says_of_all_members_holds_for_the_first_one_too() {
    let scratch = tempfile::tempdir().unwrap();
    let path = archive(scratch.path(), |tar| {
        let global = pax("SCHILY.xattr.user.a", b"all");
        member(tar, "global", EntryType::XGlobalHeader, "", &global);
        member(tar, "first", EntryType::Regular, "", b"");
        let own = pax("SCHILY.xattr.user.a", b"own");
        member(tar, "x", EntryType::XHeader, "", &own);
        member(tar, "second", EntryType::Regular, "", b"");
        member(tar, "third", EntryType::Regular, "", b"");
    });
    let mut tree = Tree::new();
    tree.apply_tar(&path).unwrap();
    let values = ["first", "second", "third"].map(|name| {
        let id = tree.lookup(name).unwrap().unwrap();
        tree.inode(id).meta.xattrs[b"user.a".as_slice()].clone()
    });
    assert_eq!(values, [&b"all"[..], b"own", b"all"]);
}

#[test]
fn long_links_in_the_path_of_every_member_are_not_followed_without_end() {
    let scratch = tempfile::tempdir().unwrap();
    let looked = Arc::new(AtomicU64::new(0));
    for layer in [false, true] {
        let path = archive(scratch.path(), |tar| {
            member(tar, "d/", EntryType::Directory, "", b"");
            for n in 0..39 {
                let target = format!("{}l{}", "d/../".repeat(800), n + 1);
                let target = pax("linkpath", target.as_bytes());
                member(tar, "x", EntryType::XHeader, "", &target);
                member(tar, &format!("l{n}"), EntryType::Symlink, "", b"");
            }
            member(tar, "l39", EntryType::Symlink, "d", b"");
            for n in 0..1000 {
                member(tar, &format!("l0/{n}"), EntryType::Regular, "", b"");
            }
        });
        let looks = looked.clone();
        let mut tree = Tree::watched(Watch::new(move || {
            looks.fetch_add(1, Relaxed);
            Ok(())
        }));
        let result = match layer {
            true => tree.apply_layer(&path),
            false => tree.apply_tar(&path),
        };
        let error = error(result);
        assert!(error.contains("lead through symbolic links"), "{error}");
    }
    assert!(looked.load(Relaxed) > 50, "{looked:?}");
}

#[test]
fn whoever_reads_an_archive_or_an_image_is_asked_whether_to_go_on() {
    let scratch = tempfile::tempdir().unwrap();
    let path = archive(scratch.path(), |tar| {
        for n in 0..1000 {
            member(tar, &n.to_string(), EntryType::Regular, "", b"");
        }
    });
    let stop = || Tree::watched(Watch::new(|| anyhow::bail!("enough")));
    let mut tree = Tree::new();
    tree.apply_tar(&path).unwrap();
    let image = scratch.path().join("image");
    write_image(&tree, &image, &Options::default());
    let mut initramfs = Vec::new();
    smol_rootfs::cpio::write(&tree, &mut initramfs).unwrap();
    for (what, result) in [
        ("tar", stop().apply_tar(&path)),
        ("layer", stop().apply_layer(&path)),
        ("erofs", erofs::read_into(stop(), &image).map(drop)),
        (
            "cpio",
            smol_rootfs::cpio::read_into(stop(), &initramfs, &path).map(drop),
        ),
    ] {
        assert!(error(result).contains("enough"), "{what}");
    }
}

/// As many files as a tree takes, each with content of its own length.
fn largest_tree(mut inode: impl FnMut(u64) -> Inode) -> Tree {
    let mut tree = Tree::new();
    for n in 0.. {
        let name = format!("{:02x}/{:x}", n & 0xff, n >> 8);
        if let Err(error) = tree.insert(name, inode(n)) {
            let error = format!("{error:#}");
            let limit = error.contains("of memory") || error.contains("more than");
            assert!(limit, "{error}");
            break;
        }
    }
    tree
}

#[test]
fn the_largest_tree_is_written_and_read_within_the_memory_bound() {
    let test = "limits::the_largest_tree_is_written_and_read_within_the_memory_bound";
    memory::within(BOUND, test, || {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("image");
        let file = Arc::new(fs::File::open("/dev/null").unwrap());
        let many = |_| Inode {
            meta: Meta::root(0o644),
            node: Node::File(FileData::Range {
                file: HostFile::Open(file.clone(), Path::new("x").into()),
                offset: 0,
                len: 0,
            }),
        };
        let attributes = |_| {
            let mut meta = Meta::root(0o644);
            for name in 0..2 {
                meta.xattrs
                    .insert(format!("user.{name}").into(), vec![7; 60_000]);
            }
            let node = Node::Fifo;
            Inode { meta, node }
        };
        for tree in [largest_tree(many), largest_tree(attributes)] {
            write_image(&tree, &path, &Options::default());
            let names = tree.walk().count();
            drop(tree);
            assert_eq!(erofs::read(&path).unwrap().walk().count(), names);
        }
    });
}

/// An image whose root directory goes on for a GiB behind its end.
struct EndlessRoot {
    image: Vec<u8>,
    /// A name in it, by the number of the block and its own.
    name: fn(u64, u64) -> String,
    /// The inode of all of them.
    nid: u64,
    read: Cell<u64>,
}

impl EndlessRoot {
    fn new(name: fn(u64, u64) -> String) -> EndlessRoot {
        let mut tree = Tree::new();
        tree.file("a", 0o644, Vec::new()).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("image");
        write_image(&tree, &path, &Options::default());
        let mut image = fs::read(path).unwrap();
        let meta = u32::from_le_bytes(image[1064..1068].try_into().unwrap());
        let root = meta as usize * 4096 + 32;
        // The third entry, behind `.` and `..`.
        let nid = u64::from_le_bytes(image[root + 56..root + 64].try_into().unwrap());
        // Flat and plain, a GiB, at the first block behind the image: struct erofs_inode_compact.
        let blocks = image.len() as u32 / 4096;
        image[root] &= 1;
        image[root + 8..root + 12].copy_from_slice(&(1u32 << 30).to_le_bytes());
        image[root + 16..root + 20].copy_from_slice(&blocks.to_le_bytes());
        let read = Cell::new(0);
        EndlessRoot {
            image,
            name,
            nid,
            read,
        }
    }

    fn error(&self) -> String {
        let size = self.image.len() as u64 + (1 << 30);
        let tree = erofs::read_from(self, size, Path::new("image"));
        error(tree.map(drop))
    }
}

impl ReadAt for EndlessRoot {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let image = self.image.len() as u64;
        if offset < image {
            return self.image.read_exact_at(bytes, offset);
        }
        self.read.set(self.read.get() + 1);
        let block = (offset - image) / 4096;
        let names: Vec<String> = (0..200).map(|n| (self.name)(block, n)).collect();
        let mut at = names.len() * 12;
        let mut data = Vec::new();
        for name in &names {
            data.extend(self.nid.to_le_bytes());
            data.extend((at as u16).to_le_bytes());
            data.extend([1, 0]);
            at += name.len();
        }
        data.extend(names.concat().bytes());
        data.resize(4096, 0);
        bytes.copy_from_slice(&data);
        Ok(())
    }
}

#[test]
fn a_directory_of_one_block_repeated_ends_at_its_second_block() {
    let image = EndlessRoot::new(|_, n| format!("f{n:05}"));
    assert!(image.error().contains("twice"));
    assert_eq!(image.read.get(), 2);
    // Names that every directory has.
    let image = EndlessRoot::new(|_, _| "..".into());
    assert!(image.error().contains("twice"));
    assert_eq!(image.read.get(), 1);
}

#[test]
fn a_directory_without_end_stays_below_its_memory_bound() {
    let test = "limits::a_directory_without_end_stays_below_its_memory_bound";
    memory::within(BOUND, test, || {
        let image = EndlessRoot::new(|block, n| format!("{block:x}.{n}"));
        let error = image.error();
        assert!(error.contains("more than"), "{error}");
    });
}
