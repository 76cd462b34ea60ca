//! Writes a bundle.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::format::frame::Packed;
use crate::format::index::PageIndex;
use crate::format::limits::*;
use crate::format::oci::{self, Descriptor, Manifest};
use crate::write::archive::ArchiveWriter;
use crate::write::output::Output;
use crate::write::pages::{self, ImageFile, KnownPages};
use crate::write::pool::{self, Pool};
use crate::{Config, Digest, Error, ImageKind, Prepared, Result, Run, Stats};

/// What goes into a bundle. The bytes of the bundle depend on the contents alone, not on names,
/// times or holes of the files.
#[derive(Clone, Debug)]
pub struct BundleSpec {
    /// What the machine is.
    pub config: Config,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The initial RAM file system.
    pub initramfs: Option<PathBuf>,
    /// The root file system.
    pub rootfs: Option<PathBuf>,
    /// The running machine.
    pub snapshot: Option<SnapshotSpec>,
    /// The text of the Smolfile.
    pub smolfile: Option<Vec<u8>>,
    /// The text of the lock.
    pub lock: Option<Vec<u8>>,
    /// The digest of the bundle that this one was built on.
    pub parent: Option<Digest>,
}

/// A machine that was stopped in its work.
#[derive(Clone, Debug)]
pub struct SnapshotSpec {
    /// vCPU, device and clock state; opaque here.
    pub state: Vec<u8>,
    /// Guest RAM, exactly [`Config::memory`] bytes; holes count as zeros.
    pub memory: PathBuf,
    /// What the machine touches first when it is restored.
    pub working_set: WorkingSet,
}

/// Pages in the order in which a restored machine touches them first. Pages that are named again,
/// or that do not exist, do not count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkingSet {
    /// Of guest RAM.
    pub memory: Vec<Run>,
    /// Of the root file system.
    pub rootfs: Vec<Run>,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// The bundle's digest: sha256 of its machine manifest.
    pub digest: Digest,
    /// Size of the file, bytes.
    pub file_size: u64,
    /// Where the pages went.
    pub stats: Stats,
}

