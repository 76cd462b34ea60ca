//! Bundles: the whole file, and its parts without the digests above them.

use std::collections::BTreeMap;

use smol_bundle::fuzz::{Document, canonical, document, pack, page_index, signature, unpack};
use smol_bundle::oci::{self, Descriptor, Manifest};
use smol_bundle::{
    Bundle, Config, Content, Digest, FrameReader, ImageKind, KeyId, PrivateKey, PublicKey, limits,
};

use super::samples;
use crate::files::MemoryFile;
use crate::input::{BETWEEN, Numbers, join, parts};

const PAGE: usize = limits::PAGE_SIZE;
const BLOCK: usize = 512;
/// Largest image that is read as a whole.
const MOST_IMAGE: u64 = 16 << 20;
/// Most runs of pages of an image that are compared.
const MOST_EXTENTS: usize = 16;

/// A page index, as the blob of a bundle holds it.
///
/// Holds: what is accepted is the one encoding of what it means, and all pieces of all images lie in
/// frames that there are, side by side in the image.
pub fn index(data: &[u8]) -> bool {
    let mut bytes = data.to_vec();
    repair_header(&mut bytes);
    let Some((index, again)) = page_index(&bytes) else {
        return false;
    };
    assert_eq!(again, bytes, "one index, one encoding");
    for image in index.images() {
        let mut end = 0;
        for piece in index.pieces(image.kind(), 0, image.pages()) {
            let source = index.image(piece.source).expect("an image that is there");
            let frame = source.frames()[piece.frame as usize];
            assert!(piece.page_in_frame + piece.pages <= frame.pages);
            assert!(piece.page >= end, "pieces overlap");
            end = piece.page + piece.pages;
        }
        assert!(end <= image.pages());
        let pages: u64 = image.extents().iter().map(|e| u64::from(e.pages)).sum();
        assert_eq!(pages, u64::from(image.pages()));
        let set: u64 = image.working_set().iter().map(|r| u64::from(r.pages)).sum();
        assert!(set <= pages);
    }
    let stats = index.stats();
    for image in &stats.images {
        let parts = image.zero + image.duplicate + image.in_rootfs + image.in_boot + image.stored;
        assert!(parts >= image.pages, "{image:?}");
    }
    true
}

/// Magic, version and page size, and no more images than there can be.
fn repair_header(bytes: &mut [u8]) {
    if let Some(head) = bytes.first_chunk_mut::<24>() {
        head[..16].copy_from_slice(b"smolpidx\x03\0\0\0\0\x10\0\0");
        head[16] = (head[16].wrapping_sub(1) & 3) + 1;
        head[17..].fill(0);
    }
}

/// A number of pages, then the compressed bytes of a frame.
///
/// Holds: a frame has exactly its pages; what was compressed by ourselves comes back.
pub fn frame(data: &[u8]) -> bool {
    let mut numbers = Numbers::new(data);
    let pages = u32::from(numbers.u16()) % limits::MAX_FRAME_PAGES + 1;
    let bytes = numbers.rest();
    let Ok(raw) = unpack(bytes, pages) else {
        return false;
    };
    assert_eq!(raw.len(), pages as usize * PAGE);
    let again = pack(&raw).expect("pages compress");
    assert_eq!(unpack(&again, pages).as_deref(), Ok(&raw[..]));
    true
}

/// Configuration, manifest, index.json or a signature (by the first byte), as JSON.
///
/// Holds: what is accepted is the one form of what it says.
pub fn documents(data: &[u8]) -> bool {
    use Document::*;
    let mut numbers = Numbers::new(data);
    let kind = numbers.pick(&[Config, Manifest, Index, Signature]);
    let text = numbers.rest();
    let repaired = serde_json::from_slice::<serde_json::Value>(text);
    let repaired = repaired.map(|value| canonical(&value)).unwrap_or_default();
    let accepted = |text: &[u8]| {
        let again = document(kind, text);
        assert!(again.as_ref().is_none_or(|again| again == text), "{kind:?}");
        again.is_some()
    };
    accepted(text) | accepted(&repaired)
}

