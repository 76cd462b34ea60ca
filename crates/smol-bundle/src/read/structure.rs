//! The structure of the file: how archive, manifests, configuration and page index must agree.

use crate::format::archive::{self, Entry};
use crate::format::index::Flaw;
use crate::format::json;
use crate::format::limits::*;
use crate::format::oci::{self, Descriptor, Manifest};
use crate::source::Named;
use crate::{Config, Digest, Error, Image, ImageKind, PageIndex, ReadAt, Result, Signature};

/// The blobs that this crate does not look into: their names and largest sizes.
pub(super) const OPAQUE: [(&str, &str, u64); 3] = [
    (oci::STATE, "the machine state", MAX_STATE_SIZE),
    (oci::SMOLFILE, "the Smolfile", MAX_TEXT_SIZE),
    (oci::LOCK, "the lock", MAX_LOCK_SIZE),
];

pub(super) fn layer<'m>(manifest: &'m Manifest, media_type: &str) -> Option<&'m Descriptor> {
    manifest.layers.iter().find(|l| l.media_type == media_type)
}

/// Returns a manifest's descriptor without what only index.json says about it.
pub(super) fn plain(listed: &Descriptor) -> Descriptor {
    Descriptor::new(oci::OCI_MANIFEST, listed.digest, listed.size)
}

/// Tells other kinds of files by their first and last bytes, for a better message.
pub(super) fn recognise<S: ReadAt>(source: &Named<S>) -> Result<()> {
    let path = || source.name().to_owned();
    let not = |reason: &str| {
        let (path, reason) = (path(), reason.into());
        Err(Error::NotABundle { path, reason })
    };
    let size = source.size();
    let mut head = [0; 512];
    let len = size.min(512) as usize;
    source.read(&mut head[..len], 0)?;
    // The other project keeps its magic in a footer of 64 bytes, or at the beginning.
    let mut foot = [0; 8];
    if size >= 64 {
        source.read(&mut foot, size - 64)?;
    }
    if head.starts_with(b"SMOLPACK") || foot == *b"SMOLPACK" {
        return Err(Error::ForeignBundle { path: path() });
    }
    match &head[..len] {
        [] => not("it is empty"),
        [0x1f, 0x8b, ..] => not("it is compressed with gzip; decompress it first"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => not("it is compressed with zstd; decompress it first"),
        [0x7f, b'E', b'L', b'F', ..] => not("it is an ELF program"),
        h if h.len() == 512 && &h[257..262] != b"ustar" => not("it is not a tar archive"),
        h if h.len() == 512 && !h.starts_with(b"oci-layout\0") => not(
            "it is a tar archive, but not as smol writes it: its first entry is not oci-layout \
                 (tools that copy OCI archives keep the digest, but arrange the file anew)",
        ),
        _ => Ok(()),
    }
}

/// A source and the entries of its archive, before anything else is known.
pub(super) struct Archive<'a, S> {
    pub(super) source: &'a Named<S>,
    pub(super) entries: &'a [Entry],
}

