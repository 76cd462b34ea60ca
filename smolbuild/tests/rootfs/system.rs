//! Whole root file systems, from source to image file.

use std::fs;
use std::path::Path;

use smolbuild::assemble::rootfs::{
    CopySpec, DebianSpec, RootfsImage, RootfsSource, RootfsSpec, build,
};

use crate::common::*;

fn spec(source: RootfsSource) -> RootfsSpec {
    RootfsSpec {
        source,
        copies: vec![],
        epoch: 1_700_000_000,
    }
}

fn build_quietly(spec: &RootfsSpec, scratch: &Path, name: &str) -> RootfsImage {
    build(
        spec,
        &scratch.join("cache"),
        &scratch.join(name),
        &mut |_| {},
    )
    .unwrap()
}

#[test]
fn an_image_has_mount_points_and_a_name_for_localhost() {
    if !have("fsck.erofs") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    let copies = vec![CopySpec {
        src: scratch.path().join("passwd"),
        dest: "/etc/passwd".into(),
        mode: None,
        owner: None,
    }];
    let image = build_quietly(
        &RootfsSpec {
            copies,
            ..spec(RootfsSource::None)
        },
        scratch.path(),
        "image",
    );
    assert_eq!(image.size, 2 << 20);
    assert_eq!(fs::metadata(&image.path).unwrap().len(), image.size);
    let tree = extract(&image.path, &scratch.path().join("out"));
    let names: Vec<_> = tree
        .walk()
        .map(|(path, ..)| String::from_utf8(path).unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "",
            "dev",
            "etc",
            "etc/hosts",
            "etc/passwd",
            "proc",
            "run",
            "sys",
            "tmp"
        ]
    );
    assert_eq!(
        fs::read_to_string(scratch.path().join("out/etc/passwd")).unwrap(),
        "root:x:0:0::/root:/bin/sh\n"
    );
}

#[test]
fn a_failed_build_leaves_the_old_image_and_no_other_file() {
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("image"), "old").unwrap();
    fs::write(scratch.path().join("bad.tar"), "bad").unwrap();
    let bad = spec(RootfsSource::Tar(scratch.path().join("bad.tar")));
    build(
        &bad,
        &scratch.path().join("cache"),
        &scratch.path().join("image"),
        &mut |_| {},
    )
    .unwrap_err();
    assert_eq!(
        fs::read_to_string(scratch.path().join("image")).unwrap(),
        "old"
    );
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
}

#[test]
#[ignore = "installs Debian packages twice: needs root, mmdebstrap and a package mirror"]
fn two_installations_of_a_debian_system_give_the_same_image() {
    let packages = ["redis-server".to_string(), "python3-minimal".to_string()];
    let debian = DebianSpec {
        suite: "bookworm".into(),
        packages: packages.into(),
        ..DebianSpec::default()
    };
    let scratch = tempfile::tempdir().unwrap();
    let [first, second] = ["1", "2"].map(|snapshot| {
        let debian = DebianSpec {
            snapshot: snapshot.into(),
            ..debian.clone()
        };
        build_quietly(
            &spec(RootfsSource::Debian(debian)),
            scratch.path(),
            snapshot,
        )
    });
    assert_eq!(first.packages, second.packages);
    let redis = first
        .packages
        .iter()
        .find(|pin| pin.name == "redis-server")
        .unwrap();
    assert_eq!(redis.sha256.as_ref().unwrap().len(), 64);
    assert!(
        fs::read(&first.path).unwrap() == fs::read(&second.path).unwrap(),
        "the images differ"
    );
    let tree = extract(&first.path, &scratch.path().join("out"));
    assert!(tree.lookup("usr/bin/redis-server").unwrap().is_some());
    assert!(tree.lookup("etc/resolv.conf").unwrap().is_none());
}
