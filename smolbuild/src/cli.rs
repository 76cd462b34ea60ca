//! The command line, as types only.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand};
use smol_cli::args::{JsonArg, ProgressArg};
use smol_cli::manual::Shell;
use smol_host::AccelArg;

use crate::lock::Part;
use crate::smolfile::DEFAULT_RECIPE;

/// Turns a Smolfile into a running Linux machine, frozen at the moment it became ready, packed
/// and signed in one .smolmachine file.
#[derive(Debug, Parser)]
#[command(
    name = "smolbuild",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Cli {
    /// What to do; building is the default.
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub build: Build,
}

/// Everything but building.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build a machine (the default command)
    Build(Build),
    /// Write a first Smolfile, from an image, Debian packages or a Dockerfile, or an example
    Init(Init),
    /// Tell the mistakes of a Smolfile without building anything
    Check(Check),
    /// Tell what a build would do, without building, downloading or writing anything
    Plan(Plan),
    /// Renew the lock file, or parts of it: the newest packages, and all inputs as they are now
    Lock(Lock),
    /// Build a bundle again from the Smolfile and the lock in it, and compare
    Reproduce(Reproduce),
    /// Make an ed25519 key pair for signing
    Keygen(Keygen),
    /// Sign an existing bundle
    Sign(Sign),
    /// Check every byte of a bundle, and its signature
    Verify(Verify),
    /// Show what is in a bundle
    Inspect(Inspect),
    /// Tell what differs between two bundles
    Diff(Diff),
    /// Build a kernel recipe
    Kernel(Kernel),
    /// Tell what is in the cache, or remove it
    #[command(subcommand)]
    Cache(Cache),
    /// Tell what this host can do, and the command that fixes what it cannot
    Doctor(JsonArg),
    /// Print the script that completes this command line in a shell
    Completions {
        /// Shell
        shell: Shell,
    },
    /// Writes the man pages into a folder; for releases.
    #[command(name = "internal-man", hide = true)]
    Man {
        /// Folder that exists.
        folder: PathBuf,
    },
    /// Writes the kernel into the folder of a release's kernels; for releases.
    #[command(name = "internal-release-kernel", hide = true)]
    ReleaseKernel {
        /// Folder that exists.
        folder: PathBuf,
    },
    /// Runs one boot job: the process of a machine that is built.
    #[command(name = "boot-job", hide = true)]
    BootJob {
        /// Job description.
        file: PathBuf,
    },
}

/// The Smolfile that a command works on.
#[derive(Debug, Args)]
pub struct SmolfileArg {
    /// Smolfile, or a folder that holds one
    #[arg(default_value = ".", value_name = "SMOLFILE|DIR")]
    pub path: PathBuf,
    /// Build context: folder that links of the Smolfile's paths may not leave [default: the Smolfile's]
    #[arg(long, value_name = "DIR")]
    pub context: Option<PathBuf>,
}

/// `smolbuild [SMOLFILE|DIR]`.
#[derive(Debug, Args)]
pub struct Build {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub smolfile: SmolfileArg,
    /// Bundle to write [default: NAME.smolmachine in the current folder]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Sign with this private key
    #[arg(long, value_name = "KEY", env = "SMOL_SIGN_KEY")]
    pub sign: Option<PathBuf>,
    /// Fail if the lock file is missing or out of date, instead of renewing it
    #[arg(long, env = "SMOL_LOCKED", value_parser = BoolishValueParser::new())]
    pub locked: bool,
    /// Boot the machine even if the same was built before; kernel and packages may be in the cache
    #[arg(long)]
    pub rebuild: bool,
    /// Run each [[run]] that has a network again, and tell whether it has made the same
    #[arg(long)]
    pub rerun: bool,
    /// Build kernel, rootfs and bundle again instead of taking them from the cache
    #[arg(long)]
    pub no_cache: bool,
    /// Write facts about the build as JSON
    #[arg(long, value_name = "FILE")]
    pub metadata_file: Option<PathBuf>,
    /// Write a page (HTML) with the time of each stage and what the bytes are
    #[arg(long, value_name = "FILE")]
    pub timings: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub conditions: Conditions,
}

