//! What is put into a bundle comes out of it, and the same content gives the same bytes.

mod common;

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;

use common::*;
use smol_bundle::{
    Bundle, BundleSpec, Error, ImageKind, Prepared, SnapshotSpec, WorkingSet, write, write_while,
};

#[test]
fn every_image_comes_out_as_it_went_in() {
    let work = Work::new();
    let bundle = Bundle::open(&work.bundle()).unwrap();
    let expected = [
        (ImageKind::Kernel, &work.images.kernel),
        (ImageKind::Initramfs, &work.images.initramfs),
        (ImageKind::Rootfs, &work.images.rootfs),
        (ImageKind::Memory, &work.images.memory),
    ];
    for (kind, image) in expected {
        assert_eq!(bundle.image_size(kind), Some(image.len() as u64));
        assert!(
            bundle.read_image(kind, 1 << 20).unwrap() == *image,
            "{kind} in memory"
        );
        for threads in [1, 3] {
            let out = work.path("out");
            fs::write(&out, vec![0xaa; 1 << 20]).unwrap();
            let file = File::options().read(true).write(true).open(&out).unwrap();
            let mut last = (0, 0);
            bundle
                .extract(kind, &file, threads, &mut |d, t| last = (d, t))
                .unwrap();
            assert!(
                fs::read(&out).unwrap() == *image,
                "{kind} on {threads} threads"
            );
            assert!(last.0 == last.1 && last.1 > 0, "progress ended at {last:?}");
        }
    }
    assert_eq!(bundle.state().unwrap().unwrap(), b"opaque state");
    assert_eq!(bundle.smolfile().unwrap().unwrap(), b"name = \"sample\"\n");
    assert_eq!(bundle.lock().unwrap().unwrap(), b"version = 1\n");
    assert_eq!(*bundle.config(), config());
    bundle.verify_all(&mut |_, _| {}).unwrap();
}

#[test]
fn nothing_more_is_read_once_nobody_waits_for_it() {
    let work = Work::new();
    let bundle = Bundle::open(&work.bundle()).unwrap();
    let stop = |calls: &mut u32| {
        *calls += 1;
        ControlFlow::Break(())
    };
    for threads in [1, 3] {
        let (out, mut calls) = (tempfile::tempfile().unwrap(), 0);
        let stopped = bundle.extract_while(ImageKind::Memory, &out, threads, &mut |_, _| {
            stop(&mut calls)
        });
        assert!(matches!(stopped, Err(Error::Stopped { .. })), "{stopped:?}");
        assert_eq!(calls, 1);
    }
    let mut calls = 0;
    let stopped = bundle.verify_while(&mut |_, _| stop(&mut calls));
    assert!(matches!(stopped, Err(Error::Stopped { .. })), "{stopped:?}");
    assert_eq!(calls, 1);
    // At the first frame.
    let (mut calls, mut last) = (0, 0);
    let blobs: u64 = {
        let entries = bundle.layout();
        entries.iter().map(|blob| blob.size).sum()
    };
    let stopped = bundle.verify_while(&mut |done, _| {
        last = done;
        match done > blobs {
            true => stop(&mut calls),
            false => ControlFlow::Continue(()),
        }
    });
    assert!(stopped.is_err() && calls == 1 && last > blobs);
}

#[test]
fn a_page_more_in_front_leaves_nearly_all_frames_as_they_are() {
    const PAGES: usize = 8000;
    let pages: Vec<_> = (0..PAGES as u64).map(noise).collect();
    let index = |rootfs: Vec<u8>| {
        let mut images = Images::sample();
        images.rootfs = rootfs;
        Bundle::open(&Work::with(images).bundle())
            .unwrap()
            .index()
            .clone()
    };
    let before = index(pages.concat());
    let after = index([noise(99_999), pages.concat()].concat());
    let sizes: Vec<u32> = before
        .image(ImageKind::Rootfs)
        .unwrap()
        .frames()
        .iter()
        .map(|frame| frame.pages)
        .collect();
    // The first frame is the working set's.
    let (whole, last) = (&sizes[1..sizes.len() - 1], sizes[sizes.len() - 1]);
    assert!(whole.iter().all(|pages| (128..=384).contains(pages)) && last <= 384);
    assert!((200..=280).contains(&(PAGES / sizes.len())), "{sizes:?}");
    for shared in after.shared_with(&before) {
        match shared.kind {
            // The working set's frame, too: other pages have its numbers now.
            ImageKind::Rootfs => {
                assert!(shared.shared_bytes < shared.bytes);
                assert!(shared.shared_bytes * 100 > shared.bytes * 90, "{shared:?}");
            }
            _ => assert_eq!(shared.shared_bytes, shared.bytes),
        }
    }
}

