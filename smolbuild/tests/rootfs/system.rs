//! Whole root file systems, from source to image file.

use std::fs;
use std::path::Path;

use anyhow::Result;
use smol_cli::Interrupt;
use smol_rootfs::CopySpec;
use smolbuild::fetch::Net;
use smolbuild::input::{DebianInput, DirInput, Input, InputDirs, TarInput, debian};
use smolbuild::lock::{Debian, Lock, PackagePin};
use smolbuild::rootfs::{RootfsImage, RootfsSpec, build};
use toml::Spanned;

use crate::common::*;
use crate::lock;

/// Builds the image `out` of the folder `scratch`, in which the input's path is looked up.
fn build_in(
    scratch: &Path,
    input: &dyn Input,
    lock: &Lock,
    copies: &[CopySpec],
    out: &str,
) -> Result<RootfsImage> {
    let spec = RootfsSpec {
        input,
        lock,
        copies,
        epoch: 1_700_000_000,
    };
    let dirs = InputDirs {
        base_dir: scratch,
        downloads: &scratch.join("downloads"),
        cache: &scratch.join(format!("cache-{out}")),
        scratch,
    };
    let interrupt = Interrupt::detached()?;
    build(&spec, &dirs, &scratch.join(out), &mut |_| {}, &interrupt)
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
    fs::create_dir(scratch.path().join("empty")).unwrap();
    let empty = DirInput(Spanned::new(0..0, "empty".into()));
    let image = build_in(scratch.path(), &empty, &lock(vec![]), &copies, "image").unwrap();
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
    let bad = TarInput(Spanned::new(0..0, "bad.tar".into()));
    let built = build_in(scratch.path(), &bad, &lock(vec![]), &[], "image");
    built.unwrap_err();
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

    let system = Lock {
        debian: Some(Debian {
            suite: "bookworm".into(),
            requested: requested.to_vec(),
            packages,
        }),
        ..lock(vec![])
    };
    let input = DebianInput::new("bookworm".into(), requested.to_vec());
    let images = ["1", "2"].map(|name| {
        let image = build_in(scratch.path(), &input, &system, &[], name).unwrap();
        image.path
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
