//! How fast bundles are written, opened, verified and extracted. Run by hand, optimised:
//! `cargo test --release -p smol-bundle --test throughput -- --ignored --nocapture`

mod common;

use std::fs;
use std::path::Path;
use std::time::Instant;

use common::*;
use smol_bundle::{Bundle, ImageKind, write};

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
