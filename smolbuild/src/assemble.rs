//! From a Plan to the three images that a machine boots from.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use smol_cli::{ErrorExt, ExitKind, human};
use smol_machine::boot;
use smol_rootfs::CopySpec;

use crate::context::BuildContext;
use crate::hash;
use crate::initramfs;
use crate::input::{InputDirs, Rootfs};
use crate::kernel::{self, KernelRequest};
use crate::lock::Lock;
use crate::plan::{Plan, Sealed};
use crate::rootfs::{self, RootfsSpec};
use crate::smolfile::KernelSource;

/// The images of a machine.
#[derive(Clone, Debug)]
pub struct Images {
    /// Kernel; one of ours is at its place in the address space already.
    pub kernel: PathBuf,
    /// Initramfs; absent for a machine that is just a kernel.
    pub initramfs: Option<PathBuf>,
    /// EROFS image.
    pub rootfs: Option<PathBuf>,
}

/// The directories of a build.
#[derive(Clone, Copy, Debug)]
pub struct BuildDirs<'a> {
    /// Kernels and installed systems that were made before.
    pub cache: &'a Path,
    /// Folder to make the images in.
    pub work: &'a Path,
}

/// Makes the images, and seals the Plan with their digests. Where a pinned input is not to be had
/// any more and another one was taken, because that is allowed, the lock of the sealed Plan has that
/// one.
///
/// # Errors
/// Whatever keeps an image from being made.
pub fn assemble(plan: &Plan, dirs: BuildDirs, context: BuildContext) -> Result<(Sealed, Images)> {
    let mut lock = plan.lock.clone();
    let kernel = build_kernel(plan, &mut lock, dirs, context)?;
    context.session.check()?;
    let rootfs = plan.rootfs.as_ref();
    let rootfs = rootfs.map(|rootfs| build_rootfs(plan, rootfs, &mut lock, dirs, context));
    let rootfs = rootfs.transpose()?;
    let initramfs = plan.guest.as_ref().map(|guest| {
        let out = dirs.work.join("initramfs");
        initramfs::build(guest, &out).map(|()| out)
    });
    let images = Images {
        kernel,
        initramfs: initramfs.transpose()?,
        rootfs,
    };
    let sealed = Sealed::new(plan, lock, digests(&images)?);
    let kernel = place_kernel(&sealed, &images.kernel, &dirs.work.join("kernel"))?;
    Ok((sealed, Images { kernel, ..images }))
}

fn build_kernel(
    plan: &Plan,
    lock: &mut Lock,
    dirs: BuildDirs,
    context: BuildContext,
) -> Result<PathBuf> {
    let name = match &plan.kernel.source {
        KernelSource::Path(path) => return own_kernel(plan, path.get_ref(), dirs),
        KernelSource::Recipe(name) => name,
    };
    let pinned = lock.kernel.as_mut().context("the lock has no kernel");
    let pinned = pinned.kind(ExitKind::Internal)?;
    let request = KernelRequest {
        recipe: name,
        source: context.environment.kernel_source.as_deref(),
        pinned: Some(pinned),
        downloads: context.downloads,
        net: context.net,
        release: context.environment.kernels.release.as_deref(),
        rebuild: false,
    };
    let kernel = kernel::obtain(&request, dirs.cache, context.session)?;
    kernel.source.enter(pinned);
    Ok(kernel.vmlinux)
}

/// Copies a kernel that the Smolfile names, so that what is booted is what was looked at, whatever
/// becomes of its path.
fn own_kernel(plan: &Plan, path: &str, dirs: BuildDirs) -> Result<PathBuf> {
    let (mut kernel, _) = plan.base_dir.require_file(path)?;
    let out = dirs.work.join("kernel.named");
    File::create(&out)
        .and_then(|mut copy| io::copy(&mut kernel, &mut copy))
        .with_context(|| format!("cannot write {}", out.display()))?;
    Ok(out)
}

fn build_rootfs(
    plan: &Plan,
    rootfs: &Rootfs,
    lock: &mut Lock,
    dirs: BuildDirs,
    context: BuildContext,
) -> Result<PathBuf> {
    rootfs.input().fetch(lock, dirs.cache, context)?;
    let copies = plan.copies.iter().map(|copy| {
        let src = copy.src.get_ref();
        Ok(CopySpec {
            src: plan.base_dir.require(src)?,
            name: Path::new(src).file_name().map(OsStr::to_owned),
            dest: copy.dest.clone(),
            mode: copy.mode,
            owner: copy.owner.clone(),
            ignore: plan.base_dir.ignore(src, &copy.exclude)?,
        })
    });
    let folders = plan.image_folders();
    let spec = RootfsSpec {
        input: rootfs.input(),
        lock,
        copies: &copies.collect::<Result<Vec<_>>>()?,
        folders: &folders,
        user: plan
            .guest
            .as_ref()
            .and_then(|guest| guest.service.user.as_deref()),
        epoch: plan.epoch(),
    };
    let input_dirs = InputDirs {
        base_dir: &plan.base_dir,
        downloads: context.downloads,
        cache: dirs.cache,
        scratch: dirs.work,
    };
    let stage = context
        .session
        .stage("rootfs", "assembling the root file system");
    let image = rootfs::build(
        &spec,
        &input_dirs,
        &dirs.work.join("rootfs"),
        &mut |line| stage.note(line),
        &context.session.interrupt,
    )?;
    stage.finish(&human::bytes(image.size));
    Ok(image.path)
}

/// Digests of the images, by name.
fn digests(images: &Images) -> Result<BTreeMap<String, String>> {
    let present = [
        ("kernel", Some(&images.kernel)),
        ("initramfs", images.initramfs.as_ref()),
        ("rootfs", images.rootfs.as_ref()),
    ];
    let digest = |(name, path): (&str, Option<&PathBuf>)| {
        let hash = hash::blake3(path?).with_context(|| format!("the {name}"));
        Some(hash.map(|hash| (name.to_owned(), hash.to_hex().to_string())))
    };
    present.into_iter().filter_map(digest).collect()
}

/// Moves a smol kernel to the address that follows from the kernel seed before it is booted, into the
/// file `out`. Then the pages of it in the machine's memory are those of the image in the bundle,
/// which has them once. Returns the kernel to boot.
fn place_kernel(sealed: &Sealed, kernel: &Path, out: &Path) -> Result<PathBuf> {
    if !boot::is_smol_kernel(kernel)? {
        return Ok(kernel.to_owned());
    }
    let cmdline = &sealed.plan.kernel.build_cmdline;
    let Some(image) = boot::place_kernel(kernel, cmdline, &sealed.kernel_seed())? else {
        return Ok(kernel.to_owned());
    };
    fs::write(out, image).with_context(|| format!("cannot write {}", out.display()))?;
    Ok(out.to_owned())
}