/// The text of a key file, a key's name, a digest.
///
/// Holds: what is accepted is written as it can be read again, and a file is a key of one kind only.
pub fn keys(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let (public, private) = (PublicKey::from_pem(&text), PrivateKey::from_pem(&text));
    assert!(public.is_err() || private.is_err());
    let accepted = public.is_ok() || private.is_ok();
    if let Ok(key) = public {
        assert_eq!(PublicKey::from_pem(&key.to_pem()), Ok(key.clone()));
        assert_eq!(PublicKey::from_bytes(key.as_bytes()), Ok(key));
    }
    let file = MemoryFile::new(data);
    let _ = smol_trust::load_public(file.path());
    let _ = smol_trust::load_private(file.path());
    if let Ok(id) = text.parse::<KeyId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    accepted
}

/// The bytes of a file, of which each tar header is made canonical for the name and size that it
/// says.
///
/// Holds: as for [`bundle`].
pub fn archive(data: &[u8]) -> bool {
    let accepted = check(data, None);
    let mut bytes = data.to_vec();
    let mut at = 0;
    while at + BLOCK <= bytes.len() && bytes[at..at + BLOCK].iter().any(|byte| *byte != 0) {
        let found = tar::Header::from_byte_slice(&bytes[at..at + BLOCK]).clone();
        let name = String::from_utf8_lossy(&found.path_bytes()).into_owned();
        let Ok(size) = found.entry_size() else { break };
        let Some(header) = header(&name, size) else {
            break;
        };
        bytes[at..at + BLOCK].copy_from_slice(header.as_bytes());
        let blocks = size.div_ceil(BLOCK as u64).min(1 << 20) as usize;
        at += BLOCK * (1 + blocks);
    }
    check(&bytes, None) || accepted
}

/// The parts of a bundle: configuration, page index, four images' frames, state, Smolfile, lock,
/// signature; first two bytes with flags. They are put together as the writer does it, with every
/// digest, size and hash right, so that only rules can refuse them.
///
/// Holds: a refusal counts as a failed verification; whatever is given out is what the digests say,
/// frame by frame and page by page, in every way to read it; only a true signature by a trusted key
/// makes the bundle trusted.
pub fn bundle(data: &[u8]) -> bool {
    let mut parts = parts(data, PARTS);
    parts.resize(PARTS, &[]);
    let mut flags = Numbers::new(parts[0]);
    let (flags, more) = (flags.u8(), flags.u8());
    let pages = flags & RAW_PAGES != 0;
    let mut index = parts[2].to_vec();
    repair_header(&mut index);
    let frames = repair_frames(&mut index, &parts[3..7], pages);
    let config = repair_config(parts[1], &index);
    let mut writer = Writer::default();
    for (frames, kind) in frames.iter().zip(ImageKind::ALL) {
        writer.layer(kind.media_type(), frames);
    }
    writer.layer(oci::INDEX, &index);
    let optional = [oci::STATE, oci::SMOLFILE, oci::LOCK];
    for (part, media_type) in parts[7..10].iter().zip(optional) {
        writer.layer(media_type, part);
    }
    let signatures = Signatures {
        ours: flags & SIGNED != 0,
        other: flags & SIGNED_BY_ANOTHER != 0,
        forged: flags & FORGED != 0,
        raw: parts[10],
    };
    let bytes = writer.finish(&config, &signatures, more);
    check(&bytes, Some(&signatures))
}

const PARTS: usize = 11;
/// Flags of [`bundle`]: the parts are pages, to be compressed; who signs.
const RAW_PAGES: u8 = 1;
const SIGNED: u8 = 2;
const SIGNED_BY_ANOTHER: u8 = 4;
const FORGED: u8 = 8;

