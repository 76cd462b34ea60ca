//! Bundles made by someone who knows the format and computes every digest anew: what no hash
//! catches must be caught by a rule. The fuzz targets `bundle`, `bundle-archive` and `page-index` do
//! the same at random.

use std::fs;
use std::io::{Read, Seek};
use std::path::Path;

use crate::format::config::tests::sample as config;
use crate::format::oci::{self, Descriptor, Manifest};
use crate::write::archive::ArchiveWriter;
use crate::{
    Bundle, BundleSpec, Config, Error, ImageKind, PrivateKey, Signature, SignatureError,
    SnapshotSpec, WorkingSet, write,
};

const PAGE: usize = 4096;

/// The parts of a bundle, to be changed and put together again.
struct Parts {
    config: Config,
    layers: Vec<(String, Vec<u8>)>,
    signatures: Vec<Signature>,
    /// Last changes to the documents, after which digests of what lies above are computed.
    edit_manifest: Box<dyn Fn(&mut Manifest)>,
    edit_index_json: Box<dyn Fn(Vec<u8>) -> Vec<u8>>,
    extra_blob: Option<Vec<u8>>,
}

impl Parts {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let page = |byte: u8| {
            (0..PAGE)
                .map(|i| byte ^ (i % 251) as u8)
                .collect::<Vec<_>>()
        };
        let rootfs = [page(1), page(2), page(3)].concat();
        let memory = [page(9), vec![0; PAGE], page(2), page(3), page(9), page(8)].concat();
        fs::write(path("kernel"), &page(7)[..1000]).unwrap();
        fs::write(path("rootfs"), rootfs).unwrap();
        fs::write(path("memory"), &memory).unwrap();
        let spec = BundleSpec {
            config: config(memory.len() as u64),
            kernel: path("kernel"),
            initramfs: None,
            rootfs: Some(path("rootfs")),
            snapshot: Some(SnapshotSpec {
                state: b"state".to_vec(),
                memory: path("memory"),
                working_set: WorkingSet::default(),
            }),
            smolfile: Some(b"name = 'hello'".to_vec()),
            lock: None,
            parent: None,
        };
        let out = path("whole");
        write(&spec, &out, &mut |_, _| {}).unwrap();
        let (bytes, bundle) = (fs::read(&out).unwrap(), Bundle::open(&out).unwrap());
        let mut blobs = bundle.layout();
        blobs.truncate(blobs.len() - 2); // configuration and manifest
        let cut = |b: &crate::Blob| bytes[b.offset as usize..][..b.size as usize].to_vec();
        let layers = blobs
            .iter()
            .map(|b| (b.media_type.clone(), cut(b)))
            .collect();
        Parts {
            config: bundle.config().clone(),
            layers,
            signatures: Vec::new(),
            edit_manifest: Box::new(|_| {}),
            edit_index_json: Box::new(|bytes| bytes),
            extra_blob: None,
        }
    }

    fn layer(&mut self, media_type: &str) -> &mut Vec<u8> {
        &mut self
            .layers
            .iter_mut()
            .find(|l| l.0 == media_type)
            .unwrap()
            .1
    }

    fn remove(&mut self, media_type: &str) {
        self.layers.retain(|l| l.0 != media_type);
    }

    /// Puts everything together as the writer does.
    fn build(&self) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        let mut archive = ArchiveWriter::new(&file, Path::new("crafted"));
        archive.file("oci-layout", oci::OCI_LAYOUT).unwrap();
        for (_, bytes) in &self.layers {
            archive.blob(bytes).unwrap();
        }
        let config = oci::bytes(&self.config);
        archive.blob(&config).unwrap();
        let layers = self
            .layers
            .iter()
            .map(|(t, bytes)| Descriptor::of(t, bytes))
            .collect();
        let config = Descriptor::of(oci::CONFIG, &config);
        let mut manifest = Manifest::machine(&self.config, config, layers, None);
        (self.edit_manifest)(&mut manifest);
        let manifest = oci::bytes(&manifest);
        archive.blob(&manifest).unwrap();
        let machine = Descriptor::of(oci::OCI_MANIFEST, &manifest);
        let mut signed = Vec::new();
        for signature in &self.signatures {
            let blob = signature.to_blob();
            let manifest =
                Manifest::signature(&machine, Descriptor::of(oci::SIGNATURE_JSON, &blob));
            let manifest = oci::bytes(&manifest);
            for bytes in [oci::EMPTY_BLOB, &blob, &manifest] {
                archive.blob(bytes).unwrap();
            }
            signed.push(Descriptor::of(oci::OCI_MANIFEST, &manifest));
        }
        if let Some(extra) = &self.extra_blob {
            archive.blob(extra).unwrap();
        }
        let index = oci::bytes(&oci::Index::new(&machine, &signed));
        archive
            .file("index.json", &(self.edit_index_json)(index))
            .unwrap();
        archive.finish().unwrap();
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Opens and reads everything.
    fn outcome(&self) -> Result<(), Error> {
        let bytes = self.build();
        let bundle = open(&bytes)?;
        for kind in ImageKind::ALL
            .into_iter()
            .filter(|k| bundle.image_size(*k).is_some())
        {
            bundle.read_image(kind, 1 << 20)?;
        }
        bundle.verify_all(&mut |_, _| {})
    }

    /// Returns the message of the refusal, which must count as a failed verification.
    fn refusal(&self) -> String {
        let error = self.outcome().expect_err("must be refused");
        assert!(error.is_verification_failure(), "{error}");
        error.to_string()
    }
}

