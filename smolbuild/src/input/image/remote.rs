//! Images in registries.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use smol_bundle::Digest;
use smol_cli::progress::Stage;
use smol_cli::{ErrorExt, ExitKind, Failure, human};
use smol_host::cache::in_place;
use smol_image::manifest::{Descriptor, Document, Manifest};
use smol_image::{ImageConfig, Layer, MAX_DOCUMENT, MAX_NESTED, index, store};
use smol_registry::{Client, Kind, Options, Reference, Wanted};
use smol_rootfs::limits::MAX_UNPACKED;
use smol_rootfs::{FileData, HostFile};
use smol_sandbox::Access;

use super::local::temporary;
use crate::context::BuildContext;
use crate::error::ResultExt;
use crate::fetch::Scratch;
use crate::input::layers::LayerCache;
use crate::lock::{LockedImage, Origin};

/// An image in a registry.
pub struct Remote<'a> {
    client: Client,
    reference: Reference,
    context: BuildContext<'a>,
}

impl<'a> Remote<'a> {
    /// The image with this name. Nothing is asked yet.
    ///
    /// # Errors
    /// It is no name; the configuration of registries on this host is wrong.
    pub fn new(name: &str, context: BuildContext<'a>) -> Result<Self> {
        let reference = name.parse().kind(ExitKind::Usage)?;
        let options = Options {
            insecure: context.environment.insecure_registries.clone(),
            ..Options::default()
        };
        let interrupt = context.session.interrupt.clone();
        let client = Client::new(options, Arc::new(move || !interrupt.is_set())).classify()?;
        Ok(Self {
            client,
            reference,
            context,
        })
    }

    /// Finds out which image the name stands for now, for a CPU of this level.
    ///
    /// # Errors
    /// The registry cannot be asked or does not have it; it is no image for this machine.
    pub fn choose(&self, name: &str, level: u32) -> Result<LockedImage> {
        let stage = self.context.session.stage("lock", "asking for the image");
        let (digest, manifest) = self.manifest(level)?;
        let config = self.config(&manifest.config)?;
        config.platform.require(level).kind(ExitKind::Usage)?;
        // As many as the manifest has, or they could not be told apart.
        store::pair(&config, &manifest.layers).map(drop)?;
        let origin = Origin {
            reference: name.to_owned(),
            manifest: digest,
        };
        stage.finish(&digest.to_string());
        Ok(LockedImage::new(
            manifest.config.digest,
            &config,
            Some(origin),
        ))
    }

    /// The manifest of the image, and its digest.
    fn manifest(&self, level: u32) -> Result<(Digest, Manifest)> {
        let mut reference = self.reference.clone();
        for _ in 0..MAX_NESTED {
            let (digest, document) = self.document(&reference)?;
            match document {
                Document::Manifest(manifest) => return Ok((digest, manifest)),
                Document::Index(entries) => {
                    let entry = index::choose(&entries, level).kind(ExitKind::Usage)?;
                    reference = reference.with_digest(&entry.digest.to_string());
                }
            }
        }
        bail!("more than {MAX_NESTED} indexes are in each other")
    }

    fn document(&self, reference: &Reference) -> Result<(Digest, Document)> {
        let fetched = self.client.manifest(reference);
        self.context.session.check()?;
        let fetched = fetched.classify()?;
        let read = Document::parse(&fetched.bytes);
        let document = read.with_context(|| format!("{reference} cannot be used"));
        Ok((Digest::of(&fetched.bytes), document.kind(ExitKind::Usage)?))
    }

    fn config(&self, blob: &Descriptor) -> Result<ImageConfig> {
        ensure!(
            blob.size <= MAX_DOCUMENT,
            "the configuration of the image is longer than {} MiB",
            MAX_DOCUMENT >> 20
        );
        let mut file = temporary()?;
        let digest = blob.digest.to_string();
        let fetched = self
            .client
            .blob(&self.reference, &digest, blob.size, &mut file, &mut |_| {});
        self.context.session.check()?;
        fetched.classify()?;
        file.seek(SeekFrom::Start(0))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        ImageConfig::parse(&bytes).kind(ExitKind::Usage)
    }

