//! How fast bundles are written, opened, verified and extracted. Run by hand, optimised:
//! `cargo test --release -p smol-bundle --test throughput -- --ignored --nocapture`,
//! with `BUNDLE=FILE` for what it takes to write that bundle again.

#![allow(clippy::print_stdout, reason = "figures for whoever runs it")]

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::*;
use smol_bundle::{
    Bundle, BundleSpec, ImageKind, Prepared, SnapshotSpec, WorkingSet, write, write_while,
};

/// Up to `limit` bytes of real files, each filled up to whole pages as a file system does.
fn files(dir: &Path, limit: usize, out: &mut Vec<u8>) {
    let mut entries: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().collect();
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        let kind = entry.file_type().unwrap();
        if out.len() >= limit {
            return out.truncate(limit);
        } else if kind.is_dir() {
            files(&entry.path(), limit, out);
        } else if kind.is_file() {
            out.extend(fs::read(entry.path()).unwrap_or_default());
            out.resize(out.len().next_multiple_of(PAGE), 0);
        }
    }
}

fn timed<T>(what: &str, bytes: u64, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{what:<28} {:>9.2} ms {:>8.0} MB/s",
        seconds * 1e3,
        bytes as f64 / 1e6 / seconds
    );
    result
}

/// Rootfs: 128 MiB of this system's files. Memory, 512 MiB: 256 zero, 32 of the rootfs, 64 of
/// other files, the rest zero again.
#[test]
#[ignore = "a measurement, run by hand in release mode"]
fn figures_of_a_machine_with_512_mib() {
    let mut all = Vec::new();
    files(Path::new("/usr"), 192 << 20, &mut all);
    let mut images = Images::sample();
    images.memory = vec![0; 512 << 20];
    images.memory[256 << 20..][..32 << 20].copy_from_slice(&all[64 << 20..][..32 << 20]);
    images.memory[300 << 20..][..64 << 20].copy_from_slice(&all[128 << 20..]);
    all.truncate(128 << 20);
    images.rootfs = all;
    let work = Work::with(images);
    write_sparse(&work.path("memory"), &work.images.memory);
    let mut spec = work.spec();
    spec.config.memory = 512 << 20;
    let (path, out) = (work.path("x.smolmachine"), work.path("out"));
    let raw = (512 + 128) << 20;
    let written = timed("write", raw, || {
        write(&spec, &path, &mut |_, _| {}).unwrap()
    });
    for stats in &written.stats.images {
        println!("{stats:?}");
    }
    let bundle = timed("open", written.file_size, || Bundle::open(&path).unwrap());
    timed("verify all", written.file_size, || {
        bundle.verify_all(&mut |_, _| {}).unwrap()
    });
    for threads in [1, 2] {
        let file = fs::File::create(&out).unwrap();
        timed(
            &format!("extract memory, {threads} threads"),
            96 << 20,
            || {
                bundle
                    .extract(ImageKind::Memory, &file, threads, &mut |_, _| {})
                    .unwrap();
            },
        );
    }
    assert!(fs::read(&out).unwrap() == work.images.memory);
}

/// The images of a bundle as files in `folder`, and how to make it of them.
fn unpacked(bundle: &Bundle, folder: &Path) -> BundleSpec {
    let extract = |kind: ImageKind| -> Option<PathBuf> {
        bundle.index().image(kind)?;
        let path = folder.join(kind.name());
        let file = fs::File::create(&path).unwrap();
        bundle.extract(kind, &file, 2, &mut |_, _| {}).unwrap();
        Some(path)
    };
    let working_set = |kind| {
        let image = bundle.index().image(kind);
        image.map_or(Vec::new(), |image| image.working_set().to_vec())
    };
    BundleSpec {
        config: bundle.config().clone(),
        kernel: extract(ImageKind::Kernel).unwrap(),
        initramfs: extract(ImageKind::Initramfs),
        rootfs: extract(ImageKind::Rootfs),
        snapshot: extract(ImageKind::Memory).map(|memory| SnapshotSpec {
            state: b"opaque".to_vec(),
            memory,
            working_set: WorkingSet {
                memory: working_set(ImageKind::Memory),
                rootfs: working_set(ImageKind::Rootfs),
            },
        }),
        smolfile: None,
        lock: None,
        parent: None,
    }
}

#[test]
#[ignore = "a measurement, run by hand in release mode"]
fn figures_of_writing_a_bundle_again() {
    let Some(bundle) = std::env::var_os("BUNDLE") else {
        return println!("left out: BUNDLE names none");
    };
    let bundle = Bundle::open(Path::new(&bundle)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let spec = unpacked(&bundle, dir.path());
    let images = [
        (ImageKind::Kernel, Some(&spec.kernel)),
        (ImageKind::Initramfs, spec.initramfs.as_ref()),
        (ImageKind::Rootfs, spec.rootfs.as_ref()),
    ];
    let images: Vec<_> = images
        .iter()
        .filter_map(|(kind, path)| Some((*kind, path.as_ref()?.as_path())))
        .collect();
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    let size = images.iter().map(|(_, path)| size(path)).sum::<u64>() + spec.config.memory;
    let out = dir.path().join("out");
    for _ in 0..3 {
        let plain = timed("write", size, || {
            write(&spec, &out, &mut |_, _| {}).unwrap()
        });
        let prepared = timed("prepare", size, || Prepared::of(&images, &|| true));
        println!("{prepared:?}");
        let again = timed("write what is prepared", size, || {
            let mut on = |_, _| ControlFlow::Continue(());
            write_while(&spec, &prepared, &out, &mut on).unwrap()
        });
        println!("{prepared:?}");
        assert_eq!(plain.digest, again.digest);
    }
}
