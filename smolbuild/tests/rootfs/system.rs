//! Whole root file systems, from source to image file.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use smol_cli::{Interrupt, Session};
use smol_rootfs::{CopySpec, Ignore};
use smolbuild::fetch::Net;
use smolbuild::input::debian::Chosen;
use smolbuild::input::{DebianInput, DirInput, Input, InputDirs, TarInput, debian};
use smolbuild::lock::{Debian, Lock, PackagePin};
use smolbuild::rootfs::RootfsImage;
use smolbuild::source_dir::SourceDir;
use toml::Spanned;

use crate::common::*;
use crate::{build, lock};

/// Builds the image `out` of the folder `scratch`, in which the input's path is looked up.
fn build_in(
    scratch: &Path,
    input: &dyn Input,
    lock: &Lock,
    copies: &[CopySpec],
    out: &str,
) -> Result<RootfsImage> {
    let dirs = InputDirs {
        base_dir: &SourceDir::bare(scratch),
        downloads: &scratch.join("downloads"),
        cache: &scratch.join(format!("cache-{out}")),
        scratch,
    };
    build(
        input,
        lock,
        copies,
        1_700_000_000,
        &dirs,
        &scratch.join(out),
    )
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
        name: None,
        dest: "/etc/passwd".into(),
        mode: None,
        owner: None,
        ignore: Ignore::default(),
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
fn a_compressed_archive_gives_the_same_image_and_another_compression_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in [("etc/a", &b"a"[..]), ("usr/b", &[b'b'; 100_000])] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content).unwrap();
    }
    let plain = tar.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let gzip = gzip.finish().unwrap();
    let mut xz = Vec::new();
    liblzma::read::XzEncoder::new(&plain[..], 1)
        .read_to_end(&mut xz)
        .unwrap();
    let zstd = zstd::encode_all(&plain[..], 1).unwrap();
    let build = |archive: &[u8]| {
        // The name says nothing.
        fs::write(at("root.tar"), archive).unwrap();
        let input = TarInput(Spanned::new(0..0, "root.tar".into()));
        let image = build_in(scratch.path(), &input, &lock(vec![]), &[], "image")?;
        Ok::<_, anyhow::Error>(fs::read(image.path).unwrap())
    };
    let expected = build(&plain).unwrap();
    for archive in [&gzip, &zstd, &xz] {
        assert!(build(archive).unwrap() == expected);
    }
    // Nothing but the archive and the image stays.
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
    let error = format!("{:#}", build(&gzip[..gzip.len() / 2]).unwrap_err());
    assert!(
        error.contains("root.tar: it cannot be unpacked as gzip at byte "),
        "{error}"
    );
    let bzip2 = [&b"BZh91AY&SY"[..], &[0; 600]].concat();
    let error = format!("{:#}", build(&bzip2).unwrap_err());
    assert!(
        error.ends_with("is compressed with bzip2: unpack it with `bunzip2 -k` first"),
        "{error}"
    );
}

/// The packages of a system, and an input and a lock for it.
fn debian_system(requested: &[&str], chosen: Chosen) -> (DebianInput, Lock) {
    let requested: Vec<_> = requested.iter().map(|name| name.to_string()).collect();
    let system = Lock {
        debian: Some(Debian {
            suite: "bookworm".into(),
            requested: requested.clone(),
            packages: chosen.packages,
            install_only: Some(chosen.install_only),
        }),
        ..lock(vec![])
    };
    (DebianInput::new("bookworm".into(), requested), system)
}

fn fetch(pins: &[&PackagePin], downloads: &Path, net: Net) -> Result<Vec<PackagePin>> {
    let session = Session::detached()?;
    debian::fetch("bookworm", pins, downloads, net, &session)
}

#[test]
#[ignore = "installs Debian packages twice: needs root, mmdebstrap and a package mirror"]
fn a_debian_system_is_a_function_of_its_packages_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let downloads = scratch.path().join("downloads");
    let interrupt = Interrupt::detached().unwrap();
    let requested = ["redis-server".to_string()];
    let chosen = debian::resolve("bookworm", &requested, &downloads, &interrupt).unwrap();
    let (input, system) = debian_system(&["redis-server"], chosen);
    let pins = system.debian.as_ref().unwrap().to_install();
    let error = fetch(&pins, &downloads, Net::Offline).unwrap_err();
    assert!(error.to_string().contains("bash 5."), "{error}");
    // What is not offered as it is pinned is named, and does not keep the rest from coming.
    let gone = PackagePin {
        version: "5.0-1".into(),
        sha256: "ab".repeat(32),
        ..pins[0].clone()
    };
    let other = PackagePin {
        sha256: "cd".repeat(32),
        ..pins[1].clone()
    };
    let wanted: Vec<_> = pins.iter().copied().chain([&gone, &other]).collect();
    let mut missing = fetch(&wanted, &downloads, Net::Pinned).unwrap();
    missing.sort();
    assert_eq!(missing, [gone, other]);
    assert_eq!(fetch(&pins, &downloads, Net::Offline).unwrap(), []);

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

