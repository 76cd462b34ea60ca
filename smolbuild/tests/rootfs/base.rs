//! Root file systems that are built on those of other bundles.

use std::fs;
use std::path::{Path, PathBuf};

use smol_bundle::{Bundle, BundleSpec, Digest, ImageKind};
use smol_cli::ExitKind;
use smol_rootfs::erofs::{self, Mtimes, Options};
use smol_rootfs::{CopySpec, Device, Ignore, Node, Tree};
use smolbuild::input::{BundleInput, InputDirs};
use smolbuild::lock::{InputFile, Role};
use smolbuild::source_dir::SourceDir;
use toml::Spanned;

use crate::bundles::{bundle_spec, write_bundle};
use crate::common::*;
use crate::{build, lock};

const EPOCH: u64 = 1_700_000_000;

/// A folder with an image, a bundle of it, and what is built on that.
struct Scene {
    scratch: tempfile::TempDir,
}

impl Scene {
    fn new(tree: &Tree) -> Scene {
        let scene = Scene {
            scratch: tempfile::tempdir().unwrap(),
        };
        let options = Options {
            epoch: EPOCH,
            mtimes: Mtimes::Clamped,
            align_image: 2 << 20,
            ..Options::default()
        };
        write_image(tree, &scene.path("base.image"), &options);
        fs::write(scene.path("kernel"), "ELF").unwrap();
        scene.bundle("base.image", "base");
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Makes the bundle `name` of an image.
    fn bundle(&self, image: &str, name: &str) {
        let spec = BundleSpec {
            rootfs: Some(self.path(image)),
            ..bundle_spec("base", self.path("kernel"))
        };
        write_bundle(&spec, &self.path(name));
    }

    /// The digest of the bundle `base`.
    fn base(&self) -> Digest {
        Bundle::open(&self.path("base")).unwrap().digest()
    }

    /// Builds the image `child` on the bundle `base`, of which the lock has the digest `locked`,
    /// with these files of the folder copied over it.
    fn build(&self, locked: Digest, copies: &[(&str, &str)]) -> anyhow::Result<()> {
        let copies = copies.iter().map(|(src, dest)| CopySpec {
            src: self.path(src),
            name: None,
            dest: dest.to_string(),
            mode: None,
            owner: None,
            ignore: Ignore::default(),
        });
        let lock = lock(vec![InputFile {
            role: Role::Base,
            path: "base".into(),
            sha256: locked.hex(),
        }]);
        let input = BundleInput(Spanned::new(0..0, "base".into()));
        let copies: Vec<CopySpec> = copies.collect();
        let dirs = InputDirs {
            base_dir: &SourceDir::bare(self.scratch.path()),
            downloads: &self.path("downloads"),
            cache: &self.path("cache"),
            scratch: self.scratch.path(),
        };
        build(&input, &lock, &copies, EPOCH, &dirs, &self.path("child"))?;
        Ok(())
    }

    /// The message of a build that fails, and leaves no file behind.
    #[track_caller]
    fn refused(&self, locked: Digest) -> (ExitKind, String) {
        let before = names(self.scratch.path());
        let error = self.build(locked, &[]).expect_err("it was built");
        assert_eq!(names(self.scratch.path()), before);
        let kind = smol_cli::exit_kind(&error);
        (kind, smol_cli::error::render(&error, false))
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Everything that an image can hold, with what every build adds.
fn whole_tree() -> Tree {
    let mut tree = awkward_tree();
    for (path, mode) in [
        ("proc", 0o555),
        ("sys", 0o555),
        ("dev", 0o755),
        ("run", 0o755),
        ("tmp", 0o1777),
        ("etc", 0o755),
    ] {
        tree.mkdir(path, mode).unwrap();
    }
    tree.file("etc/hosts", 0o644, b"127.0.0.1 me\n".to_vec())
        .unwrap();
    tree.file("holes", 0o600, [noise(5, 5000), vec![0; 50_000]].concat())
        .unwrap();
    tree.hard_link("usr/more/holes", "holes").unwrap();
    let device = Device {
        major: 4,
        minor: 70_000,
    };
    tree.insert("dev/tty", inode(0o620, 70_000, 5, Node::CharDevice(device)))
        .unwrap();
    let stamped = tree.lookup("holes").unwrap().unwrap();
    let meta = tree.meta_mut(stamped);
    meta.mtime = Some(1_234_567);
    meta.xattrs
        .insert(b"security.capability".to_vec(), vec![1; 20]);
    tree
}

#[test]
fn built_on_a_bundle_without_copies_the_image_is_the_same_byte_for_byte() {
    let scene = Scene::new(&whole_tree());
    scene.build(scene.base(), &[]).unwrap();
    let [base, child] = ["base.image", "child"].map(|name| fs::read(scene.path(name)).unwrap());
    assert!(base == child, "the images differ");
}

#[test]
fn copies_lie_over_the_files_of_the_base_and_those_share_their_bytes() {
    let mut tree = whole_tree();
    for n in 0..2000 {
        tree.file(
            format!("usr/share/{n}"),
            0o644,
            noise(n, 3000 + 13 * n as usize),
        )
        .unwrap();
    }
    let scene = Scene::new(&tree);
    fs::write(scene.path("first"), noise(1 << 40, 40_000)).unwrap();
    fs::write(scene.path("hosts"), "127.0.0.1 other\n").unwrap();
    scene
        .build(
            scene.base(),
            &[("first", "/AAA"), ("hosts", "/etc/"), ("hosts", "/holes")],
        )
        .unwrap();

    tree.file("AAA", 0o644, noise(1 << 40, 40_000)).unwrap();
    for path in ["etc/hosts", "holes"] {
        tree.file(path, 0o644, b"127.0.0.1 other\n".to_vec())
            .unwrap();
    }
    let child = erofs::read(&scene.path("child")).unwrap();
    assert_same(&listing(&child), &listing(&tree));
    // The other name of a file that was copied over still has the old content.
    let old = child.read("usr/more/holes", 1 << 20).unwrap().unwrap();
    assert_eq!(old.len(), 55_000);

    scene.bundle("child", "child.bundle");
    let [base, child] =
        ["base", "child.bundle"].map(|name| Bundle::open(&scene.path(name)).unwrap());
    let shared = child.index().shared_with(base.index());
    let rootfs = shared.iter().find(|s| s.kind == ImageKind::Rootfs).unwrap();
    assert!(rootfs.shared_bytes * 100 > rootfs.bytes * 90, "{rootfs:?}");
}

#[test]
fn a_bundle_without_a_root_file_system_is_no_base() {
    let scene = Scene::new(&Tree::new());
    let spec = bundle_spec("just-a-kernel", scene.path("kernel"));
    let digest = write_bundle(&spec, &scene.path("base"));
    let (kind, told) = scene.refused(digest);
    assert_eq!(kind, ExitKind::Usage);
    assert!(
        told.contains("just-a-kernel has no root file system") && told.contains("hint: "),
        "{told}"
    );
}

#[test]
fn another_bundle_than_was_locked_is_not_built_on() {
    let scene = Scene::new(&Tree::new());
    let (_, told) = scene.refused(Digest::of(b"another"));
    assert!(told.contains("is not the bundle of the lock"), "{told}");
}

#[test]
fn a_base_that_is_cut_or_damaged_is_refused_wherever_it_is() {
    let scene = Scene::new(&whole_tree());
    let (base, good) = (scene.base(), fs::read(scene.path("base")).unwrap());
    let damaged = |bytes: &[u8]| {
        fs::write(scene.path("base"), bytes).unwrap();
        let (kind, told) = scene.refused(base);
        assert_eq!(kind, ExitKind::Verification, "{told}");
        assert!(told.starts_with("error: cannot build on "), "{told}");
    };
    for len in [0, 100, 512, good.len() / 2, good.len() - 1] {
        damaged(&good[..len]);
    }
    // Of what is used: all blobs but the kernel's.
    fs::write(scene.path("base"), &good).unwrap();
    let blobs = Bundle::open(&scene.path("base")).unwrap().layout();
    let kernel = ImageKind::Kernel.media_type();
    for blob in blobs.iter().filter(|blob| blob.media_type != kernel) {
        for at in [
            blob.offset,
            blob.offset + blob.size / 2,
            blob.offset + blob.size - 1,
        ] {
            let mut bytes = good.clone();
            bytes[at as usize] ^= 0x10;
            damaged(&bytes);
        }
    }
}

#[test]
fn an_image_that_no_build_makes_is_refused_although_its_bundle_verifies() {
    let scene = Scene::new(&Tree::new());
    fs::write(scene.path("base.image"), noise(1, 1 << 16)).unwrap();
    scene.bundle("base.image", "base");
    let (_, told) = scene.refused(scene.base());
    assert!(told.contains("not EROFS"), "{told}");
}
