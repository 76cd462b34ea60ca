//! Boots machines headless: waits until one is ready and freezes it, or until a build step has ended.
//!
//! One [`BootJob`] describes a machine; it is run ([`local`]) by this program in a process of its own, here
//! ([`process`]) or, where this host has no usable KVM, inside an emulated host ([`emulated`]). Either
//! way the caller sees the same [`Message`]s, and finds the frozen machine in the job's folder.

pub mod emulated;
#[doc(hidden)]
pub mod fuzz;
mod guard;
mod hints;
mod live_streams;
pub mod local;
pub mod process;
mod stages;
mod step;
mod streams;
mod test_restore;
mod uplink;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smol_cli::error::ErrorReport;
use smol_machine::cpu::Level;
use smol_protocol::{Event, GuestFailure, Probe};
use smol_sandbox::Mode;

use crate::plan::{Plan, PlannedRun, Sealed};

pub use self::stages::freeze;
pub use self::step::{StepMachine, run_step};
pub use self::uplink::Uplink;

/// File with the captured machine state, in [`BootJob::out`].
pub const STATE_FILE: &str = "state.json";
/// File with the RAM image, in [`BootJob::out`].
pub const MEMORY_FILE: &str = "memory";

/// File with the layer of a build step, in [`BootJob::out`].
pub const LAYER_FILE: &str = "layer.tar";

/// File with the [`smol_bundle::WorkingSet`], in [`BootJob::out`], if there is one.
pub const WORKING_SET_FILE: &str = "working-set.json";

/// Wall-clock limit of a boot, seconds. Waiting costs no time on virtual time, so only a guest
/// that works all the while comes near it.
const BOOT_LIMIT: u64 = 20 * 60;

/// Wall-clock limit of a build step, seconds. Its own limit is on its machine's clock, of which the host
/// may have less.
const STEP_LIMIT: u64 = 48 * 3600;

/// After an interrupt the machine's process has this long to come to its end by itself.
const GRACE: Duration = Duration::from_secs(3);

/// Lines of console and service output that an error shows.
const TAIL_LINES: usize = 25;

/// The images of a machine.
#[derive(Clone, Debug)]
pub struct Images {
    /// Kernel; one of ours is at its place in the address space already.
    pub kernel: PathBuf,
    /// Initramfs; absent for a machine that is just a kernel.
    pub initramfs: Option<PathBuf>,
    /// EROFS image.
    pub rootfs: Option<PathBuf>,
}

/// A machine to boot.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootJob {
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initramfs; absent for a machine that is just a kernel.
    pub initramfs: Option<PathBuf>,
    /// EROFS image.
    pub rootfs: Option<PathBuf>,
    /// Kernel command line without the machine's own part.
    pub cmdline: String,
    /// Level of the CPU.
    pub cpu: Level,
    /// RAM, bytes.
    pub memory: u64,
    /// vCPUs that can be online later.
    pub vcpus: u8,
    /// Wall clock of the guest at power-on, seconds since the Unix epoch.
    pub epoch: u64,
    /// Seed of all randomness that the guest sees, as hex.
    pub seed: String,
    /// Decides where the kernel lies, as hex.
    pub kernel_seed: String,
    /// What it is booted for.
    pub purpose: Purpose,
    /// Wall-clock time that the guest may run without a VM exit until it gets ticks, seconds.
    pub watchdog: u64,
    /// Wall-clock limit of the whole boot, seconds.
    pub limit: u64,
    /// Whether the process that runs the machine is confined to it.
    pub sandbox: Mode,
    /// Folder for the results; it exists and is empty.
    pub out: PathBuf,
}

/// What a machine is booted for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Purpose {
    /// It is frozen when it is ready.
    Freeze {
        /// For a machine without smol-guest: the console line (a regular expression) that means ready.
        ready_line: Option<String>,
        /// Whether the test restore makes requests, which must all be answered.
        requests: bool,
        /// What is known of the service, to explain a failure.
        service: Service,
    },
    /// It runs a build step, and ends with it.
    Step {
        /// Whether it has a network; then its time is the host's, and its randomness its own.
        network: bool,
        /// Longest time that it may take from the start of its command, ms of the machine's clock. The
        /// guest does not know it: nothing in it depends on it.
        timeout_ms: u64,
        /// What the step is called in an error.
        step: String,
    },
}

