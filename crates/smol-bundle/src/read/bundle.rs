//! Opens a bundle: everything but the frames and the opaque blobs is read and checked at once.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::format::archive::Entry;
use crate::format::limits::*;
use crate::format::oci::{self, Descriptor, Manifest};
use crate::format::signature::accept;
use crate::read::archive::scan;
use crate::read::structure::{Archive, OPAQUE, layer, plain, recognise};
use crate::source::{Named, file};
use crate::{
    Config, Digest, Image, ImageKind, KeyId, PageIndex, PublicKey, ReadAt, Result, Signature,
    SignatureError, Stats,
};

/// An open bundle. Immutable; may be used from many threads.
///
/// Its bytes come from a source: a file, or whatever else is [`ReadAt`]. They must not change while
/// the bundle is open. If they do, reads fail or return what was verified, never unverified bytes.
#[derive(Debug)]
pub struct Bundle<S = File> {
    source: Named<S>,
    entries: Vec<Entry>,
    /// How many of `entries` are the machine's: `oci-layout` up to and including its manifest.
    machine_entries: usize,
    descriptor: Descriptor,
    manifest: Manifest,
    manifest_json: Vec<u8>,
    config: Config,
    parent: Option<Digest>,
    index: PageIndex,
    /// Where each image's frames begin in the file.
    frames_at: [Option<u64>; ImageKind::ALL.len()],
    signatures: Vec<Signature>,
    /// The signatures' blobs and manifests.
    signature_blobs: Vec<Descriptor>,
}

/// A blob of the bundle and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// What it is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// Its length, bytes.
    pub size: u64,
}

impl Bundle {
    /// Opens the bundle in the file at `path`, as [`Bundle::from_source`] does.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_source(file::open(path)?, path)
    }
}

impl<S: ReadAt> Bundle<S> {
    /// Opens the bundle in `source`, which messages call by `name`, and checks its structure: the
    /// archive's headers and order, index.json, the digests of manifests, configuration and page
    /// index and all that these say about each other. Frames, machine state and texts are verified
    /// when they are read.
    pub fn from_source(source: S, name: impl Into<PathBuf>) -> Result<Self> {
        let source = Named::new(source, name.into())?;
        recognise(&source)?;
        let entries = scan(&source)?;
        let archive = Archive {
            source: &source,
            entries: &entries,
        };
        let index_json = archive.index_json()?;

        let listed: oci::Index = archive.parse("index.json", archive.last_offset(), &index_json)?;
        let (descriptor, signed) = listed.manifests.split_first().ok_or_else(|| {
            archive.corrupt("index.json", archive.last_offset(), "no manifest is listed")
        })?;
        let descriptor = plain(descriptor);
        let manifest_json = archive.blob(&descriptor, "the machine manifest", MAX_JSON_SIZE)?;
        let manifest: Manifest = archive.parse(
            "the machine manifest",
            archive.offset(&descriptor)?,
            &manifest_json,
        )?;
        let config_json = archive.blob(&manifest.config, "the configuration", MAX_JSON_SIZE)?;
        let config: Config = archive.parse(
            "the configuration",
            archive.offset(&manifest.config)?,
            &config_json,
        )?;
        let parent = archive.check_manifest(&descriptor, &manifest, &config)?;
        let index = archive.page_index(&manifest)?;
        archive.check_images(&manifest, &config, &index)?;
        let (signatures, signature_blobs) = archive.signatures(&descriptor, signed)?;
        let machine_entries = archive.check_order(&descriptor, &manifest, &signature_blobs)?;
        archive.check_index_json(&index_json, &descriptor, signed)?;
        let begin = |kind: ImageKind| {
            layer(&manifest, kind.media_type())
                .map(|l| archive.offset(l))
                .transpose()
        };
        let [kernel, initramfs, rootfs, memory] = ImageKind::ALL.map(begin);
        Ok(Bundle {
            frames_at: [kernel?, initramfs?, rootfs?, memory?],
            machine_entries,
            descriptor,
            manifest,
            manifest_json,
            config,
            parent,
            index,
            signatures,
            signature_blobs,
            entries,
            source,
        })
    }