/// Where and how a machine is built.
#[derive(Debug, Args)]
pub struct Conditions {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub host: AccelArg,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub downloads: DownloadArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub kernel: PrebuiltArg,
    /// Seconds of the host's clock that the machine may compute without pause until it gets the
    /// host's time, and the bundle is not reproducible
    #[arg(long, value_name = "SECONDS", default_value_t = 60, env = "SMOL_WATCHDOG",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub watchdog: u64,
    /// Show what the machine prints while it boots
    #[arg(short, long)]
    pub verbose: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub shown: ProgressArg,
}

/// What may be downloaded, and how.
#[derive(Debug, Args)]
pub struct DownloadArgs {
    /// Download nothing
    #[arg(long, env = "SMOL_OFFLINE", value_parser = BoolishValueParser::new())]
    pub offline: bool,
    /// Registry that may be spoken to without TLS, or whose certificate is not checked; may be repeated
    #[arg(long, value_name = "HOST[:PORT]")]
    pub insecure_registry: Vec<String>,
}

/// `--no-prebuilt`.
#[derive(Debug, Args)]
pub struct PrebuiltArg {
    /// Compile the kernel here, even if this release includes it
    #[arg(long)]
    pub no_prebuilt: bool,
}

/// `smolbuild init`.
#[derive(Debug, Args)]
pub struct Init {
    /// Container image, by a name as for `[rootfs] image`: docker.io/library/nginx:1.27, oci:FOLDER,
    /// oci-archive:FILE, docker-archive:FILE
    #[arg(value_name = "IMAGE", conflicts_with_all = ["debian", "from"])]
    pub image: Option<String>,
    /// Debian packages; the service is that of the first well-known one
    #[arg(long, value_name = "PACKAGE", num_args = 1.., conflicts_with = "from")]
    pub debian: Vec<String>,
    /// Dockerfile to take over as far as possible
    #[arg(long, value_name = "DOCKERFILE")]
    pub from: Option<PathBuf>,
    /// Smolfile to write; one that is there is never overwritten [default: Smolfile in the current folder]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Name of the machine [default: that of the image, the first package or the folder]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub downloads: DownloadArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub shown: ProgressArg,
}

/// `smolbuild check`.
#[derive(Debug, Args)]
#[command(mut_arg("no_prebuilt", |arg| arg.help("Expect the compiler of this host, even if this release includes the kernel")))]
pub struct Check {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub smolfile: SmolfileArg,
    /// Fail, too, if the lock file is missing or out of date
    #[arg(long, env = "SMOL_LOCKED", value_parser = BoolishValueParser::new())]
    pub locked: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub kernel: PrebuiltArg,
}

/// `smolbuild plan`.
#[derive(Debug, Args)]
#[command(mut_arg("accel", |arg| arg.help("Where machines would boot")))]
#[command(mut_arg("no_prebuilt", |arg| arg.help("Expect that the kernel is compiled here, even if this release includes it")))]
pub struct Plan {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub smolfile: SmolfileArg,
    /// Fail if the lock file is missing or out of date
    #[arg(long, env = "SMOL_LOCKED", value_parser = BoolishValueParser::new())]
    pub locked: bool,
    /// Tell what a build with --offline would do
    #[arg(long, env = "SMOL_OFFLINE", value_parser = BoolishValueParser::new())]
    pub offline: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub host: AccelArg,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub kernel: PrebuiltArg,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub format: JsonArg,
}

/// `smolbuild lock`.
#[derive(Debug, Args)]
#[command(mut_arg("offline", |arg| arg.help("Download nothing: packages stay as they are locked")))]
#[command(mut_arg("no_prebuilt", |arg| arg.help("Pin the compiler of this host, even if this release includes the kernel")))]
pub struct Lock {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub smolfile: SmolfileArg,
    /// Renew these parts alone; may be repeated, or a list by commas
    #[arg(long, value_name = "PART", value_enum, value_delimiter = ',')]
    pub only: Vec<Part>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub downloads: DownloadArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub kernel: PrebuiltArg,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub shown: ProgressArg,
}