/// Opens a bundle in memory.
fn open(bytes: &[u8]) -> Result<Bundle<&[u8]>, Error> {
    Bundle::from_source(bytes, "crafted")
}

fn refusal(change: impl FnOnce(&mut Parts)) -> String {
    let mut parts = Parts::new();
    change(&mut parts);
    parts.refusal()
}

fn manifest_refusal(edit: impl Fn(&mut Manifest) + 'static) -> String {
    refusal(|p| p.edit_manifest = Box::new(edit))
}

fn index_json_refusal(from: &'static str, to: &'static str) -> String {
    refusal(|p| {
        p.edit_index_json = Box::new(move |bytes| {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(from));
            text.replacen(from, to, 1).into_bytes()
        });
    })
}

#[track_caller]
fn says(message: &str, expected: &str) {
    assert!(
        message.contains(expected),
        "{expected:?} is not in {message:?}"
    );
}

#[test]
fn unchanged_parts_make_a_good_bundle() {
    Parts::new().outcome().unwrap();
}

#[test]
fn a_manifest_with_lying_sizes_is_refused() {
    says(&manifest_refusal(|m| m.layers[0].size += 1), "wants");
    says(
        &manifest_refusal(|m| m.layers.last_mut().unwrap().size -= 1),
        "is listed with 13 bytes",
    );
    says(
        &manifest_refusal(|m| m.config.size = 1 << 40),
        "is listed with",
    );
    says(&manifest_refusal(|m| m.layers[0].size = u64::MAX), "wants");
}

#[test]
fn a_manifest_that_names_an_absent_blob_is_refused() {
    let absent = |m: &mut Manifest| m.layers.last_mut().unwrap().digest = crate::Digest::of(b"?");
    says(
        &manifest_refusal(absent),
        "is listed but is not in the archive",
    );
}

#[test]
fn unknown_doubled_and_reordered_layers_are_refused() {
    let what = "unknown, doubled or out of order";
    says(
        &manifest_refusal(|m| m.layers[0].media_type = "text/plain".into()),
        what,
    );
    says(
        &manifest_refusal(|m| m.layers.insert(0, m.layers[0].clone())),
        what,
    );
    says(&manifest_refusal(|m| m.layers.swap(0, 1)), what);
    says(
        &manifest_refusal(|m| m.config.media_type = "text/plain".into()),
        "is unknown",
    );
}