/// Who signs a bundle.
struct Signatures<'a> {
    /// The trusted key, truly.
    ours: bool,
    /// Another key, truly.
    other: bool,
    /// The trusted key, but another bundle.
    forged: bool,
    /// What may be a signature.
    raw: &'a [u8],
}

/// Gives each frame of the index the hash and the length of the bytes that there are, the last of an
/// image all that are left. Returns the images' frames.
fn repair_frames(index: &mut [u8], images: &[&[u8]], pages: bool) -> Vec<Vec<u8>> {
    let count = index.get(16).map_or(0, |count| usize::from(*count));
    let mut frames = vec![Vec::new(); images.len()];
    let mut at = 24 + 32 * count;
    for n in 0..count {
        let Some(head) = index.get(24 + 32 * n..).and_then(<[u8]>::first_chunk::<32>) else {
            break;
        };
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| head[at + i])) as usize;
        let (kind, of_frames, extents, runs) = (
            usize::from(head[0]) % images.len(),
            word(24),
            word(28),
            word(4),
        );
        let mut rest = images[kind];
        for frame in 0..of_frames {
            let Some(entry) = index.get_mut(at..at + 40) else {
                return frames;
            };
            let bytes = frame_bytes(&mut rest, entry, frame + 1 == of_frames, pages);
            entry[..4].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
            entry[8..].copy_from_slice(blake3::hash(&bytes).as_bytes());
            frames[kind].extend(bytes);
            at += 40;
        }
        let len = (frames[kind].len() as u64).to_le_bytes();
        index[24 + 32 * n + 16..][..8].copy_from_slice(&len);
        at = at.saturating_add(extents.saturating_add(runs).saturating_mul(12));
    }
    frames
}

/// Takes the bytes of a frame, and compresses them if they are `pages`.
fn frame_bytes(rest: &mut &[u8], entry: &[u8], last: bool, pages: bool) -> Vec<u8> {
    let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| entry[at + i])) as usize;
    let take = match pages {
        true => (number(4) % 1024) * PAGE,
        false if last => rest.len(),
        false => number(0),
    };
    let (bytes, behind) = rest.split_at(take.min(rest.len()));
    *rest = behind;
    if !pages {
        return bytes.to_vec();
    }
    let mut bytes = bytes.to_vec();
    bytes.resize(take.min(64 * PAGE), 0);
    pack(&bytes).unwrap_or_default()
}

/// The configuration in its canonical form, with the memory that the index says.
fn repair_config(text: &[u8], index: &[u8]) -> Vec<u8> {
    let Ok(mut config) = serde_json::from_slice::<serde_json::Value>(text) else {
        return text.to_vec();
    };
    let memory =
        page_index(index).and_then(|(index, _)| Some(index.image(ImageKind::Memory)?.size()));
    if let (Some(memory), Some(config)) = (memory, config.as_object_mut()) {
        config.insert("memory".into(), memory.into());
    }
    canonical(&config)
}

fn header(name: &str, size: u64) -> Option<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).ok()?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_device_major(0).ok()?;
    header.set_device_minor(0).ok()?;
    header.set_cksum();
    Some(header)
}

/// Puts a bundle together.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    layers: Vec<Descriptor>,
    known: BTreeMap<Digest, ()>,
}

