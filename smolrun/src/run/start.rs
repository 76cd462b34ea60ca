//! From images to a machine that is about to run: restored from its snapshot, or, where that
//! cannot be, booted cold.

use std::io;
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use smol_bundle::ImageKind;
use smol_cli::{ErrorExt, ExitKind, Failure};
use smol_machine::config::{Clock, MachineConfig};
use smol_machine::cpu::Level;
use smol_machine::devices::Slot;
use smol_machine::devices::virtio::vsock::{Vsock, VsockHandle};
use smol_machine::machine::Hooks;
use smol_machine::{Error, Machine, MachineState};
use smol_protocol::log::Stream;
use smol_protocol::{GUEST_CID, RUN_MODE_WORD};

use crate::images::Images;
use crate::images::cache::CachedImages;
use crate::run::contract;
use crate::run::identity;
use crate::run::metrics::Moment;
use crate::run::output::{Console, Output, Tail};
use crate::run::report::Report;
use crate::run::spec::{ColdBoot, RunSpec};

/// Where the machine's output goes, in as many attempts as it takes to start it.
pub struct Outputs {
    /// The service's output, and that of machines without smol-guest.
    pub output: Arc<Output>,
    /// The consoles' last lines.
    pub tail: Tail,
    /// When the guest printed its first byte.
    pub first_output: Arc<OnceLock<Moment>>,
}

/// A machine that has not run yet.
pub struct Ready {
    /// The machine.
    pub machine: Machine,
    /// Its vsock, if it has one.
    pub vsock: Option<VsockHandle>,
    /// Whether it was restored; else it will boot.
    pub restored: bool,
    /// Level of its CPU.
    pub cpu: Level,
}

/// Restores the machine; if the snapshot cannot be restored on this host, reports why and prepares
/// a cold boot.
///
/// # Errors
/// If neither is possible.
pub fn start(
    spec: &RunSpec,
    images: &mut Images,
    outputs: &Outputs,
    report: &dyn Report,
) -> anyhow::Result<Ready> {
    let why = match spec.cold {
        ColdBoot::Always => "--cold".to_owned(),
        ColdBoot::Fallback | ColdBoot::Never => match restore(spec, images, outputs)? {
            Ok(ready) => return Ok(ready),
            Err(why) if spec.cold == ColdBoot::Never => return Err(not_restored(spec, &why)),
            Err(why) => why,
        },
    };
    report.note(&cold_note(&why, spec.warm_commands()));
    boot(spec, images.unpacked()?, outputs)
}

/// What is said of a cold boot: it takes the time that the snapshot would have saved.
fn cold_note(why: &str, warm_commands: u32) -> String {
    let warm = match warm_commands {
        0 => String::new(),
        1 => "; running 1 warm command".to_owned(),
        n => format!("; running {n} warm commands"),
    };
    format!("booting cold ({why}){warm}")
}

fn not_restored(spec: &RunSpec, why: &str) -> anyhow::Error {
    let message = format!("cannot restore {}: {why}", spec.config.name);
    Failure::new(ExitKind::Host, message)
        .hint("without --no-cold it is booted from its images, and runs its warm commands")
        .into()
}