#[test]
fn a_manifest_with_anything_more_than_the_machine_is_refused() {
    let annotation = |m: &mut Manifest| drop(m.annotations.insert("a".into(), "b".into()));
    says(
        &manifest_refusal(annotation),
        "not the manifest of a machine",
    );
    let annotation =
        |m: &mut Manifest| drop(m.layers[0].annotations.insert("a".into(), "b".into()));
    says(&manifest_refusal(annotation), "unknown fields");
    says(
        &manifest_refusal(|m| m.schema_version = 1),
        "not the manifest of a machine",
    );
    says(
        &manifest_refusal(|m| m.subject = Some(m.config.clone())),
        "not the manifest of a machine",
    );
}

#[test]
fn a_parent_must_be_a_digest_in_its_one_spelling() {
    let digest = crate::Digest::of(b"parent").to_string();
    let name = |parent: &str| {
        let parent = parent.to_owned();
        move |m: &mut Manifest| drop(m.annotations.insert(oci::PARENT.into(), parent.clone()))
    };
    for bad in [
        "",
        "latest",
        &digest[..70],
        &digest[7..],
        &digest.to_uppercase(),
        &format!("{digest} "),
        &digest.replace("sha256", "sha512"),
    ] {
        says(
            &manifest_refusal(name(bad)),
            &format!("{}: {bad:?} is not \"sha256:\"", oci::PARENT),
        );
    }
    let mut parts = Parts::new();
    parts.edit_manifest = Box::new(name(&digest));
    parts.outcome().unwrap();
    let bytes = parts.build();
    let bundle = open(&bytes).unwrap();
    assert_eq!(bundle.parent().unwrap().to_string(), digest);
}

#[test]
fn memory_and_machine_state_come_together_or_not_at_all() {
    says(
        &refusal(|p| p.remove(oci::STATE)),
        "present or absent together",
    );
    says(&refusal(|p| p.config.memory += 4096), "its image has");
    says(&refusal(|p| p.remove(oci::INDEX)), "no page index");
    says(
        &refusal(|p| p.remove(ImageKind::Memory.media_type())),
        "bytes of memory frames",
    );
}

#[test]
fn frames_that_are_shorter_or_longer_than_the_page_index_says_are_refused() {
    let rootfs = ImageKind::Rootfs.media_type();
    says(
        &refusal(|p| p.layer(rootfs).truncate(10)),
        "bytes of rootfs frames",
    );
    says(
        &refusal(|p| p.layer(rootfs).push(0)),
        "bytes of rootfs frames",
    );
}

#[test]
fn a_frame_with_a_true_hash_but_false_content_is_refused() {
    let replace = |frame: Vec<u8>| {
        let mut parts = Parts::new();
        // The kernel has one frame of one page: entry at 24 + 3 * 32 in the page index.
        let index = parts.layer(oci::INDEX);
        index[24 + 16..24 + 24].copy_from_slice(&(frame.len() as u64).to_le_bytes());
        let entry = 24 + 3 * 32;
        index[entry..entry + 4].copy_from_slice(&(frame.len() as u32).to_le_bytes());
        index[entry + 8..entry + 40].copy_from_slice(blake3::hash(&frame).as_bytes());
        *parts.layer(ImageKind::Kernel.media_type()) = frame;
        parts.refusal()
    };
    let zstd = |raw: &[u8]| zstd::bulk::compress(raw, 3).unwrap();
    says(&replace(zstd(&vec![0; 1 << 24])), "cannot be decompressed"); // a bomb
    says(&replace(zstd(&[0; 100])), "holds 100 bytes");
    says(
        &replace([zstd(&[1; 2048]), zstd(&[1; 2048])].concat()),
        "exactly one zstd frame",
    );
    says(
        &replace(b"not zstd at all".to_vec()),
        "exactly one zstd frame",
    );
    says(&replace(zstd(&[1; PAGE])), "not zero beyond its end");
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let message = index_json_refusal("smol.machine.v1", "smol.machine.v2");
    says(&message, "application/vnd.smol.machine.v2");
    says(&message, "update smol");
    says(
        &refusal(|p| p.layer(oci::INDEX)[8] = 4),
        "page index version 4",
    );
}

