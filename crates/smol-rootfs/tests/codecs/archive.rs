//! Tar archives: what real ones hold, and what hostile ones try.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use smol_rootfs::{Device, Node, Tree};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use crate::common::*;

type Tar = Builder<Vec<u8>>;

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1000);
    header.set_size(size);
    header
}

/// Append a member whose name is taken as it is: the builder would refuse the hostile ones.
fn raw(tar: &mut Tar, name: &str, kind: EntryType, link: &str, content: &[u8]) {
    let mut header = header(kind, content.len() as u64);
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    tar.append(&header, content).unwrap();
}

fn file(tar: &mut Tar, name: &str, content: &[u8]) {
    raw(tar, name, EntryType::Regular, "", content);
}

fn link(tar: &mut Tar, name: &str, target: &str) {
    raw(tar, name, EntryType::Symlink, target, b"");
}

fn scratch(tar: Tar) -> (TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("input.tar");
    fs::write(&path, tar.into_inner().unwrap()).unwrap();
    (scratch, path)
}

fn tree_of(fill: impl FnOnce(&mut Tar)) -> (TempDir, Tree) {
    let mut tar = Builder::new(Vec::new());
    fill(&mut tar);
    let (scratch, path) = scratch(tar);
    let mut tree = Tree::new();
    tree.apply_tar(&path).unwrap();
    (scratch, tree)
}

/// The error of an archive, with all its causes.
fn refused(fill: impl FnOnce(&mut Tar)) -> String {
    let mut tar = Builder::new(Vec::new());
    fill(&mut tar);
    refused_bytes(tar.into_inner().unwrap())
}

fn refused_bytes(bytes: Vec<u8>) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("input.tar");
    fs::write(&path, bytes).unwrap();
    let error = format!("{:#}", Tree::new().apply_tar(&path).unwrap_err());
    assert!(
        error.contains("input.tar"),
        "the archive is not named: {error}"
    );
    error
}

fn content(tree: &Tree, path: &str) -> Vec<u8> {
    let id = tree
        .lookup(path)
        .unwrap()
        .unwrap_or_else(|| panic!("{path} is missing"));
    let Node::File(source) = &tree.inode(id).node else {
        panic!("{path} is not a file")
    };
    let mut bytes = Vec::new();
    source.copy_to(&mut bytes).unwrap();
    bytes
}

#[test]
fn gnu_tar_archives_hold_the_directory_they_were_made_of() {
    if !(have("tar") && am_root()) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let from = scratch.path().join("from");
    fs::create_dir_all(from.join("d/e")).unwrap();
    fs::write(from.join("d/file"), noise(1, 10_000)).unwrap();
    fs::hard_link(from.join("d/file"), from.join("second name")).unwrap();
    fs::write(from.join("long".repeat(60)), b"x").unwrap();
    let deep = from
        .join("component-of-a-path".repeat(8))
        .join("again".repeat(30));
    fs::create_dir_all(&deep).unwrap();
    symlink("t".repeat(300), deep.join("link")).unwrap();
    symlink("/absolute", from.join("absolute")).unwrap();
    run(Command::new("mknod")
        .arg(from.join("device"))
        .args(["b", "259", "70000"]));
    run(Command::new("mkfifo").arg(from.join("d/pipe")));
    run(Command::new("chown").arg("70000:3").arg(from.join("d/e")));
    run(Command::new("chmod").arg("6751").arg(from.join("d/file")));
    for format in ["gnu", "pax"] {
        let archive = scratch.path().join(format);
        run(Command::new("tar")
            .arg(format!("--format={format}"))
            .arg("-cf")
            .arg(&archive)
            .arg("-C")
            .arg(&from)
            .arg("."));
        let mut tree = Tree::new();
        tree.apply_tar(&archive).unwrap();
        assert_same(&listing(&tree), &listing(&host_tree(&from)));
    }
}

#[test]
fn pax_attributes_are_kept_byte_for_byte() {
    let capability = b"\x01\0\0\x02\n\x20=\n\0\0\0\0\0\0\0\0\0\0\0\0";
    let (_scratch, tree) = tree_of(|tar| {
        tar.append_pax_extensions([
            ("SCHILY.xattr.security.capability", &capability[..]),
            ("SCHILY.xattr.com.apple.provenance", b"no"),
            ("path", b"bin/ping"),
            ("uid", b"4000000000"),
            ("mtime", b"123.75"),
        ])
        .unwrap();
        file(tar, "short", b"ping");
        file(tar, "next", b"");
    });
    let ping = tree.inode(tree.lookup("bin/ping").unwrap().unwrap());
    assert_eq!(ping.meta.xattrs.len(), 1);
    assert_eq!(ping.meta.xattrs[&b"security.capability"[..]], capability);
    assert_eq!((ping.meta.uid, ping.meta.mtime), (4_000_000_000, Some(123)));
    let next = tree.inode(tree.lookup("next").unwrap().unwrap());
    assert!(
        next.meta.xattrs.is_empty() && next.meta.uid == 0,
        "extended headers are for one member only"
    );
}