/// The inner error is a reason to boot cold.
fn restore(
    spec: &RunSpec,
    images: &Images,
    outputs: &Outputs,
) -> anyhow::Result<Result<Ready, String>> {
    if !spec.has.snapshot {
        return Ok(Err("the bundle holds no snapshot".into()));
    }
    if let Err(why) = contract::check(&spec.config.cpu).map_err(host)? {
        return Ok(Err(format!(
            "the snapshot is incompatible with this CPU: {why}"
        )));
    }
    let state = match MachineState::from_json(&images.state()?) {
        Ok(state) => state,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let wants_vsock = state.has_device(Slot::Vsock);
    let (hooks, vsock) = outputs.hooks(spec, wants_vsock)?;
    match images.restore(&state, hooks)? {
        Ok(machine) => Ok(Ok(Ready {
            machine,
            vsock,
            restored: true,
            cpu: Level::of(state.cpu.features),
        })),
        // Its state is of another version or kind, or this hypervisor does not take it.
        Err(error @ (Error::State(_) | Error::Hypervisor { .. })) => Ok(Err(format!(
            "the snapshot cannot be restored here ({error})"
        ))),
        Err(error) => Err(host(error)).context("cannot restore the machine"),
    }
}

fn boot(spec: &RunSpec, images: &CachedImages, outputs: &Outputs) -> anyhow::Result<Ready> {
    let (hooks, vsock) = outputs.hooks(spec, true)?;
    let cpu = contract::level(&spec.config.cpu).map_err(host)?;
    let config = MachineConfig {
        vcpus: u8::try_from(spec.config.cpus).unwrap_or(u8::MAX),
        cpu,
        memory: spec.config.memory,
        kernel: images.file(ImageKind::Kernel),
        initramfs: images.initramfs(),
        cmdline: cold_cmdline(&spec.config.cmdline, spec.config.cpus, spec.has.initramfs),
        rootfs: images.rootfs(),
        clock: Clock::Host,
        seed: identity::random()?,
        kernel_seed: identity::random()?,
    };
    let machine = Machine::boot(&config, hooks)
        .map_err(host)
        .context("cannot boot the machine")?;
    Ok(Ready {
        machine,
        vsock,
        restored: false,
        cpu,
    })
}

/// The bundle's command line, for a guest that is to serve and not to build. `maxcpus=1` is for
/// builds, after which smol-guest puts the other CPUs online; a cold boot starts them itself.
fn cold_cmdline(bundles: &str, cpus: u32, has_guest: bool) -> String {
    let keep = |word: &&str| cpus == 1 || *word != "maxcpus=1";
    let mut words: Vec<&str> = bundles.split_whitespace().filter(keep).collect();
    if has_guest && !words.contains(&RUN_MODE_WORD) {
        words.push(RUN_MODE_WORD);
    }
    words.join(" ")
}

/// What the hypervisor refuses is the host's affair, except for a kernel or state that is bad.
fn host(error: Error) -> anyhow::Error {
    let kind = match &error {
        Error::Hypervisor { .. } | Error::Cpu { .. } => ExitKind::Host,
        _ => ExitKind::Failed,
    };
    let at_kvm = matches!(&error, Error::Hypervisor { call, .. } if call.starts_with("open"));
    let error = anyhow::Error::from(error).kind(kind);
    match at_kvm {
        true => error.hint("smolrun doctor says what is wrong with this host's KVM; --accel emulated does without it"),
        false => error,
    }
}

impl Outputs {
    fn hooks(&self, spec: &RunSpec, vsock: bool) -> anyhow::Result<(Hooks, Option<VsockHandle>)> {
        let (device, handle) = match (vsock, spec.has.initramfs) {
            (true, true) => {
                let live = Vsock::live(GUEST_CID.into(), None);
                Some(live.context("cannot set up the vsock device")?).unzip()
            }
            // The snapshot has the device; without smol-guest nothing uses it.
            (true, false) => (Some(Vsock::deaf(GUEST_CID.into())), None),
            (false, _) => (None, None),
        };
        let console = || self.console(spec);
        Ok((
            Hooks {
                console: console(),
                serial: console(),
                vsock: device,
            },
            handle,
        ))
    }

    /// Without smol-guest, the consoles are all that a machine has to say.
    fn console(&self, spec: &RunSpec) -> Box<dyn io::Write + Send> {
        let echo = match (spec.has.initramfs, spec.verbose) {
            (false, _) => Some(Stream::Stdout),
            (true, true) => Some(Stream::Stderr),
            (true, false) => None,
        };
        Box::new(Console {
            tail: self.tail.clone(),
            echo: echo.map(|stream| (self.output.clone(), stream)),
            first: self.first_output.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cold_boot_is_told_with_its_reason_and_what_it_does_again() {
        let why = "the bundle holds no snapshot";
        for (warm, note) in [
            (0, "booting cold (the bundle holds no snapshot)"),
            (
                1,
                "booting cold (the bundle holds no snapshot); running 1 warm command",
            ),
            (
                2,
                "booting cold (the bundle holds no snapshot); running 2 warm commands",
            ),
        ] {
            assert_eq!(cold_note(why, warm), note);
        }
    }

    #[test]
    fn a_cold_boot_serves_and_starts_all_its_cpus() {
        let bundles = "console=hvc0 maxcpus=1 nokaslr";
        assert_eq!(
            cold_cmdline(bundles, 1, true),
            "console=hvc0 maxcpus=1 nokaslr smol.mode=run"
        );
        assert_eq!(
            cold_cmdline(bundles, 2, true),
            "console=hvc0 nokaslr smol.mode=run"
        );
        assert_eq!(cold_cmdline("a smol.mode=run", 1, true), "a smol.mode=run");
        assert_eq!(cold_cmdline("root=x", 1, false), "root=x");
    }
}