#[test]
fn the_working_set_lies_first_in_frames_of_its_own() {
    let work = Work::new();
    let bundle = Bundle::open(&work.bundle()).unwrap();
    let memory = bundle.index().image(ImageKind::Memory).unwrap();
    let runs: Vec<_> = memory
        .working_set()
        .iter()
        .map(|r| (r.first, r.pages))
        .collect();
    assert_eq!(runs, [(60, 4), (11, 1), (0, 1), (64, 1), (90, 1)]);
    // Stored are pages 60 to 64 and 90; 11 is in the rootfs, 0 is zero.
    assert_eq!(memory.frames()[0].pages, 6);
    let raw = bundle.frame(ImageKind::Memory, 0).unwrap();
    let expected = [
        &work.images.memory[60 * PAGE..65 * PAGE],
        &work.images.memory[90 * PAGE..91 * PAGE],
    ];
    assert!(raw == expected.concat());
    let rootfs = bundle.index().image(ImageKind::Rootfs).unwrap();
    assert_eq!(
        (rootfs.frames()[0].pages, rootfs.working_set().len()),
        (2, 1)
    );
    let without = BundleSpec {
        snapshot: work.spec().snapshot.map(|snapshot| SnapshotSpec {
            working_set: WorkingSet::default(),
            ..snapshot
        }),
        ..work.spec()
    };
    let other = Bundle::open(&work.write(&without, "without").0).unwrap();
    assert!(
        other
            .index()
            .image(ImageKind::Memory)
            .unwrap()
            .working_set()
            .is_empty()
    );
    assert_ne!(other.digest(), bundle.digest());
}

#[test]
fn a_parent_is_named_in_the_manifest_and_changes_nothing_else() {
    let work = Work::new();
    let alone = Bundle::open(&work.bundle()).unwrap();
    let spec = BundleSpec {
        parent: Some(alone.digest()),
        ..work.spec()
    };
    let child = Bundle::open(&work.write(&spec, "child").0).unwrap();
    assert_eq!(
        (alone.parent(), child.parent()),
        (None, Some(alone.digest()))
    );
    child.verify_all(&mut |_, _| {}).unwrap();
    let text = |bundle: &Bundle| String::from_utf8(bundle.manifest_json().to_vec()).unwrap();
    let annotation = format!(",\"vnd.smol.machine.parent\":\"{}\"", alone.digest());
    assert_eq!(text(&child).replace(&annotation, ""), text(&alone));
}

#[test]
fn zero_pages_stay_holes_when_extracted() {
    let mut images = Images::sample();
    images.memory = vec![0; 64 << 20];
    images.memory[5 << 20] = 1;
    let work = Work::with(images);
    let mut spec = work.spec();
    spec.config.memory = 64 << 20;
    let bundle = Bundle::open(&work.write(&spec, "x").0).unwrap();
    let out = tempfile::tempfile_in(work.dir.path()).unwrap();
    bundle
        .extract(ImageKind::Memory, &out, 1, &mut |_, _| {})
        .unwrap();
    let metadata = out.metadata().unwrap();
    assert_eq!(metadata.len(), 64 << 20);
    assert!(
        metadata.blocks() * 512 < 1 << 20,
        "{} blocks",
        metadata.blocks()
    );
}