impl<S: ReadAt> Archive<'_, S> {
    pub(super) fn corrupt(&self, section: &str, offset: u64, reason: impl Into<String>) -> Error {
        self.source.corrupt(section, offset, reason)
    }

    pub(super) fn last_offset(&self) -> u64 {
        self.entries.last().map_or(0, |e| e.offset)
    }

    pub(super) fn parse<T>(&self, section: &str, offset: u64, bytes: &[u8]) -> Result<T>
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        json::parse(bytes).map_err(|reason| self.corrupt(section, offset, reason))
    }

    pub(super) fn read(&self, entry: &Entry, what: &str, limit: u64) -> Result<Vec<u8>> {
        if entry.size > limit {
            let what = format!("the size of {what}");
            return Err(self.source.too_large(what, entry.size, limit));
        }
        let mut bytes = vec![0; entry.size as usize];
        self.source.read(&mut bytes, entry.offset)?;
        Ok(bytes)
    }

    pub(super) fn entry(&self, descriptor: &Descriptor) -> Result<&Entry> {
        let name = oci::blob_name(&descriptor.digest);
        let entry = self.entries.iter().find(|e| e.name == name);
        let entry = entry.ok_or_else(|| {
            self.corrupt(
                &name,
                self.last_offset(),
                "this blob is listed but is not in the archive",
            )
        })?;
        if entry.size != descriptor.size {
            let (listed, found) = (descriptor.size, entry.size);
            let reason = format!("this blob is listed with {listed} bytes but has {found}");
            return Err(self.corrupt(&name, entry.offset, reason));
        }
        Ok(entry)
    }

    pub(super) fn offset(&self, descriptor: &Descriptor) -> Result<u64> {
        self.entry(descriptor).map(|e| e.offset)
    }

    /// Reads a blob and verifies it.
    pub(super) fn blob(&self, descriptor: &Descriptor, what: &str, limit: u64) -> Result<Vec<u8>> {
        let entry = self.entry(descriptor)?;
        let bytes = self.read(entry, what, limit)?;
        let (expected, found) = (descriptor.digest, Digest::of(&bytes));
        if found != expected {
            let (path, offset) = (self.source.name().to_owned(), entry.offset);
            return Err(Error::DigestMismatch {
                path,
                offset,
                expected,
                found,
            });
        }
        Ok(bytes)
    }

    /// Reads the last entry. A newer format is refused by its name before anything else is looked
    /// at.
    pub(super) fn index_json(&self) -> Result<Vec<u8>> {
        let entry = self
            .entries
            .last()
            .filter(|e| e.name == "index.json")
            .ok_or_else(|| {
                self.corrupt(
                    "the archive",
                    self.last_offset(),
                    "the last entry is not index.json",
                )
            })?;
        let bytes = self.read(entry, "index.json", MAX_JSON_SIZE)?;
        match oci::newer_version(&bytes) {
            Some(found) => Err(self.newer(found)),
            None => Ok(bytes),
        }
    }

    pub(super) fn newer(&self, found: String) -> Error {
        Error::NewerVersion {
            path: self.source.name().to_owned(),
            found,
            supported: oci::MACHINE,
        }
    }

    /// Checks that the manifest is the one that the writer makes of its configuration, layers and
    /// parent, which is given.
    pub(super) fn check_manifest(
        &self,
        own: &Descriptor,
        manifest: &Manifest,
        config: &Config,
    ) -> Result<Option<Digest>> {
        let at = self.offset(own)?;
        let section = "the machine manifest";
        config.validate().map_err(|reason| {
            self.corrupt(
                "the configuration",
                self.offset(&manifest.config).unwrap_or(at),
                reason,
            )
        })?;
        let parent = manifest
            .parent()
            .map_err(|reason| self.corrupt(section, at, reason))?;
        let (config_blob, layers) = (manifest.config.clone(), manifest.layers.clone());
        if Manifest::machine(config, config_blob, layers, parent) != *manifest {
            return Err(self.corrupt(
                section,
                at,
                "not the manifest of a machine with this configuration",
            ));
        }
        let frames = ImageKind::ALL.map(ImageKind::media_type);
        let known = [
            &frames[..],
            &[oci::INDEX, oci::STATE, oci::SMOLFILE, oci::LOCK],
        ]
        .concat();
        let mut next = 0;
        for layer in manifest.layers.iter().chain([&manifest.config]) {
            if layer != &Descriptor::new(&layer.media_type, layer.digest, layer.size) {
                return Err(self.corrupt(section, at, "a descriptor has unknown fields"));
            }
        }
        for layer in &manifest.layers {
            let place = known[next..].iter().position(|k| *k == layer.media_type);
            let place = place.ok_or_else(|| {
                let reason = format!(
                    "layer {:?} is unknown, doubled or out of order",
                    layer.media_type
                );
                self.corrupt(section, at, reason)
            })?;
            next += place + 1;
        }
        match manifest.config.media_type.as_str() {
            oci::CONFIG => Ok(parent),
            other => Err(self.corrupt(section, at, format!("config {other:?} is unknown"))),
        }
    }

    pub(super) fn page_index(&self, manifest: &Manifest) -> Result<PageIndex> {
        let descriptor = layer(manifest, oci::INDEX).ok_or_else(|| {
            self.corrupt(
                "the machine manifest",
                self.last_offset(),
                "there is no page index",
            )
        })?;
        let bytes = self.blob(descriptor, "the page index", MAX_INDEX_SIZE)?;
        let begin = self.offset(descriptor)?;
        PageIndex::parse(&bytes).map_err(
            |Flaw {
                 offset,
                 reason,
                 newer,
             }| match newer {
                Some(version) => self.newer(format!("page index version {version}")),
                None => self.corrupt("the page index", begin + offset as u64, reason),
            },
        )
    }

    /// Checks that images, layers and configuration agree.
    pub(super) fn check_images(
        &self,
        manifest: &Manifest,
        config: &Config,
        index: &PageIndex,
    ) -> Result<()> {
        let at = self.offset(&manifest.config)?;
        for kind in ImageKind::ALL {
            let listed = layer(manifest, kind.media_type());
            let wanted = index.image(kind).map_or(0, Image::blob_len);
            if listed.map_or(0, |l| l.size) != wanted || listed.is_some_and(|l| l.size == 0) {
                let reason = format!("the page index wants {wanted} bytes of {kind} frames");
                return Err(self.corrupt("the machine manifest", at, reason));
            }
            if let Some(listed) = listed {
                self.entry(listed)?;
            }
        }
        for (media_type, what, limit) in OPAQUE {
            let found = layer(manifest, media_type).map_or(0, |l| l.size);
            if found > limit {
                let what = format!("the size of {what}");
                return Err(self.source.too_large(what, found, limit));
            }
        }
        let memory = index.image(ImageKind::Memory).map(Image::size);
        let state = layer(manifest, oci::STATE);
        if memory.is_some() != state.is_some() {
            let reason = "machine state and memory must be present or absent together";
            return Err(self.corrupt("the machine manifest", at, reason));
        }
        match memory {
            Some(size) if size != config.memory => {
                let reason = format!("memory is {} bytes, its image has {size}", config.memory);
                Err(self.corrupt("the configuration", at, reason))
            }
            _ => Ok(()),
        }
    }

    /// Reads the signatures and returns them with all their blobs, in archive order.
    pub(super) fn signatures(
        &self,
        machine: &Descriptor,
        listed: &[Descriptor],
    ) -> Result<(Vec<Signature>, Vec<Descriptor>)> {
        if listed.len() > MAX_SIGNATURES {
            let (found, limit) = (listed.len() as u64, MAX_SIGNATURES as u64);
            return Err(self
                .source
                .too_large("the number of signatures", found, limit));
        }
        let (mut signatures, mut blobs) = (Vec::new(), Vec::new());
        for listed in listed {
            let section = "a signature manifest";
            let own = plain(listed);
            let bytes = self.blob(&own, section, MAX_JSON_SIZE)?;
            let manifest: Manifest = self.parse(section, self.offset(&own)?, &bytes)?;
            let malformed = || self.corrupt(section, self.offset(&own).unwrap_or(0), "malformed");
            let [layer] = manifest.layers.as_slice() else {
                return Err(malformed());
            };
            let layer = Descriptor::new(oci::SIGNATURE_JSON, layer.digest, layer.size);
            if manifest != Manifest::signature(machine, layer.clone()) {
                return Err(malformed());
            }
            let bytes = self.blob(&layer, "a signature", MAX_JSON_SIZE)?;
            let signature = Signature::from_blob(&bytes).map_err(|reason| {
                self.corrupt("a signature", self.offset(&layer).unwrap_or(0), reason)
            })?;
            signatures.push(signature);
            blobs.extend([manifest.config, layer, own]);
        }
        if !signatures.is_sorted_by(|a, b| a.public_key.as_bytes() < b.public_key.as_bytes()) {
            let reason = "the signatures are not sorted by public key, or two have the same key";
            return Err(self.corrupt("index.json", self.last_offset(), reason));
        }
        Ok((signatures, blobs))
    }

    /// Checks that the archive holds exactly the listed blobs, each once, in the order of the
    /// lists.
    pub(super) fn check_order(
        &self,
        machine: &Descriptor,
        manifest: &Manifest,
        signatures: &[Descriptor],
    ) -> Result<usize> {
        let mut names = vec!["oci-layout".to_string()];
        let add = |names: &mut Vec<String>, descriptor: &Descriptor| {
            let name = oci::blob_name(&descriptor.digest);
            if !names.contains(&name) {
                names.push(name);
            }
        };
        for descriptor in manifest.layers.iter().chain([&manifest.config, machine]) {
            self.entry(descriptor)?;
            add(&mut names, descriptor);
        }
        let machine_entries = names.len();
        signatures
            .iter()
            .for_each(|descriptor| add(&mut names, descriptor));
        names.push("index.json".into());
        for (i, entry) in self.entries.iter().enumerate() {
            if names.get(i) != Some(&entry.name) {
                let expected = names.get(i).map_or("the end", String::as_str);
                let reason = format!("{expected} should stand here");
                return Err(self.corrupt(&entry.name, entry.offset - archive::BLOCK, reason));
            }
        }
        let layout = &self.entries[0];
        if self.read(layout, "oci-layout", 512)? != oci::OCI_LAYOUT {
            return Err(self.corrupt("oci-layout", layout.offset, "not an OCI image layout 1.0.0"));
        }
        Ok(machine_entries)
    }

    /// Checks that index.json is the one that the writer makes of these manifests.
    pub(super) fn check_index_json(
        &self,
        found: &[u8],
        machine: &Descriptor,
        signed: &[Descriptor],
    ) -> Result<()> {
        let signed: Vec<_> = signed.iter().map(plain).collect();
        if oci::bytes(&oci::Index::new(machine, &signed)) != found {
            let reason = "not the index of a machine and its signatures";
            return Err(self.corrupt("index.json", self.last_offset(), reason));
        }
        Ok(())
    }
}