    /// Has these layers of the image in the cache.
    ///
    /// # Errors
    /// The registry does not have them any more, or they are not what they should be.
    pub fn fetch(
        &self,
        locked: &LockedImage,
        origin: &Origin,
        missing: &BTreeSet<Digest>,
        layers: &LayerCache,
    ) -> Result<()> {
        let reference = self.reference.with_digest(&origin.manifest.to_string());
        let manifest = match self
            .document(&reference)
            .map_err(|error| self.gone(error))?
        {
            (_, Document::Manifest(manifest)) => manifest,
            (_, Document::Index(_)) => bail!("the lock names an index as a manifest"),
        };
        ensure!(
            manifest.config.digest == locked.id && manifest.layers.len() == locked.diff_ids.len(),
            "the lock names another image than its manifest"
        );
        let mut left = missing.clone();
        let blobs = locked.diff_ids.iter().zip(&manifest.layers);
        let wanted: Vec<_> = blobs.filter(|(diff_id, _)| left.remove(diff_id)).collect();
        let scratch = Scratch::new(self.context.downloads)?;
        let downloads = wanted
            .iter()
            .map(|(_, blob)| Download::open(blob, &scratch, self.context.downloads));
        let downloads = downloads.collect::<Result<Vec<Download>>>()?;
        self.download(&reference, &downloads)?;
        let layer = |((diff_id, blob), download): (&(&Digest, &Descriptor), &Download)| {
            Ok(Layer {
                diff_id: **diff_id,
                digest: Some(blob.digest),
                blob: download.content(blob.size)?,
            })
        };
        let found = wanted
            .iter()
            .zip(&downloads)
            .map(layer)
            .collect::<Result<_>>()?;
        let stage = self
            .context
            .session
            .stage("unpack", "unpacking the layers of the image");
        layers.unpack(
            found,
            Access::none(),
            scratch.path(),
            &self.context.session.interrupt,
        )?;
        stage.finish(&format!("{} layers", downloads.len()));
        downloads.iter().try_for_each(Download::remove)
    }

    fn download(&self, reference: &Reference, downloads: &[Download]) -> Result<()> {
        let wanted = downloads.iter().map(|download| {
            Ok(Wanted {
                digest: download.digest.to_string(),
                size: download.size,
                file: download.file.try_clone()?,
            })
        });
        let mut wanted = wanted.collect::<Result<Vec<_>>>()?;
        let stage = self
            .context
            .session
            .stage("pull", &format!("downloading {}", self.reference));
        let layers = downloads.iter();
        let layers = layers.map(|download| (download.digest, download.size));
        let mut layers = Layers::new(&stage, layers);
        let fetched = self
            .client
            .blobs(reference, &mut wanted, &mut |at, done| layers.set(at, done));
        self.context.session.check()?;
        fetched.classify()?;
        let total = layers.total;
        stage.finish(&human::bytes(total));
        Ok(())
    }

    /// The error for what was locked and is not there any more.
    fn gone(&self, error: anyhow::Error) -> anyhow::Error {
        let is_gone = |cause: &smol_registry::Error| cause.kind() == Kind::NotFound;
        match error.downcast_ref().is_some_and(is_gone) {
            true => error
                .context("the image that the lock names is not there any more")
                .kind(ExitKind::LockStale)
                .hint("`smolbuild lock` takes the one that its tag names now"),
            false => error,
        }
    }
}

/// The layers that are being downloaded, as parts of a stage.
struct Layers<'a> {
    stage: &'a Stage,
    total: u64,
    layers: Vec<LayerProgress>,
}

struct LayerProgress {
    digest: Digest,
    size: u64,
    done: u64,
    /// From the first bytes to the last ones.
    shown: Option<Stage>,
}

impl<'a> Layers<'a> {
    /// Layers of these digests and sizes.
    fn new(stage: &'a Stage, layers: impl Iterator<Item = (Digest, u64)>) -> Self {
        let layers = layers.map(|(digest, size)| LayerProgress {
            digest,
            size,
            done: 0,
            shown: None,
        });
        let layers: Vec<_> = layers.collect();
        let total = layers
            .iter()
            .fold(0u64, |sum, layer| sum.saturating_add(layer.size));
        Self {
            stage,
            total,
            layers,
        }
    }

    /// Shows that a layer has so many bytes now: fewer than before if it is downloaded again.
    fn set(&mut self, at: usize, done: u64) {
        let of = self.layers.len();
        let Some(layer) = self.layers.get_mut(at) else {
            return;
        };
        layer.done = done;
        let shown = layer.shown.take().unwrap_or_else(|| {
            let name = &layer.digest.hex()[..12];
            let size = human::bytes(layer.size);
            let message = format!("layer {} of {of}, {size}", at + 1);
            self.stage.child(name, &message)
        });
        shown.set_bytes(done, layer.size);
        match done == layer.size {
            true => shown.finish(""),
            false => layer.shown = Some(shown),
        }
        let done = self.layers.iter().map(|layer| layer.done);
        let done = done.fold(0u64, u64::saturating_add);
        self.stage.set_bytes(done, self.total);
    }
}

