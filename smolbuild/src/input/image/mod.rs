//! `[rootfs] image`: a container image.
//!
//! | file | what it does |
//! |---|---|
//! | `local.rs` | images in files: a layout, an archive, standard input |
//! | `remote.rs` | images in registries |
//!
//! The lock names an image by the digest of its configuration, its layers by the digests of what they
//! hold. So nothing of a bundle depends on how its image came here.

mod local;
mod remote;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use smol_bundle::Digest;
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt};
use smol_image::ImageRef;
use smol_machine::cpu::Level;
use smol_rootfs::Tree;
use smol_rootfs::erofs::Mtimes;
use smol_sandbox::Access;
use toml::Spanned;

use self::local::Opened;
use self::remote::Remote;
use super::layers::LayerCache;
use super::{Found, HostPath, Input, InputDirs, LoadedTree, Origin, Pins, confined, watch};
use crate::context::BuildContext;
use crate::fetch::Net;
use crate::lock::{Lock, LockedImage};
use crate::source_dir::SourceDir;

/// A container image. The Plan has nothing of it: its lock says which one it is, and the level of the
/// CPU is there, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageInput {
    /// Where it is.
    #[serde(skip)]
    reference: Spanned<ImageRef>,
    /// The file or folder that the reference names.
    #[serde(skip)]
    file: Option<Spanned<String>>,
    /// Level of the machine's CPU.
    #[serde(skip)]
    level: u32,
}

impl ImageInput {
    /// The image of a reference, for a machine whose CPU has this level.
    pub fn new(reference: Spanned<ImageRef>, level: Level) -> Self {
        let file = reference.get_ref().path();
        Self {
            file: file.map(|path| Spanned::new(reference.span(), path.to_owned())),
            level: match level {
                Level::V2 => 2,
                Level::V3 => 3,
            },
            reference,
        }
    }

    /// The reference, and where it is written.
    pub fn reference(&self) -> &Spanned<ImageRef> {
        &self.reference
    }

    fn name(&self) -> &ImageRef {
        self.reference.get_ref()
    }

    /// What was locked before, if it is what is asked for, and for this CPU. Files are asked for by what is
    /// in them now, but for standard input, which may have been given once.
    fn kept<'a>(&self, kept: Option<&'a Lock>) -> Option<&'a LockedImage> {
        let image = kept?.image.as_ref()?;
        let is_asked = match self.name() {
            ImageRef::Id(id) => image.id == *id,
            ImageRef::Registry(name) => {
                let origin = image.origin.as_ref();
                origin.is_some_and(|origin| origin.reference == *name)
            }
            // What was piped in once: the lock has no name for it.
            ImageRef::Stdin => image.origin.is_none(),
            _ => false,
        };
        let platform = smol_image::Platform {
            variant: image.variant.clone(),
            ..smol_image::Platform::default()
        };
        (is_asked && platform.require(self.level).is_ok()).then_some(image)
    }

    /// Whether the image is in files, rather than in a registry.
    fn is_local(&self) -> bool {
        !matches!(self.name(), ImageRef::Id(_) | ImageRef::Registry(_))
    }

    /// Reads an image that is in files.
    fn open(&self, base_dir: &SourceDir, interrupt: &Interrupt) -> Result<Opened> {
        let path = self.file.as_ref().map(|path| path.get_ref().as_str());
        local::open(self.name(), path, self.level, base_dir, interrupt)
            .with_context(|| self.cannot())
    }

    fn cannot(&self) -> String {
        format!("cannot use the image {}", self.name())
    }

    /// The image as it is now, whatever was locked. `base_dir` is the folder that its path is relative to.
    ///
    /// # Errors
    /// It cannot be read, or its registry cannot be asked.
    pub fn look_up(&self, base_dir: &SourceDir, context: BuildContext) -> Result<LockedImage> {
        if !self.is_local() {
            return self.ask(context);
        }
        let image = self.open(base_dir, &context.session.interrupt)?.image;
        Ok(LockedImage::new(image.id, &image.config, None))
    }

    /// Asks the registry which image its name stands for now.
    fn ask(&self, context: BuildContext) -> Result<LockedImage> {
        let ImageRef::Registry(name) = self.name() else {
            let name = self.name();
            let what = format!("the digest {name} says which image is meant, and not where it is");
            return Err(Failure::new(ExitKind::Usage, what)
                .hint("name its place in [rootfs] image, such as docker.io/library/nginx:1.27, oci-archive:FILE or docker-archive:FILE")
                .into());
        };
        if context.net == Net::Offline {
            let what = format!("offline, and the lock does not say which image {name} is");
            return Err(Failure::new(ExitKind::LockStale, what)
                .hint("run `smolbuild lock` with a network first")
                .into());
        }
        let chosen = Remote::new(name, context).and_then(|image| image.choose(name, self.level));
        chosen.with_context(|| self.cannot())
    }

    /// Has the layers of an image that is in files in the cache.
    fn unpack(&self, locked: &LockedImage, dirs: &InputDirs, interrupt: &Interrupt) -> Result<()> {
        let layers = LayerCache::open(dirs.cache)?;
        let missing = layers.missing(&locked.diff_ids, interrupt)?;
        if missing.is_empty() {
            return Ok(());
        }
        if *self.name() == ImageRef::Stdin
            && let Some(nothing) = local::nothing_comes(interrupt)?
        {
            let name = locked.id.to_string();
            let hint =
                "give it the image that the lock names once more: `docker save IMAGE | smolbuild`";
            return Err(remote::not_in_cache(nothing, &missing, locked, &name, hint).into());
        }
        let Opened { image, access } = self.open(dirs.base_dir, interrupt)?;
        if image.id != locked.id {
            let what = format!("{} is not the image of the lock any more", self.name());
            return Err(Failure::new(ExitKind::Failed, what)
                .hint("it was replaced while this was built: build again")
                .into());
        }
        let mut wanted = missing;
        let found = image.layers.into_iter();
        let found = found
            .filter(|layer| wanted.remove(&layer.diff_id))
            .collect();
        layers
            .unpack(found, access, dirs.scratch, interrupt)
            .with_context(|| self.cannot())
    }
}

