//! Command line arguments that several commands have, to be flattened into theirs.
//!
//! A program that wants other words for one of them says so where it is flattened, with clap's
//! `mut_arg`.

use clap::Args;

use crate::Mode;

/// `--progress`.
#[derive(Clone, Copy, Debug, Args)]
pub struct ProgressArg {
    /// How progress is shown
    #[arg(
        long,
        value_name = "auto|tty|plain|json",
        default_value = "auto",
        env = "SMOL_PROGRESS"
    )]
    pub progress: Mode,
}

/// `--json`, for a result that a program may read.
#[derive(Clone, Copy, Debug, Args)]
pub struct JsonArg {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}
