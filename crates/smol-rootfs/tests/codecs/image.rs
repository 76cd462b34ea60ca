//! EROFS images, checked and unpacked by the EROFS tools.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use proptest::prelude::*;
use smol_rootfs::erofs::{Mtimes, Options};
use smol_rootfs::{Node, Tree};

use crate::common::*;

#[test]
fn an_image_is_clean_and_unpacks_to_the_tree_it_was_made_of() {
    if !(have("fsck.erofs") && am_root()) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let image = scratch.path().join("image");
    let tree = awkward_tree();
    for mtimes in [Mtimes::Epoch, Mtimes::Clamped] {
        let options = Options {
            epoch: 1_700_000_000,
            mtimes,
            ..Options::default()
        };
        let stats = write_image(&tree, &image, &options);
        assert_eq!((stats.shared_files, stats.sockets), (5, 1));
        let found = extract(&image, &scratch.path().join(format!("{mtimes:?}")));
        assert_same(&plain_listing(&found), &plain_listing(&tree));
    }
}

#[test]
fn the_kernel_sees_links_attributes_and_times_as_they_were() {
    if !am_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (image, at) = (scratch.path().join("image"), scratch.path().join("mnt"));
    std::fs::create_dir(&at).unwrap();
    let mut tree = awkward_tree();
    let capability = b"\x01\0\0\x02\0\x20\n\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    let acl = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff".to_vec();
    for (path, name, value) in [
        ("sizes/one", "security.capability", capability.clone()),
        ("zero", "user.note", b"hello".to_vec()),
        ("zero", "trusted.secret", vec![0; 5000]),
        ("zero", "user.empty", vec![]),
        ("empty", "user.on a directory", noise(1, 3000)),
        ("sizes/block", "system.posix_acl_access", acl),
    ] {
        let id = tree.lookup(path).unwrap().unwrap();
        tree.meta_mut(id).xattrs.insert(name.into(), value);
    }
    let stamped = tree.lookup("sizes/large").unwrap().unwrap();
    tree.meta_mut(stamped).mtime = Some(1234567);
    let options = Options {
        epoch: 1_700_000_000,
        mtimes: Mtimes::Clamped,
        ..Options::default()
    };
    write_image(&tree, &image, &options);
    let Some(_mounted) = Mounted::new(&image, &at) else {
        return;
    };
    assert_same(&listing(&host_tree(&at)), &listing(&tree));
    let links = |path: &str| std::fs::symlink_metadata(at.join(path)).unwrap().nlink();
    assert_eq!(
        (
            links("sizes/one"),
            links("zero"),
            links("empty"),
            links("dirs")
        ),
        (2, 1, 2, 8)
    );
    let mtime = |path: &str| std::fs::symlink_metadata(at.join(path)).unwrap().mtime();
    assert_eq!(
        (mtime("sizes/large"), mtime("sizes/one"), mtime("")),
        (1234567, 1_700_000_000, 1_700_000_000)
    );
}

#[test]
fn mkfs_erofs_makes_an_image_with_the_same_content() {
    if !(have("mkfs.erofs") && have("fsck.erofs") && am_root()) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let mut tree = awkward_tree();
    // mkfs.erofs 1.5 cannot store the longest name.
    tree.remove([b"names/".as_slice(), &[b'n'; 255]].concat())
        .unwrap();
    write_image(&tree, &path("ours"), &Options::default());
    let ours = extract(&path("ours"), &path("ours.d"));
    run(Command::new("mkfs.erofs")
        .args(["-T0", "-Enoinline_data"])
        .arg(path("theirs"))
        .arg(path("ours.d")));
    let theirs = extract(&path("theirs"), &path("theirs.d"));
    assert_same(&plain_listing(&ours), &plain_listing(&theirs));
    let size = |name: &str| std::fs::metadata(path(name)).unwrap().len();
    assert!(
        size("ours") <= size("theirs"),
        "ours has {} bytes, theirs {}",
        size("ours"),
        size("theirs")
    );
}

#[test]
fn the_tools_read_an_image_whose_last_inode_ends_a_block() {
    if !have("fsck.erofs") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    // Inodes of 32 bytes each: somewhere in 128 of them a block ends.
    let mut tree = Tree::new();
    for n in 0..140 {
        tree.file(format!("{n}"), 0o644, Vec::new()).unwrap();
        let image = scratch.path().join("image");
        write_image(&tree, &image, &Options::default());
        run(Command::new("fsck.erofs").arg(&image));
    }
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let options = Options {
        uuid: [7; 16],
        ..Options::default()
    };
    let [a, b] = ["a", "b"].map(|name| {
        let path = scratch.path().join(name);
        // What the file held before must not shine through.
        std::fs::write(&path, noise(3, 1 << 20)).unwrap();
        write_image(&awkward_tree(), &path, &options);
        std::fs::read(path).unwrap()
    });
    assert!(a == b, "the images differ");
}

