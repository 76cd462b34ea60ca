//! What is here now: this program, the kernel's inputs, the files. Of Debian nobody is asked.

use std::path::Path;
use std::sync::LazyLock;

use anyhow::Result;
use sha2::{Digest, Sha256};
use smol_cli::Interrupt;

use super::{Builder, Debian, Lock, Role, VERSION, files};
use crate::fetch;
use crate::initramfs::GUEST_BINARY;
use crate::kernel;
use crate::plan::DEFAULT_EPOCH;
use crate::smolfile::{KernelSource, Loaded, Rootfs, Workload};

static GUEST_SHA256: LazyLock<String> = LazyLock::new(|| fetch::hex(&Sha256::digest(GUEST_BINARY)));

/// What the environment adds to the Smolfile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// SOURCE_DATE_EPOCH; without, the lock's stays.
    pub epoch: Option<u32>,
    /// A source tarball for kernels; without, the lock's stays.
    pub kernel_source: Option<std::path::PathBuf>,
}

/// The lock of a Smolfile by what is here now. What is a choice and fits is taken from `kept`:
/// epoch, kernel source, Debian packages. If there are no packages to keep, there are none in it,
/// and the second result is false.
///
/// # Errors
/// A file cannot be read; the kernel recipe or its tools are missing.
pub fn present(
    loaded: &Loaded,
    kept: Option<&Lock>,
    surroundings: &Surroundings,
    interrupt: &Interrupt,
) -> Result<(Lock, bool)> {
    let (smolfile, base) = (&loaded.smolfile, &loaded.base_dir);
    let input = |role, path: &str| files::input(role, base, path, interrupt);
    let mut lock = Lock {
        version: VERSION,
        builder: builder(surroundings.epoch.or(kept.map(|lock| lock.builder.epoch))),
        kernel: None,
        debian: None,
        files: Vec::new(),
        copies: Vec::new(),
    };
    match &smolfile.kernel.source {
        KernelSource::Path(path) => lock.files.push(input(Role::Kernel, path.get_ref())?),
        KernelSource::Recipe(name) => {
            let tarball = surroundings.kernel_source.as_deref();
            let kept = kept.and_then(|lock| lock.kernel.as_ref());
            lock.kernel = Some(kernel::pins(name, tarball, kept)?);
        }
    }
    let mut complete = true;
    if let Workload::Service { rootfs, copies, .. } = &smolfile.workload {
        match rootfs {
            Rootfs::Tar(path) => lock.files.push(input(Role::RootfsTar, path.get_ref())?),
            Rootfs::Dir(path) => lock.files.push(input(Role::RootfsDir, path.get_ref())?),
            Rootfs::Bundle(path) => lock.files.push(input(Role::Base, path.get_ref())?),
            Rootfs::Debian { suite, packages } => {
                let mut debian = request(suite, packages);
                let kept = kept.and_then(|lock| lock.debian.as_ref());
                complete = kept.is_some_and(|kept| {
                    kept.suite == debian.suite && kept.requested == debian.requested
                });
                // Of a lock that does not fit they stand in for those that will be chosen.
                debian.packages = kept.map(|kept| kept.packages.clone()).unwrap_or_default();
                lock.debian = Some(debian);
            }
        }
        for copy in copies {
            let (src, fixed) = (copy.src.get_ref(), copy.mode.is_some());
            lock.copies.push(files::copy(base, src, fixed, interrupt)?);
        }
    }
    Ok((lock, complete))
}

fn builder(epoch: Option<u32>) -> Builder {
    Builder {
        smolbuild: env!("CARGO_PKG_VERSION").to_owned(),
        bundle_format: smol_bundle::FORMAT_VERSION,
        guest_sha256: GUEST_SHA256.clone(),
        epoch: epoch.unwrap_or(DEFAULT_EPOCH),
    }
}

/// What a Smolfile asks of Debian; the order in which packages are named changes nothing.
fn request(suite: &str, packages: &[String]) -> Debian {
    let mut requested = packages.to_vec();
    requested.sort();
    requested.dedup();
    Debian {
        suite: suite.to_owned(),
        requested,
        packages: Vec::new(),
    }
}

impl Surroundings {
    /// As this process finds them.
    ///
    /// # Errors
    /// A SOURCE_DATE_EPOCH that is no time.
    pub fn of_environment() -> Result<Surroundings> {
        let epoch = std::env::var("SOURCE_DATE_EPOCH").ok();
        Ok(Surroundings {
            epoch: epoch
                .map(|text| crate::plan::parse_epoch(&text))
                .transpose()?,
            kernel_source: kernel::source_variable(),
        })
    }

    /// The kernel source, for those who build one.
    pub fn kernel_source(&self) -> Option<&Path> {
        self.kernel_source.as_deref()
    }
}