impl Writer {
    fn file(&mut self, name: &str, bytes: &[u8]) {
        let header = header(name, bytes.len() as u64).expect("a short name");
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(bytes);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(BLOCK), 0);
    }

    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Descriptor {
        if self.bytes.is_empty() {
            self.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        }
        let digest = Digest::of(bytes);
        if self.known.insert(digest, ()).is_none() {
            self.file(&blob_name(&digest), bytes);
        }
        Descriptor {
            media_type: media_type.into(),
            digest,
            size: bytes.len() as u64,
            artifact_type: None,
            annotations: BTreeMap::new(),
        }
    }

    fn layer(&mut self, media_type: &str, bytes: &[u8]) {
        if !bytes.is_empty() {
            let layer = self.blob(media_type, bytes);
            self.layers.push(layer);
        }
    }

    /// Adds configuration, manifest, signatures and index.json. `more` changes the manifest.
    fn finish(mut self, config: &[u8], signatures: &Signatures<'_>, more: u8) -> Vec<u8> {
        let known: Option<Config> = serde_json::from_slice(config).ok();
        let config = self.blob(oci::CONFIG, config);
        let manifest = manifest(config, std::mem::take(&mut self.layers), known, more);
        let machine = self.blob(oci::OCI_MANIFEST, &canonical(&manifest));
        let mut listed = machine.clone();
        listed.artifact_type = Some(oci::MACHINE.into());
        listed
            .annotations
            .insert("org.opencontainers.image.ref.name".into(), "latest".into());
        let mut manifests = vec![listed];
        for blob in signatures.blobs(&machine.digest) {
            let empty = self.blob(oci::OCI_EMPTY, b"{}");
            let blob = self.blob(oci::SIGNATURE_JSON, &blob);
            let signed = signature_manifest(empty, blob, machine.clone());
            let mut signed = self.blob(oci::OCI_MANIFEST, &canonical(&signed));
            signed.artifact_type = Some(oci::SIGNATURE.into());
            manifests.push(signed);
        }
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": oci::OCI_INDEX, "manifests": manifests,
        });
        self.file("index.json", &canonical(&index));
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}

fn manifest(
    config: Descriptor,
    layers: Vec<Descriptor>,
    known: Option<Config>,
    more: u8,
) -> Manifest {
    let (name, version) = known.map_or((String::new(), None), |c| (c.name, c.version));
    let title = ("org.opencontainers.image.title".to_owned(), name);
    let version = version.map(|v| ("org.opencontainers.image.version".to_owned(), v));
    let parent =
        (more & 1 != 0).then(|| (oci::PARENT.to_owned(), Digest::of(b"parent").to_string()));
    let annotations = [title].into_iter().chain(version).chain(parent).collect();
    let mut manifest = Manifest {
        schema_version: 2,
        media_type: oci::OCI_MANIFEST.into(),
        artifact_type: oci::MACHINE.into(),
        config,
        layers,
        subject: None,
        annotations,
    };
    let layers = &mut manifest.layers;
    match (more >> 1 & 7, layers.len()) {
        (1, 2..) => layers.swap(0, 1),
        (2, 1..) => layers[0].size = layers[0].size.wrapping_add((more >> 4).into()),
        (3, 1..) => layers.push(layers[0].clone()),
        (4, 1..) => drop(layers.pop()),
        (5, _) => manifest.config.size = u64::MAX >> (more >> 4),
        _ => {}
    }
    manifest
}

fn signature_manifest(config: Descriptor, blob: Descriptor, machine: Descriptor) -> Manifest {
    Manifest {
        schema_version: 2,
        media_type: oci::OCI_MANIFEST.into(),
        artifact_type: oci::SIGNATURE.into(),
        config,
        layers: vec![blob],
        subject: Some(machine),
        annotations: BTreeMap::new(),
    }
}

impl Signatures<'_> {
    /// The blobs, by key as the format wants them.
    fn blobs(&self, machine: &Digest) -> Vec<Vec<u8>> {
        let [ours, other] = samples::keys();
        let mut blobs = BTreeMap::new();
        let mut add = |key: &PrivateKey, digest: &Digest| {
            blobs.insert(*key.public().as_bytes(), signature(key, digest));
        };
        if self.other {
            add(other, machine);
        }
        if self.ours || self.forged {
            let wanted = if self.ours {
                *machine
            } else {
                Digest::of(b"another")
            };
            add(ours, &wanted);
        }
        let mut blobs: Vec<_> = blobs.into_values().collect();
        if !self.raw.is_empty() {
            blobs.push(self.raw.to_vec());
        }
        blobs
    }
}

