//! The lock by what is on this host now: this program, the kernel's inputs, the files. Nothing is
//! downloaded.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::LazyLock;

use anyhow::Result;
use sha2::{Digest, Sha256};
use smol_cli::Interrupt;

use crate::environment::EnvironmentInputs;
use crate::initramfs::GUEST_BINARY;
use crate::input::{Pins, files};
use crate::kernel;
use crate::lock::{Builder, CopySource, InputFile, Lock, MAX_SIZE, Role, VERSION};
use crate::plan::DEFAULT_EPOCH;
use crate::smolfile::{CopyStep, KernelSource, Loaded};
use crate::source_dir::SourceDir;

static GUEST_SHA256: LazyLock<String> = LazyLock::new(|| hex::encode(Sha256::digest(GUEST_BINARY)));

/// The locks whose choices are kept as long as they fit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kept<'a> {
    /// That of the epoch.
    pub epoch: Option<&'a Lock>,
    /// That of the kernel source and its compiler.
    pub kernel: Option<&'a Lock>,
    /// That of the root file system.
    pub rootfs: Option<&'a Lock>,
}

impl<'a> Kept<'a> {
    /// All choices of a lock.
    pub fn all(lock: Option<&'a Lock>) -> Self {
        Self {
            epoch: lock,
            kernel: lock,
            rootfs: lock,
        }
    }
}

/// Returns the lock of a Smolfile by what is on this host now. What is a choice and fits is taken from
/// `kept`: epoch, kernel source, Debian packages. Whether all could be pinned is the second result.
///
/// # Errors
/// A file cannot be read; the kernel recipe, or all ways to its kernel, are missing.
pub fn current(
    loaded: &Loaded,
    kept: Kept,
    environment: &EnvironmentInputs,
    interrupt: &Interrupt,
) -> Result<(Lock, Pins)> {
    let (smolfile, base_dir) = (&loaded.smolfile, &loaded.base_dir);
    let kept_epoch = kept.epoch.map(|lock| lock.builder.epoch);
    let mut lock = Lock {
        version: VERSION,
        builder: builder(environment.epoch.or(kept_epoch)),
        kernel: None,
        debian: None,
        image: None,
        files: Vec::new(),
        copies: Vec::new(),
        runs: Vec::new(),
    };
    match &smolfile.kernel.source {
        KernelSource::Path(path) => lock.files.push(InputFile {
            role: Role::Kernel,
            path: path.get_ref().clone(),
            sha256: base_dir.sha256(path.get_ref())?,
        }),
        KernelSource::Recipe(name) => {
            let tarball = environment.kernel_source.as_deref();
            let kept = kept.kernel.and_then(|lock| lock.kernel.as_ref());
            lock.kernel = Some(kernel::pins(name, tarball, kept, &environment.kernels)?);
        }
    }
    let mut pins = Pins::Complete;
    if let Some(rootfs) = smolfile.rootfs() {
        let input = rootfs.input();
        pins = input.pin(base_dir, kept.rootfs, &mut lock, interrupt)?;
        lock.copies = copied(base_dir, smolfile.copies(), interrupt)?;
    }
    Ok((lock, pins))
}

/// What each `[[copy]]` copies. One source may be copied any number of times, and is read once for each
/// way to copy it.
///
/// # Errors
/// Those of [`files::copy`]; together it is more than a lock holds.
fn copied<'a>(
    base_dir: &SourceDir,
    copies: impl Iterator<Item = &'a CopyStep>,
    interrupt: &Interrupt,
) -> Result<Vec<CopySource>> {
    let mut known = BTreeMap::new();
    let (mut out, mut size) = (Vec::new(), 0);
    for copy in copies {
        let (src, fixed) = (copy.src.get_ref(), copy.mode.is_some());
        let excluded: Vec<&str> = copy.exclude.iter().map(|e| e.get_ref().as_str()).collect();
        let source = match known.entry((src, excluded, fixed)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let read = files::copy(base_dir, src, &copy.exclude, fixed, interrupt)?;
                new.insert(read)
            }
        };
        size += source
            .contents
            .iter()
            .map(|entry| entry.path.len())
            .sum::<usize>();
        if size > MAX_SIZE {
            return Err(super::too_long().into());
        }
        out.push(source.clone());
    }
    Ok(out)
}

fn builder(epoch: Option<u32>) -> Builder {
    Builder {
        smolbuild: env!("CARGO_PKG_VERSION").to_owned(),
        bundle_format: smol_bundle::FORMAT_VERSION,
        guest_sha256: GUEST_SHA256.clone(),
        epoch: epoch.unwrap_or(DEFAULT_EPOCH),
    }
}

#[cfg(test)]
mod tests {
    use toml::Spanned;

    use super::*;

    #[test]
    fn a_folder_that_is_copied_again_and_again_does_not_make_a_lock_of_any_length() {
        let scratch = tempfile::tempdir().unwrap();
        let name = |n: u32| format!("{n:0200}");
        (0..100).for_each(|n| std::fs::write(scratch.path().join(name(n)), "").unwrap());
        let step = |n: u32| CopyStep {
            src: Spanned::new(0..0, ".".to_owned()),
            glob: false,
            number: 0,
            dest: format!("/{n}"),
            mode: None,
            owner: None,
            exclude: Vec::new(),
        };
        let interrupt = Interrupt::detached().unwrap();
        let copied = |steps: u32| {
            let steps: Vec<CopyStep> = (0..steps).map(step).collect();
            copied(&SourceDir::bare(scratch.path()), steps.iter(), &interrupt)
        };
        assert_eq!(copied(3).unwrap().len(), 3);
        let error = copied(9000).unwrap_err().to_string();
        assert!(
            error.starts_with("the lock would be longer than 16 MiB"),
            "{error}"
        );
    }
}
