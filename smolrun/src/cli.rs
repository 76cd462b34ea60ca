//! The command line: types only.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand};
use smol_cli::args::{JsonArg, ProgressArg};
use smol_cli::manual::Shell;
use smol_host::AccelArg;

use crate::host::{fetcher, instance};
use crate::run::publish::Publish;
use crate::run::request::GRACE;
use crate::run::spec::ColdBoot;

/// Runs .smolmachine bundles: resumes a machine from its snapshot, in milliseconds.
///
/// `smolrun BUNDLE` verifies the bundle, restores its machine and stays with it: the service's
/// output comes out here, Ctrl-C stops it, and its exit code is smolrun's.
#[derive(Debug, Parser)]
#[command(
    name = "smolrun",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
#[command(
    after_help = "Exit codes: 0 ok, 1 failed, 2 usage, 4 verification failed, 5 host unsuitable, 70 a bug in smol; \
                        130 and 143 stopped by Ctrl-C and by SIGTERM; \
                        a machine in the foreground passes its service's own exit code on."
)]
pub struct Cli {
    /// What to do; without a command, run a bundle.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of running.
    #[command(flatten)]
    pub run: RunArgs,
}

impl RunArgs {
    /// When the machine is booted instead of being restored.
    pub fn cold_boot(&self) -> ColdBoot {
        match (self.cold, self.no_cold) {
            (true, _) => ColdBoot::Always,
            (false, true) => ColdBoot::Never,
            (false, false) => ColdBoot::Fallback,
        }
    }
}

const ACCEL_HELP: &str =
    "Where to run: this host's KVM, or a slow emulated host (QEMU); auto tries KVM first";

/// Options of `smolrun BUNDLE`.
#[derive(Debug, Args)]
#[command(mut_arg("accel", |arg| arg.help(ACCEL_HELP)))]
#[command(mut_arg("progress", |arg| arg.help("How to show progress")))]
pub struct RunArgs {
    /// The .smolmachine file.
    #[arg(value_name = "BUNDLE", required = true)]
    pub bundle: Option<PathBuf>,

    /// Forward a TCP port of this host to one of the guest (127.0.0.1 unless an address is given;
    /// host port 0: any free one). May be repeated.
    #[arg(
        short = 'p',
        long,
        value_name = "[IP:]HOST:GUEST",
        env = "SMOL_PUBLISH",
        value_delimiter = ','
    )]
    pub publish: Vec<Publish>,

    /// Public key that must have signed the bundle, instead of those in the trust folder (trust/*.pub
    /// in smol's config folder). May be repeated: one of them must.
    #[arg(long, value_name = "PUB", env = "SMOL_KEY")]
    pub key: Vec<PathBuf>,

    /// Run the bundle even if it is not signed, or by unknown keys only.
    #[arg(long, env = "SMOL_INSECURE_UNSIGNED", value_parser = BoolishValueParser::new())]
    pub insecure_unsigned: bool,

    /// Read the whole file and check every byte before the start, also if it was unpacked before.
    #[arg(long, env = "SMOL_VERIFY", value_parser = BoolishValueParser::new())]
    pub verify: bool,

    /// Run in the background: return when the service runs, and print the instance's name. Ended,
    /// it stays listed (ps -a) with its log until it is removed (rm).
    #[arg(short = 'd', long, env = "SMOL_DETACH", value_parser = BoolishValueParser::new())]
    pub detach: bool,

    /// With -d: keep neither the log nor the exit code when the machine has ended.
    #[arg(long, env = "SMOL_RM", value_parser = BoolishValueParser::new())]
    pub rm: bool,

    /// Name of the instance [default: the machine's name and six hexadecimal digits].
    #[arg(long, env = "SMOL_NAME", value_parser = instance::check_name)]
    pub name: Option<String>,

    /// Where to run.
    #[command(flatten)]
    pub host: AccelArg,

    /// Boot the machine instead of restoring its snapshot, and run its warm commands.
    #[arg(long, env = "SMOL_COLD", value_parser = BoolishValueParser::new())]
    pub cold: bool,

    /// Fail if the snapshot cannot be restored on this host, instead of booting cold.
    #[arg(long, env = "SMOL_NO_COLD", conflicts_with = "cold", value_parser = BoolishValueParser::new())]
    pub no_cold: bool,

    /// Write to this file, as JSON, where the time of the start went.
    #[arg(long, value_name = "FILE", env = "SMOL_METRICS_FILE")]
    pub metrics_file: Option<PathBuf>,

    /// Show the guest's console and what it reports, on stderr.
    #[arg(short, long, env = "SMOL_VERBOSE", value_parser = BoolishValueParser::new())]
    pub verbose: bool,

    /// What the user sees meanwhile.
    #[command(flatten)]
    pub shown: ProgressArg,
}