fn blob_name(digest: &Digest) -> String {
    let digest = digest.to_string();
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

/// Opens a bundle and reads all of it. Returns whether all of it is good.
fn check(bytes: &[u8], signatures: Option<&Signatures<'_>>) -> bool {
    let bundle = match Bundle::from_source(bytes, "fuzz") {
        Ok(bundle) => bundle,
        Err(error) => {
            assert!(error.is_verification_failure(), "{error}");
            return false;
        }
    };
    for blob in bundle.layout() {
        let end = blob
            .offset
            .checked_add(blob.size)
            .expect("a blob has an end");
        assert!(end <= bytes.len() as u64, "{blob:?}");
    }
    let whole = bundle.verify_all(&mut |_, _| {});
    if let Err(error) = &whole {
        assert!(error.is_verification_failure(), "{error}");
    }
    if whole.is_ok() {
        for blob in bundle.layout() {
            let content = &bytes[blob.offset as usize..][..blob.size as usize];
            assert_eq!(Digest::of(content), blob.digest);
        }
    }
    for read in [bundle.state(), bundle.smolfile(), bundle.lock()] {
        assert!(read.is_ok() || whole.is_err());
    }
    let [ours, _] = samples::keys();
    if bundle.verify_signature(&[ours.public()]).is_ok() {
        assert!(
            signatures.is_none_or(|s| s.ours || !s.raw.is_empty()),
            "nobody signed"
        );
    }
    images(&bundle, whole.is_ok(), bytes.len() % 4096 < 512);
    whole.is_ok()
}

/// Every way to read an image gives the same. With threads only if `extract`: they cost a fuzzer most
/// of its time.
fn images(bundle: &Bundle<&[u8]>, good: bool, extract: bool) {
    let mut frames = FrameReader::new(bundle).expect("a decompressor");
    for image in bundle.index().images() {
        let kind = image.kind();
        if image.size() > MOST_IMAGE {
            assert!(bundle.read_image(kind, MOST_IMAGE).is_err());
            continue;
        }
        let whole = match bundle.read_image(kind, MOST_IMAGE) {
            Ok(whole) => whole,
            Err(error) => {
                assert!(!good && error.is_verification_failure(), "{error}");
                continue;
            }
        };
        assert_eq!(whole.len() as u64, image.size());
        if extract {
            let out = MemoryFile::new(&[]);
            let extracted = bundle.extract(kind, &out.file, 2, &mut |_, _| {});
            extracted.expect("it was read before");
            let found = std::fs::read(out.path()).expect("memory");
            assert!(found == whole, "{kind}: extracted");
        }
        let map = bundle.frame_map(kind);
        for extent in image.extents().iter().take(MOST_EXTENTS) {
            let page = extent.first_page;
            let piece = bundle.piece(kind, page);
            assert_eq!(piece.is_none(), extent.content == Content::Zero);
            let Some(piece) = piece else { continue };
            assert!(map.find(&piece).is_some());
            let frame = frames.read(piece.source, piece.frame as usize);
            let page_in_frame = piece.of(frame.expect("read before"));
            let have = &whole[page as usize * PAGE..];
            let len = have.len().min(PAGE);
            assert_eq!(page_in_frame[..len], have[..len]);
        }
    }
}

/// A bundle, by [`samples::bundle`].
pub fn archive_seeds() -> Vec<Vec<u8>> {
    vec![samples::bundle(true), samples::bundle(false)]
}

/// Its parts; with frames as they are and as pages.
pub fn bundle_seeds() -> Vec<Vec<u8>> {
    let bytes = samples::bundle(true);
    let bundle = Bundle::from_source(&bytes[..], "sample").expect("a good bundle");
    let blob = |media_type: &str| {
        let blobs = bundle.layout();
        let found = blobs.iter().find(|blob| blob.media_type == media_type);
        found.map_or(&[][..], |b| &bytes[b.offset as usize..][..b.size as usize])
    };
    let seed = |flags: [u8; 2], images: [Vec<u8>; 4]| {
        let mut parts = vec![
            flags.to_vec(),
            blob(oci::CONFIG).to_vec(),
            blob(oci::INDEX).to_vec(),
        ];
        parts.extend(images);
        parts.extend([oci::STATE, oci::SMOLFILE, oci::LOCK].map(|t| blob(t).to_vec()));
        parts.join(BETWEEN)
    };
    let frames = || ImageKind::ALL.map(|kind| blob(kind.media_type()).to_vec());
    let pages = ImageKind::ALL.map(|kind| {
        let image = bundle.index().image(kind).expect("all of them");
        let read = |n| bundle.frame(kind, n).expect("a good frame");
        (0..image.frames().len()).flat_map(read).collect()
    });
    vec![
        seed([0, 0], frames()),
        seed([SIGNED | SIGNED_BY_ANOTHER, 1], frames()),
        seed([FORGED, 0], frames()),
        seed([RAW_PAGES | SIGNED, 0], pages),
    ]
}

/// The page indexes of two bundles.
pub fn index_seeds() -> Vec<Vec<u8>> {
    let index = |bytes: Vec<u8>| {
        let bundle = Bundle::from_source(&bytes[..], "sample").expect("a good bundle");
        let blobs = bundle.layout();
        let blob = blobs
            .iter()
            .find(|b| b.media_type == oci::INDEX)
            .expect("an index");
        bytes[blob.offset as usize..][..blob.size as usize].to_vec()
    };
    vec![index(samples::bundle(true)), index(samples::bundle(false))]
}

/// Frames of zeros, of text and of noise.
pub fn frame_seeds() -> Vec<Vec<u8>> {
    let noise: Vec<u8> = (0..2 * PAGE as u64)
        .map(|i| ((i * i * 31) >> 5) as u8)
        .collect();
    let raws = [
        vec![0; PAGE],
        b"frame of text\n".repeat(300)[..PAGE].to_vec(),
        noise,
    ];
    let seed = |raw: Vec<u8>| {
        let pages = (raw.len() / PAGE - 1) as u16;
        [&pages.to_le_bytes()[..], &pack(&raw).expect("pages")].concat()
    };
    raws.map(seed).to_vec()
}

/// The documents of a bundle.
pub fn document_seeds() -> Vec<Vec<u8>> {
    let bytes = samples::bundle(true);
    let bundle = Bundle::from_source(&bytes[..], "sample").expect("a good bundle");
    let mut seeds = Vec::new();
    for blob in bundle.layout() {
        let kind = match blob.media_type.as_str() {
            oci::CONFIG => 0,
            oci::OCI_MANIFEST => 1,
            oci::SIGNATURE_JSON => 3,
            _ => continue,
        };
        let content = &bytes[blob.offset as usize..][..blob.size as usize];
        seeds.push([&[kind], content].concat());
    }
    let index = bytes
        .windows(14)
        .rposition(|w| w == b"{\"manifests\":[")
        .expect("index.json");
    let end = bytes[index..]
        .iter()
        .position(|b| *b == 0)
        .expect("its end");
    seeds.push([&[2], &bytes[index..index + end]].concat());
    seeds
}

/// Key files of both kinds, a name, a digest.
pub fn key_seeds() -> Vec<Vec<u8>> {
    let [ours, other] = samples::keys();
    let texts = [
        samples::PRIVATE_KEY.to_owned(),
        ours.public().to_pem(),
        other.public().id().to_string(),
        Digest::of(b"x").to_string(),
    ];
    let mut seeds: Vec<Vec<u8>> = texts.map(String::into_bytes).to_vec();
    seeds.push(join(&[&seeds[0], &seeds[1]]));
    seeds
}
