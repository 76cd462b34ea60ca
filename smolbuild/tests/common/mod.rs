//! What the tests share: small bundles, as nobody needs to boot them.

use std::path::{Path, PathBuf};

use smol_bundle::{BundleSpec, ClockMode, Config, CpuContract, Tsc, TscNeeds};

/// A machine of this name with a kernel alone, and without memory.
pub fn bundle_spec(name: &str, kernel: PathBuf) -> BundleSpec {
    BundleSpec {
        config: Config {
            name: name.into(),
            version: None,
            arch: "x86_64".into(),
            cpus: 1,
            memory: 16 << 20,
            cmdline: String::new(),
            ports: Vec::new(),
            warm: None,
            clock: ClockMode::Virtual,
            reproducible: None,
            cpu: CpuContract {
                arch: "x86_64".into(),
                features: Vec::new(),
                physical_address_bits: 40,
                xcr0: 0,
                tsc: Tsc {
                    needs: TscNeeds::None,
                    khz: None,
                },
            },
        },
        kernel,
        initramfs: None,
        rootfs: None,
        snapshot: None,
        smolfile: None,
        lock: None,
        parent: None,
    }
}

/// Writes a bundle; gives its digest.
pub fn write_bundle(spec: &BundleSpec, out: &Path) -> smol_bundle::Digest {
    smol_bundle::write(spec, out, &mut |_, _| {})
        .unwrap()
        .digest
}
