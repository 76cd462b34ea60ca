//! smolbuild: a Smolfile in, a signed and restorable machine out. See the library for the map.

use std::process::ExitCode;

use clap::CommandFactory;
use smol_cli::{Interrupt, manual};
use smolbuild::cli::{Cli, Command};
use smolbuild::{commands, habits};

fn main() -> ExitCode {
    smol_host::emulated::init::main_if_requested();
    smol_cli::install_panic_hook();
    let outcome = habits::parse().map_err(anyhow::Error::from).and_then(run);
    outcome.unwrap_or_else(|error| smol_cli::report(&error))
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    match cli.command.unwrap_or(Command::Build(cli.build)) {
        Command::Build(args) => commands::build::run(&args, &interrupt)?,
        Command::Lock(args) => commands::lock::run(&args, &interrupt)?,
        Command::Keygen(args) => commands::keys::keygen(&args)?,
        Command::Sign(args) => commands::keys::sign(&args)?,
        Command::Verify(args) => commands::verify::run(&args, &interrupt)?,
        Command::Inspect(args) => commands::inspect::run(&args)?,
        // Its exit code says whether they are the same.
        Command::Diff(args) => return commands::diff::run(&args, &interrupt),
        Command::Reproduce(args) => commands::reproduce::run(&args, &interrupt)?,
        Command::Kernel(args) => commands::kernel::run(&args, &interrupt)?,
        Command::Doctor(args) => commands::doctor::run(&args)?,
        Command::Completions { shell } => {
            smol_cli::print(&manual::completions("smolbuild", &Cli::command(), shell))?
        }
        Command::Man { folder } => manual::man_pages(Cli::command(), &folder)?,
        Command::ReleaseKernel { folder } => commands::kernel::release(&folder, &interrupt)?,
        Command::BootJob { file } => smolbuild::boot::process::main(&file, &interrupt)?,
    }
    Ok(ExitCode::SUCCESS)
}