    /// Returns the bundle's digest: sha256 of its machine manifest. Signatures do not change it.
    pub fn digest(&self) -> Digest {
        self.descriptor.digest
    }

    /// Returns the machine's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the digest of the bundle that this one was built on, as it says. This one is
    /// complete without it.
    pub fn parent(&self) -> Option<Digest> {
        self.parent
    }

    /// Returns the machine manifest, byte for byte.
    pub fn manifest_json(&self) -> &[u8] {
        &self.manifest_json
    }

    /// Returns the size of the bundle in bytes.
    pub fn file_size(&self) -> u64 {
        self.source.size()
    }

    /// Returns the path that the bundle was opened by, or the name of its source.
    pub fn path(&self) -> &Path {
        self.source.name()
    }

    /// Returns every blob: the layers in the manifest's order, the configuration, the manifest, the
    /// signatures. Blobs with the same bytes have the same offset.
    pub fn layout(&self) -> Vec<Blob> {
        let machine = self
            .manifest
            .layers
            .iter()
            .chain([&self.manifest.config, &self.descriptor]);
        machine
            .chain(&self.signature_blobs)
            .filter_map(|d| self.locate(d))
            .collect()
    }

    fn locate(&self, descriptor: &Descriptor) -> Option<Blob> {
        let name = oci::blob_name(&descriptor.digest);
        let entry = self.entries.iter().find(|e| e.name == name)?;
        let Descriptor {
            media_type,
            digest,
            size,
            ..
        } = descriptor.clone();
        Some(Blob {
            media_type,
            digest,
            offset: entry.offset,
            size,
        })
    }

    /// Returns the page index.
    pub fn index(&self) -> &PageIndex {
        &self.index
    }

    /// Returns where the pages went, and how many bytes they take.
    pub fn stats(&self) -> Stats {
        self.index.stats()
    }

    /// Returns the exact size of an image in bytes; `None` if the bundle does not hold it.
    pub fn image_size(&self, kind: ImageKind) -> Option<u64> {
        self.index.image(kind).map(Image::size)
    }

    /// Returns whether the bundle holds a running machine.
    pub fn has_snapshot(&self) -> bool {
        self.index.image(ImageKind::Memory).is_some()
    }

    /// Returns the machine state of the snapshot, verified.
    pub fn state(&self) -> Result<Option<Vec<u8>>> {
        self.read_opaque(oci::STATE)
    }

    /// Returns the text of the Smolfile, verified.
    pub fn smolfile(&self) -> Result<Option<Vec<u8>>> {
        self.read_opaque(oci::SMOLFILE)
    }

    /// Returns the text of the lock, verified.
    pub fn lock(&self) -> Result<Option<Vec<u8>>> {
        self.read_opaque(oci::LOCK)
    }

    fn read_opaque(&self, media_type: &str) -> Result<Option<Vec<u8>>> {
        let known = OPAQUE.iter().find(|(known, ..)| *known == media_type);
        let (Some((_, what, limit)), Some(layer)) = (known, layer(&self.manifest, media_type))
        else {
            return Ok(None);
        };
        self.archive().blob(layer, what, *limit).map(Some)
    }

    /// Returns the signatures that the bundle carries, true or not, trusted or not.
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Looks for a true signature by one of `keys` and returns its key.
    ///
    /// The digest is checked against the manifest when the bundle is opened, the rest follows from
    /// the manifest when it is read; so this is enough to trust whatever this bundle returns.
    pub fn verify_signature(
        &self,
        keys: &[PublicKey],
    ) -> std::result::Result<KeyId, SignatureError> {
        accept(&self.signatures, &self.digest(), keys)
    }

    pub(crate) fn source(&self) -> &Named<S> {
        &self.source
    }

    pub(crate) fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(crate) fn machine_entries(&self) -> &[Entry] {
        &self.entries[..self.machine_entries]
    }

    /// Returns where the frames of an image begin in the file.
    pub(crate) fn frames_offset(&self, kind: ImageKind) -> Option<u64> {
        self.frames_at[kind as usize]
    }

    fn archive(&self) -> Archive<'_, S> {
        Archive {
            source: &self.source,
            entries: &self.entries,
        }
    }
}