#[test]
fn later_members_replace_earlier_ones() {
    let (_scratch, tree) = tree_of(|tar| {
        file(tar, "a", b"old");
        file(tar, "a", b"new");
        raw(tar, "d/", EntryType::Directory, "", b"");
        file(tar, "d/child", b"stays");
        raw(tar, "d", EntryType::Directory, "", b"");
        link(tar, "was-link", "a");
        file(tar, "was-link", b"file");
    });
    assert_eq!(content(&tree, "a"), b"new");
    assert_eq!(content(&tree, "d/child"), b"stays");
    assert_eq!(content(&tree, "was-link"), b"file");
}

#[test]
fn absolute_names_and_links_stay_inside_the_tree() {
    let (_scratch, tree) = tree_of(|tar| {
        file(tar, "/etc//./passwd", b"root");
        link(tar, "lib", "/usr/lib");
        file(tar, "lib/libc.so", b"elf");
        link(tar, "up", "usr/../etc");
        file(tar, "up/group", b"wheel");
    });
    assert_eq!(content(&tree, "etc/passwd"), b"root");
    assert_eq!(content(&tree, "usr/lib/libc.so"), b"elf");
    assert_eq!(content(&tree, "etc/group"), b"wheel");
}

#[test]
fn numbers_that_are_left_blank_are_zero() {
    let (_scratch, tree) = tree_of(|tar| {
        for (name, blank) in [("nuls", 0), ("spaces", b' ')] {
            let mut header = header(EntryType::Char, 0);
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            // Owner, group, size, time; device.
            for field in [108..148, 329..345] {
                header.as_mut_bytes()[field].fill(blank);
            }
            header.set_cksum();
            tar.append(&header, &b""[..]).unwrap();
        }
    });
    for name in ["nuls", "spaces"] {
        let inode = tree.inode(tree.lookup(name).unwrap().unwrap());
        assert!(matches!(
            inode.node,
            Node::CharDevice(Device { major: 0, minor: 0 })
        ));
        assert_eq!((inode.meta.uid, inode.meta.mtime), (0, Some(0)));
    }
}

#[test]
fn a_name_with_dot_dot_is_refused() {
    for name in ["../etc/passwd", "a/../../b", "/..", "a/.."] {
        let error = refused(|tar| file(tar, name, b""));
        assert!(error.contains("'..'") && error.contains(name), "{error}");
    }
}

#[test]
fn a_name_through_a_link_out_of_the_tree_is_refused() {
    for target in ["..", "../../etc", "/../etc", "usr/../.."] {
        let error = refused(|tar| {
            raw(tar, "usr", EntryType::Directory, "", b"");
            link(tar, "out", target);
            file(tar, "out/passwd", b"");
        });
        assert!(
            error.contains("leads out of the tree") && error.contains("out/passwd"),
            "{error}"
        );
    }
}

#[test]
fn a_link_loop_in_a_path_is_refused() {
    let error = refused(|tar| {
        link(tar, "a", "b");
        link(tar, "b", "a");
        file(tar, "a/x", b"");
    });
    assert!(error.contains("a loop?"), "{error}");
}

#[test]
fn a_path_through_a_file_is_refused() {
    let error = refused(|tar| {
        file(tar, "a", b"");
        file(tar, "a/b", b"");
    });
    assert!(error.contains("'a' is not a directory"), "{error}");
}

#[test]
fn a_hard_link_to_nothing_to_a_directory_or_to_the_outside_is_refused() {
    for (target, why) in [
        ("missing", "not there"),
        ("dir", "is a directory"),
        ("../../etc/shadow", "'..'"),
    ] {
        let error = refused(|tar| {
            raw(tar, "dir", EntryType::Directory, "", b"");
            raw(tar, "new", EntryType::Link, target, b"");
        });
        assert!(error.contains(why) && error.contains("'new'"), "{error}");
    }
}

#[test]
fn a_truncated_archive_is_refused_wherever_it_was_cut() {
    let mut tar = Builder::new(Vec::new());
    file(&mut tar, "one", &noise(1, 1000));
    file(&mut tar, "two", &noise(2, 1000));
    let bytes = tar.into_inner().unwrap();
    assert_eq!(bytes.len(), 4096);
    // Inside a header, inside content, right behind a member, in the end mark: all but the second
    // block of zeros count.
    for len in [512, 700, 1024, 1536, 1600, 2048, 3000, 3072, 3500] {
        let error = refused_bytes(bytes[..len].to_vec());
        assert!(error.contains("cut short"), "{len}: {error}");
    }
}

