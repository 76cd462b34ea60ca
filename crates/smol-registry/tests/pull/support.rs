//! What the tests share: images as folders, clients that know only what a test tells them.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};
use smol_registry::{Client, Error, Fetched, Fetcher, Options, Places, Reference};
use tempfile::TempDir;

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Bytes that look random, the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// An image with these layers.
pub struct Image {
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    pub layers: Vec<Vec<u8>>,
}

impl Image {
    pub fn new(layers: Vec<Vec<u8>>) -> Self {
        let digests: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": digests},
        });
        let config = config.to_string().into_bytes();
        let descriptor = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()});
        let layer = "application/vnd.oci.image.layer.v1.tar";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|l| descriptor(layer, l)).collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string().into_bytes();
        Image {
            manifest,
            config,
            layers,
        }
    }

    /// Writes it as an OCI layout, and returns how skopeo names it.
    pub fn write(&self, folder: &Path) -> String {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        for bytes in self.layers.iter().chain([&self.config, &self.manifest]) {
            fs::write(blobs.join(&digest(bytes)["sha256:".len()..]), bytes).unwrap();
        }
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&self.manifest), "size": self.manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": "it"},
        }]});
        fs::write(folder.join("index.json"), index.to_string()).unwrap();
        fs::write(
            folder.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        format!("oci:{}:it", folder.display())
    }
}

/// Files of a client's host.
pub struct Home(pub TempDir);

impl Home {
    pub fn new() -> Self {
        Home(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Options that wait as little as possible, but for ever for a server that is only slow.
    pub fn options(&self) -> Options {
        Options {
            insecure: Vec::new(),
            places: Places {
                credentials: vec![self.path("auth.json"), self.path("config.json")],
                registries: vec![self.path("registries.conf")],
                certificates: vec![self.path("certs.d")],
                resolver: self.path("resolv.conf"),
            },
            connect_timeout: smol_testing::LIMIT,
            idle_timeout: smol_testing::LIMIT,
            retry_delay: Duration::from_millis(1),
            ..Options::default()
        }
    }

    pub fn client(&self) -> Client {
        client(self.options())
    }
}

/// The most that [`Downloads`] fetch, bytes.
pub const MOST: u64 = 1 << 20;

/// A host with a folder of downloads.
pub struct Downloads {
    pub home: Home,
    pub folder: PathBuf,
}

impl Downloads {
    pub fn new() -> Self {
        let home = Home::new();
        let folder = home.path("downloads");
        fs::create_dir(&folder).unwrap();
        Downloads { home, folder }
    }

    pub fn fetcher(&self) -> Fetcher {
        Fetcher::new(self.home.options(), Arc::new(|| true)).unwrap()
    }

    pub fn fetch(&self, url: &str, sha256: &str) -> Result<Fetched, Error> {
        self.with(&self.fetcher(), url, sha256)
    }

    pub fn with(&self, fetcher: &Fetcher, url: &str, sha256: &str) -> Result<Fetched, Error> {
        let url = url.parse().unwrap();
        fetcher.fetch(&url, sha256, MOST, &self.folder, &mut |_, _| {})
    }

    /// Names of what is in it.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.folder.join(name), bytes).unwrap();
    }
}

pub fn client(options: Options) -> Client {
    Client::new(options, Arc::new(|| true)).unwrap()
}

pub fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

/// A file with this content, and what a download adds to it.
pub fn file(content: &[u8]) -> File {
    use std::io::Write;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

pub fn content(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}
