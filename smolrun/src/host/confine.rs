//! What the kernel leaves to this process of its user's rights, in two steps.
//!
//! | from | it may | it may not |
//! |---|---|---|
//! | [`before_bundle`]: the bundle is opened, checked, unpacked | read the bundle and the keys; write the cache and the runtime folder; listen on the ports of `-p`; start itself (`-d`), and QEMU where the machine is to be emulated | anything else with files; connect; trace others |
//! | [`before_machine`]: the machine is restored and runs | read its images; write the runtime folder, and the cache while it is unpacked; listen on the ports | start programs; anything else with files |
//! | the machine runs ([`Filter::Machine`]) | what its devices and vCPUs take | open sockets, start programs, make code |
//!
//! Each step takes away more, and threads inherit what their maker has left. A file that does not
//! exist yet when a step begins is out of reach after it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use smol_cli::{ErrorExt, ExitKind, Failure, paths};
use smol_host::emulated::{self, EmulatedHost};
use smol_sandbox::{Access, Filter, MODE_VARIABLE, Mode};

use crate::host::instance;
use crate::images::{Images, cache};
use crate::run::publish::Publish;
use crate::run::spec::RunSpec;

/// What a start uses of this host before it is known what machine it is.
pub struct Start<'a> {
    /// The bundle's file.
    pub bundle: &'a Path,
    /// The cache.
    pub cache: &'a Path,
    /// `--key`.
    pub keys: &'a [PathBuf],
    /// `-p`.
    pub ports: &'a [Publish],
    /// `--metrics-file`.
    pub metrics_file: Option<&'a Path>,
    /// Whether QEMU may have to be started.
    pub emulated: bool,
}

/// Restricts this thread and all that it starts to what opening, checking, unpacking and starting a
/// bundle takes.
///
/// # Errors
/// If the kernel refuses, or QEMU is wanted and absent.
pub fn before_bundle(start: &Start, mode: Mode) -> anyhow::Result<()> {
    let mut access = Access::of_monitor()
        .read(start.bundle)
        .write(start.cache)
        // It may be a link to another disk, as the emulated host's may.
        .write(cache::root(start.cache))
        .write(paths::runtime_dir()?)
        // -d.
        .execute("/proc/self/exe");
    // There is none where no folder is named and every key is.
    if let Ok(folder) = paths::config_dir() {
        access = access.read(folder.join("trust"));
    }
    for key in start.keys {
        access = access.read(key);
    }
    access = metrics(access, start.metrics_file);
    access = ports(access, start.ports);
    if start.emulated {
        access = access.write(start.cache.join(emulated::FOLDER));
        access = access.and(emulated::qemu_access().map_err(Failure::from)?);
    }
    restrict(&access, mode)?;
    Filter::Local
        .restrict_process(mode)
        .map_err(anyhow::Error::from)
        .kind(ExitKind::Host)
        .hint(hint())
}

/// Restricts this thread and all that it starts to what the machine with these images takes; the
/// records of machines are in `instances`.
///
/// # Errors
/// If the kernel refuses.
pub fn before_machine(spec: &RunSpec, images: &Images, instances: &Path) -> anyhow::Result<()> {
    // Of the devices, and of what the kernel tells, there is what the first step has left.
    let mut access = Access::none().read("/proc").read("/sys").write("/dev");
    access = access.write(instances);
    for path in images.read() {
        access = access.read(path);
    }
    if let Some(folder) = images.written() {
        access = access.write(folder);
    }
    restrict(&with_outputs(access, spec), spec.sandbox)?;
    keep_memory_private(spec.sandbox)
}

/// Restricts this thread and all that it starts to what running that emulated host takes.
///
/// # Errors
/// If the kernel refuses.
pub fn before_emulated_host(spec: &RunSpec, host: &EmulatedHost) -> anyhow::Result<()> {
    let access = host.access().map_err(Failure::from)?;
    let access = access
        .read("/proc/self/exe")
        .write(paths::cache_dir()?.join(emulated::FOLDER))
        .write(instance::root()?);
    restrict(&with_outputs(access, spec), spec.sandbox)
}

/// Restricts this thread of the program inside of an emulated host, and all that it starts, to what
/// the machine with these images takes.
///
/// # Errors
/// If the kernel refuses.
pub fn inside(spec: &RunSpec, images: &Path) -> anyhow::Result<()> {
    let access = Access::of_monitor().read(images);
    restrict(&ports(access, &spec.ports), spec.sandbox)
}

fn with_outputs(access: Access, spec: &RunSpec) -> Access {
    metrics(ports(access, &spec.ports), spec.metrics_file.as_deref())
}

fn ports(access: Access, ports: &[Publish]) -> Access {
    let ports = ports.iter().map(|publish| publish.host.port());
    ports.fold(access, Access::bind)
}

/// The file appears by a rename in its folder.
fn metrics(access: Access, file: Option<&Path>) -> Access {
    let folder = |file: &Path| std::path::absolute(file).ok()?.parent().map(Path::to_owned);
    match file.and_then(folder) {
        Some(folder) => access.write(folder),
        None => access,
    }
}

fn restrict(access: &Access, mode: Mode) -> anyhow::Result<()> {
    access
        .restrict_thread(mode)
        .map_err(anyhow::Error::from)
        .kind(ExitKind::Host)
        .hint(hint())
}

fn keep_memory_private(mode: Mode) -> anyhow::Result<()> {
    match mode {
        Mode::On => {
            smol_sandbox::keep_memory_private().context("cannot protect this process's memory")
        }
        Mode::Log | Mode::Off => Ok(()),
    }
}

fn hint() -> String {
    format!("{MODE_VARIABLE}=off runs the machine without confinement: for bundles that you trust")
}
