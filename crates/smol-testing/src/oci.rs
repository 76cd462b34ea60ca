//! Container images for tests, written as layouts (image-layout.md of the OCI image specification).

use std::fs;
use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A layer, as a tar archive that grows.
#[derive(Clone, Debug, Default)]
pub struct Layer(Vec<u8>);

/// Tar archives consist of blocks of this many bytes.
const BLOCK: usize = 512;

impl Layer {
    /// What an archive holds, which ends as all do, with two empty blocks.
    ///
    /// # Panics
    /// If it does not.
    #[must_use]
    pub fn from_archive(mut archive: Vec<u8>) -> Self {
        assert!(archive.ends_with(&[0; 2 * BLOCK]), "an archive has an end");
        archive.truncate(archive.len() - 2 * BLOCK);
        Self(archive)
    }

    /// With a file of root's more.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.member(path, b'0', mode, "", content)
    }

    /// With a folder of root's more.
    #[must_use]
    pub fn folder(self, path: &str) -> Self {
        self.folder_of(path, 0o755, (0, 0))
    }

    /// With a folder more, of this user and group.
    #[must_use]
    pub fn folder_of(self, path: &str, mode: u32, owner: (u32, u32)) -> Self {
        self.add(path, b'5', mode, owner, "", &[])
    }

    /// With a symbolic link more.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.member(path, b'2', 0o777, target, &[])
    }

    /// With a further name of a file.
    #[must_use]
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.member(path, b'1', 0o644, target, &[])
    }

    /// With a block device of root's more.
    #[must_use]
    pub fn block_device(self, path: &str, major: u32, minor: u32) -> Self {
        let begin = self.0.len();
        let mut layer = self.member(path, b'4', 0o600, "", &[]);
        let header = &mut layer.0[begin..];
        header[329..336].copy_from_slice(format!("{major:07o}").as_bytes());
        header[337..344].copy_from_slice(format!("{minor:07o}").as_bytes());
        checksum(header);
        layer
    }

    /// Adds something of root's.
    fn member(self, path: &str, kind: u8, mode: u32, link: &str, content: &[u8]) -> Self {
        self.add(path, kind, mode, (0, 0), link, content)
    }

    /// Adds a header of POSIX.1-1988 (ustar) and a content.
    fn add(
        mut self,
        path: &str,
        kind: u8,
        mode: u32,
        (user, group): (u32, u32),
        link: &str,
        content: &[u8],
    ) -> Self {
        let mut header = [0; BLOCK];
        let mut put =
            |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        assert!(
            path.len() < 100 && link.len() < 100,
            "names of tests are short"
        );
        put(0, path);
        put(100, &format!("{mode:07o}"));
        put(108, &format!("{user:07o}"));
        put(116, &format!("{group:07o}"));
        put(124, &format!("{:011o}", content.len()));
        put(136, "00000001750");
        put(156, char::from(kind).encode_utf8(&mut [0; 4]));
        put(157, link);
        put(257, "ustar\u{0}00");
        checksum(&mut header);
        self.0.extend(header);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// The archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.0.extend([0; 2 * BLOCK]);
        self.0
    }
}

/// Makes the checksum of a header right.
fn checksum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\u{0}").as_bytes());
}

/// How the layers of a layout are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packed {
    /// As they are.
    Plain,
    /// By gzip.
    Gzip,
}

/// Writes the layout `folder` with one image for linux/amd64, which has this tag and whose `config` (the
/// object of that name in a configuration) is this. Returns the digest of its configuration.
///
/// # Panics
/// If it cannot be written.
pub fn write_layout(
    folder: &Path,
    tag: &str,
    config: &Value,
    layers: Vec<Layer>,
    packed: Packed,
) -> String {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a folder of the test");
    let put = |bytes: &[u8]| {
        let hex = hex(bytes);
        fs::write(blobs.join(&hex), bytes).expect("a folder of the test");
        json!({"digest": format!("sha256:{hex}"), "size": bytes.len()})
    };
    let layers: Vec<Vec<u8>> = layers.into_iter().map(Layer::finish).collect();
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| format!("sha256:{}", hex(layer)))
        .collect();
    let described = layers.iter().map(|layer| {
        let (mut blob, suffix) = match packed {
            Packed::Plain => (put(layer), ""),
            Packed::Gzip => (put(&gzip(layer)), "+gzip"),
        };
        blob["mediaType"] = format!("application/vnd.oci.image.layer.v1.tar{suffix}").into();
        blob
    });
    let described: Vec<Value> = described.collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let mut config = put(config.to_string().as_bytes());
    config["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
    let id = config["digest"]
        .as_str()
        .expect("it was just made")
        .to_owned();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": described,
    });
    let mut manifest = put(manifest.to_string().as_bytes());
    manifest["mediaType"] = MANIFEST.into();
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(folder.join("index.json"), index.to_string()).expect("a folder of the test");
    let version = json!({"imageLayoutVersion": "1.0.0"});
    fs::write(folder.join("oci-layout"), version.to_string()).expect("a folder of the test");
    id
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    written.expect("memory can be written")
}
