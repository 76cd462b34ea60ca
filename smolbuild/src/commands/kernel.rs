//! `smolbuild kernel`: a kernel recipe on its own.

use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use smol_bundle::Output;
use smol_cli::{Interrupt, Mode, Session, paths};
use smol_host::cache::DOWNLOADS;

use crate::cache::hold_for_build;
use crate::cli::Kernel;
use crate::error::ResultExt;
use crate::fetch::Net;
use crate::kernel::{self, KernelRequest, ReadyKernels};
use crate::smolfile::DEFAULT_RECIPE;

/// Builds the kernel, or finds it in the cache, and prints the path of its vmlinux.
pub fn run(args: &Kernel, interrupt: &Interrupt) -> Result<()> {
    let session = Session::titled(args.shown.progress, "Building", interrupt.clone());
    let cache = paths::cache_dir()?;
    let _in_use = hold_for_build(&cache)?;
    let ready = ReadyKernels::of_process(false, args.prebuilt.no_prebuilt)?;
    let request = KernelRequest {
        recipe: &args.recipe,
        source: args.source.as_deref(),
        pinned: None,
        downloads: &cache.join(DOWNLOADS),
        net: Net::Open,
        release: ready.release.as_deref(),
        rebuild: args.no_cache,
    };
    let Some(output) = &args.output else {
        let kernel = kernel::obtain(&request, &cache, &session)?;
        smol_cli::print(&format!("{}\n", kernel.vmlinux.display()))?;
        return Ok(());
    };
    // Before the minutes that a build takes.
    smol_bundle::check_output(output).classify()?;
    let kernel = kernel::obtain(&request, &cache, &session)?;
    copy(&kernel.vmlinux, output)?;
    smol_cli::print(&format!("{}\n", output.display()))?;
    Ok(())
}

/// Writes the kernel that this host compiles into the folder of a release's kernels.
pub fn release(folder: &Path, interrupt: &Interrupt) -> Result<()> {
    let session = Session::new(Mode::Plain, interrupt.clone());
    let cache = paths::cache_dir()?;
    let _in_use = hold_for_build(&cache)?;
    let pins = kernel::pins(DEFAULT_RECIPE, None, None, &ReadyKernels::default())?;
    let request = KernelRequest {
        recipe: DEFAULT_RECIPE,
        source: None,
        pinned: Some(&pins),
        downloads: &cache.join(DOWNLOADS),
        // A release has the source that its recipe pins, or it is none.
        net: Net::Pinned,
        release: None,
        rebuild: false,
    };
    let kernel = kernel::obtain(&request, &cache, &session)?;
    kernel::release(&pins, &kernel.vmlinux, folder)
}

/// Copies a file such that the copy appears whole or not at all.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let output = Output::create_with_mode(to, 0o777).classify()?;
    File::open(from)
        .and_then(|mut file| io::copy(&mut file, &mut output.file()))
        .with_context(|| format!("cannot write {}", to.display()))?;
    output.publish().classify()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_copy_replaces_what_is_there_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::write(&from, "new").unwrap();
        fs::write(&to, "older and longer").unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"new");
        assert!(copy(&folder.path().join("none"), &to).is_err());
        assert_eq!(fs::read(&to).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
