//! Host directories and copy steps.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use smol_rootfs::Tree;
use smol_rootfs::erofs::Options;
use smol_rootfs::ignore::Patterns;
use smol_rootfs::{CopySpec, DirOptions, Ignore, Modes, Owner};

use crate::common::*;

fn copy(src: &Path, dest: &str) -> CopySpec {
    CopySpec {
        src: src.to_owned(),
        name: None,
        dest: dest.into(),
        mode: None,
        owner: None,
        ignore: Ignore::default(),
    }
}

/// Path, mode and owner of all names.
fn names(tree: &Tree) -> Vec<String> {
    let show = |(path, _, inode): (Vec<u8>, _, &smol_rootfs::Inode)| {
        let meta = &inode.meta;
        format!(
            "{} {:o} {}:{}",
            path.escape_ascii(),
            meta.mode,
            meta.uid,
            meta.gid
        )
    };
    tree.walk().skip(1).map(show).collect()
}

#[test]
fn an_image_does_not_depend_on_order_or_times_of_the_directory_it_is_made_of() {
    let scratch = tempfile::tempdir().unwrap();
    let names: Vec<_> = (0..50).map(|n| format!("{:x}", n * 7919 % 1000)).collect();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    fs::create_dir(&a).unwrap();
    fs::create_dir(&b).unwrap();
    names
        .iter()
        .for_each(|name| fs::write(a.join(name), name).unwrap());
    fs::hard_link(a.join(&names[3]), a.join("z")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    fs::write(b.join("z"), &names[3]).unwrap();
    fs::hard_link(b.join("z"), b.join(&names[3])).unwrap();
    for name in names.iter().rev().filter(|name| **name != names[3]) {
        fs::write(b.join(name), name).unwrap();
    }
    let images = [a, b].map(|directory| {
        let mut tree = Tree::new();
        tree.apply_dir(
            &directory,
            "",
            &DirOptions {
                owner: Owner::Fixed(0, 0),
                modes: Modes::Normal,
                ignore: Ignore::default(),
            },
        )
        .unwrap();
        let image = directory.with_extension("image");
        write_image(&tree, &image, &Options::default());
        fs::read(image).unwrap()
    });
    assert!(images[0] == images[1], "the images differ");
}

#[test]
fn copies_are_owned_by_root_and_free_of_the_umask() {
    let scratch = tempfile::tempdir().unwrap();
    let src = scratch.path().join("app");
    fs::create_dir_all(src.join("sub")).unwrap();
    for (name, mode) in [("run.sh", 0o775), ("sub/data", 0o600)] {
        fs::write(src.join(name), name).unwrap();
        fs::set_permissions(src.join(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    symlink("run.sh", src.join("alias")).unwrap();
    let mut tree = Tree::new();
    tree.mkdir("srv", 0o700).unwrap();
    tree.copy(&copy(&src, "/srv")).unwrap();
    assert_eq!(
        names(&tree),
        [
            "srv 700 0:0",
            "srv/alias 777 0:0",
            "srv/run.sh 755 0:0",
            "srv/sub 755 0:0",
            "srv/sub/data 644 0:0"
        ]
    );
}

#[test]
fn copies_take_the_mode_and_owner_they_are_given() {
    let scratch = tempfile::tempdir().unwrap();
    let src = scratch.path().join("secret");
    fs::create_dir(&src).unwrap();
    fs::write(src.join("key"), "k").unwrap();
    let mut tree = Tree::new();
    tree.copy(&CopySpec {
        mode: Some(0o640),
        owner: Some("7:8".into()),
        ..copy(&src, "etc/secret")
    })
    .unwrap();
    assert_eq!(
        names(&tree),
        [
            "etc 755 0:0",
            "etc/secret 750 7:8",
            "etc/secret/key 640 7:8"
        ]
    );
}

#[test]
fn a_file_is_copied_to_a_name_or_into_a_directory() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, "x").unwrap();
    symlink("file", scratch.path().join("link")).unwrap();
    let mut tree = Tree::new();
    tree.mkdir("usr/lib", 0o755).unwrap();
    tree.symlink("lib", "usr/lib").unwrap();
    tree.copy(&copy(&file, "/etc/name")).unwrap();
    tree.copy(&copy(&file, "/opt/")).unwrap();
    let named = CopySpec {
        name: Some("link".into()),
        ..copy(&file, "/lib")
    };
    tree.copy(&named).unwrap();
    // Whoever means what a link leads to resolves it: here it could be another one by now.
    let error = tree.copy(&copy(&scratch.path().join("link"), "/lib"));
    assert!(format!("{:#}", error.unwrap_err()).contains("symbolic link"));
    let files: Vec<_> = names(&tree)
        .into_iter()
        .filter(|name| name.contains(" 644 "))
        .collect();
    assert_eq!(
        files,
        [
            "etc/name 644 0:0",
            "opt/file 644 0:0",
            "usr/lib/link 644 0:0"
        ]
    );
}

#[test]
fn a_copied_directory_does_not_replace_a_link_to_a_directory() {
    let scratch = tempfile::tempdir().unwrap();
    fs::create_dir_all(scratch.path().join("lib")).unwrap();
    fs::write(scratch.path().join("lib/new.so"), "x").unwrap();
    let mut tree = Tree::new();
    tree.file("usr/lib/libc.so", 0o755, b"elf".to_vec())
        .unwrap();
    tree.symlink("lib", "usr/lib").unwrap();
    tree.copy(&copy(scratch.path(), "/")).unwrap();
    assert!(tree.lookup("usr/lib/new.so").unwrap().is_some());
    assert!(
        tree.lookup("lib/libc.so").unwrap().is_some(),
        "the link is still one"
    );
}

#[test]
fn a_copy_that_cannot_be_says_from_where_to_where() {
    let scratch = tempfile::tempdir().unwrap();
    let mut tree = Tree::new();
    tree.file("file", 0o644, Vec::new()).unwrap();
    for (src, dest) in [("missing", "/x"), (".", "/file"), (".", "/a/../..")] {
        let error = format!(
            "{:#}",
            tree.copy(&copy(&scratch.path().join(src), dest))
                .unwrap_err()
        );
        assert!(
            error.contains(&format!("to {dest} in the image")) && error.contains(src),
            "{error}"
        );
    }
}

#[test]
fn a_file_that_shrinks_before_it_is_written_is_an_error() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, noise(1, 9000)).unwrap();
    let mut tree = Tree::new();
    tree.copy(&copy(&file, "/data/")).unwrap();
    fs::write(&file, "short").unwrap();
    let mut out = tempfile::tempfile().unwrap();
    let error = smol_rootfs::erofs::write(&tree, &mut out, &Options::default()).unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.contains("/data/file") && error.contains("5 of 9000 bytes"),
        "{error}"
    );
}