#[test]
fn an_index_json_of_anything_else_is_refused() {
    says(
        &index_json_refusal("\"latest\"", "\"stable\""),
        "not the index of a machine",
    );
    says(
        &index_json_refusal("smol.machine.v1", "other.artifact.v1"),
        "not the index of a machine",
    );
    says(&index_json_refusal(":2}", ":2} "), "canonical form");
    says(
        &index_json_refusal("{\"manifests\":[", "{\"manifests\":[],\"x\":["),
        "not valid",
    );
    let empty = |_| br#"{"manifests":[],"mediaType":"","schemaVersion":2}"#.to_vec();
    says(
        &refusal(|p| p.edit_index_json = Box::new(empty)),
        "no manifest is listed",
    );
    says(
        &refusal(|p| p.edit_index_json = Box::new(|_| vec![b'['; 60_000])),
        "not valid",
    );
    says(
        &refusal(|p| p.edit_index_json = Box::new(|_| vec![b' '; 70_000])),
        "the limit is 65536",
    );
}

#[test]
fn a_blob_that_nothing_lists_is_refused() {
    says(
        &refusal(|p| p.extra_blob = Some(b"stowaway".to_vec())),
        "index.json should stand here",
    );
}

#[test]
fn oversized_parts_are_refused_before_they_are_read() {
    says(
        &refusal(|p| *p.layer(oci::SMOLFILE) = vec![b' '; (1 << 20) + 1]),
        "the limit is 1048576",
    );
    says(
        &refusal(|p| p.config.cmdline = "x".repeat(70_000)),
        "the limit is 65536",
    );
}

#[test]
fn a_configuration_that_breaks_a_rule_is_refused() {
    says(
        &refusal(|p| p.config.name = "../../etc".into()),
        "must begin with a letter or digit",
    );
    says(&refusal(|p| p.config.cpus = 0), "cpus");
}

#[test]
fn a_forged_signature_is_bad_whoever_is_trusted() {
    let (key, other) = (
        PrivateKey::generate().unwrap(),
        PrivateKey::generate().unwrap(),
    );
    let mut parts = Parts::new();
    parts.signatures = vec![Signature::new(&key, &crate::Digest::of(b"another machine"))];
    says(&parts.refusal(), "is invalid");
    let bytes = parts.build();
    let bundle = open(&bytes).unwrap();
    let key_id = key.public().id();
    assert_eq!(
        bundle.verify_signature(&[key.public()]),
        Err(SignatureError::Bad { key_id })
    );
    let unknown = SignatureError::UnknownKey { ids: vec![key_id] };
    assert_eq!(bundle.verify_signature(&[other.public()]), Err(unknown));
}

#[test]
fn two_signatures_of_one_key_and_unsorted_ones_are_refused() {
    let key = PrivateKey::generate().unwrap();
    let digest = crate::Digest::of(b"x");
    says(
        &refusal(|p| p.signatures = vec![Signature::new(&key, &digest); 2]),
        "not sorted",
    );
}

#[test]
fn other_kinds_of_files_are_called_by_their_name() {
    let footer = [&[1; 1000][..], b"SMOLPACK", &[0; 56]].concat();
    let cases: [(&[u8], &str); 7] = [
        (b"SMOLPACK and so on", "another project"),
        (&footer, "another project"),
        (b"", "empty"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"\x7fELF", "ELF"),
        (&[b'x'; 600], "not a tar archive"),
        (b"short", "truncated"),
    ];
    for (bytes, expected) in cases {
        let error = open(bytes).unwrap_err();
        assert!(error.is_verification_failure());
        says(&error.to_string(), expected);
    }
    let dir = tempfile::tempdir().unwrap();
    says(
        &Bundle::open(dir.path()).unwrap_err().to_string(),
        "not a regular file",
    );
    let missing = Bundle::open(&dir.path().join("missing")).unwrap_err();
    assert!(!missing.is_verification_failure(), "{missing}");
}
