//! From a Plan to the three images that a machine boots from.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use smol_cli::{Interrupt, Progress, human};
use smol_guest::protocol::GuestConfig;
use smol_machine::boot;

use super::rootfs::{self, CopySpec, RootfsSource, RootfsSpec};
use super::{initramfs, kernel};
use crate::plan::{self, KernelSource, Plan};

/// The guest's PID 1, built with this program and a part of it.
const GUEST_BINARY: &[u8] = include_bytes!(env!("SMOL_GUEST_BINARY"));

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

/// Makes the images in the folder `work`, with the help of `cache`, and enters their digests into
/// the Plan.
///
/// # Errors
/// Whatever keeps an image from being made.
pub fn assemble(
    plan: &mut Plan,
    cache: &Path,
    work: &Path,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<Images> {
    let kernel = match &plan.kernel.source {
        KernelSource::Path(path) => plan.host_path(path),
        KernelSource::Recipe(name) => kernel::stage(name, cache, progress, interrupt)?,
    };
    interrupt.check()?;
    let mut images = Images {
        kernel,
        initramfs: None,
        rootfs: None,
    };
    if let (Some(guest), Some(source)) = (&plan.guest, &plan.rootfs) {
        images.rootfs = Some(build_rootfs(
            plan,
            source,
            cache,
            &work.join("rootfs"),
            progress,
            interrupt,
        )?);
        images.initramfs = Some(build_initramfs(guest, &work.join("initramfs"))?);
    }
    enter_digests(plan, &images)?;
    place_kernel(plan, &mut images, &work.join("kernel"))?;
    Ok(images)
}

/// Moves a smol kernel to the address that follows from the Plan's seed before it is booted. Then
/// the pages of it in the machine's memory are those of the image in the bundle, which has them
/// once.
fn place_kernel(plan: &Plan, images: &mut Images, out: &Path) -> Result<()> {
    if !boot::is_smol_kernel(&images.kernel)? {
        return Ok(());
    }
    let cmdline = &plan.kernel.build_cmdline;
    if let Some(image) = boot::place_kernel(&images.kernel, cmdline, &plan.seed())? {
        fs::write(out, image).with_context(|| format!("cannot write {}", out.display()))?;
        images.kernel = out.to_owned();
    }
    Ok(())
}

fn build_rootfs(
    plan: &Plan,
    source: &plan::Rootfs,
    cache: &Path,
    out: &Path,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<PathBuf> {
    let source = match source {
        plan::Rootfs::Debian { suite, packages } => RootfsSource::Debian(rootfs::DebianSpec {
            suite: suite.clone(),
            packages: packages.clone(),
            sources: None,
            snapshot: String::new(),
            refresh: false,
        }),
        plan::Rootfs::Tar(path) => RootfsSource::Tar(plan.host_path(path)),
        plan::Rootfs::Dir(path) => RootfsSource::Dir(plan.host_path(path)),
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
        epoch: plan.epoch,
    };
    let stage = progress.stage("rootfs", "assembling the root file system");
    let packages = cache.join("debian");
    let image = rootfs::build_interruptible(
        &spec,
        &packages,
        out,
        &mut |line| stage.note(line),
        interrupt,
    )?;
    stage.finish(&human::bytes(image.size));
    Ok(image.path)
}

fn build_initramfs(guest: &GuestConfig, out: &Path) -> Result<PathBuf> {
    let config = serde_json::to_vec(guest)?;
    let tree = initramfs::smol_initramfs(GUEST_BINARY, &config, None)?;
    let fail = || format!("cannot write {}", out.display());
    let mut file = BufWriter::new(File::create(out).with_context(fail)?);
    initramfs::write(&tree, &mut file)
        .and_then(|_| Ok(file.flush()?))
        .with_context(fail)?;
    Ok(out.to_owned())
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
        let mut hasher = blake3::Hasher::new();
        hasher
            .update_mmap_rayon(path)
            .with_context(|| format!("cannot read the {name} {}", path.display()))?;
        plan.inputs
            .insert(name.to_owned(), hasher.finalize().to_hex().to_string());
    }
    Ok(())
}
