//! Whole root file systems, from source to image file.

use std::fs;
use std::path::Path;

use smol_cli::Interrupt;
use smol_rootfs::CopySpec;
use smolbuild::assemble::rootfs::{
    DebianSpec, PackagePin, RootfsImage, RootfsSource, RootfsSpec, build, debian,
};
use smolbuild::fetch::Net;

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
fn a_debian_system_is_a_function_of_its_packages_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let downloads = scratch.path().join("downloads");
    let interrupt = Interrupt::detached().unwrap();
    let requested = ["redis-server".to_string()];
    let packages = debian::resolve("bookworm", &requested, &downloads, &interrupt).unwrap();
    let fetch = |packages: &[PackagePin], net| {
        debian::fetch(
            "bookworm",
            packages,
            &downloads,
            net,
            &mut |_| {},
            &interrupt,
        )
    };
    let error = fetch(&packages, Net::Offline).unwrap_err().to_string();
    assert!(error.contains("bash 5."), "{error}");
    // What is not offered as it is pinned is named, and does not keep the rest from coming.
    let mut wanted = packages.clone();
    let gone = PackagePin {
        version: "5.0-1".into(),
        sha256: "ab".repeat(32),
        ..packages[0].clone()
    };
    let other = PackagePin {
        sha256: "cd".repeat(32),
        ..packages[1].clone()
    };
    wanted.extend([gone.clone(), other.clone()]);
    let mut missing = fetch(&wanted, Net::Pinned).unwrap();
    missing.sort();
    assert_eq!(missing, [gone, other]);
    assert_eq!(fetch(&packages, Net::Offline).unwrap(), []);

    let images = ["1", "2"].map(|name| {
        let spec = spec(RootfsSource::Debian(DebianSpec {
            packages: packages.clone(),
            downloads: downloads.clone(),
        }));
        let cache = scratch.path().join(format!("cache-{name}"));
        let image = scratch.path().join(name);
        build(&spec, &cache, &image, &mut |_| {}).unwrap();
        image
    });
    assert!(
        fs::read(&images[0]).unwrap() == fs::read(&images[1]).unwrap(),
        "the images differ"
    );
    let tree = extract(&images[0], &scratch.path().join("out"));
    let present = |path| tree.lookup(path).unwrap().is_some();
    assert!(present("usr/bin/redis-server") && present("bin"));
    for path in [
        "etc/resolv.conf",
        "etc/apt/sources.list",
        "var/lib/apt/extended_states",
    ] {
        assert!(!present(path), "{path}");
    }
}
