//! EROFS images read back, and images that nobody should have written.

use std::path::Path;

use proptest::prelude::*;
use smol_rootfs::erofs::{self, Mtimes, Options};
use smol_rootfs::{Inode, Tree};

use crate::common::*;

/// Everything that images can hold.
fn full_tree() -> Tree {
    let mut tree = awkward_tree();
    for (path, name, value) in [
        ("zero", "user.note", b"hello".to_vec()),
        ("zero", "trusted.secret", vec![7; 5000]),
        ("zero", "user.empty", vec![]),
        ("empty", "user.on a directory", noise(1, 3000)),
        ("sizes/one", "security.capability", vec![1; 20]),
        ("sizes/block", "system.posix_acl_access", vec![2; 28]),
    ] {
        let id = tree.lookup(path).unwrap().unwrap();
        tree.meta_mut(id).xattrs.insert(name.into(), value);
    }
    let stamped = tree.lookup("sizes/large").unwrap().unwrap();
    tree.meta_mut(stamped).mtime = Some(1234567);
    tree
}

fn options() -> Options {
    Options {
        epoch: 1_700_000_000,
        mtimes: Mtimes::Clamped,
        ..Options::default()
    }
}

#[test]
fn an_image_reads_back_as_the_tree_it_was_made_of() {
    let scratch = tempfile::tempdir().unwrap();
    let image = scratch.path().join("image");
    let tree = full_tree();
    write_image(&tree, &image, &options());
    let found = erofs::read(&image).unwrap();
    assert_same(&listing(&found), &listing(&tree));

    let mtime = |path: &str| {
        let id = found.lookup(path).unwrap().unwrap();
        let Inode { meta, .. } = found.inode(id);
        meta.mtime
    };
    assert_eq!(mtime("sizes/large"), Some(1234567));
    assert_eq!(mtime("sizes/one"), Some(1_700_000_000));
}

#[test]
fn a_tree_that_was_read_makes_the_same_image_again() {
    let scratch = tempfile::tempdir().unwrap();
    let (first, second) = (scratch.path().join("1"), scratch.path().join("2"));
    write_image(&full_tree(), &first, &options());
    write_image(&erofs::read(&first).unwrap(), &second, &options());
    assert!(std::fs::read(first).unwrap() == std::fs::read(second).unwrap());
}

/// A small image as bytes.
fn small_image() -> Vec<u8> {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("image");
    let mut tree = Tree::new();
    tree.file("etc/motd", 0o644, b"hello".to_vec()).unwrap();
    tree.file("etc/long", 0o600, noise(3, 9000)).unwrap();
    tree.hard_link("usr/motd", "etc/motd").unwrap();
    tree.symlink("bin", "usr/bin").unwrap();
    let id = tree.lookup("etc/long").unwrap().unwrap();
    let value = b"value".to_vec();
    tree.meta_mut(id).xattrs.insert("user.x".into(), value);
    write_image(&tree, &path, &Options::default());
    std::fs::read(path).unwrap()
}

fn parse(image: &[u8]) -> anyhow::Result<Tree> {
    erofs::read_from(&image, image.len() as u64, Path::new("image"))
}

/// Where the root directory's inode is: the metadata's first slot stays empty.
fn root_inode(image: &[u8]) -> usize {
    let meta = u32::from_le_bytes(image[1064..1068].try_into().unwrap());
    meta as usize * 4096 + 32
}

#[track_caller]
fn refused(image: &[u8], why: &str) {
    let error = format!("{:#}", parse(image).expect_err("it was read"));
    assert!(error.contains(why), "{error}");
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    refused(b"", "no superblock");
    refused(&[0; 8192], "not EROFS");
    let mut image = small_image();
    image[1024 + 36] ^= 1;
    refused(&image, "checksum");
}

#[test]
fn a_directory_that_holds_itself_is_a_loop() {
    let mut image = small_image();
    let root = root_inode(&image);
    let nid = u16::from_le_bytes(image[1038..1040].try_into().unwrap());
    assert_eq!(nid, 1);
    // The first entries are `.`, `..`, and `bin`: that one becomes the root.
    let entry = root + 32 + 2 * 12;
    image[entry..entry + 8].copy_from_slice(&u64::from(nid).to_le_bytes());
    refused(&image, "loop");
}

#[test]
fn files_that_overlap_are_refused_before_they_make_an_image_grow() {
    let mut tree = Tree::new();
    for name in 0..4u64 {
        tree.file(format!("{name}"), 0o644, noise(name, 100_000))
            .unwrap();
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("image");
    write_image(&tree, &path, &Options::default());
    let mut image = std::fs::read(path).unwrap();
    // All inodes of files begin at the first block, and end at different ones near the last.
    let end = image.len();
    for inode in (root_inode(&image)..end).step_by(32) {
        let mode = u16::from_le_bytes([image[inode + 4], image[inode + 5]]);
        if mode == 0o100644 {
            let size = (end - inode) as u32 + 350_000;
            image[inode + 8..inode + 12].copy_from_slice(&size.to_le_bytes());
            image[inode + 16..inode + 20].copy_from_slice(&1u32.to_le_bytes());
        }
    }
    refused(&image, "a part of other files'");
}

#[test]
fn every_image_that_is_cut_is_refused() {
    let image = small_image();
    let used = parse(&image).unwrap().walk().count();
    assert_eq!(used, 7);
    for len in (0..image.len() - 4096).step_by(256) {
        assert!(parse(&image[..len]).is_err(), "{len} bytes");
    }
}

proptest! {
    #[test]
    fn a_damaged_image_is_an_error_or_another_tree(
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut image = small_image();
        let begin = root_inode(&image) - 32;
        let area = image.len() - begin;
        for (at, value) in flips {
            image[begin + at.index(area)] = value;
        }
        if let Ok(tree) = parse(&image) {
            // Contents stay inside the image.
            for (_, _, inode) in tree.walk() {
                if let smol_rootfs::Node::File(source) = &inode.node {
                    prop_assert!(source.len() <= image.len() as u64);
                }
            }
        }
    }
}
