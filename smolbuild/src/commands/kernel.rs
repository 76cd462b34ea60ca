//! `smolbuild kernel`: a kernel recipe on its own.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use smol_cli::{Interrupt, Progress, paths};

use crate::assemble::kernel::{self, Request};
use crate::cli::Kernel;

/// Builds the kernel, or finds it in the cache, and prints the path of its vmlinux.
pub fn run(args: &Kernel, interrupt: &Interrupt) -> Result<()> {
    let progress = Progress::new(args.progress);
    let request = Request {
        recipe: &args.recipe,
        source: args.source.as_deref(),
        rebuild: args.no_cache,
    };
    let vmlinux = kernel::obtain(&request, &paths::cache_dir()?, &progress, interrupt)?;
    let Some(output) = &args.output else {
        println!("{}", vmlinux.display());
        return Ok(());
    };
    copy(&vmlinux, output).with_context(|| format!("cannot write {}", output.display()))?;
    println!("{}", output.display());
    Ok(())
}

/// Copies a file such that the copy appears whole or not at all.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let folder = to
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut new = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o755))
        .tempfile_in(folder)?;
    io::copy(&mut File::open(from)?, &mut new)?;
    new.as_file().sync_all()?;
    new.persist(to).map(drop).map_err(|error| error.error)
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
