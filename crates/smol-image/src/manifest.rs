//! Image indexes and manifests: OCI's, and Docker's of schema 2, which has the same fields.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use smol_bundle::Digest;

use crate::platform::Platform;
use crate::{MAX_DOCUMENT, MAX_LAYERS};

/// What names a blob (descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// What it is, as its maker says.
    pub media_type: String,
    /// Digest of the blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What it is for, in an index.
    pub platform: Option<Platform>,
    /// What else is said of it.
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Describes these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            media_type: String::new(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Checks that these bytes are what it names.
    ///
    /// # Errors
    /// They are others.
    pub fn verify(&self, bytes: &[u8]) -> Result<()> {
        let (found, len) = (Digest::of(bytes), bytes.len());
        ensure!(
            found == self.digest && len as u64 == self.size,
            "{} has {len} bytes and the digest {found}: it should have {} bytes",
            self.digest,
            self.size
        );
        Ok(())
    }
}

/// An index or a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// Images for several platforms.
    Index(Vec<Descriptor>),
    /// One image.
    Manifest(Manifest),
}

/// A manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its configuration.
    pub config: Descriptor,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: Option<String>,
    digest: String,
    size: i64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
}

impl Document {
    /// Reads an index or a manifest, whatever media type it was offered as: a document that is both is
    /// refused, so that nobody reads it as the other (CVE-2021-41190).
    ///
    /// # Errors
    /// It is longer than [`MAX_DOCUMENT`], no JSON, or neither; more than [`MAX_LAYERS`] layers; it is
    /// not of a container image.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        ensure!(
            bytes.len() as u64 <= MAX_DOCUMENT,
            "it is longer than {} MiB",
            MAX_DOCUMENT >> 20
        );
        let raw: RawDocument = serde_json::from_slice(bytes).context("it is no manifest")?;
        let descriptors =
            |raw: Vec<RawDescriptor>| raw.into_iter().map(descriptor).collect::<Result<Vec<_>>>();
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) => descriptors(manifests).map(Self::Index),
            (None, Some(config), Some(layers)) => {
                let config = descriptor(config)?;
                require_image(&config, raw.artifact_type.as_deref())?;
                ensure!(layers.len() <= MAX_LAYERS, "more than {MAX_LAYERS} layers");
                let layers = descriptors(layers)?;
                layers.iter().try_for_each(require_layer)?;
                Ok(Self::Manifest(Manifest { config, layers }))
            }
            (None, ..) if raw.schema_version == Some(1) => bail!(
                "it is a manifest of schema 1, which registries gave up in 2019: push the image again with a newer docker, or copy it with skopeo"
            ),
            (Some(_), ..) => bail!("it is an index and a manifest at once"),
            _ => bail!(
                "it is neither an index nor a manifest: it has no `manifests`, and not both of `config` and `layers`"
            ),
        }
    }
}

fn descriptor(raw: RawDescriptor) -> Result<Descriptor> {
    let digest = raw.digest.parse().map_err(|_| {
        anyhow::anyhow!(
            "a digest is sha256: and 64 digits and letters from a to f, not {:?}",
            short(&raw.digest)
        )
    })?;
    let size =
        u64::try_from(raw.size).with_context(|| format!("{digest} has the size {}", raw.size))?;
    Ok(Descriptor {
        media_type: raw.media_type.unwrap_or_default(),
        digest,
        size,
        platform: raw.platform,
        annotations: raw.annotations.unwrap_or_default(),
    })
}

/// Other things than images are kept in registries, too.
fn require_image(config: &Descriptor, artifact: Option<&str>) -> Result<()> {
    const IMAGES: [&str; 3] = [
        "",
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    ];
    let what = artifact.unwrap_or(&config.media_type);
    if what.contains("vnd.smol") {
        bail!(
            "it is a .smolmachine and no container image: save it as a file, and name that as [base] bundle"
        );
    }
    ensure!(
        IMAGES.contains(&config.media_type.as_str()),
        "it is no container image, but {:?}",
        short(what)
    );
    Ok(())
}

fn require_layer(layer: &Descriptor) -> Result<()> {
    let kind = &layer.media_type;
    ensure!(
        !kind.ends_with("+encrypted"),
        "layer {} is encrypted",
        layer.digest
    );
    ensure!(
        !kind.contains(".foreign.") && !kind.contains(".nondistributable."),
        "layer {} may not be distributed, and is not in the image (Windows images have such)",
        layer.digest
    );
    Ok(())
}

/// The beginning of a text from outside.
fn short(text: &str) -> String {
    const SHOWN: usize = 100;
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn refused(text: &str) -> String {
        format!("{:#}", Document::parse(text.as_bytes()).unwrap_err())
    }

    #[test]
    fn indexes_and_manifests_are_read_whatever_else_is_in_them() {
        let index = format!(
            r#"{{"schemaVersion":2,"x":1,"manifests":[{{"digest":"{D}","size":7,"platform":{{"os":"linux","architecture":"amd64","os.version":"1"}}}}]}}"#
        );
        let Document::Index(entries) = Document::parse(index.as_bytes()).unwrap() else {
            panic!("no index");
        };
        assert_eq!(
            (entries[0].digest.to_string().as_str(), entries[0].size),
            (D, 7)
        );
        assert_eq!(
            entries[0].platform.as_ref().unwrap().to_string(),
            "linux/amd64"
        );
        let manifest = format!(
            r#"{{"config":{{"digest":"{D}","size":0,"annotations":null}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{D}","size":0}}]}}"#
        );
        let Document::Manifest(manifest) = Document::parse(manifest.as_bytes()).unwrap() else {
            panic!("no manifest");
        };
        assert_eq!(manifest.layers.len(), 1);
        manifest.config.verify(b"").unwrap();
        assert!(manifest.config.verify(b"x").is_err());
    }

    #[test]
    fn what_is_no_image_is_told_for_what_it_is() {
        let config = |kind: &str| {
            format!(r#"{{"config":{{"mediaType":"{kind}","digest":"{D}","size":0}},"layers":[]}}"#)
        };
        assert!(refused("x").contains("no manifest"));
        assert!(refused("{}").contains("neither an index"));
        assert!(refused(r#"{"schemaVersion":1,"fsLayers":[]}"#).contains("schema 1"));
        assert!(refused(r#"{"manifests":[],"layers":[]}"#).contains("at once"));
        assert!(refused(&config("application/vnd.cncf.helm.config.v1+json")).contains("helm"));
        assert!(refused(&config("application/vnd.smol.config.v1+json")).contains(".smolmachine"));
        let layer = |kind: &str, size: &str| {
            format!(
                r#"{{"config":{{"digest":"{D}","size":0}},"layers":[{{"mediaType":"{kind}","digest":"{D}","size":{size}}}]}}"#
            )
        };
        assert!(
            refused(&layer(
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                "0"
            ))
            .contains("encrypted")
        );
        assert!(
            refused(&layer(
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                "0"
            ))
            .contains("Windows")
        );
        assert!(refused(&layer("x", "-1")).contains("has the size -1"));
        assert!(refused(&layer("x", "0").replace(D, "md5:1")).contains("md5:1"));
        let many = format!(
            r#"{{"config":{{"digest":"{D}","size":0}},"layers":[{}]}}"#,
            vec![format!(r#"{{"digest":"{D}","size":0}}"#); MAX_LAYERS + 1].join(",")
        );
        assert!(refused(&many).contains("more than 1000 layers"));
        assert!(refused(&" ".repeat(MAX_DOCUMENT as usize + 1)).contains("longer than 4 MiB"));
    }
}