#[test]
fn frames_can_be_read_one_by_one() {
    let work = Work::new();
    let bundle = Bundle::open(&work.bundle()).unwrap();
    let rootfs = bundle.index().image(ImageKind::Rootfs).unwrap();
    let pages: Vec<_> = rootfs.frames().iter().map(|f| f.pages).collect();
    assert_eq!(pages, [2, 36]);
    // Pages 4 and 5 are the working set; 7 is zero.
    let pages =
        |range: std::ops::Range<usize>| &work.images.rootfs[range.start * PAGE..range.end * PAGE];
    assert!(bundle.frame(ImageKind::Rootfs, 0).unwrap() == pages(4..6));
    // Page 39 is like one before it.
    let rest = [pages(0..4), pages(6..7), pages(8..39)].concat();
    assert!(bundle.frame(ImageKind::Rootfs, 1).unwrap() == rest);
    assert!(matches!(
        bundle.frame(ImageKind::Rootfs, 2),
        Err(Error::Missing { .. })
    ));
}

#[test]
fn equal_pages_are_stored_once_and_counted() {
    let work = Work::new();
    let (_, written) = work.write(&work.spec(), "x");
    let [kernel, initramfs, rootfs, memory] = written.stats.images[..] else {
        panic!()
    };
    assert_eq!((kernel.pages, kernel.stored, kernel.size), (3, 3, 8292));
    assert_eq!(
        (initramfs.pages, initramfs.stored, initramfs.size),
        (1, 1, 777)
    );
    assert_eq!(
        (rootfs.pages, rootfs.zero, rootfs.duplicate, rootfs.stored),
        (40, 1, 1, 38)
    );
    assert_eq!((memory.pages, memory.zero, memory.duplicate), (96, 50, 2));
    assert_eq!(
        (memory.in_rootfs, memory.in_boot, memory.stored),
        (4, 1, 39)
    );
    assert_eq!(memory.raw_bytes, 39 * 4096);
    assert!(memory.compressed_bytes < memory.raw_bytes / 2);
    assert!(kernel.compressed_bytes > 8000, "noise does not compress");
}

#[test]
fn the_bytes_depend_on_the_content_alone() {
    let work = Work::new();
    let (path, first) = work.write(&work.spec(), "first.smolmachine");
    let mut spec = work.spec();
    let other = work.path("another-name.raw");
    write_sparse(&other, &work.images.memory);
    assert!(other.metadata().unwrap().blocks() < work.path("memory").metadata().unwrap().blocks());
    spec.snapshot.as_mut().unwrap().memory = other.clone();
    let old = std::time::SystemTime::UNIX_EPOCH;
    File::options()
        .append(true)
        .open(&other)
        .unwrap()
        .set_modified(old)
        .unwrap();
    let (again, second) = work.write(&spec, "second.bin");
    assert_eq!(first.digest, second.digest);
    assert!(fs::read(path).unwrap() == fs::read(again).unwrap());
}

#[test]
fn the_frames_of_the_rootfs_depend_on_the_rootfs_alone() {
    let frames = |work: &Work| {
        let bundle = Bundle::open(&work.bundle()).unwrap();
        let blob = bundle.layout().into_iter();
        blob.filter(|b| b.media_type.contains("rootfs"))
            .map(|b| b.digest)
            .collect::<Vec<_>>()
    };
    let mut images = Images::sample();
    images.kernel = images.rootfs[..3 * PAGE].to_vec();
    images.memory.fill(0);
    assert_eq!(frames(&Work::new()), frames(&Work::with(images)));
}

#[test]
fn a_bundle_can_be_just_a_kernel() {
    let work = Work::new();
    let mut spec = work.spec();
    (spec.initramfs, spec.rootfs, spec.snapshot) = (None, None, None);
    (spec.smolfile, spec.lock, spec.config.version) = (None, None, None);
    let (path, written) = work.write(&spec, "x");
    let bundle = Bundle::open(&path).unwrap();
    bundle.verify_all(&mut |_, _| {}).unwrap();
    assert_eq!(written.stats.images.len(), 1);
    assert!(!bundle.has_snapshot());
    assert_eq!(bundle.state().unwrap(), None);
    assert_eq!(bundle.smolfile().unwrap(), None);
    let out = tempfile::tempfile().unwrap();
    let error = bundle
        .extract(ImageKind::Memory, &out, 1, &mut |_, _| {})
        .unwrap_err();
    assert!(error.to_string().contains("holds no snapshot"), "{error}");
    assert!(!error.is_verification_failure());
}