impl Purpose {
    /// Whether the machine has no smol-guest in it.
    fn is_bare(&self) -> bool {
        matches!(self, Self::Freeze { ready_line, .. } if ready_line.is_some())
    }

    /// Whether the machine has a network.
    fn has_network(&self) -> bool {
        matches!(self, Self::Step { network: true, .. })
    }

    /// Whether the test restore makes requests.
    fn has_requests(&self) -> bool {
        matches!(self, Self::Freeze { requests: true, .. })
    }
}

/// What explains the failure of a service; nothing for a machine that is just a kernel.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its command.
    pub cmd: Vec<String>,
    /// Whether `[[warm]]` commands follow when it is ready.
    pub warms_up: bool,
    /// Whether it is an init, as far as its command tells.
    pub is_init: bool,
}

impl BootJob {
    /// The boot of the sealed Plan's machine from its images, which is frozen into the folder `out`.
    /// After `watchdog` seconds a guest that never pauses gets a tick.
    pub fn new(sealed: &Sealed, images: &Images, watchdog: u64, sandbox: Mode, out: &Path) -> Self {
        let plan = &sealed.plan;
        let ready = plan.console_ready.as_ref();
        let warm_restore = plan.guest.as_ref().map(|guest| &guest.warm_restore);
        Self {
            kernel: images.kernel.clone(),
            initramfs: images.initramfs.clone(),
            rootfs: images.rootfs.clone(),
            cmdline: plan.kernel.build_cmdline.clone(),
            cpu: plan.cpu,
            memory: plan.memory,
            vcpus: u8::try_from(plan.cpus).expect("the parser allows few"),
            epoch: plan.epoch(),
            seed: hex::encode(sealed.seed()),
            kernel_seed: hex::encode(sealed.kernel_seed()),
            purpose: Purpose::Freeze {
                ready_line: ready.map(|ready| match &ready.probe {
                    Probe::Log { pattern } => pattern.clone(),
                    other => unreachable!(
                        "the parser gives a machine without a service nothing but a log probe, not {other}"
                    ),
                }),
                requests: warm_restore.is_some_and(|requests| !requests.is_empty()),
                service: plan
                    .guest
                    .as_ref()
                    .map_or_else(Service::default, |guest| Service {
                        cmd: guest.service.cmd.clone(),
                        warms_up: !guest.warm.is_empty(),
                        is_init: guest.service.init.unwrap_or_else(|| {
                            let program = guest.service.cmd.first();
                            program.is_some_and(|program| smol_protocol::is_init(program))
                        }),
                    }),
            },
            watchdog,
            limit: ready.map_or(BOOT_LIMIT, |ready| ready.timeout_ms.div_ceil(1000)),
            sandbox,
            out: out.to_owned(),
        }
    }

    /// The machine of a build step of `plan`, from its images; `key` is the step's, of which all
    /// randomness in it is made. Its layer goes into the folder `out`.
    pub fn step(
        plan: &Plan,
        run: &PlannedRun,
        images: &Images,
        key: &blake3::Hash,
        watchdog: u64,
        sandbox: Mode,
        out: &Path,
    ) -> Self {
        let seed = |context| hex::encode(blake3::derive_key(context, key.as_bytes()));
        Self {
            kernel: images.kernel.clone(),
            initramfs: images.initramfs.clone(),
            rootfs: images.rootfs.clone(),
            cmdline: plan.kernel.build_cmdline.clone(),
            cpu: plan.cpu,
            memory: run.memory,
            vcpus: 1,
            epoch: plan.epoch(),
            seed: seed("smol 2026-12-01 guest randomness of a build step v1"),
            kernel_seed: seed("smol 2026-12-01 place of the kernel in a build step v1"),
            purpose: Purpose::Step {
                network: run.network.is_some(),
                timeout_ms: run.timeout_ms,
                step: format!(
                    "[[run]] command {} ({})",
                    run.number,
                    run.command.cmd.join(" ")
                ),
            },
            watchdog,
            limit: STEP_LIMIT,
            sandbox,
            out: out.to_owned(),
        }
    }
}

/// Something that the machine reports.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// smol-guest reports.
    Guest(Event),
    /// The service wrote a line.
    Log(String),
    /// The kernel or smol-guest wrote a line.
    Console(String),
    /// The machine is frozen; what it touches first is looked at next.
    Captured {
        /// Pages of RAM that hold something.
        nonzero_pages: u64,
    },
    /// The machine is frozen, the files are complete.
    Frozen(Frozen),
    /// The build step has ended, its layer is complete.
    Stepped(Stepped),
    /// It is not going to be.
    Failed(Failed),
    /// It cannot even be tried: the exit code, and what is told of the error. Only between processes.
    Error(u8, ErrorReport),
}

