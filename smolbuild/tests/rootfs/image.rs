//! A root file system out of a large container image.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use smol_cli::Interrupt;
use smol_image::ImageRef;
use smol_machine::cpu::Level;
use smol_testing::memory;
use smolbuild::input::{ImageInput, Input, InputDirs};
use smolbuild::source_dir::SourceDir;
use tar::{Builder, Header};
use toml::Spanned;

use crate::common::noise;
use crate::{build, lock};

const MIB: u64 = 1 << 20;
/// Of the image's files.
const FILE: u64 = 4 * MIB;
const FILES: u64 = 64;
const LAYERS: u64 = 4;
/// What making a root file system of an image of a GiB stays below.
const BOUND: u64 = 64 * MIB;

/// Digests and counts what is written.
struct Hashing<W> {
    to: W,
    sha256: Sha256,
    len: u64,
}

impl<W> Hashing<W> {
    fn new(to: W) -> Self {
        let sha256 = Sha256::new();
        Self { to, sha256, len: 0 }
    }

    fn digest(self) -> String {
        format!("sha256:{}", hex::encode(self.sha256.finalize()))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.sha256.update(&bytes[..count]);
        self.len += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Writes a layer of files that differ, as a blob; returns its descriptor and diff_id.
fn write_layer(blobs: &Path, number: u64) -> (Value, String) {
    let mut file = tempfile::NamedTempFile::new_in(blobs).unwrap();
    let (diff_id, digest, size) = pack(file.as_file_mut(), number);
    file.persist(blobs.join(&digest["sha256:".len()..]))
        .unwrap();
    let blob = json!({"digest": digest, "size": size, "mediaType": LAYER});
    (blob, diff_id)
}

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Its diff_id, its digest, and its length.
fn pack(file: &mut File, number: u64) -> (String, String, u64) {
    let packed = Hashing::new(io::BufWriter::new(file));
    let packed = GzEncoder::new(packed, flate2::Compression::fast());
    let mut tar = Builder::new(Hashing::new(packed));
    for n in 0..FILES {
        // Half a page of its own, and then the same again and again, so that it is packed soon.
        let own = noise(number * FILES + n, 2048);
        let content = io::repeat(0x55).take(FILE - own.len() as u64);
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(FILE);
        let content = own.as_slice().chain(content);
        let name = format!("layer{number}/{n}");
        tar.append_data(&mut header, name, content).unwrap();
    }
    let plain = tar.into_inner().unwrap();
    let diff_id = format!("sha256:{}", hex::encode(plain.sha256.finalize()));
    let mut packed = plain.to.finish().unwrap();
    packed.flush().unwrap();
    let size = packed.len;
    (diff_id, packed.digest(), size)
}

/// Writes the image of a GiB as a layout.
fn write_image(layout: &Path) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let layers = (0..LAYERS).map(|number| write_layer(&blobs, number));
    let (layers, diff_ids): (Vec<Value>, Vec<String>) = layers.unzip();
    let put = |document: Value| {
        let bytes = document.to_string();
        let hex = hex::encode(Sha256::digest(&bytes));
        fs::write(blobs.join(&hex), &bytes).unwrap();
        json!({"digest": format!("sha256:{hex}"), "size": bytes.len()})
    };
    let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
    let config =
        put(json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}));
    let manifest = put(json!({"schemaVersion": 2, "config": config, "layers": layers}));
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
}

#[test]
fn an_image_of_a_gibibyte_becomes_a_root_file_system_within_the_memory_bound() {
    let test = "image::an_image_of_a_gibibyte_becomes_a_root_file_system_within_the_memory_bound";
    memory::within(BOUND, test, || {
        let scratch = tempfile::tempdir().unwrap();
        write_image(&scratch.path().join("layout"));
        let reference = ImageRef::parse("oci:layout").unwrap();
        let input = ImageInput::new(Spanned::new(0..0, reference), Level::V3);
        let base_dir = SourceDir::bare(scratch.path());
        let (mut lock, interrupt) = (lock(Vec::new()), Interrupt::detached().unwrap());
        input.pin(&base_dir, None, &mut lock, &interrupt).unwrap();
        let dirs = InputDirs {
            base_dir: &base_dir,
            downloads: scratch.path(),
            cache: &scratch.path().join("cache"),
            scratch: scratch.path(),
        };
        let out = scratch.path().join("image");
        let image = build(&input, &lock, &[], 1_700_000_000, &dirs, &out).unwrap();
        assert!(image.size > LAYERS * FILES * FILE);
        // What a file has of its own is where the image has it.
        let mut file = File::open(&out).unwrap();
        let (own, mut page) = (noise(FILES + 1, 2048), vec![0; 4096]);
        let is_there = std::iter::from_fn(|| {
            file.read_exact(&mut page)
                .ok()
                .map(|()| page.starts_with(&own))
        });
        assert_eq!(is_there.filter(|found| *found).count(), 1);
    });
}
