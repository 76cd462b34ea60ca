//! The OCI documents: descriptors, the machine manifest, signature manifests, index.json.
//!
//! Each document is a function of what it describes, so the reader builds it anew and compares
//! bytes instead of checking field by field. Sources: OCI image specification 1.1, image-layout.md,
//! manifest.md, image-index.md, descriptor.md.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::format::json;
use crate::{Config, Digest, ImageKind};

/// Artifact type of the machine manifest; the number is the format's major version.
pub const MACHINE: &str = "application/vnd.smol.machine.v1";
/// What [`MACHINE`] is without its version number.
pub(crate) const MACHINE_STEM: &str = "application/vnd.smol.machine.v";
/// The machine's configuration.
pub const CONFIG: &str = "application/vnd.smol.machine.config.v1+json";
/// The page index.
pub const INDEX: &str = "application/vnd.smol.machine.index.v1";
/// The machine state of the snapshot.
pub const STATE: &str = "application/vnd.smol.machine.state.v1";
/// The Smolfile.
pub const SMOLFILE: &str = "application/vnd.smol.machine.smolfile.v1+toml";
/// The lock.
pub const LOCK: &str = "application/vnd.smol.machine.lock.v1+toml";
/// Artifact type of a signature manifest.
pub const SIGNATURE: &str = "application/vnd.smol.machine.signature.v1";
/// The signature itself.
pub const SIGNATURE_JSON: &str = "application/vnd.smol.machine.signature.v1+json";

/// Media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of index.json.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of the two bytes `{}`.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// The bytes of the empty blob, manifest.md "Guidance for an Empty Descriptor".
pub(crate) const EMPTY_BLOB: &[u8] = b"{}";
/// The bytes of the file `oci-layout`.
pub(crate) const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// The name by which other tools find the machine among index.json's manifests.
const REF_NAME: (&str, &str) = ("org.opencontainers.image.ref.name", "latest");
/// The annotation with the digest of the bundle that the machine was built on.
pub const PARENT: &str = "vnd.smol.machine.parent";

impl ImageKind {
    /// Returns the media type of the image's frames.
    pub fn media_type(self) -> &'static str {
        match self {
            ImageKind::Kernel => "application/vnd.smol.machine.kernel.v1",
            ImageKind::Initramfs => "application/vnd.smol.machine.initramfs.v1",
            ImageKind::Rootfs => "application/vnd.smol.machine.rootfs.v1",
            ImageKind::Memory => "application/vnd.smol.machine.memory.v1",
        }
    }
}

/// Names a blob by content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: String,
    /// The blob's digest.
    pub digest: Digest,
    /// The blob's length, bytes.
    pub size: u64,
    /// What the manifest is, where the blob is a manifest listed in index.json.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Remarks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            artifact_type: None,
            annotations: BTreeMap::new(),
        }
    }

    pub(crate) fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }
}

/// An OCI image manifest, used for the machine and for signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Always [`OCI_MANIFEST`].
    pub media_type: String,
    /// [`MACHINE`] or [`SIGNATURE`].
    pub artifact_type: String,
    /// The configuration, or the empty blob.
    pub config: Descriptor,
    /// The other blobs, in the order in which they stand in the archive.
    pub layers: Vec<Descriptor>,
    /// The signed manifest, for a signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Name and version, for tools that know OCI but not smol; and [`PARENT`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Returns the one manifest of a machine with this configuration and these blobs, built on
    /// `parent`.
    pub(crate) fn machine(
        config: &Config,
        config_blob: Descriptor,
        layers: Vec<Descriptor>,
        parent: Option<Digest>,
    ) -> Self {
        let mut annotations = BTreeMap::new();
        annotations.insert(
            "org.opencontainers.image.title".to_string(),
            config.name.clone(),
        );
        if let Some(version) = &config.version {
            annotations.insert(
                "org.opencontainers.image.version".to_string(),
                version.clone(),
            );
        }
        if let Some(parent) = parent {
            annotations.insert(PARENT.to_string(), parent.to_string());
        }
        Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.into(),
            artifact_type: MACHINE.into(),
            config: config_blob,
            layers,
            subject: None,
            annotations,
        }
    }

    /// Returns the digest of the bundle that the machine was built on, if it names one; else why it
    /// is none.
    pub(crate) fn parent(&self) -> Result<Option<Digest>, String> {
        let parent = self.annotations.get(PARENT);
        parent
            .map(|digest| digest.parse().map_err(|why| format!("{PARENT}: {why}")))
            .transpose()
    }

    /// Returns the one manifest of a signature of `machine`, whose signature blob is `blob`.
    pub(crate) fn signature(machine: &Descriptor, blob: Descriptor) -> Self {
        Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.into(),
            artifact_type: SIGNATURE.into(),
            config: Descriptor::of(OCI_EMPTY, EMPTY_BLOB),
            layers: vec![blob],
            subject: Some(machine.clone()),
            annotations: BTreeMap::new(),
        }
    }
}

/// index.json: the machine's manifest, then those of its signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Index {
    schema_version: u32,
    media_type: String,
    pub(crate) manifests: Vec<Descriptor>,
}

impl Index {
    /// Returns the one index.json for these manifests.
    pub(crate) fn new(machine: &Descriptor, signatures: &[Descriptor]) -> Self {
        let mut machine = machine.clone();
        machine.artifact_type = Some(MACHINE.into());
        machine
            .annotations
            .insert(REF_NAME.0.into(), REF_NAME.1.into());
        let signatures = signatures.iter().cloned().map(|mut descriptor| {
            descriptor.artifact_type = Some(SIGNATURE.into());
            descriptor
        });
        Index {
            schema_version: 2,
            media_type: OCI_INDEX.into(),
            manifests: std::iter::once(machine).chain(signatures).collect(),
        }
    }
}

/// Returns the name of the machine format in an index.json that this version may not understand.
pub(crate) fn newer_version(index_json: &[u8]) -> Option<String> {
    let index: serde_json::Value = serde_json::from_slice(index_json).ok()?;
    let types = index["manifests"]
        .as_array()?
        .iter()
        .filter_map(|m| m["artifactType"].as_str());
    let newer = |t: &&str| {
        let number = t
            .strip_prefix(MACHINE_STEM)
            .and_then(|v| v.parse::<u32>().ok());
        number.is_some_and(|n| n > 1)
    };
    types.filter(newer).map(str::to_owned).next()
}

/// Returns where blob `digest` lies in an OCI layout.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Returns the bytes of `document`.
pub(crate) fn bytes(document: &impl Serialize) -> Vec<u8> {
    json::canonical(document)
}