/// `smolbuild reproduce`.
#[derive(Debug, Args)]
pub struct Reproduce {
    /// Bundle to build again
    pub bundle: PathBuf,
    /// Folder with the files that its Smolfile names [default: take them out of the bundle]
    #[arg(long, value_name = "DIR")]
    pub context: Option<PathBuf>,
    /// Where its container image is, by a name as for `[rootfs] image`; paths are relative to --context
    /// [default: the cache]
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// Keep what is built in this file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Build kernel and rootfs again instead of taking them from the cache
    #[arg(long)]
    pub no_cache: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub conditions: Conditions,
}

/// `smolbuild keygen`.
#[derive(Debug, Args)]
pub struct Keygen {
    /// Private key to write; the public key goes beside it as .pub
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// `smolbuild sign`.
#[derive(Debug, Args)]
pub struct Sign {
    /// Bundle to sign
    pub bundle: PathBuf,
    /// Private key
    #[arg(long, value_name = "KEY", env = "SMOL_SIGN_KEY")]
    pub key: PathBuf,
    /// Signed bundle to write [default: in place]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `smolbuild verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Bundle to check
    pub bundle: PathBuf,
    /// Public key that must have signed it, instead of those in the trust folder (trust/*.pub in smol's
    /// config folder); may be repeated, one suffices
    #[arg(long, value_name = "PUB", env = "SMOL_KEY")]
    pub key: Vec<PathBuf>,
    /// Pass a bundle that is intact, even if it is not signed, or by unknown keys only
    #[arg(long, env = "SMOL_INSECURE_UNSIGNED", value_parser = BoolishValueParser::new())]
    pub insecure_unsigned: bool,
}

/// `smolbuild inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Bundle to look into
    pub bundle: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub format: JsonArg,
}

/// `smolbuild diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// First bundle
    pub a: PathBuf,
    /// Second bundle
    pub b: PathBuf,
    /// Show everything, not only the first 20 of each section
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub format: JsonArg,
}

/// `smolbuild kernel`.
#[derive(Debug, Args)]
pub struct Kernel {
    /// Recipe
    #[arg(default_value = DEFAULT_RECIPE)]
    pub recipe: String,
    /// Copy the vmlinux here [default: only the cache]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Build from this source tarball instead of the Debian package
    #[arg(long, value_name = "FILE", env = "SMOL_KERNEL_SOURCE")]
    pub source: Option<PathBuf>,
    /// Make it even if the cache has it
    #[arg(long)]
    pub no_cache: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub prebuilt: PrebuiltArg,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub shown: ProgressArg,
}

/// `smolbuild cache`.
#[derive(Debug, Subcommand)]
pub enum Cache {
    /// Tell what is in the cache, how much, and when it was used last
    Info(JsonArg),
    /// Remove what was not used for 30 days, and what processes that were killed have left
    Prune {
        /// Remove instead what was used longest ago, until what is left takes no more than this: 10G, 512MiB
        #[arg(long, value_name = "SIZE", value_parser = size)]
        keep: Option<u64>,
    },
    /// Remove everything that is not in use
    Clean,
}

fn size(text: &str) -> Result<u64, String> {
    use smol_cli::human::{NOT_A_SIZE, parse_bytes};
    parse_bytes(text).map_err(|what| match what {
        NOT_A_SIZE => format!("{what}: write a whole number with K, M or G, such as 10G or 512MiB"),
        _ => what.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn building_needs_no_subcommand() {
        let cli =
            Cli::try_parse_from(["smolbuild", "recipes/redis", "-o", "r.smolmachine"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.build.smolfile.path, PathBuf::from("recipes/redis"));
        let cli = Cli::try_parse_from(["smolbuild", "verify", "x", "--insecure-unsigned"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Verify(_))));
    }
}
