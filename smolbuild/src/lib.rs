//! smolbuild: from a Smolfile to a bundle.
//!
//! The pipeline, in its order:
//!
//! | stage | module | from | to |
//! |---|---|---|---|
//! | read | [`smolfile`] | text | spanned, typed values, or all mistakes at once |
//! | resolve | [`resolve`], [`lock`] | Smolfile and lock file | every input, by version and digest |
//! | plan | [`plan`] | Smolfile and lock | everything that can change a byte, in one value |
//! | assemble | [`assemble`] | the Plan | the sealed Plan, and the three images |
//! | … kernel | [`kernel`] | a recipe | the kernel |
//! | … root file system | [`rootfs`], [`input`] | an input, and what is done to it | an EROFS image |
//! | … build steps | [`steps`] | a `[[run]]` | what it changes, in a machine of its own |
//! | … initramfs | [`initramfs`] | smol-guest and its configuration | a cpio archive |
//! | prepare | [`prepare`] | images | compressed frames, made while the machine boots |
//! | boot | [`boot`] | images | a machine that is ready, frozen: state and RAM |
//! | pack | [`pack`] | images, state and RAM, frames | a bundle |
//!
//! [`pipeline`] calls them from top to bottom, unless [`bundle_cache`] has the bundle already. [`commands`]
//! holds the subcommands, [`habits`] answers to what other tools' users type, [`context`] what the stages share, [`environment`] what the environment adds
//! to a Smolfile. [`fetch`] downloads source packages, [`fetched`] files by URL and digest. [`preview`] says what a build would do. [`cache`] is the cache as a whole: what is in it, and how
//! it goes.
//! [`init`] writes a first Smolfile. [`diff`] says what differs between two bundles; [`extract`] takes copied files back out of one, so
//! that it can be built again. [`users`] and [`programs`] check that the users and programs of a Smolfile are in
//! the root file system. [`hash`] takes digests of files,
//! [`folder`] their folders; [`source_dir`] is the folder of a Smolfile, without what is ignored.

pub mod assemble;
pub mod boot;
pub mod bundle_cache;
pub mod cache;
pub mod cli;
pub mod commands;
pub mod context;
pub mod diff;
pub mod environment;
pub mod error;
pub mod extract;
pub mod fetch;
pub mod fetched;
pub mod folder;
pub mod habits;
pub mod hash;
pub mod init;
pub mod initramfs;
pub mod input;
pub mod kernel;
pub mod lock;
pub mod pack;
pub mod pipeline;
pub mod plan;
pub mod prepare;
pub mod preview;
pub mod programs;
pub mod resolve;
pub mod rootfs;
pub mod smolfile;
pub mod source_dir;
pub mod steps;
pub mod subprocess;
pub mod users;
pub mod work;

use std::process::ExitCode;

use clap::CommandFactory;
use smol_cli::{Interrupt, manual};

use crate::cli::{Cli, Command};

/// Runs the program, with this process's arguments.
pub fn main() -> ExitCode {
    smol_host::emulated::init::main_if_requested();
    smol_cli::install_panic_hook();
    let outcome = habits::parse().map_err(anyhow::Error::from).and_then(run);
    outcome.unwrap_or_else(|error| smol_cli::report(&error))
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    match cli.command.unwrap_or(Command::Build(cli.build)) {
        Command::Build(args) => commands::build::run(&args, &interrupt)?,
        Command::Check(args) => commands::check::run(&args, &interrupt)?,
        Command::Plan(args) => commands::plan::run(&args, &interrupt)?,
        Command::Lock(args) => commands::lock::run(&args, &interrupt)?,
        Command::Init(args) => commands::init::run(&args, &interrupt)?,
        Command::Keygen(args) => commands::keys::keygen(&args)?,
        Command::Sign(args) => commands::keys::sign(&args)?,
        Command::Verify(args) => commands::verify::run(&args, &interrupt)?,
        Command::Inspect(args) => commands::inspect::run(&args)?,
        // Its exit code says whether they are the same.
        Command::Diff(args) => return commands::diff::run(&args, &interrupt),
        Command::Reproduce(args) => commands::reproduce::run(&args, &interrupt)?,
        Command::Kernel(args) => commands::kernel::run(&args, &interrupt)?,
        Command::Cache(args) => commands::cache::run(&args, &interrupt)?,
        Command::Doctor(args) => commands::doctor::run(&args)?,
        Command::Completions { shell } => {
            smol_cli::print(&manual::completions("smolbuild", &Cli::command(), shell))?
        }
        Command::Man { folder } => manual::man_pages(Cli::command(), &folder)?,
        Command::ReleaseKernel { folder } => commands::kernel::release(&folder, &interrupt)?,
        Command::BootJob { file } => boot::process::main(&file, &interrupt)?,
    }
    Ok(ExitCode::SUCCESS)
}
