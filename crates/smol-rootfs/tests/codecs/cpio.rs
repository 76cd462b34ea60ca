//! The cpio archive, read by cpio.

use std::fs::{self, File};
use std::process::Command;

use crate::common::*;

#[test]
fn cpio_unpacks_the_tree_the_initramfs_was_made_of() {
    if !(have("cpio") && am_root()) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (archive, to) = (scratch.path().join("initramfs"), scratch.path().join("to"));
    let mut tree = awkward_tree();
    tree.hard_link("tmp/third", "sizes/one").unwrap();
    // GNU cpio makes two symbolic links of one with two names.
    tree.remove("another").unwrap();
    let length = smol_rootfs::cpio::write(&tree, &mut File::create(&archive).unwrap()).unwrap();
    assert_eq!(fs::metadata(&archive).unwrap().len(), length);
    assert_eq!(length % 4, 0);
    fs::create_dir(&to).unwrap();
    run(Command::new("cpio")
        .args(["-id", "--quiet", "-F"])
        .arg(&archive)
        .current_dir(&to));
    tree.remove("dev/socket").unwrap();
    fs::remove_file(to.join("dev/socket")).ok();
    // cpio makes the root directory's mode that of the archive, the test's directory has the same.
    assert_same(&listing(&host_tree(&to)), &listing(&tree));
}