#[test]
fn a_member_larger_than_the_archive_is_refused() {
    let error = refused(|tar| {
        let mut header = header(EntryType::Regular, u64::MAX);
        header.set_path("huge").unwrap();
        header.set_cksum();
        tar.append(&header, std::io::empty()).unwrap();
    });
    assert!(
        error.contains("'huge'") && error.contains("cut short"),
        "{error}"
    );
    let error = refused(|tar| {
        tar.append_pax_extensions([("size", &b"18446744073709551615"[..])])
            .unwrap();
        file(tar, "huge", b"");
    });
    assert!(
        error.contains("'huge'") && error.contains("cut short"),
        "{error}"
    );
}

#[test]
fn an_extended_header_that_is_huge_or_malformed_is_refused() {
    let error = refused(|tar| raw(tar, "x", EntryType::XHeader, "", &vec![b'x'; 2 << 20]));
    assert!(error.contains("at most"), "{error}");
    for records in [
        &b"99 path=x\n"[..],
        b"path=x\n",
        b"4 x\n",
        b"0 \n",
        b"9 path=xx",
        b"8 size=-1\n",
        b"\xff\xff",
    ] {
        let error = refused(|tar| {
            raw(tar, "x", EntryType::XHeader, "", records);
            file(tar, "a", b"");
        });
        assert!(error.contains("pax"), "{error}");
    }
    let error = refused(|tar| raw(tar, "x", EntryType::GNULongName, "", b"name"));
    assert!(error.contains("ends after an extended header"), "{error}");
}

#[test]
fn names_links_and_attributes_beyond_the_limits_are_refused() {
    let error = refused(|tar| {
        tar.append_pax_extensions([("path", "n".repeat(256).as_bytes())])
            .unwrap();
        file(tar, "a", b"");
    });
    assert!(error.contains("256 bytes"), "{error}");
    let error = refused(|tar| {
        tar.append_pax_extensions([("path", "n/".repeat(2100).as_bytes())])
            .unwrap();
        file(tar, "a", b"");
    });
    assert!(error.contains("4200 bytes"), "{error}");
    let error = refused(|tar| {
        tar.append_pax_extensions([("linkpath", "n/".repeat(2100).as_bytes())])
            .unwrap();
        link(tar, "a", "b");
    });
    assert!(error.contains("4200 bytes"), "{error}");
    let error = refused(|tar| {
        tar.append_pax_extensions([("SCHILY.xattr.user.big", &[0; 65536][..])])
            .unwrap();
        file(tar, "a", b"");
    });
    assert!(
        error.contains("user.big") && error.contains("65536"),
        "{error}"
    );
    let error = refused(|tar| link(tar, "a", ""));
    assert!(error.contains("without a target"), "{error}");
}

#[test]
fn directories_nested_deeper_than_any_path_are_refused() {
    let error = refused(|tar| {
        // No name is too long, but the link leads deep down and the last member goes on from there.
        let steps = "d/".repeat(2000);
        tar.append_pax_extensions([("path", format!("{steps}x").as_bytes())])
            .unwrap();
        file(tar, "x", b"");
        tar.append_pax_extensions([("linkpath", steps.as_bytes())])
            .unwrap();
        link(tar, "link", "x");
        tar.append_pax_extensions([("path", format!("link/{steps}y").as_bytes())])
            .unwrap();
        file(tar, "y", b"");
    });
    assert!(error.contains("nested"), "{error}");
}

#[test]
fn damaged_foreign_and_compressed_files_are_refused() {
    let mut tar = Builder::new(Vec::new());
    file(&mut tar, "a", b"content");
    let mut bytes = tar.into_inner().unwrap();
    bytes[0] ^= 1;
    assert!(refused_bytes(bytes).contains("checksum"));
    assert!(refused_bytes(vec![b'x'; 2048]).contains("not a tar header"));
    assert!(refused_bytes(Vec::new()).contains("0 bytes"));
    let gzip = refused_bytes([&[0x1f, 0x8b][..], &[0; 1000]].concat());
    assert!(gzip.contains("gunzip"), "{gzip}");
    let missing = Tree::new()
        .apply_tar(Path::new("/nonexistent/x.tar"))
        .unwrap_err();
    assert!(format!("{missing:#}").contains("/nonexistent/x.tar"));
}

#[test]
fn sparse_and_unknown_members_are_refused() {
    let error = refused(|tar| raw(tar, "s", EntryType::GNUSparse, "", b""));
    assert!(error.contains("--sparse"), "{error}");
    let error = refused(|tar| raw(tar, "m", EntryType::new(b'M'), "", b""));
    assert!(error.contains("'M'"), "{error}");
}
