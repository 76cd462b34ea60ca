//! The inputs of a root file system: one module for each kind that a Smolfile can name.
//!
//! | module | kind |
//! |---|---|
//! | [`debian`] | `[rootfs] debian`: packages |
//! | `tar` | `[rootfs] tar`: a tar archive |
//! | `dir` | `[rootfs] dir`: a folder |
//! | [`image`] | `[rootfs] image`: a container image |
//! | [`bundle`] | `[base] bundle`: the root file system of another bundle |
//! | [`layers`] | layers in the cache, unpacked and verified |
//! | [`files`] | digests of folders, and of what a `[[copy]]` copies |
//!
//! Every stage asks the [`Input`] and does not know the kinds: reading a Smolfile checks
//! [`Input::host_path`], resolving the lock calls [`Input::pin`] and [`Input::choose`], and building
//! the root file system calls [`Input::fetch`] and [`Input::load`]; [`Input::found`] tells before what
//! there is. A new kind is a module with a
//! type that implements the trait, a variant of [`Rootfs`] with its line in [`Rootfs::input`], and
//! its keys in `smolfile/parse.rs`.

use std::any::Any;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use smol_cli::{ErrorExt, ExitKind, Interrupt};
use smol_rootfs::erofs::Mtimes;
use smol_rootfs::{Tree, Watch};
use smol_sandbox::{Access, Filter, MODE_VARIABLE, Mode};
use toml::Spanned;

use crate::context::BuildContext;
use crate::lock::Lock;
use crate::source_dir::SourceDir;

pub mod bundle;
pub mod debian;
mod dir;
pub mod files;
pub mod image;
pub mod layers;
mod tar;

pub use self::bundle::BundleInput;
pub use self::debian::DebianInput;
pub use self::dir::DirInput;
pub use self::image::ImageInput;
pub use self::tar::TarInput;

/// `[rootfs]`, or `[base]` in its place: an input of one of the kinds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rootfs {
    /// A Debian system.
    Debian(DebianInput),
    /// A tar archive of the host.
    Tar(TarInput),
    /// A folder of the host.
    Dir(DirInput),
    /// A container image.
    Image(ImageInput),
    /// `[base]`: another bundle.
    Bundle(BundleInput),
}

impl Rootfs {
    /// The input, whatever its kind.
    pub fn input(&self) -> &dyn Input {
        match self {
            Self::Debian(input) => input,
            Self::Tar(input) => input,
            Self::Dir(input) => input,
            Self::Image(input) => input,
            Self::Bundle(input) => input,
        }
    }
}

/// Where the files of a root file system come from.
pub trait Input {
    /// The file or folder that it names. It must exist when the Smolfile is read, and a bundle does
    /// not contain it in its original form.
    fn host_path(&self) -> Option<HostPath<'_>>;

    /// Enters into `lock` what pins it, as it is now on this host. `base_dir` is the folder of the
    /// Smolfile. What was chosen for `kept` is kept if the Smolfile still asks for the same.
    ///
    /// # Errors
    /// A file cannot be read.
    fn pin(
        &self,
        base_dir: &SourceDir,
        kept: Option<&Lock>,
        lock: &mut Lock,
        interrupt: &Interrupt,
    ) -> Result<Pins>;

    /// Chooses anew what [`Input::pin`] left to be chosen, and enters it into `lock`.
    ///
    /// # Errors
    /// Nothing may be downloaded, or what is asked for does not exist.
    fn choose(&self, _lock: &mut Lock, _context: BuildContext) -> Result<()> {
        Ok(())
    }

    /// Downloads what `lock` pins, unless it is in the folder of downloads already. `cache` is the folder of what
    /// was made of downloads before, with a folder in it for each kind. What is not offered any more is replaced in `lock`, if that is allowed.
    ///
    /// # Errors
    /// It cannot be downloaded, or may not be.
    fn fetch(&self, _lock: &mut Lock, _cache: &Path, _context: BuildContext) -> Result<()> {
        Ok(())
    }

    /// Reads the files into a tree. `say` is told what happens, a line at a time.
    ///
    /// # Errors
    /// Unreadable or hostile input; input that is not what `lock` pins; a full disk; the interrupt.
    fn load(
        &self,
        lock: &Lock,
        dirs: &InputDirs,
        say: &mut dyn FnMut(&str),
        interrupt: &Interrupt,
    ) -> Result<LoadedTree>;

    /// Which times the files have in the image.
    fn mtimes(&self) -> Mtimes;

    /// What it is, in a line for people.
    fn title(&self) -> String;

    /// What of it is in the caches, if a build takes it from there. Nothing is verified: what has the name
    /// is there. `None` for an input that is read where it is.
    ///
    /// # Errors
    /// `lock` does not have it.
    fn found(&self, _lock: &Lock, _cache: &Path, _downloads: &Path) -> Result<Option<Found>> {
        Ok(None)
    }
}

/// What of an input is in the caches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it is made of: `packages` or `layers`.
    pub parts: &'static str,
    /// How many of them there are.
    pub total: usize,
    /// SHA-256 of those that a build needs and does not find, in hexadecimal.
    pub missing: Vec<String>,
    /// Whether the tree can be read from the cache as it is.
    pub ready: bool,
    /// Where the missing ones come from.
    pub from: Origin,
}