/// A package that depends on nothing, and whose script makes a user with the programs of `passwd`,
/// looks for one of `mount`, and writes down what it sees of the host.
fn make_package(scratch: &Path, downloads: &Path) -> PackagePin {
    let package = scratch.join("waiter");
    let write = |name: &str, mode: u32, text: &str| {
        let file = package.join("DEBIAN").join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(file, PermissionsExt::from_mode(mode)).unwrap();
    };
    fs::create_dir_all(package.join("DEBIAN")).unwrap();
    let control = "Package: waiter\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\n\
                   Description: a package\n";
    write("control", 0o644, control);
    let script = "#!/bin/sh\nset -e\ngroupadd --system waiter\n\
                  useradd --system --gid waiter --home-dir /nonexistent waiter\n\
                  mount --version >/dev/null\n\
                  (hostname; cat /etc/hostname /etc/resolv.conf) > /srv/host\n";
    write("postinst", 0o755, script);
    let made = Command::new("dpkg-deb")
        .args(["--root-owner-group", "--build", "waiter", "waiter.deb"])
        .current_dir(scratch)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let deb = scratch.join("waiter.deb");
    let sha256 = smolbuild::hash::sha256(&deb).unwrap();
    fs::copy(deb, smolbuild::fetch::place(downloads, &sha256)).unwrap();
    PackagePin {
        name: "waiter".into(),
        version: "1".into(),
        arch: "all".into(),
        sha256,
    }
}

#[test]
#[ignore = "installs Debian packages: needs root, mmdebstrap and a package mirror"]
fn scripts_of_packages_find_what_is_required_which_is_not_in_the_image() {
    let scratch = tempfile::tempdir().unwrap();
    let downloads = scratch.path().join("downloads");
    let interrupt = Interrupt::detached().unwrap();
    let mut chosen = debian::resolve("bookworm", &[], &downloads, &interrupt).unwrap();
    let alone: Vec<_> = chosen.install_only.iter().map(|pin| &pin.name).collect();
    for name in ["apt", "mount", "passwd", "tzdata"] {
        assert!(alone.contains(&&name.to_string()), "{name}: {alone:?}");
    }
    chosen
        .packages
        .push(make_package(scratch.path(), &downloads));
    chosen.packages.sort();
    let (input, mut system) = debian_system(&["waiter"], chosen);
    let pins = system.debian.as_ref().unwrap().to_install();
    assert_eq!(fetch(&pins, &downloads, Net::Pinned).unwrap(), []);

    let image = build_in(scratch.path(), &input, &system, &[], "image").unwrap();
    let tree = extract(&image.path, &scratch.path().join("out"));
    let text = |path| String::from_utf8(tree.read(path, 1 << 20).unwrap().unwrap()).unwrap();
    assert!(text("etc/passwd").contains("\nwaiter:x:"));
    assert!(text("etc/group").contains("\nwaiter:x:"));
    assert_eq!(text("srv/host"), "localhost\nlocalhost\n");
    assert!(!text("var/lib/dpkg/status").contains("Package: passwd\n"));
    let present = |path| tree.lookup(path).unwrap().is_some();
    for path in [
        "etc/apt/apt.conf.d/01autoremove",
        "etc/localtime",
        "usr/bin/apt",
        "usr/bin/mount",
        "usr/sbin/groupadd",
        "usr/share/zoneinfo",
        "var/lib/dpkg/info/passwd.list",
    ] {
        assert!(!present(path), "{path}");
    }

    // As a lock of an earlier version has it.
    system.debian.as_mut().unwrap().install_only = None;
    let error = build_in(scratch.path(), &input, &system, &[], "image").unwrap_err();
    let error = smol_cli::error::render(&error, false);
    for part in ["groupadd: not found", "hint: this lock has no packages"] {
        assert!(error.contains(part), "{error}");
    }
}