#[test]
fn images_with_equal_or_no_frames_make_a_valid_archive() {
    let mut images = Images::sample();
    images.initramfs = images.kernel.clone();
    images.memory.fill(0);
    images.rootfs.fill(0);
    let work = Work::with(images);
    let mut spec = work.spec();
    spec.smolfile = Some(Vec::new());
    spec.lock = Some(b"{}".to_vec());
    spec.snapshot.as_mut().unwrap().state = Vec::new();
    let (path, _) = work.write(&spec, "x");
    let bundle = Bundle::open(&path).unwrap();
    bundle.verify_all(&mut |_, _| {}).unwrap();
    let at = |kind: ImageKind| {
        let layout = bundle.layout();
        layout
            .iter()
            .find(|b| b.media_type == kind.media_type())
            .map(|b| b.offset)
    };
    assert_eq!(at(ImageKind::Initramfs), at(ImageKind::Kernel));
    assert_eq!(at(ImageKind::Memory), None);
    assert!(bundle.read_image(ImageKind::Memory, 1 << 20).unwrap() == work.images.memory);
    assert_eq!(bundle.lock().unwrap().unwrap(), b"{}");
}

#[test]
fn the_layout_tells_where_every_byte_goes() {
    let work = Work::new();
    let path = work.bundle();
    let bundle = Bundle::open(&path).unwrap();
    let file = fs::read(&path).unwrap();
    assert_eq!(bundle.file_size(), file.len() as u64);
    let layout = bundle.layout();
    for blob in &layout {
        let bytes = &file[blob.offset as usize..][..blob.size as usize];
        assert_eq!(
            smol_bundle::Digest::of(bytes),
            blob.digest,
            "{}",
            blob.media_type
        );
    }
    assert_eq!(layout.len(), 10);
    assert_eq!(layout.last().unwrap().digest, bundle.digest());
    assert_eq!(
        smol_bundle::Digest::of(bundle.manifest_json()),
        bundle.digest()
    );
}

#[test]
fn progress_ends_at_the_total() {
    let work = Work::new();
    let mut steps = Vec::new();
    write(&work.spec(), &work.path("x"), &mut |d, t| {
        steps.push((d, t))
    })
    .unwrap();
    let i = &work.images;
    let total = (i.kernel.len() + i.initramfs.len() + i.rootfs.len() + i.memory.len()) as u64;
    assert_eq!(steps.last(), Some(&(total, total)));
    assert!(steps.is_sorted());
}

#[test]
fn a_writing_that_is_stopped_leaves_what_was_there() {
    let work = Work::new();
    let out = work.path("out.smolmachine");
    fs::write(&out, "older").unwrap();
    let mut stop = |done, _| match done > 0 {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let error = write_while(&work.spec(), &Prepared::default(), &out, &mut stop).unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    assert_eq!(fs::read(&out).unwrap(), b"older");
    assert_eq!(fs::read_dir(work.dir.path()).unwrap().count(), 5);
}

#[test]
fn a_specification_that_cannot_be_expressed_leaves_no_file() {
    type Change = fn(&mut smol_bundle::BundleSpec);
    let cases: [(&str, Change); 5] = [
        ("the configuration says", |s| s.config.memory += 4096),
        ("name", |s| s.config.name = "..".into()),
        ("machine state", |s| {
            s.snapshot.as_mut().unwrap().state = vec![0; (16 << 20) + 1]
        }),
        ("not a regular file", |s| s.kernel = "/dev/null".into()),
        ("no-such-file", |s| s.rootfs = Some("/no-such-file".into())),
    ];
    let work = Work::new();
    for (expected, change) in cases {
        let mut spec = work.spec();
        change(&mut spec);
        let out = work.path("out.smolmachine");
        let error = write(&spec, &out, &mut |_, _| {}).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!error.is_verification_failure());
        assert!(!out.exists());
    }
    assert_eq!(
        fs::read_dir(work.dir.path()).unwrap().count(),
        4,
        "only the images are left"
    );
}
