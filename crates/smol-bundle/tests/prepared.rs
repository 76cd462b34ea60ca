//! Frames that were compressed before save work and change nothing.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

use common::*;
use smol_bundle::{Bundle, BundleSpec, ImageKind, Prepared, Run, write_while};

/// Pages of the root file system: some ten frames.
const PAGES: u64 = 2500;

/// A machine with a root file system of many frames, of which the working set cuts through a few.
fn work() -> (Work, BundleSpec) {
    let mut images = Images::sample();
    images.rootfs = (0..PAGES).flat_map(text).collect();
    let work = Work::with(images);
    let mut spec = work.spec();
    let run = |first, pages| Run {
        first,
        pages,
        written: false,
    };
    spec.snapshot.as_mut().unwrap().working_set.rootfs = vec![run(700, 30), run(5, 1)];
    (work, spec)
}

fn prepare(spec: &BundleSpec, go_on: &(dyn Fn() -> bool + Sync)) -> Prepared {
    let images = [
        (ImageKind::Kernel, spec.kernel.as_path()),
        (ImageKind::Initramfs, spec.initramfs.as_deref().unwrap()),
        (ImageKind::Rootfs, spec.rootfs.as_deref().unwrap()),
    ];
    Prepared::of(&images, go_on)
}

/// The bytes of the bundle, written with these frames.
fn bytes(work: &Work, spec: &BundleSpec, prepared: &Prepared) -> Vec<u8> {
    let out = work.path("out");
    let mut on = |_, _| ControlFlow::Continue(());
    write_while(spec, prepared, &out, &mut on).unwrap();
    fs::read(out).unwrap()
}

fn frames(bundle: &Path) -> u64 {
    let bundle = Bundle::open(bundle).unwrap();
    let images = bundle.index().images().iter();
    images
        .filter(|image| image.kind() != ImageKind::Memory)
        .map(|image| image.frames().len() as u64)
        .sum()
}

#[test]
fn a_bundle_has_the_same_bytes_with_prepared_frames_and_without() {
    let (work, spec) = work();
    let (path, _) = work.write(&spec, "plain");
    let plain = fs::read(&path).unwrap();
    let prepared = prepare(&spec, &|| true);
    assert!(bytes(&work, &spec, &prepared) == plain);
    // Not those that lack pages of the working set, nor the one that has them, nor a few behind them.
    let (used, all) = (prepared.used(), frames(&path));
    assert!(used > all / 2 && used < all, "{used} of {all}");
    // What was taken is gone, and is compressed again.
    assert!(bytes(&work, &spec, &prepared) == plain);
    assert_eq!(prepared.used(), used);
}

#[test]
fn without_a_working_set_every_frame_is_there() {
    let (work, mut spec) = work();
    spec.snapshot = None;
    let (path, _) = work.write(&spec, "plain");
    let prepared = prepare(&spec, &|| true);
    assert!(bytes(&work, &spec, &prepared) == fs::read(&path).unwrap());
    assert_eq!(prepared.used(), frames(&path));
}

#[test]
fn a_preparation_that_is_interrupted_anywhere_changes_nothing() {
    let (work, spec) = work();
    let plain = fs::read(work.write(&spec, "plain").0).unwrap();
    let all = prepare(&spec, &|| true);
    bytes(&work, &spec, &all);
    let mut used = Vec::new();
    for questions in [0, 1, 4, 9, 14, 20] {
        let left = AtomicI64::new(questions);
        let prepared = prepare(&spec, &|| left.fetch_sub(1, Ordering::Relaxed) > 0);
        assert!(bytes(&work, &spec, &prepared) == plain, "{questions}");
        used.push(prepared.used());
    }
    assert_eq!(used[0], 0);
    assert!(used.iter().all(|some| *some <= all.used()), "{used:?}");
    assert!(used.iter().any(|some| *some > 0), "{used:?}");
}

#[test]
fn a_preparation_that_fails_or_is_of_other_images_changes_nothing() {
    let (work, spec) = work();
    let plain = fs::read(work.write(&spec, "plain").0).unwrap();
    let other = work.path("other");
    fs::write(&other, (5000..6000).flat_map(text).collect::<Vec<_>>()).unwrap();
    for rootfs in ["/no-such-file", "/dev/null", "/", other.to_str().unwrap()] {
        let mut wrong = spec.clone();
        wrong.rootfs = Some(rootfs.into());
        let prepared = prepare(&wrong, &|| true);
        assert!(bytes(&work, &spec, &prepared) == plain, "{rootfs}");
        // Kernel and initramfs are right, and came first.
        assert_eq!(prepared.used(), 2, "{rootfs}");
    }
}