impl Input for ImageInput {
    fn host_path(&self) -> Option<HostPath<'_>> {
        Some(HostPath {
            path: self.file.as_ref()?,
            is_folder: matches!(self.name(), ImageRef::Layout { .. }),
        })
    }

    fn pin(
        &self,
        base_dir: &SourceDir,
        kept: Option<&Lock>,
        lock: &mut Lock,
        interrupt: &Interrupt,
    ) -> Result<Pins> {
        if !self.is_local() {
            lock.image = self.kept(kept).cloned();
            return Ok(match lock.image {
                Some(_) => Pins::Complete,
                None => Pins::ToChoose,
            });
        }
        lock.image = match self.kept(kept) {
            // So that a build of what has not changed need not be given its image each time.
            Some(image) if local::nothing_comes(interrupt)?.is_some() => Some(image.clone()),
            _ => {
                let image = self.open(base_dir, interrupt)?.image;
                Some(LockedImage::new(image.id, &image.config, None))
            }
        };
        Ok(Pins::Complete)
    }

    fn choose(&self, lock: &mut Lock, context: BuildContext) -> Result<()> {
        lock.image = Some(self.ask(context)?);
        Ok(())
    }

    fn fetch(&self, lock: &mut Lock, cache: &Path, context: BuildContext) -> Result<()> {
        if self.is_local() {
            return Ok(());
        }
        let locked = locked(lock)?;
        let layers = LayerCache::open(cache)?;
        let missing = layers.missing(&locked.diff_ids, &context.session.interrupt)?;
        if missing.is_empty() {
            return Ok(());
        }
        let name = self.name().to_string();
        if context.net == Net::Offline {
            return Err({
                let hint = "build once without --offline";
                remote::not_in_cache("offline", &missing, locked, &name, hint)
            }
            .into());
        }
        let Some(origin) = &locked.origin else {
            let what =
                format!("the image {name} is not in the cache, and nothing says where else it is");
            return Err(Failure::new(ExitKind::Usage, what)
                .hint("name its place: --image docker.io/library/nginx:1.27")
                .into());
        };
        Remote::new(&origin.reference, context)
            .and_then(|image| image.fetch(locked, origin, &missing, &layers))
            .with_context(|| self.cannot())
    }

    fn load(
        &self,
        lock: &Lock,
        dirs: &InputDirs,
        say: &mut dyn FnMut(&str),
        interrupt: &Interrupt,
    ) -> Result<LoadedTree> {
        let locked = locked(lock)?;
        if self.is_local() {
            say("unpacking the layers of the image");
            self.unpack(locked, dirs, interrupt)?;
        }
        let layers = LayerCache::open(dirs.cache)?;
        let mut tree = Tree::watched(watch(interrupt));
        let tree = confined(&Access::none().read(layers.folder()), || {
            for diff_id in &locked.diff_ids {
                tree.apply_layer(&layers.path(diff_id))?;
            }
            Ok(tree)
        })?;
        Ok(LoadedTree::new(tree))
    }

    /// Times in layers are part of the image, as in an archive.
    fn mtimes(&self) -> Mtimes {
        Mtimes::Clamped
    }

    fn title(&self) -> String {
        format!("image {}", self.name())
    }

    fn found(&self, lock: &Lock, cache: &Path, _downloads: &Path) -> Result<Option<Found>> {
        let (locked, layers) = (locked(lock)?, LayerCache::in_place(cache));
        let wanted: BTreeSet<&Digest> = locked.diff_ids.iter().collect();
        let missing = wanted.iter().filter(|layer| !layers.is_there(layer));
        let missing: Vec<String> = missing.map(|layer| layer.hex()).collect();
        Ok(Some(Found {
            parts: "layers",
            total: wanted.len(),
            ready: missing.is_empty(),
            missing,
            from: match (self.is_local(), &locked.origin) {
                (true, _) => Origin::Host,
                (false, Some(_)) => Origin::Network,
                (false, None) => Origin::Nowhere,
            },
        }))
    }
}

const NO_IMAGE: &str = "the lock has no image";

fn locked(lock: &Lock) -> Result<&LockedImage> {
    lock.image
        .as_ref()
        .context(NO_IMAGE)
        .kind(ExitKind::Internal)
}
