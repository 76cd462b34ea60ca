//! The Smolfile: what a machine is made of, in TOML.
//!
//! [`parse()`] is pure: text in, values or diagnostics out, all mistakes at once. docs/smolfile.md
//! explains every key; it is tested against [`keys::KEYS`].
//!
//! | file | what it holds |
//! |---|---|
//! | `parse.rs` | the sections, from TOML tables to the types of this file |
//! | `copy.rs` | `[[copy]]` |
//! | `step.rs` | `[[run]]` and `[[fetch]]`, and the order of all three |
//! | `command.rs` | commands, and what goes wrong with them |
//! | `check.rs` | what sections ask of each other |
//! | `values.rs` | sizes, durations, paths and the like, from strings |
//! | `table.rs` | taking typed keys out of a spanned table |
//! | `keys.rs` | the one table of keys, and help with unknown ones |
//! | `foreign.rs` | the Smolfile of another program, with the same in ours |
//! | `diagnostic.rs` | mistakes with places, drawn over the source |
//! | `glob.rs` | the patterns of `[[copy]] src` |
//! | `expand.rs` | what they match, on disk and in a lock |
//! | `load.rs` | from disk: the file itself, and whether the files it names exist |

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use smol_machine::cpu::Level;
use smol_net::Rule;
use smol_registry::FileUrl;
use toml::Spanned;
use toml::de::DeTable;

mod check;
mod command;
mod copy;
pub mod diagnostic;
mod expand;
mod foreign;
mod glob;
pub mod keys;
mod load;
mod parse;
mod step;
mod table;
#[cfg(test)]
mod tests;
mod values;

pub use diagnostic::{Diagnostic, Span, render};
pub use expand::by_lock as copies_of_lock;
pub use load::{Loaded, check as check_text, load};
pub use parse::{DEFAULT_INTERVAL, DEFAULT_RECIPE, DEFAULT_TIMEOUT, MAX_CPUS, MEMORY};
pub use step::MAX_RUNS;
pub use values::{image, signal};

use crate::input::Rootfs;
use table::{Errors, Table};

/// Largest Smolfile, in bytes.
pub const MAX_SIZE: usize = 256 * 1024;

/// A machine to build, checked in itself. Paths of the host are relative to the folder of the
/// Smolfile, use `/` and do not lead out of it; paths of the guest are absolute.
#[derive(Debug, Clone, PartialEq)]
pub struct Smolfile {
    /// Name, fit for a host name but for `_`.
    pub name: String,
    /// Version of what is inside.
    pub version: Option<String>,
    /// Most vCPUs.
    pub cpus: u32,
    /// Level of the CPU.
    pub cpu: Level,
    /// Guest memory in bytes.
    pub memory: u64,
    /// TCP ports of the service, without duplicates, in the order written; those of the image when
    /// absent.
    pub ports: Option<Vec<u16>>,
    /// The kernel.
    pub kernel: KernelSection,
    /// What runs on it.
    pub workload: Workload,
    /// When the machine is ready. With [`Workload::Kernel`] always a [`Probe::Log`], which is
    /// looked for on the console; absent for an image alone, which may say it.
    pub ready: Option<Ready>,
    /// Whether the page cache is dropped before the snapshot.
    pub drop_caches: bool,
}

impl Smolfile {
    /// The input of the root file system, if there is one.
    pub fn rootfs(&self) -> Option<&Rootfs> {
        match &self.workload {
            Workload::Kernel => None,
            Workload::Service { rootfs, .. } => Some(rootfs),
        }
    }

    /// What is done to the root file system, in order.
    pub fn steps(&self) -> &[Step] {
        match &self.workload {
            Workload::Kernel => &[],
            Workload::Service { steps, .. } => steps,
        }
    }

    /// `[service]`; `None` for a machine that is just a kernel.
    pub fn service(&self) -> Option<&Service> {
        match &self.workload {
            Workload::Kernel => None,
            Workload::Service { service, .. } => Some(service),
        }
    }

    /// The `[[copy]]`s among the steps, in order.
    pub fn copies(&self) -> impl Iterator<Item = &CopyStep> {
        self.steps().iter().filter_map(Step::copy)
    }
}

/// What a machine runs.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a program holds one of them")]
pub enum Workload {
    /// Nothing but its kernel, which is a [`KernelSource::Path`].
    Kernel,
    /// A service on a root file system.
    Service {
        /// Where the files come from.
        rootfs: Rootfs,
        /// What is done to them, in order.
        steps: Vec<Step>,
        /// The program.
        service: Service,
        /// Commands between ready and the snapshot, in order.
        warm: Vec<Warm>,
        /// Commands in each restored machine before its service runs on, in order.
        restore: Vec<Warm>,
        /// Requests that the test restore makes, in order.
        warm_restore: Vec<WarmRestore>,
    },
}

/// `[kernel]`.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelSection {
    /// Where it comes from.
    pub source: KernelSource,
    /// Additions to the command line.
    pub cmdline: String,
    /// Where the table stands, if it is written at all.
    pub given: Option<Span>,
}