/// A layer that is being downloaded. What a build that was killed has of it stays, and is gone on with.
struct Download {
    digest: Digest,
    size: u64,
    file: File,
    path: PathBuf,
}

impl Download {
    /// Opens the file of a layer, among the downloads; in `scratch` if another build is at it.
    fn open(blob: &Descriptor, scratch: &Scratch, downloads: &Path) -> Result<Self> {
        ensure!(
            blob.size <= MAX_UNPACKED,
            "layer {} has {} bytes (at most {MAX_UNPACKED})",
            blob.digest,
            blob.size
        );
        let name = format!("{}.layer", blob.digest.hex());
        let open = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true);
            let file = options.truncate(false).open(path);
            file.with_context(|| format!("cannot write {}", path.display()))
        };
        let mut path = downloads.join(&name);
        let mut file = open(&path)?;
        let is_ours = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        // The build that had it may have removed it before it was locked here.
        if !(is_ours && in_place(&file, &path)?.is_some()) {
            path = scratch.path().join(name);
            file = open(&path)?;
        }
        Ok(Self {
            digest: blob.digest,
            size: blob.size,
            file,
            path,
        })
    }

    fn content(&self, len: u64) -> Result<FileData> {
        let file = Arc::new(self.file.try_clone()?);
        Ok(FileData::Range {
            file: HostFile::Open(file, self.path.as_path().into()),
            offset: 0,
            len,
        })
    }

    /// Removes the file, while it is locked.
    fn remove(&self) -> Result<()> {
        fs::remove_file(&self.path)
            .with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

/// The error for layers that are not in the cache, offline.
pub fn not_in_cache(
    why: &str,
    missing: &BTreeSet<Digest>,
    locked: &LockedImage,
    name: &str,
    hint: &str,
) -> Failure {
    const SHOWN: usize = 10;
    let what = format!(
        "{why}, and {} of the {} layers of the image {name} are not in the cache:",
        missing.len(),
        locked.diff_ids.len()
    );
    let mut failure = Failure::new(ExitKind::LockStale, what);
    for diff_id in missing.iter().take(SHOWN) {
        failure = failure.detail(diff_id.to_string());
    }
    if missing.len() > SHOWN {
        failure = failure.detail(format!("and {} more", missing.len() - SHOWN));
    }
    failure.hint(hint)
}

#[cfg(test)]
mod tests {
    use smol_cli::Progress;

    use super::*;

    #[test]
    fn each_layer_is_a_part_of_the_stage_from_its_first_bytes_to_its_last() {
        let progress = Progress::silent();
        let stage = progress.stage("pull", "");
        let digests = [b"one", b"two"].map(|layer| Digest::of(layer));
        let mut layers = Layers::new(&stage, digests.into_iter().zip([10, 20]));
        layers.set(1, 5);
        layers.set(0, 10);
        layers.set(1, 20);
        // What a mirror sent was wrong: once more, and not to its end.
        layers.set(1, 0);
        layers.set(7, 1);
        drop(layers);
        stage.finish("");
        let laps = progress.waterfall();
        let parts = laps[0].children.iter();
        let parts: Vec<_> = parts.map(|lap| (lap.name.as_str(), lap.finished)).collect();
        let [one, two] = digests.map(|digest| digest.hex()[..12].to_owned());
        let expected = [(two.as_str(), true), (&one, true), (&two, false)];
        assert_eq!(parts, expected);
    }

    #[test]
    fn a_layer_that_another_build_downloads_is_downloaded_apart() {
        let downloads = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(downloads.path()).unwrap();
        let open =
            || Download::open(&Descriptor::of(b"layer"), &scratch, downloads.path()).unwrap();
        let (first, second) = (open(), open());
        assert_eq!(first.path.parent(), Some(downloads.path()));
        assert_eq!(second.path.parent(), Some(scratch.path()));
        first.remove().unwrap();
        second.remove().unwrap();
        drop((first, second));
        // What one that was killed has left is gone on with.
        std::io::Write::write_all(&mut &open().file, b"la").unwrap();
        assert_eq!(open().file.metadata().unwrap().len(), 2);
    }
}
