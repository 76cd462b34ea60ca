//! EROFS images, checked and unpacked by the EROFS tools.

use std::os::unix::fs::MetadataExt;

use crate::common::*;
use smolbuild::assemble::rootfs::erofs::{Mtimes, Options};

#[test]
fn an_image_is_clean_and_unpacks_to_the_tree_it_was_made_of() {
    if !(have("fsck.erofs") && am_root()) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let image = scratch.path().join("image");
    let tree = awkward_tree();
    for mtimes in [Mtimes::Epoch, Mtimes::Clamped] {
        let options = Options { epoch: 1_700_000_000, mtimes, ..Options::default() };
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
    let options = Options { epoch: 1_700_000_000, mtimes: Mtimes::Clamped, ..Options::default() };
    write_image(&tree, &image, &options);
    let Some(_mounted) = Mounted::new(&image, &at) else { return };
    assert_same(&listing(&host_tree(&at)), &listing(&tree));
    let links = |path: &str| std::fs::symlink_metadata(at.join(path)).unwrap().nlink();
    assert_eq!((links("sizes/one"), links("zero"), links("empty"), links("dirs")), (2, 1, 2, 8));
    let mtime = |path: &str| std::fs::symlink_metadata(at.join(path)).unwrap().mtime();
    assert_eq!((mtime("sizes/large"), mtime("sizes/one"), mtime("")), (1234567, 1_700_000_000, 1_700_000_000));
}