/// Writes the bundle of `spec` to `out`, replacing what is there when the new file is complete and
/// on the disk, and leaving everything as it was on any error.
///
/// `progress` is told bytes done and bytes in total, of the images as they lie on disk. Memory
/// needed: some MiB for each of at most 12 cores, and about 100 bytes for each different page.
pub fn write(spec: &BundleSpec, out: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Written> {
    write_while(spec, &Prepared::default(), out, &mut |done, total| {
        progress(done, total);
        ControlFlow::Continue(())
    })
}

/// Does the same as [`write()`] for as long as `progress` says to continue; then
/// [`Error::Stopped`]. Frames that are among those `prepared` are not compressed again; the bytes
/// are the same in any case.
pub fn write_while(
    spec: &BundleSpec,
    prepared: &Prepared,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Written> {
    validate(spec)?;
    let files = image_files(spec)?;
    let total = files.iter().map(ImageFile::size).sum();
    let mut done = 0;
    let mut advance = |bytes| {
        done += bytes;
        match progress(done, total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped {
                path: out.to_owned(),
            }),
        }
    };

    let output = Output::create(out)?;
    let mut archive = ArchiveWriter::new(output.file(), out);
    archive.file("oci-layout", oci::OCI_LAYOUT)?;
    let working_set = spec.snapshot.as_ref().map(|s| &s.working_set);
    let work = |raw: &[u8]| prepared.pack(raw);
    let (index, mut layers) = Pool::with(pool::cores(), &work, |pool| {
        write_images(&files, working_set, pool, &mut archive, &mut advance)
    })
    .map_err(|e| Error::io("start threads to write", out, e))??;
    for (media_type, bytes) in texts(spec, &index)? {
        archive.blob(&bytes)?;
        layers.push(Descriptor::of(media_type, &bytes));
    }
    let config = oci::bytes(&spec.config);
    debug_assert!(
        config.len() as u64 <= MAX_JSON_SIZE,
        "the limits of its fields ensure it"
    );
    archive.blob(&config)?;
    let config = Descriptor::of(oci::CONFIG, &config);
    let manifest = Manifest::machine(&spec.config, config, layers, spec.parent);
    let manifest = oci::bytes(&manifest);
    let digest = archive.blob(&manifest)?;
    let machine = Descriptor::of(oci::OCI_MANIFEST, &manifest);
    archive.file("index.json", &oci::bytes(&oci::Index::new(&machine, &[])))?;
    let file_size = archive.finish()?;
    output.publish()?;
    Ok(Written {
        digest,
        file_size,
        stats: index.stats(),
    })
}

fn validate(spec: &BundleSpec) -> Result<()> {
    spec.config.validate().map_err(Error::InvalidSpec)?;
    let state = spec.snapshot.as_ref().map(|s| &s.state);
    for (name, bytes, limit) in [
        ("machine state", state, MAX_STATE_SIZE),
        ("Smolfile", spec.smolfile.as_ref(), MAX_TEXT_SIZE),
        ("lock", spec.lock.as_ref(), MAX_LOCK_SIZE),
    ] {
        if let Some(len) = bytes.map(|b| b.len() as u64).filter(|len| *len > limit) {
            return Err(Error::InvalidSpec(format!(
                "the {name} has {len} bytes, the limit is {limit}"
            )));
        }
    }
    Ok(())
}

fn image_files(spec: &BundleSpec) -> Result<Vec<ImageFile>> {
    let paths = [
        (ImageKind::Kernel, Some(&spec.kernel)),
        (ImageKind::Initramfs, spec.initramfs.as_ref()),
        (ImageKind::Rootfs, spec.rootfs.as_ref()),
        (ImageKind::Memory, spec.snapshot.as_ref().map(|s| &s.memory)),
    ];
    let present = paths
        .into_iter()
        .filter_map(|(kind, path)| Some((kind, path?)));
    let files = present
        .map(|(kind, path)| ImageFile::open(kind, path))
        .collect::<Result<Vec<_>>>()?;
    if let (Some(_), Some(memory)) = (&spec.snapshot, files.last())
        && memory.size() != spec.config.memory
    {
        let (found, expected) = (memory.size(), spec.config.memory);
        return Err(Error::InvalidSpec(format!(
            "the memory image has {found} bytes, the configuration says {expected}"
        )));
    }
    Ok(files)
}

/// Writes the frames of every image, one blob each.
fn write_images(
    files: &[ImageFile],
    working_set: Option<&WorkingSet>,
    pool: &mut Pool,
    archive: &mut ArchiveWriter<'_>,
    advance: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<(PageIndex, Vec<Descriptor>)> {
    let mut known = KnownPages::default();
    let (mut images, mut layers) = (Vec::new(), Vec::new());
    for file in files {
        let mut blob = archive.stream();
        let touched = match (file.kind(), working_set) {
            (ImageKind::Memory, Some(set)) => &set.memory[..],
            (ImageKind::Rootfs, Some(set)) => &set.rootfs[..],
            _ => &[],
        };
        let mut sink = |packed: Packed| blob.write(&packed.bytes);
        let image = pages::pack(file, touched, &mut known, pool, &mut sink, advance)?;
        if let Some((digest, size)) = blob.finish()? {
            layers.push(Descriptor::new(image.kind().media_type(), digest, size));
        }
        images.push(image);
    }
    Ok((PageIndex::new(images), layers))
}

/// Returns the blobs that come after the frames.
fn texts(spec: &BundleSpec, index: &PageIndex) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let index = index.encode();
    if index.len() as u64 > MAX_INDEX_SIZE {
        let found = index.len();
        return Err(Error::InvalidSpec(format!(
            "the page index would have {found} bytes, the limit is {MAX_INDEX_SIZE}"
        )));
    }
    let state = spec.snapshot.as_ref().map(|s| s.state.clone());
    let parts = [
        (oci::INDEX, Some(index)),
        (oci::STATE, state),
        (oci::SMOLFILE, spec.smolfile.clone()),
        (oci::LOCK, spec.lock.clone()),
    ];
    Ok(parts
        .into_iter()
        .filter_map(|(media_type, bytes)| Some((media_type, bytes?)))
        .collect())
}