#[test]
fn owners_are_looked_up_in_the_image() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, "x").unwrap();
    let mut tree = Tree::new();
    let passwd = "root:x:0:0:root:/root:/bin/sh\nredis:x:100:101::/var/lib/redis:/bin/false\n";
    tree.file("etc/passwd", 0o644, passwd.as_bytes().to_vec())
        .unwrap();
    tree.file("etc/group", 0o644, b"root:x:0:\nadm:x:4:redis\n".to_vec())
        .unwrap();
    for (owner, expected) in [
        ("redis", "100:101"),
        ("redis:adm", "100:4"),
        ("redis:7", "100:7"),
        ("100", "100:101"),
        ("1000", "1000:1000"),
        ("1000:0", "1000:0"),
    ] {
        tree.copy(&CopySpec {
            owner: Some(owner.into()),
            ..copy(&file, "/file")
        })
        .unwrap();
        assert_eq!(
            names(&tree).last().unwrap(),
            &format!("file 644 {expected}"),
            "{owner}"
        );
    }
    for owner in ["nobody", "redis:staff", "", "redis:", "-1", "4294967296"] {
        let error = tree.copy(&CopySpec {
            owner: Some(owner.into()),
            ..copy(&file, "/file")
        });
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("the image has no"), "{owner}: {error}");
    }
}

#[test]
fn what_is_ignored_is_left_out_and_folders_come_with_what_is_taken_in_again() {
    let scratch = tempfile::tempdir().unwrap();
    let src = scratch.path().join("app");
    for file in [
        "main.py",
        "main.pyc",
        "cache/a",
        "cache/deep/keep",
        "cache/deep/b",
        "lib/x.pyc",
    ] {
        let file = src.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "").unwrap();
    }
    let patterns = Patterns::parse("app/cache\n!app/cache/deep/keep").unwrap();
    let exclude = Patterns::new([(1, "**/*.pyc")]).unwrap();
    let mut tree = Tree::new();
    tree.copy(&CopySpec {
        ignore: Ignore::default()
            .and(Arc::new(patterns), "app")
            .and(Arc::new(exclude), ""),
        ..copy(&src, "/srv")
    })
    .unwrap();
    assert_eq!(
        names(&tree),
        [
            "srv 755 0:0",
            "srv/cache 755 0:0",
            "srv/cache/deep 755 0:0",
            "srv/cache/deep/keep 644 0:0",
            "srv/lib 755 0:0",
            "srv/main.py 644 0:0",
        ]
    );
}

#[test]
fn a_folder_of_which_nothing_is_taken_is_told_with_the_pattern() {
    let scratch = tempfile::tempdir().unwrap();
    fs::create_dir(scratch.path().join("cache")).unwrap();
    let ignore =
        |text: &str| Ignore::default().and(Arc::new(Patterns::parse(text).unwrap()), "app");
    let hiding = |text: &str| {
        let found = ignore(text);
        let found = found.hiding_all(scratch.path()).unwrap();
        found.map(|(_, pattern)| pattern.text.clone())
    };
    assert_eq!(hiding("x\napp/*"), Some("app/*".into()));
    assert_eq!(hiding("x"), None);
    fs::write(scratch.path().join("cache/keep"), "").unwrap();
    assert_eq!(hiding("app\n!app/cache/keep"), None);
    assert_eq!(hiding("app\n!app/cache/kept"), Some("app".into()));
}
