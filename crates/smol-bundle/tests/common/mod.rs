//! A small machine of synthetic images, the same in every run.

#![allow(dead_code)] // each test file uses its part

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use smol_bundle::{
    Bundle, BundleSpec, ClockMode, Config, CpuContract, Reproducible, Run, SnapshotSpec, Tsc,
    TscNeeds, WorkingSet, Written, write,
};
use tempfile::TempDir;

pub const PAGE: usize = 4096;
/// Pages of guest memory.
pub const MEMORY_PAGES: usize = 96;

/// A page of bytes that do not compress (xorshift64), different for each `seed`.
pub fn noise(seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    });
    word.flatten().take(PAGE).collect()
}

/// A page that compresses well, different for each `seed`.
pub fn text(seed: u64) -> Vec<u8> {
    (0..)
        .flat_map(|line| format!("page {seed} line {line}\n").into_bytes())
        .take(PAGE)
        .collect()
}

/// The synthetic images.
pub struct Images {
    pub kernel: Vec<u8>,
    pub initramfs: Vec<u8>,
    pub rootfs: Vec<u8>,
    pub memory: Vec<u8>,
}

impl Images {
    /// kernel: 2 pages and a bit. initramfs: 1 page. rootfs: 40 pages of text, one of them zero,
    /// one doubled. memory: 96 pages: 50 zero, 4 of the rootfs, 1 of the kernel, 3 equal, the rest
    /// its own.
    pub fn sample() -> Self {
        let kernel = [noise(1), noise(2), noise(3)[..100].to_vec()].concat();
        let initramfs = text(1000)[..777].to_vec();
        let mut rootfs: Vec<_> = (0..40).map(text).collect();
        rootfs[7] = vec![0; PAGE];
        rootfs[39] = text(3);
        let mut memory = vec![vec![0; PAGE]; MEMORY_PAGES];
        memory[1] = noise(1);
        memory[10] = text(4);
        memory[11] = text(5);
        memory[12] = text(6);
        memory[20] = text(3);
        for (page, number) in memory[30..68].iter_mut().zip(530..) {
            *page = text(number);
        }
        memory[90] = vec![0xff; PAGE];
        memory[91] = vec![0xff; PAGE];
        memory[95] = vec![0xff; PAGE];
        Images {
            kernel,
            initramfs,
            rootfs: rootfs.concat(),
            memory: memory.concat(),
        }
    }
}

/// Of memory pages of their own, some of them twice, a reference and a zero page; of the rootfs two.
pub fn working_set() -> WorkingSet {
    let run = |first, pages, written| Run {
        first,
        pages,
        written,
    };
    WorkingSet {
        memory: vec![
            run(60, 4, true),
            run(11, 1, false),
            run(0, 1, true),
            run(62, 3, false),
            run(90, 1, true),
        ],
        rootfs: vec![run(4, 2, false)],
    }
}

pub fn config() -> Config {
    Config {
        name: "sample".into(),
        version: Some("1.2.3".into()),
        arch: "x86_64".into(),
        cpus: 1,
        memory: (MEMORY_PAGES * PAGE) as u64,
        cmdline: "console=hvc0 quiet".into(),
        ports: vec![6379, 80],
        warm: None,
        clock: ClockMode::Virtual,
        reproducible: Some(Reproducible {
            claimed: true,
            reason: None,
        }),
        cpu: CpuContract {
            arch: "x86_64".into(),
            features: ["fxsr", "sse", "sse2"].map(String::from).to_vec(),
            physical_address_bits: 40,
            xcr0: 3,
            tsc: Tsc {
                needs: TscNeeds::None,
                khz: None,
            },
        },
    }
}

/// A folder with the images as files, and bundles of them.
pub struct Work {
    pub dir: TempDir,
    pub images: Images,
}

impl Work {
    pub fn new() -> Self {
        Self::with(Images::sample())
    }

    pub fn with(images: Images) -> Self {
        let work = Work {
            dir: tempfile::tempdir().unwrap(),
            images,
        };
        fs::write(work.path("kernel"), &work.images.kernel).unwrap();
        fs::write(work.path("initramfs"), &work.images.initramfs).unwrap();
        fs::write(work.path("rootfs"), &work.images.rootfs).unwrap();
        fs::write(work.path("memory"), &work.images.memory).unwrap();
        work
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn spec(&self) -> BundleSpec {
        BundleSpec {
            config: config(),
            kernel: self.path("kernel"),
            initramfs: Some(self.path("initramfs")),
            rootfs: Some(self.path("rootfs")),
            snapshot: Some(SnapshotSpec {
                state: b"opaque state".to_vec(),
                memory: self.path("memory"),
                working_set: working_set(),
            }),
            smolfile: Some(b"name = \"sample\"\n".to_vec()),
            lock: Some(b"version = 1\n".to_vec()),
            parent: None,
        }
    }

    pub fn write(&self, spec: &BundleSpec, name: &str) -> (PathBuf, Written) {
        let path = self.path(name);
        let written = write(spec, &path, &mut |_, _| {}).unwrap();
        (path, written)
    }

    pub fn bundle(&self) -> PathBuf {
        self.write(&self.spec(), "sample.smolmachine").0
    }
}

/// Opens a bundle in memory.
pub fn open(bytes: &[u8]) -> smol_bundle::Result<Bundle<&[u8]>> {
    Bundle::from_source(bytes, "memory")
}

/// Opens a bundle in memory and reads every byte.
pub fn verify(bytes: &[u8]) -> smol_bundle::Result<()> {
    open(bytes)?.verify_all(&mut |_, _| {})
}

/// Writes only the pages that are not zero, in an order of its own.
pub fn write_sparse(path: &Path, bytes: &[u8]) {
    let file = File::create(path).unwrap();
    for (i, page) in bytes
        .chunks(PAGE)
        .enumerate()
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
    {
        if page.iter().any(|b| *b != 0) {
            file.write_all_at(page, (i * PAGE) as u64).unwrap();
        }
    }
    file.set_len(bytes.len() as u64).unwrap();
}
