//! The initramfs, read by cpio.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use smolbuild::assemble::initramfs::{smol_initramfs, write};
use smolbuild::assemble::rootfs::tree::Tree;

use crate::common::*;

fn write_to(tree: &Tree, path: &Path) -> u64 {
    write(tree, &mut File::create(path).unwrap()).unwrap()
}

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
    let length = write_to(&tree, &archive);
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

#[test]
fn a_smol_initramfs_lists_what_the_kernel_and_init_need() {
    if !have("cpio") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let archive = scratch.path().join("initramfs");
    let mut extra = Tree::new();
    extra.file("smol/extra", 0o600, b"more".to_vec()).unwrap();
    write_to(
        &smol_initramfs(b"\x7fELF", b"{}", Some(&extra)).unwrap(),
        &archive,
    );
    let listed = run(Command::new("cpio")
        .args(["-t", "--quiet", "-F"])
        .arg(&archive));
    let expected = [
        ".",
        "dev",
        "dev/console",
        "dev/kmsg",
        "dev/null",
        "init",
        "mnt",
        "proc",
        "run",
        "smol",
        "smol/config.json",
        "smol/extra",
        "sys",
    ];
    assert_eq!(listed.lines().collect::<Vec<_>>(), expected);
    let verbose = run(Command::new("cpio")
        .args(["-tvn", "--quiet", "-F"])
        .arg(&archive));
    let line = |name: &str| {
        verbose
            .lines()
            .find(|line| line.ends_with(name))
            .unwrap()
            .to_string()
    };
    assert!(
        line("dev/console").starts_with("crw-------") && line("dev/console").contains("5,   1"),
        "{verbose}"
    );
    assert!(
        line("init").starts_with("-rwxr-xr-x") && line("init").contains(" 1970 "),
        "{verbose}"
    );
}

#[test]
fn the_same_initramfs_has_the_same_bytes() {
    let make = || {
        let mut bytes = Vec::new();
        write(
            &smol_initramfs(&noise(1, 5001), b"{\"x\":1}", None).unwrap(),
            &mut bytes,
        )
        .unwrap();
        bytes
    };
    assert!(make() == make());
    // The format by hand: magic, inode number 1 of the root, its mode, and the trailer at the end.
    let bytes = make();
    assert!(bytes.starts_with(b"07070100000001000041ed0000000000000000"));
    let trailer = bytes
        .windows(10)
        .position(|window| window == b"TRAILER!!!")
        .unwrap();
    assert!(bytes.len() - trailer <= 14);
}
