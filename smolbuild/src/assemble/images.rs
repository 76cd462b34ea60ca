//! From a Plan to the three images that a machine boots from.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use smol_cli::{ErrorExt, ExitKind, Interrupt, Progress, human};
use smol_machine::boot;
use smol_rootfs::CopySpec;

use super::rootfs::{self, BaseSpec, DebianSpec, RootfsSource, RootfsSpec, debian};
use crate::fetch::Net;
use crate::hash;
use crate::initramfs;
use crate::kernel::{self, KernelRequest};
use crate::lock::{self, PackagePin, Surroundings, World};
use crate::plan::{self, KernelSource, Plan};

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

/// Where a build has its files, and what it may download.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Kernels and installed systems that were made before.
    pub cache: &'a Path,
    /// Inputs that were downloaded before.
    pub downloads: &'a Path,
    /// Folder to make the images in.
    pub work: &'a Path,
    /// What may be downloaded.
    pub net: Net,
    /// What the environment adds.
    pub surroundings: &'a Surroundings,
}

/// Makes the images, and enters their digests into the Plan; and into its lock what had to be taken
/// instead of a pinned input that is not to be had any more, if that is allowed.
///
/// # Errors
/// Whatever keeps an image from being made.
pub fn assemble(
    plan: &mut Plan,
    site: Site,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<Images> {
    let kernel = build_kernel(plan, site, progress, interrupt)?;
    interrupt.check()?;
    let mut images = Images {
        kernel,
        initramfs: None,
        rootfs: None,
    };
    if plan.rootfs.is_some() {
        images.rootfs = Some(build_rootfs(plan, site, progress, interrupt)?);
    }
    if let Some(guest) = &plan.guest {
        let out = site.work.join("initramfs");
        initramfs::build(guest, &out)?;
        images.initramfs = Some(out);
    }
    enter_digests(plan, &images)?;
    place_kernel(plan, &mut images, &site.work.join("kernel"))?;
    Ok(images)
}

/// Moves a smol kernel to the address that follows from the Plan's kernel seed before it is booted. Then
/// the pages of it in the machine's memory are those of the image in the bundle, which has them
/// once.
fn place_kernel(plan: &Plan, images: &mut Images, out: &Path) -> Result<()> {
    if !boot::is_smol_kernel(&images.kernel)? {
        return Ok(());
    }
    let cmdline = &plan.kernel.build_cmdline;
    if let Some(image) = boot::place_kernel(&images.kernel, cmdline, &plan.kernel_seed())? {
        fs::write(out, image).with_context(|| format!("cannot write {}", out.display()))?;
        images.kernel = out.to_owned();
    }
    Ok(())
}

fn build_kernel(
    plan: &mut Plan,
    site: Site,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<PathBuf> {
    let name = match &plan.kernel.source {
        KernelSource::Path(path) => return Ok(plan.host_path(path)),
        KernelSource::Recipe(name) => name,
    };
    let pinned = plan.lock.kernel.as_mut().context("the lock has no kernel");
    let pinned = pinned.kind(ExitKind::Internal)?;
    let request = KernelRequest {
        recipe: name,
        source: site.surroundings.kernel_source(),
        pinned: Some(pinned),
        downloads: site.downloads,
        net: site.net,
        rebuild: false,
    };
    let (vmlinux, source) = kernel::obtain(&request, site.cache, progress, interrupt)?;
    source.enter(pinned);
    Ok(vmlinux)
}

fn build_rootfs(
    plan: &mut Plan,
    site: Site,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<PathBuf> {
    let cache = site.cache.join("debian");
    let source = match &plan.rootfs {
        Some(plan::Rootfs::Tar(path)) => RootfsSource::Tar(plan.host_path(path)),
        Some(plan::Rootfs::Dir(path)) => RootfsSource::Dir(plan.host_path(path)),
        Some(plan::Rootfs::Bundle(path)) => {
            let digest = plan.lock.base().context("the lock has no base");
            RootfsSource::Bundle(BaseSpec {
                path: plan.host_path(path),
                digest: digest.kind(ExitKind::Internal)?,
            })
        }
        Some(plan::Rootfs::Debian { .. }) => {
            let debian = plan
                .lock
                .debian
                .as_mut()
                .context("the lock has no packages");
            let debian = debian.kind(ExitKind::Internal)?;
            have_packages(debian, &cache, site, progress, interrupt)?;
            RootfsSource::Debian(DebianSpec {
                packages: debian.packages.clone(),
                downloads: site.downloads.to_owned(),
            })
        }
        None => RootfsSource::None,
    };
    let copies = plan.copies.iter().map(|c| CopySpec {
        src: plan.host_path(&c.src),
        dest: c.dest.clone(),
        mode: c.mode,
        owner: c.owner.clone(),
    });
    let spec = RootfsSpec {
        source,
        copies: copies.collect(),
        epoch: plan.epoch(),
    };
    let stage = progress.stage("rootfs", "assembling the root file system");
    let image = rootfs::build_interruptible(
        &spec,
        &cache,
        &site.work.join("rootfs"),
        &mut |line| stage.note(line),
        interrupt,
    )?;
    stage.finish(&human::bytes(image.size));
    Ok(image.path)
}

/// Has the packages of a system, unless it is installed already. Those that are gone from the
/// archive are replaced by what it offers now, if that is allowed.
fn have_packages(
    debian: &mut lock::Debian,
    installed: &Path,
    site: Site,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    let fetch = |debian: &lock::Debian| -> Result<Vec<PackagePin>> {
        if debian::is_installed(&debian.packages, installed) {
            return Ok(Vec::new());
        }
        let mut stage = None;
        let gone = debian::fetch(
            &debian.suite,
            &debian.packages,
            site.downloads,
            site.net,
            &mut |what| stage = Some(progress.stage("fetch", what)),
            interrupt,
        )?;
        if let Some(stage) = stage {
            stage.finish(if gone.is_empty() {
                "all there"
            } else {
                "some are gone"
            });
        }
        Ok(gone)
    };
    let gone = fetch(debian)?;
    if gone.is_empty() {
        return Ok(());
    }
    let failure = debian::gone(&gone, &debian.suite);
    if site.net != Net::Open {
        return Err(failure.into());
    }
    progress.note(&format!("{failure}: choosing anew"));
    let world = World {
        downloads: site.downloads,
        offline: false,
        surroundings: site.surroundings,
        progress,
        interrupt,
    };
    lock::choose(debian, world)?;
    match fetch(debian)? {
        gone if gone.is_empty() => Ok(()),
        gone => Err(debian::gone(&gone, &debian.suite)).kind(ExitKind::Failed),
    }
}

fn enter_digests(plan: &mut Plan, images: &Images) -> Result<()> {
    let present = [
        ("kernel", Some(&images.kernel)),
        ("initramfs", images.initramfs.as_ref()),
        ("rootfs", images.rootfs.as_ref()),
    ];
    for (name, path) in present
        .into_iter()
        .filter_map(|(name, path)| Some((name, path?)))
    {
        let hash = hash::file(path).with_context(|| format!("the {name}"))?;
        plan.inputs
            .insert(name.to_owned(), hash.to_hex().to_string());
    }
    Ok(())
}
