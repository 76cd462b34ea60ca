//! The initramfs, read by cpio.

use std::fs::File;
use std::process::Command;

use smol_rootfs::cpio::write;
use smolbuild::initramfs::smol_initramfs;

use crate::common::*;

#[test]
fn a_smol_initramfs_lists_what_the_kernel_and_init_need() {
    if !have("cpio") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let archive = scratch.path().join("initramfs");
    let tree = smol_initramfs(b"\x7fELF", "/smol/config.json", b"{}").unwrap();
    write(&tree, &mut File::create(&archive).unwrap()).unwrap();
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
            &smol_initramfs(&noise(1, 5001), "/smol/config.json", b"{\"x\":1}").unwrap(),
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
