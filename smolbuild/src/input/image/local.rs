//! Images in files: a layout, an archive, standard input.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result};
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt, paths};
use smol_image::{Image, ImageRef, store};
use smol_rootfs::compression::Compression;
use smol_rootfs::limits::MAX_UNPACKED;
use smol_rootfs::{DirOptions, Ignore, Modes, Owner, Tree, unpack};
use smol_sandbox::Access;

use crate::input::{confined, watch};
use crate::source_dir::SourceDir;

/// An image in files, and what its layers are read from.
pub struct Opened {
    /// The image.
    pub image: Image,
    /// Access to its layers.
    pub access: Access,
}

/// Opens the image `name` for a CPU of this level. `path` is the file or folder that it names.
///
/// # Errors
/// Those of [`store`]; the file cannot be read.
pub fn open(
    name: &ImageRef,
    path: Option<&str>,
    level: u32,
    base_dir: &SourceDir,
    interrupt: &Interrupt,
) -> Result<Opened> {
    let (files, access) = match (name, path) {
        (ImageRef::Layout { .. }, Some(path)) => Files::folder(base_dir.require(path)?),
        (_, Some(path)) => {
            let (file, path) = base_dir.require_file(path)?;
            Files::archive(file, path)?
        }
        (_, None) => match standard_input(interrupt)? {
            Ok(file) => Files::archive(file, "standard input".into())?,
            Err(nothing) => {
                return Err(Failure::new(ExitKind::Usage, nothing)
                    .hint("write `docker save IMAGE | smolbuild`, or name a file in [rootfs] image")
                    .into());
            }
        },
    };
    let image = confined(&access, || {
        let image = files
            .tree(interrupt)
            .and_then(|tree| find(name, &tree, level));
        interrupt.check()?;
        image.kind(ExitKind::Usage)
    })?;
    Ok(Opened { image, access })
}

/// The image that is meant.
fn find(name: &ImageRef, files: &Tree, level: u32) -> Result<Image> {
    match name {
        ImageRef::Layout { tag, .. } | ImageRef::OciArchive { tag, .. } => {
            store::layout(files, tag.as_deref(), level)
        }
        ImageRef::DockerArchive { name, .. } => store::docker(files, name.as_deref(), level),
        _ => store::any(files, level),
    }
}

/// The files that an image is in.
enum Files {
    /// A layout.
    Folder(PathBuf),
    /// An archive, and an empty file to unpack it into if it is compressed.
    Archive(File, PathBuf, Option<(Compression, File)>),
}

impl Files {
    fn folder(path: PathBuf) -> (Self, Access) {
        let access = Access::none().read(&path);
        (Self::Folder(path), access)
    }

    fn archive(file: File, path: PathBuf) -> Result<(Self, Access)> {
        let compression = Compression::of_file(&file);
        let compression = compression.with_context(|| format!("cannot read {}", path.display()))?;
        let plain = match compression {
            Some(compression) => Some((compression, temporary()?)),
            None => None,
        };
        Ok((Self::Archive(file, path, plain), Access::none()))
    }

    fn tree(self, interrupt: &Interrupt) -> Result<Tree> {
        let watch = watch(interrupt);
        let mut tree = Tree::watched(watch.clone());
        match self {
            Self::Folder(path) => {
                let options = DirOptions {
                    owner: Owner::Fixed(0, 0),
                    modes: Modes::Normal,
                    ignore: Ignore::default(),
                };
                tree.apply_dir(&path, "", &options)?;
            }
            Self::Archive(file, path, None) => tree.apply_tar_file(file, &path)?,
            Self::Archive(file, path, Some((compression, mut plain))) => {
                let see = &mut |_: &[u8]| {};
                unpack(
                    Some(compression),
                    file,
                    &mut plain,
                    MAX_UNPACKED,
                    see,
                    &watch,
                )
                .with_context(|| format!("archive {}", path.display()))?;
                tree.apply_tar_file(plain, &path)?;
            }
        }
        Ok(tree)
    }
}

/// Makes an empty file without a name, where there is space.
///
/// # Errors
/// The cache cannot be written.
pub fn temporary() -> Result<File> {
    let cache = paths::cache_dir()?;
    let file = paths::create_in_cache(&cache).and_then(|()| tempfile::tempfile_in(&cache));
    file.with_context(|| format!("cannot write to {}", cache.display()))
}

/// What was read from standard input, which gives it once.
static STANDARD_INPUT: Mutex<Option<File>> = Mutex::new(None);

/// Why no image comes on standard input; `None` if something comes.
///
/// # Errors
/// It cannot be read, or kept; the interrupt.
pub fn nothing_comes(interrupt: &Interrupt) -> Result<Option<&'static str>> {
    Ok(standard_input(interrupt)?.err())
}

/// The content of standard input, as a file; or why there is none.
fn standard_input(interrupt: &Interrupt) -> Result<Result<File, &'static str>> {
    let mut kept = STANDARD_INPUT
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(file) = &*kept {
        return content(file);
    }
    let stdin = io::stdin();
    if rustix::termios::isatty(&stdin) {
        return Ok(Err("standard input is a terminal"));
    }
    let mut file = temporary()?;
    // Not with io::copy: the user may want to stop while nothing comes.
    copy_while(&mut stdin.lock(), &mut file, interrupt).context("cannot read standard input")?;
    content(kept.insert(file))
}

/// What was read, from its beginning, unless it was nothing: standard input of a job without one is empty.
fn content(file: &File) -> Result<Result<File, &'static str>> {
    match file.metadata()?.len() {
        0 => Ok(Err("nothing came on standard input")),
        _ => Ok(Ok(reopen(file)?)),
    }
}

fn copy_while(from: &mut impl io::Read, to: &mut File, interrupt: &Interrupt) -> Result<()> {
    let mut piece = vec![0; 1 << 20];
    loop {
        interrupt.check()?;
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => io::Write::write_all(to, &piece[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The file anew, at its beginning.
fn reopen(file: &File) -> Result<File> {
    let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
    let mut file =
        File::open(Path::new(&name)).context("cannot open what came on standard input")?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}
