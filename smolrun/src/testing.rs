//! Bundles of synthetic images for the tests of this program.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use smol_bundle::{
    Bundle, BundleSpec, ClockMode, Config, CpuContract, PrivateKey, SnapshotSpec, Tsc, TscNeeds,
    WorkingSet,
};
use tempfile::TempDir;

/// A bundle in a folder of its own.
pub struct Sample {
    pub dir: TempDir,
    pub bundle: PathBuf,
}

/// Guest RAM of the sample, bytes.
pub const MEMORY: u64 = 1 << 20;

impl Sample {
    pub fn new() -> Self {
        Self::with_rootfs(2 << 20, 0)
    }

    /// One whose root file system has so many bytes, of which the last `zeros` are zeros, and the others
    /// one page again and again.
    pub fn with_rootfs(size: u64, zeros: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("sample.smolmachine");
        // A size that a virtio-pmem device can have.
        assert_eq!(size % (2 << 20), 0);
        let rootfs = dir.path().join("rootfs");
        let mut file = File::create(&rootfs).unwrap();
        for _ in 0..(size - zeros) >> 20 {
            file.write_all(&[3; 1 << 20]).unwrap();
        }
        file.set_len(size).unwrap();
        write(dir.path(), rootfs, &bundle);
        Self { dir, bundle }
    }

    pub fn open(&self) -> Bundle {
        Bundle::open(&self.bundle).unwrap()
    }
}

pub fn config() -> Config {
    Config {
        name: "sample".into(),
        version: None,
        arch: "x86_64".into(),
        cpus: 1,
        memory: MEMORY,
        cmdline: "console=hvc0".into(),
        ports: vec![80],
        warm: None,
        clock: ClockMode::Virtual,
        reproducible: None,
        cpu: CpuContract {
            arch: "x86_64".into(),
            features: vec!["sse2".into()],
            physical_address_bits: 40,
            xcr0: 0,
            tsc: Tsc {
                needs: TscNeeds::None,
                khz: None,
            },
        },
    }
}

fn write(dir: &Path, rootfs: PathBuf, out: &Path) {
    let file = |name: &str, bytes: Vec<u8>| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let mut memory = vec![0; MEMORY as usize];
    memory[5000..9000].fill(7);
    let spec = BundleSpec {
        config: config(),
        kernel: file("kernel", vec![1; 10_000]),
        initramfs: Some(file("initramfs", vec![2; 5_000])),
        rootfs: Some(rootfs),
        snapshot: Some(SnapshotSpec {
            state: b"{}".to_vec(),
            memory: file("memory", memory),
            working_set: WorkingSet::default(),
        }),
        smolfile: None,
        lock: None,
        parent: None,
    };
    smol_bundle::write(&spec, out, &mut |_, _| {}).unwrap();
}

/// Signs it with a new key.
pub fn sign(sample: &Sample) -> PrivateKey {
    let key = PrivateKey::generate().unwrap();
    smol_bundle::sign(&sample.bundle, &key, &sample.bundle).unwrap();
    key
}
