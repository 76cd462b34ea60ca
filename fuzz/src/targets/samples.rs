//! What several targets begin with, the same in every run.

use std::sync::OnceLock;

use smol_bundle::{
    Bundle, BundleSpec, ClockMode, Config, CpuContract, PrivateKey, Reproducible, Run,
    SnapshotSpec, Tsc, TscNeeds, WorkingSet,
};
use smol_rootfs::{Device, Inode, Meta, Node, Tree};

use crate::files::MemoryFile;

/// The example key of RFC 8410, section 10.3: trusted here.
pub const PRIVATE_KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
    -----END PRIVATE KEY-----\n";
/// Another one.
const OTHER_KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEINNvdIsWUeSN9fVKEJFPOjkQ+xt3u1oCWhlVKoIR+D7O\n\
    -----END PRIVATE KEY-----\n";

const PAGE: usize = 4096;

/// The trusted key, and another.
pub fn keys() -> &'static [PrivateKey; 2] {
    static KEYS: OnceLock<[PrivateKey; 2]> = OnceLock::new();
    KEYS.get_or_init(|| {
        [PRIVATE_KEY, OTHER_KEY].map(|pem| PrivateKey::from_pem(pem).expect("a key"))
    })
}

/// A page of text, different for each `seed`.
fn text(seed: u8) -> Vec<u8> {
    let lines = (0..).flat_map(|line| format!("page {seed} line {line}\n").into_bytes());
    lines.take(PAGE).collect()
}

fn config(memory: usize) -> Config {
    Config {
        name: "hello".into(),
        version: Some("1.0".into()),
        arch: "x86_64".into(),
        cpus: 1,
        memory: memory as u64,
        cmdline: "console=hvc0".into(),
        ports: vec![8080],
        warm: None,
        clock: ClockMode::Virtual,
        reproducible: Some(Reproducible {
            claimed: true,
            reason: None,
        }),
        cpu: CpuContract {
            arch: "x86_64".into(),
            features: vec!["fxsr".into(), "sse2".into()],
            physical_address_bits: 40,
            xcr0: 3,
            tsc: Tsc {
                needs: TscNeeds::None,
                khz: None,
            },
        },
    }
}

/// A small bundle, with a snapshot and two signatures or with neither.
pub fn bundle(whole: bool) -> Vec<u8> {
    let kernel = MemoryFile::new(&text(7)[..1000]);
    let initramfs = MemoryFile::new(&text(6)[..700]);
    let rootfs = MemoryFile::new(&[text(1), text(2), vec![0; PAGE], text(3)].concat());
    let memory = [text(9), vec![0; PAGE], text(2), text(3), text(9), text(8)].concat();
    let image = MemoryFile::new(&memory);
    let run = |first, pages, written| Run {
        first,
        pages,
        written,
    };
    let snapshot = whole.then(|| SnapshotSpec {
        state: super::machine::sample_state().to_json(),
        memory: image.path().to_owned(),
        working_set: WorkingSet {
            memory: vec![run(4, 2, true), run(0, 3, false)],
            rootfs: vec![run(1, 1, false)],
        },
    });
    let spec = BundleSpec {
        config: config(memory.len()),
        kernel: kernel.path().to_owned(),
        initramfs: whole.then(|| initramfs.path().to_owned()),
        rootfs: whole.then(|| rootfs.path().to_owned()),
        snapshot,
        smolfile: whole.then(|| b"name = 'hello'\n".to_vec()),
        lock: whole.then(|| b"version = 1\n".to_vec()),
        parent: None,
    };
    let folder = std::env::temp_dir().join(format!("smol-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let path = folder.join("sample.smolmachine");
    smol_bundle::write(&spec, &path, &mut |_, _| {}).expect("a bundle");
    if whole {
        for key in keys() {
            smol_bundle::sign(&path, key, &path).expect("a signature");
        }
    }
    let bytes = std::fs::read(&path).expect("it was written");
    std::fs::remove_dir_all(&folder).expect("it was made above");
    Bundle::from_source(&bytes[..], "sample").expect("a good bundle");
    bytes
}

/// A tree with everything that a root file system may hold.
pub fn tree() -> Tree {
    let mut tree = Tree::new();
    let put = |tree: &mut Tree, path: &str, node| {
        let mut meta = Meta::root(0o640);
        (meta.uid, meta.gid, meta.mtime) = (1, 2, Some(3));
        if path.contains("sbin") {
            meta.xattrs
                .insert(b"security.capability".to_vec(), vec![1; 20]);
            meta.xattrs.insert(b"user.note".to_vec(), b"x".to_vec());
        }
        tree.insert(path, Inode { meta, node })
            .expect("a good path");
    };
    let file = |bytes: Vec<u8>| Node::File(bytes.into());
    put(&mut tree, "init", file(b"#!/bin/true\n".to_vec()));
    put(&mut tree, "usr/sbin/service", file(text(5)));
    put(&mut tree, "usr/empty", file(Vec::new()));
    put(
        &mut tree,
        "dev/null",
        Node::CharDevice(Device { major: 1, minor: 3 }),
    );
    put(
        &mut tree,
        "dev/vda",
        Node::BlockDevice(Device {
            major: 254,
            minor: 0,
        }),
    );
    put(&mut tree, "run/pipe", Node::Fifo);
    put(&mut tree, "bin", Node::Symlink(b"usr/sbin".to_vec()));
    put(&mut tree, "a/b/c/d", Node::directory());
    tree.hard_link("usr/sbin/other", "init")
        .expect("a name that is free");
    tree
}