#[test]
fn an_image_is_padded_as_asked_and_equal_files_are_stored_once() {
    let scratch = tempfile::tempdir().unwrap();
    let image = scratch.path().join("image");
    let mut tree = Tree::new();
    for name in ["a", "b", "c"] {
        // Larger than one piece: the copies are written and then taken back.
        tree.file(name, 0o644, noise(1, 3_000_000)).unwrap();
    }
    tree.file("d", 0o644, noise(2, 10)).unwrap();
    let stats = write_image(
        &tree,
        &image,
        &Options {
            align_image: 2 << 20,
            ..Options::default()
        },
    );
    assert_eq!(
        (stats.shared_files, stats.shared_bytes, stats.image_bytes),
        (2, 6_000_000, 4 << 20)
    );
    let bytes = std::fs::read(image).unwrap();
    assert_eq!(bytes.len(), 4 << 20);
    // Superblock, 733 blocks for a, one for d, one of metadata: the rest is padding, without
    // remains of the copies.
    assert!(bytes[736 * 4096..].iter().all(|&byte| byte == 0));
}

#[test]
fn file_data_starts_at_a_block_and_is_followed_by_zeros() {
    let scratch = tempfile::tempdir().unwrap();
    let image = scratch.path().join("image");
    let mut tree = Tree::new();
    for n in 0..20 {
        tree.file(format!("{n}"), 0o644, noise(n, 100 + n as usize * 1000))
            .unwrap();
    }
    write_image(&tree, &image, &Options::default());
    let bytes = std::fs::read(image).unwrap();
    for n in 0..20 {
        let content = noise(n, 100 + n as usize * 1000);
        let start = bytes
            .chunks(4096)
            .position(|block| block.starts_with(&content[..100]))
            .expect("at no block's start");
        let (stored, rest) = bytes[start * 4096..].split_at(content.len());
        assert!(stored == content);
        assert!(
            rest[..content.len().next_multiple_of(4096) - content.len()]
                .iter()
                .all(|&byte| byte == 0)
        );
    }
}

#[derive(Clone, Debug)]
enum Step {
    File(Vec<u8>, usize, u32),
    Directory(Vec<u8>, u32),
    Symlink(Vec<u8>, usize),
    Link(Vec<u8>, Vec<u8>),
    Fifo(Vec<u8>, u32),
}

/// Short paths over few names, so that steps meet; some names are long, to fill directory blocks.
fn any_path() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        4 => "[ab.!~é]{1,3}".prop_filter("not a step up", |name| name != "." && name != ".."),
        1 => "[xy]{100,250}",
    ];
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/").into_bytes())
}

fn any_step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![0..10usize, 4090..4100usize, 0..20_000usize];
    let id = prop_oneof![0..3u32, 65_530..65_540u32];
    prop_oneof![
        (any_path(), size, id.clone()).prop_map(|(path, size, id)| Step::File(path, size, id)),
        (any_path(), id.clone()).prop_map(|(path, id)| Step::Directory(path, id)),
        (any_path(), 1..4000usize).prop_map(|(path, len)| Step::Symlink(path, len)),
        (any_path(), any_path()).prop_map(|(path, target)| Step::Link(path, target)),
        (any_path(), id).prop_map(|(path, id)| Step::Fifo(path, id)),
    ]
}

fn tree_of(steps: &[Step]) -> Tree {
    let mut tree = Tree::new();
    for step in steps {
        // Steps over files that are in the way are refused, and rightly.
        let _ = match step {
            Step::File(path, size, id) => tree.insert(
                path,
                inode(0o640, *id, 1, Node::File(noise(*id as u64, *size).into())),
            ),
            Step::Directory(path, id) => tree.insert(path, inode(0o750, 2, *id, Node::directory())),
            Step::Symlink(path, len) => tree.symlink(path, "/".repeat(*len)),
            Step::Link(path, target) => tree.hard_link(path, target),
            Step::Fifo(path, id) => tree.insert(path, inode(0o600, *id, 0, Node::Fifo)),
        };
    }
    tree
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_survives_the_way_through_an_image(steps in prop::collection::vec(any_step(), 0..120)) {
        if have("fsck.erofs") && am_root() {
            let scratch = tempfile::tempdir().unwrap();
            let image = scratch.path().join("image");
            let tree = tree_of(&steps);
            write_image(&tree, &image, &Options { epoch: 5, ..Options::default() });
            let found = extract(&image, &scratch.path().join("out"));
            assert_same(&plain_listing(&found), &plain_listing(&tree));
        }
    }
}