/// The machines that a command is about.
#[derive(Debug, Args)]
pub struct Which {
    /// Names of instances.
    #[arg(value_name = "NAME", required_unless_present = "all")]
    pub names: Vec<String>,
    /// All of them.
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
}

/// The commands other than running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the running machines.
    Ps {
        /// List those that have ended, too: how, when and why.
        #[arg(short, long)]
        all: bool,
        /// Just the names.
        #[arg(short, long, conflicts_with = "json")]
        quiet: bool,
        /// As a JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Print what a machine's service has written (at least its last 16 MiB).
    Logs {
        /// Name of the instance, running or ended.
        name: String,
        /// Go on until the machine ends.
        #[arg(short, long)]
        follow: bool,
    },
    /// Stop machines: SIGTERM to the service, after a while SIGKILL.
    Stop {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// Seconds between the two.
        #[arg(short, long, value_name = "SECS", default_value_t = GRACE.as_secs())]
        time: u64,
    },
    /// Wait until machines have ended, and print their exit codes.
    Wait {
        /// Names of instances.
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
    /// Remove machines that have ended from the list, with their logs.
    Rm {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// Stop those that run first.
        #[arg(short, long)]
        force: bool,
    },
    /// Say what this host can do, and how to fix what it cannot.
    Doctor(JsonArg),
    /// Print the script that completes this command line in a shell.
    Completions {
        /// Shell.
        shell: Shell,
    },
    /// Writes the man pages into a folder; for releases.
    #[command(hide = true, name = "internal-man")]
    Man {
        /// Folder that exists.
        folder: PathBuf,
    },
    /// Runs the machine of the spec on stdin, away from the terminal.
    #[command(hide = true, name = "internal-detached")]
    Detached,
    /// Waits for the word, and downloads the emulated host's kernel.
    #[command(hide = true, name = fetcher::COMMAND)]
    FetchKernel,
    /// Runs the machine of this spec inside an emulated host.
    #[command(hide = true, name = "internal-inner")]
    Inner {
        /// The spec, as JSON.
        spec: String,
    },
}

/// Longest grace time: a day. More is a mistake.
pub const MAX_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn running_is_the_default_command() {
        let cli = Cli::parse_from([
            "smolrun",
            "redis.smolmachine",
            "-p",
            "1:2",
            "-d",
            "--name",
            "r",
        ]);
        assert!(cli.command.is_none() && cli.run.detach);
        assert_eq!(cli.run.publish.len(), 1);
        let cli = Cli::parse_from(["smolrun", "ps"]);
        assert!(matches!(cli.command, Some(Command::Ps { json: false, .. })));
    }

    #[test]
    fn options_of_later_versions_are_not_accepted_in_silence() {
        for line in [
            &["smolrun", "b", "-v", "/host:/guest"][..],
            &["smolrun", "b", "-e", "A=B"],
            &["smolrun", "b", "--volume", "/a:/b"],
            &["smolrun"],
            &["smolrun", "b", "c"],
            &["smolrun", "b", "--name", "../x"],
        ] {
            let error = Cli::try_parse_from(line).expect_err(&line.join(" "));
            assert_eq!(error.exit_code(), 2);
        }
    }
}