/// Where what is not in the cache comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The file that the Smolfile names.
    Host,
    /// A server.
    Network,
    /// Nothing says where it is.
    Nowhere,
}

/// Does `work`, which reads what strangers have made, on a thread that can use nothing but `access`:
/// no other file, no network, no program.
///
/// # Errors
/// Those of `work`; or the thread cannot be confined.
pub fn confined<T: Send>(access: &Access, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let mode = Mode::from_environment()?;
    smol_sandbox::confined(access, Filter::Files, mode, work)
        .kind(ExitKind::Host)
        .hint(format!(
            "{MODE_VARIABLE}=off builds without confinement: for Smolfiles that you trust"
        ))?
}

/// A path that a Smolfile names, relative to its folder.
#[derive(Clone, Copy, Debug)]
pub struct HostPath<'a> {
    /// The path, and where it is written.
    pub path: &'a Spanned<String>,
    /// Whether it is a folder; a file otherwise.
    pub is_folder: bool,
}

/// How far an input is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pins {
    /// The lock has all of it.
    Complete,
    /// The lock has what the Smolfile asks for; [`Input::choose`] has to follow.
    ToChoose,
}

/// The folders that inputs are read from, and unpacked to.
#[derive(Clone, Copy, Debug)]
pub struct InputDirs<'a> {
    /// Folder of the Smolfile.
    pub base_dir: &'a SourceDir,
    /// Folder of downloads.
    pub downloads: &'a Path,
    /// Folder of what was made of downloads before.
    pub cache: &'a Path,
    /// Folder for temporary files.
    pub scratch: &'a Path,
}

/// Lets whatever reads into a tree, or writes it, look at the interrupt.
pub fn watch(interrupt: &Interrupt) -> Watch {
    let interrupt = interrupt.clone();
    Watch::new(move || Ok(interrupt.check()?))
}

/// The files of an input.
pub struct LoadedTree {
    /// The tree, which refers to contents on disk.
    pub tree: Tree,
    /// Keeps those contents in place until it is dropped.
    _contents: Option<Box<dyn Any>>,
}

impl LoadedTree {
    /// A tree whose contents stay where they are.
    fn new(tree: Tree) -> LoadedTree {
        LoadedTree {
            tree,
            _contents: None,
        }
    }

    /// A tree whose contents stay in place as long as `contents` is not dropped.
    fn kept_by(tree: Tree, contents: impl Any) -> LoadedTree {
        LoadedTree {
            tree,
            _contents: Some(Box::new(contents)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::lock::{PackagePin, Role};

    fn pin(input: &dyn Input, base_dir: &Path, kept: Option<&Lock>) -> (Lock, Pins) {
        let base_dir = &SourceDir::bare(base_dir);
        let mut lock = Lock::of_epoch(0);
        let interrupt = Interrupt::detached().unwrap();
        let pins = input.pin(base_dir, kept, &mut lock, &interrupt).unwrap();
        (lock, pins)
    }

    #[test]
    fn a_file_or_folder_is_pinned_under_its_own_role_and_looked_for_by_its_own_kind() {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("root.tar"), "").unwrap();
        fs::create_dir(scratch.path().join("root")).unwrap();
        let path = |text: &str| Spanned::new(0..0, text.to_owned());
        for (rootfs, role, is_folder) in [
            (
                Rootfs::Tar(TarInput(path("root.tar"))),
                Role::RootfsTar,
                false,
            ),
            (Rootfs::Dir(DirInput(path("root"))), Role::RootfsDir, true),
        ] {
            let host = rootfs.input().host_path().unwrap();
            assert_eq!(host.is_folder, is_folder);
            let (lock, pins) = pin(rootfs.input(), scratch.path(), None);
            assert_eq!(pins, Pins::Complete);
            let [file] = lock.files.as_slice() else {
                panic!("{:?}", lock.files)
            };
            assert_eq!((file.role, &file.path), (role, host.path.get_ref()));
        }
    }

    #[test]
    fn packages_are_kept_for_the_same_request_and_chosen_for_another() {
        let asked = |packages: &[&str]| {
            let packages = packages.iter().map(|name| name.to_string()).collect();
            DebianInput::new("bookworm".into(), packages)
        };
        let nowhere = Path::new("/nonexistent");
        let (mut kept, pins) = pin(&asked(&["curl", "bash"]), nowhere, None);
        assert_eq!(pins, Pins::ToChoose);
        let debian = kept.debian.as_mut().unwrap();
        debian.packages.push(PackagePin {
            name: "bash".into(),
            version: "5.2".into(),
            arch: "amd64".into(),
            sha256: "ab".repeat(32),
        });
        let (lock, pins) = pin(&asked(&["bash", "curl"]), nowhere, Some(&kept));
        assert_eq!((lock.debian, pins), (kept.debian.clone(), Pins::Complete));
        let (lock, pins) = pin(&asked(&["bash"]), nowhere, Some(&kept));
        assert_eq!(pins, Pins::ToChoose);
        assert_eq!(lock.debian.unwrap().requested, ["bash"]);
    }
}