/// Where a kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelSource {
    /// One of our own, by name.
    Recipe(String),
    /// Somebody's ELF file, by path on the host.
    Path(Spanned<String>),
}

/// Something that is done to the root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Files of the host are put over it.
    Copy(CopyStep),
    /// A file is downloaded into it.
    Fetch(FetchStep),
    /// A command changes it.
    Run(RunStep),
}

impl Step {
    /// The `[[copy]]`, if it is one.
    pub fn copy(&self) -> Option<&CopyStep> {
        match self {
            Self::Copy(copy) => Some(copy),
            Self::Fetch(_) | Self::Run(_) => None,
        }
    }
}

/// `[[run]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunStep {
    /// Its place among the `[[run]]`s, from 1.
    pub number: u32,
    /// Program and arguments; a string in the Smolfile has become `/bin/sh -c STRING`.
    pub cmd: Spanned<Vec<String>>,
    /// Environment, over that of an image.
    pub env: BTreeMap<String, String>,
    /// As [`Service::user`]; root when absent.
    pub user: Option<Spanned<String>>,
    /// Working directory; that of an image, or `/`, when absent.
    pub workdir: Option<String>,
    /// Memory of its machine, in bytes.
    pub memory: u64,
    /// What it may reach.
    pub network: Network,
    /// How long it may take, on the clock of its machine.
    pub timeout: Duration,
}

/// What a command may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// Nothing but itself.
    None,
    /// Everything but the host, and what is near to it.
    All,
    /// These names and addresses.
    Listed(Vec<Rule>),
}

/// `[[fetch]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FetchStep {
    /// Where it is. Not what it is: the Plan has the digest alone.
    #[serde(skip)]
    pub url: Spanned<FileUrl>,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Where it goes in the guest; a slash at the end says that this is a folder.
    pub dest: String,
    /// Permissions (`0..=0o7777`); 0644 when absent.
    pub mode: Option<u32>,
    /// As [`CopyStep::owner`].
    pub owner: Option<Spanned<String>>,
}

impl FetchStep {
    /// The name that the file has in a folder.
    pub fn file_name(&self) -> Option<String> {
        values::file_name(self.url.get_ref())
    }
}

/// `[[copy]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CopyStep {
    /// File, or folder whose content is meant, on the host.
    pub src: Spanned<String>,
    /// Whether `src` is a pattern still; never in a Smolfile that was loaded.
    #[serde(skip)]
    pub glob: bool,
    /// Number of the table; those with several sources have several steps.
    #[serde(skip)]
    pub number: usize,
    /// Where it goes in the guest; a slash at the end says that this is a folder.
    pub dest: String,
    /// Permissions (`0..=0o7777`); those of the source when absent.
    pub mode: Option<u32>,
    /// `name`, `uid`, `name:group` or `uid:gid`, as of the rootfs; root when absent.
    pub owner: Option<Spanned<String>>,
    /// Patterns of what of a folder is left out, as in an ignore file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Spanned<String>>,
}

/// `[service]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Service {
    /// First words of the command; those of the image when absent. Images alone have them.
    pub entrypoint: Option<Spanned<Vec<String>>>,
    /// Program and arguments, or what follows the entrypoint of an image; a string in the Smolfile has
    /// become `/bin/sh -c STRING`. Absent for an image alone.
    pub cmd: Option<Spanned<Vec<String>>>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// `name`, `uid`, `name:group` or `uid:gid`; root when absent.
    pub user: Option<Spanned<String>>,
    /// Working directory; `/`, or the image's, when absent.
    pub workdir: Option<String>,
    /// Number of the signal that stops it; SIGTERM, or the image's, when absent.
    pub stop_signal: Option<u8>,
    /// Whether it is an init; the guest looks at the program when absent.
    pub init: Option<bool>,
}

/// `[[warm]]` and `[[restore]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Warm {
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// `[[warm_restore]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct WarmRestore {
    /// What is asked: [`Probe::Exec`], [`Probe::Tcp`] or [`Probe::Http`].
    pub probe: Probe,
    /// How long the answer may take.
    pub timeout: Duration,
}

/// `[ready]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Ready {
    /// What to wait for.
    pub probe: Probe,
    /// How long to wait.
    pub timeout: Duration,
    /// Pause between attempts.
    pub interval: Duration,
    /// Successes in a row that it takes.
    pub successes: u32,
}

/// A way to tell that a machine is ready.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// A command that exits with 0.
    Exec(Vec<String>),
    /// A port that accepts.
    Tcp(u16),
    /// A GET request that is answered.
    Http(Http),
    /// A line of output that matches.
    Log(String),
    /// A file in the guest.
    File(String),
    /// sd_notify(3).
    Notify,
}

/// `http` of `[ready]` and `[[warm_restore]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// Port of the service.
    pub port: u16,
    /// Path with query.
    pub path: String,
    /// Status codes that count; at least one.
    pub status: Vec<u16>,
    /// Regular expression for the body.
    pub body: Option<String>,
}

