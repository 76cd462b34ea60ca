//! Small bundles that would take much memory to compare.

mod common;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use common::{bundle_spec, write_bundle};
use smol_bundle::{Bundle, Config, SnapshotSpec, WorkingSet};
use smol_cli::Interrupt;
use smol_rootfs::{FileData, Inode, Meta, Node, Tree};
use smol_testing::memory;
use smolbuild::diff;
use smolbuild::diff::memory::MAX_PLACES;

const MIB: u64 = 1 << 20;
/// What a comparison stays below.
const BOUND: u64 = 512 * MIB;

/// A bundle of a machine whose memory has `byte` everywhere; returns it and its length.
fn bundle(folder: &Path, name: &str, memory: u64, byte: u8) -> (Bundle, u64) {
    let place = |what: &str| folder.join(format!("{name}.{what}"));
    std::fs::write(place("kernel"), "a kernel").unwrap();
    let mut image = File::create(place("memory")).unwrap();
    image.set_len(memory).unwrap();
    if byte != 0 {
        let piece = vec![byte; MIB as usize];
        (0..memory / MIB).for_each(|_| image.write_all(&piece).unwrap());
    }
    let spec = bundle_spec(name, place("kernel"));
    let spec = smol_bundle::BundleSpec {
        config: Config {
            memory,
            ..spec.config
        },
        snapshot: Some(SnapshotSpec {
            memory: place("memory"),
            state: b"{}".to_vec(),
            working_set: WorkingSet::default(),
        }),
        ..spec
    };
    let out: PathBuf = place("smolmachine");
    write_bundle(&spec, &out);
    let size = out.metadata().unwrap().len();
    (Bundle::open(&out).unwrap(), size)
}

#[test]
fn memory_that_differs_everywhere_is_compared_within_the_memory_bound() {
    let test = "memory_that_differs_everywhere_is_compared_within_the_memory_bound";
    memory::within(BOUND, test, || {
        let scratch = tempfile::tempdir().unwrap();
        let more = 4096;
        let memory = (MAX_PLACES as u64 + more) * 4096;
        let (a, size) = bundle(scratch.path(), "a", memory, 0xaa);
        let (b, _) = bundle(scratch.path(), "b", memory, 0);
        assert!(size < MIB, "{size}");
        let interrupt = Interrupt::detached().unwrap();
        let cache = tempfile::tempdir().unwrap();
        let work = smolbuild::work::WorkDir::create(cache.path()).unwrap();
        let report = diff::compare(&a, &b, &work, &interrupt).unwrap();
        assert_eq!(report.memory.pages, MAX_PLACES as u64 + more);
        let owners: Vec<_> = report
            .memory
            .owners
            .iter()
            .map(|o| (o.pages, o.places.len()))
            .collect();
        assert_eq!(owners, [(MAX_PLACES as u64, MAX_PLACES), (more, 0)]);
        assert!(
            report
                .text(None)
                .contains("4096 pages of not looked into\n")
        );
    });
}

/// As many empty files as a tree may hold, each of which differs in its mode from those of the other.
fn full_tree(mode: u32) -> Tree {
    let mut tree = Tree::new();
    for n in 0u64.. {
        let inode = Inode {
            meta: Meta::root(mode),
            node: Node::File(FileData::from(Vec::new())),
        };
        if tree
            .insert(format!("{:02x}/{:x}", n & 0xff, n >> 8), inode)
            .is_err()
        {
            return tree;
        }
    }
    unreachable!("a tree has a limit")
}

#[test]
fn the_largest_root_file_systems_are_compared_within_the_memory_bound() {
    let test = "the_largest_root_file_systems_are_compared_within_the_memory_bound";
    memory::within(BOUND, test, || {
        let (a, b) = (full_tree(0o644), full_tree(0o600));
        let interrupt = Interrupt::detached().unwrap();
        let changes = diff::files::compare(&a, &b, &interrupt).unwrap();
        assert_eq!(changes.list.len(), diff::files::MAX_CHANGES);
        assert!(changes.more > 500_000, "{}", changes.more);
    });
}
