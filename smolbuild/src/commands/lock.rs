//! `smolbuild lock`: the lock file, made anew.

use anyhow::Result;
use smol_cli::{Interrupt, Progress, paths};

use crate::cli::Lock;
use crate::lock::{self, Surroundings, World};
use crate::smolfile;

/// Renews the lock file and prints what changed, one line an input.
pub fn run(args: &Lock, interrupt: &Interrupt) -> Result<()> {
    let loaded = smolfile::load(&args.smolfile.path)?;
    let world = World {
        downloads: &paths::cache_dir()?.join("downloads"),
        offline: args.downloads.offline,
        surroundings: &Surroundings::of_environment()?,
        progress: &Progress::new(args.shown.progress),
        interrupt,
    };
    let changes = lock::refresh(&loaded, world)?;
    if changes.is_empty() {
        println!("{} is up to date", loaded.lock_path().display());
    }
    for change in changes {
        println!("{change}");
    }
    Ok(())
}