/// Reads a Smolfile. The diagnostics come in the order of the file.
pub fn parse(source: &str) -> Result<Smolfile, Vec<Diagnostic>> {
    if source.len() > MAX_SIZE {
        let title = format!("the file is larger than {} KiB", MAX_SIZE / 1024);
        return Err(vec![Diagnostic::new(0..0, title)]);
    }
    let (document, syntax) = DeTable::parse_recoverable(source);
    let mut errors = Errors(syntax_errors(&syntax, source));
    // After a duplicate key the rest is as meant; after other errors it is guesswork.
    let smolfile = match syntax
        .iter()
        .all(|error| error.message() == "duplicate key")
    {
        true => sections(Table::new("", 0..0, document.into_inner()), &mut errors),
        false => None,
    };
    let mut diagnostics = errors.0;
    diagnostics.sort_by_key(|diagnostic| (diagnostic.span.start, diagnostic.span.end));
    diagnostics.dedup();
    match smolfile {
        Some(smolfile) if diagnostics.is_empty() => Ok(smolfile),
        _ => Err(diagnostics),
    }
}

/// What the TOML parser found. After an unclosed bracket all the rest looks wrong to it: then the
/// first error alone.
fn syntax_errors(syntax: &[toml::de::Error], source: &str) -> Vec<Diagnostic> {
    let end = source.len()..source.len();
    let diagnostic = |error: &toml::de::Error| {
        let span = error.span().unwrap_or(end.clone());
        Diagnostic::new(span, format!("invalid TOML: {}", error.message()))
    };
    let unclosed = syntax
        .iter()
        .any(|error| error.message().starts_with("unclosed"));
    syntax
        .iter()
        .take(if unclosed { 1 } else { syntax.len() })
        .map(diagnostic)
        .collect()
}

/// Every section, then what they ask of each other. `None` only after an error was reported.
fn sections(mut top: Table<'_>, errors: &mut Errors) -> Option<Smolfile> {
    if let Some(of_another) = foreign::of_smolvm(&top) {
        errors.push(of_another);
        return None;
    }
    top.require("name", "name = \"my-machine\"", errors);
    check::workload(&top, errors);
    let kernel_only = check::files(&top).is_none() && !top.has("service");
    let of_image = check::of_image(&top);
    let name = top
        .parsed("name", errors, values::name)
        .map(Spanned::into_inner);
    let version = top
        .parsed("version", errors, values::version)
        .map(Spanned::into_inner);
    let cpus = top
        .integer("cpus", 1..=MAX_CPUS, errors)
        .map_or(1, |n| *n.get_ref() as u32);
    let cpu = parse::cpu(&mut top, errors);
    let memory = parse::memory(&mut top, parse::DEFAULT_MEMORY, MEMORY, errors);
    let ports = parse::ports(&mut top, errors);
    let kernel = top.table("kernel", "kernel", errors);
    if kernel_only {
        check::kernel(kernel.as_ref(), &top, errors);
    }
    let kernel = parse::kernel(kernel, kernel_only, errors);
    // Read in any case: their mistakes are reported also where they do not belong.
    let service = service_workload(&mut top, cpu, errors);
    let workload = match kernel_only {
        true => Some(Workload::Kernel),
        false => service,
    };
    let ready = top.table("ready", "ready", errors);
    if let Some(ready) = ready.as_ref().filter(|_| kernel_only) {
        check::console_only(ready, errors);
    }
    let ready = ready.map(|table| parse::ready(table, errors));
    let drop_caches = parse::drop_caches(top.table("snapshot", "snapshot", errors), errors);
    top.finish(errors);
    Some(Smolfile {
        name: name?,
        version,
        cpus,
        cpu,
        memory,
        ports,
        kernel,
        workload: workload?,
        ready: match of_image {
            true => ready,
            false => Some(ready?),
        },
        drop_caches,
    })
}

/// The sections of a machine with a service. `None` only after an error was reported.
fn service_workload(top: &mut Table<'_>, cpu: Level, errors: &mut Errors) -> Option<Workload> {
    let of_image = check::of_image(top);
    let rootfs = top
        .table("rootfs", "rootfs", errors)
        .and_then(|table| parse::rootfs(table, cpu, errors));
    let base = top
        .table("base", "base", errors)
        .and_then(|table| parse::base(table, errors));
    let steps = step::steps(top, errors);
    let service = top
        .table("service", "service", errors)
        .map(|table| parse::service(table, of_image, errors))
        .or_else(|| of_image.then(Service::default));
    let [warm, restore] = ["warm", "restore"].map(|key| {
        let tables = top.tables(key, errors).into_iter();
        tables.map(|table| parse::warm(table, errors)).collect()
    });
    let warm_restore: Vec<Option<WarmRestore>> = top
        .tables("warm_restore", errors)
        .into_iter()
        .map(|table| parse::warm_restore(table, errors))
        .collect();
    Some(Workload::Service {
        rootfs: rootfs.or(base)?,
        steps: steps?,
        service: service?,
        warm,
        restore,
        warm_restore: warm_restore.into_iter().collect::<Option<_>>()?,
    })
}