/// Facts about a build step that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Stepped {
    /// Length of its layer, bytes.
    pub layer_bytes: u64,
    /// Guest time at which the watchdog had to give the first tick, ms; `None` when it had not.
    pub first_tick_ms: Option<u64>,
}

/// Facts about a frozen machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Frozen {
    /// CPU features that the guest was shown, sorted: what the snapshot needs.
    pub cpu_features: Vec<String>,
    /// Components of XSAVE that it could enable, as in XCR0.
    pub xcr0: u64,
    /// Whether its time was virtual, so that a second build can be expected to give the same bits.
    pub virtual_time: bool,
    /// Guest time from power-on to the snapshot, ms; `None` on the host's clock.
    pub virtual_ms: Option<u64>,
    /// Guest time at which the watchdog had to give the first tick, ms: from then on time was the
    /// host's. `None` when it had not.
    pub first_tick_ms: Option<u64>,
    /// VM exits.
    pub exits: u64,
    /// Pages of RAM.
    pub pages: u64,
    /// Pages that hold something.
    pub nonzero_pages: u64,
    /// Wall-clock time until the snapshot point, ms.
    pub boot_ms: u64,
    /// Wall-clock time of capturing and writing, ms.
    pub capture_ms: u64,
    /// What a restored machine touches first, if that could be found out.
    pub working_set: Option<Touched>,
    /// Why not.
    pub no_working_set: Option<String>,
}

impl Frozen {
    /// Why no second build can be expected to give the same bits; `None` if it can.
    pub fn unreproducible(&self) -> Option<String> {
        if !self.virtual_time {
            return Some("the kernel runs on the host's clock".to_owned());
        }
        if let Some(why) = &self.no_working_set {
            return Some(format!(
                "the pages that a restored machine uses first were not recorded: {why}"
            ));
        }
        self.first_tick_ms.map(ticked)
    }
}

/// Why a machine that got a tick of the watchdog at this guest time, ms, is not reproducible.
pub fn ticked(at: u64) -> String {
    format!(
        "watchdog tick at {}.{:03} s of guest time: the guest computed without pause, and from \
         then on its time was the host's",
        at / 1000,
        at % 1000
    )
}

/// How much a restored machine touches until it has proved ready and answered the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Touched {
    /// Pages of RAM.
    pub memory_pages: u64,
    /// Pages of the root file system.
    pub rootfs_pages: u64,
}

/// Why no machine was frozen.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    /// One sentence.
    pub reason: String,
    /// What the guest reports, if it is its failure.
    pub guest: Option<GuestFailure>,
    /// The last lines of the service.
    pub log: Vec<String>,
    /// The last lines of the console.
    pub console: Vec<String>,
    /// The user stopped it.
    pub interrupted: bool,
}

impl Failed {
    /// A failure without more to tell.
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            guest: None,
            log: Vec::new(),
            console: Vec::new(),
            interrupted: false,
        }
    }

    /// The failure that the guest reports.
    fn of_guest(failure: GuestFailure) -> Self {
        Self {
            reason: failure.reason.clone(),
            guest: Some(failure),
            ..Self::new("")
        }
    }

    /// Everything that is told below the reason.
    pub fn details(&self) -> Vec<String> {
        let guest = self.guest.as_ref();
        let mut details = guest.map_or_else(Vec::new, GuestFailure::facts);
        let shows_console = guest.is_none_or(GuestFailure::is_on_console);
        for (title, lines, is_shown) in [
            ("last lines of the service:", &self.log, true),
            ("last lines of the console:", &self.console, shows_console),
        ] {
            if is_shown && !lines.is_empty() {
                let lines = lines.iter().map(|line| format!("\n  {line}"));
                details.push(std::iter::once(title.to_owned()).chain(lines).collect());
            }
        }
        details
    }
}

/// Appends to a list that keeps only its last [`TAIL_LINES`].
fn push_tail(tail: &mut Vec<String>, line: String) {
    if tail.len() == TAIL_LINES {
        tail.remove(0);
    }
    tail.push(line);
}
