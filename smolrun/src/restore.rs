//! From images to a machine that is about to run: restored from its snapshot, or, where that
//! cannot be, booted cold.

use std::fs;
use std::io;
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use smol_bundle::{CpuContract, ImageKind, TscNeeds};
use smol_cli::{ErrorExt, ExitKind};
use smol_machine::config::{Clock, MachineConfig};
use smol_machine::cpu::{self, CpuidEntry};
use smol_machine::devices::Slot;
use smol_machine::devices::virtio::vsock::{Vsock, VsockHandle};
use smol_machine::machine::{Hooks, RestoreConfig, Time};
use smol_machine::{Error, Machine, MachineState, hv};
use smol_protocol::log::Stream;
use smol_protocol::{GUEST_CID, RUN_MODE_WORD};

use crate::first::FirstStart;
use crate::identity;
use crate::materialise;
use crate::metrics::Moment;
use crate::output::{Console, Output, Tail};
use crate::report::Report;
use crate::spec::RunSpec;

/// What the machine is connected to, for as many attempts as it takes.
pub struct Wires {
    /// Takes the output of machines without smol-guest.
    pub output: Arc<Output>,
    /// Keeps the consoles' last lines.
    pub tail: Tail,
    /// When the guest printed its first byte.
    pub first_output: Arc<OnceLock<Moment>>,
}

/// A machine that has not run yet.
pub struct Ready {
    /// It.
    pub machine: Machine,
    /// The way to its vsock, if it has one.
    pub vsock: Option<VsockHandle>,
    /// Whether it is its snapshot's; else it will boot.
    pub restored: bool,
}

/// Restores the machine; if the snapshot cannot be restored here, says why in a line and prepares
/// a cold boot.
///
/// # Errors
/// If neither is possible.
pub fn start(
    spec: &RunSpec,
    first: Option<&FirstStart>,
    wires: &Wires,
    report: &dyn Report,
) -> anyhow::Result<Ready> {
    if !spec.cold {
        match restore(spec, first, wires)? {
            Ok(ready) => return Ok(ready),
            Err(why) => report.note(&format!("{why}: booting cold")),
        }
    }
    if let Some(first) = first {
        first.unpack()?;
    }
    boot(spec, wires)
}

/// The inner error is a reason to boot cold.
fn restore(
    spec: &RunSpec,
    first: Option<&FirstStart>,
    wires: &Wires,
) -> anyhow::Result<Result<Ready, String>> {
    if !spec.has.snapshot {
        return Ok(Err("the bundle holds no snapshot".into()));
    }
    if let Err(why) = check_contract(&spec.config.cpu).map_err(host)? {
        return Ok(Err(format!("the snapshot needs another host: {why}")));
    }
    let state = match first {
        Some(first) => first.state()?,
        None => {
            let path = spec.images.join(materialise::STATE);
            fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?
        }
    };
    let state = match MachineState::from_json(&state) {
        Ok(state) => state,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let wants_vsock = state.has_device(Slot::Vsock);
    let (hooks, vsock) = wires.hooks(spec, wants_vsock)?;
    let machine = match first {
        Some(first) => {
            first.serve()?;
            Machine::restore_lazy(first.demand(), &state, hooks, Time::Live)
        }
        None => {
            let [rootfs_first, memory_first] = materialise::working_set(&spec.images);
            let config = RestoreConfig {
                memory: spec.image(ImageKind::Memory),
                rootfs: spec.rootfs(),
                memory_first,
                rootfs_first,
            };
            Machine::restore(&config, &state, hooks)
        }
    };
    match machine {
        Ok(machine) => Ok(Ok(Ready {
            machine,
            vsock,
            restored: true,
        })),
        // Its state is of another version or kind, or this hypervisor does not take it.
        Err(error @ (Error::State(_) | Error::Hypervisor { .. })) => Ok(Err(format!(
            "the snapshot cannot be restored here ({error})"
        ))),
        Err(error) => Err(host(error)).context("cannot restore the machine"),
    }
}

fn boot(spec: &RunSpec, wires: &Wires) -> anyhow::Result<Ready> {
    let (hooks, vsock) = wires.hooks(spec, true)?;
    let config = MachineConfig {
        vcpus: u8::try_from(spec.config.cpus).unwrap_or(u8::MAX),
        memory: spec.config.memory,
        kernel: spec.image(ImageKind::Kernel),
        initramfs: spec.has.initramfs.then(|| spec.image(ImageKind::Initramfs)),
        cmdline: cold_cmdline(&spec.config.cmdline, spec.config.cpus, spec.has.initramfs),
        rootfs: spec.rootfs(),
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
    })
}

/// The bundle's command line, for a guest that is to serve and not to build. `maxcpus=1` is for
/// builds, after which smol-guest brings the other CPUs online; a cold boot starts them itself.
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
    let error = Err::<(), _>(error).kind(kind);
    let error = match at_kvm {
        true => error.hint("smolrun doctor says what is wrong with this host's KVM; --accel emulated does without it"),
        false => error,
    };
    error.expect_err("it is one")
}

impl Wires {
    fn hooks(&self, spec: &RunSpec, vsock: bool) -> anyhow::Result<(Hooks, Option<VsockHandle>)> {
        let (device, handle) = match (vsock, spec.has.initramfs) {
            (true, true) => {
                let live = Vsock::live(GUEST_CID.into(), None);
                Some(live.context("cannot set up the vsock device")?).unzip()
            }
            // The device of its snapshot; without smol-guest there is nobody to talk to.
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

/// Whether this host has what the snapshot needs; the inner error says what it lacks.
///
/// # Errors
/// If the hypervisor does not say what it has.
fn check_contract(contract: &CpuContract) -> Result<Result<(), String>, Error> {
    if contract.arch != std::env::consts::ARCH {
        return Ok(Err(format!(
            "it is for {}, this host is {}",
            contract.arch,
            std::env::consts::ARCH
        )));
    }
    let supports = hv::host_cpu()?;
    Ok(judge_contract(
        contract,
        &supports,
        clocksources().as_deref(),
    ))
}

fn judge_contract(
    contract: &CpuContract,
    supports: &[CpuidEntry],
    clocksources: Option<&str>,
) -> Result<(), String> {
    let leaf = |function, index| {
        let found = supports
            .iter()
            .find(|e| e.function == function && e.index.unwrap_or(0) == index);
        found.copied().unwrap_or_default()
    };
    cpu::check_host(supports, contract.features.iter().map(String::as_str))
        .map_err(|e| e.to_string())?;
    // CPUID 0x80000008 EAX[7:0]: physical address bits.
    let bits = leaf(0x8000_0008, 0).eax & 0xff;
    if bits != 0 && bits < contract.physical_address_bits {
        let wanted = contract.physical_address_bits;
        return Err(format!(
            "this host's CPU has {bits} bits of physical addresses, not {wanted}"
        ));
    }
    // CPUID 0xd, sub-leaf 0, EDX:EAX: the XCR0 bits that can be set.
    let states = leaf(0xd, 0);
    let xcr0 = u64::from(states.edx) << 32 | u64::from(states.eax);
    if contract.xcr0 & !xcr0 != 0 {
        return Err(format!(
            "this host's CPU lacks XSAVE components {:#x}",
            contract.xcr0 & !xcr0
        ));
    }
    match contract.tsc.needs {
        TscNeeds::None => Ok(()),
        // CPUID 0x80000007 EDX[8]: invariant TSC. Nested hosts often hide it; then the host
        // kernel's own judgement counts, which takes an unstable TSC off this list.
        TscNeeds::Invariant => {
            let told = leaf(0x8000_0007, 0).edx & 1 << 8 != 0;
            let used = clocksources.is_none_or(|list| list.split_whitespace().any(|name| name == "tsc"));
            if told || used { Ok(()) } else { Err("this host's time stamp counter is not stable".into()) }
        }
        TscNeeds::Frequency => Err("it needs a time stamp counter of a given frequency, which this version does not provide".into()),
    }
}

/// The clock sources that the host's kernel trusts; `None` where it does not say.
fn clocksources() -> Option<String> {
    fs::read_to_string("/sys/devices/system/clocksource/clocksource0/available_clocksource").ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol_bundle::Tsc;
    use smol_machine::cpu::{Cpu, CpuidEntry, Features, Model};

    fn whole_cpu() -> Vec<CpuidEntry> {
        Cpu {
            model: Model::Generic,
            features: Features::all(),
        }
        .cpuid(0)
    }

    fn contract() -> CpuContract {
        CpuContract {
            arch: "x86_64".into(),
            features: cpu::Features::all()
                .names()
                .into_iter()
                .map(str::to_owned)
                .collect(),
            physical_address_bits: 40,
            xcr0: 0,
            tsc: Tsc {
                needs: TscNeeds::Invariant,
                khz: None,
            },
        }
    }

    #[test]
    fn the_pinned_cpu_keeps_its_own_contract() {
        assert_eq!(
            judge_contract(&contract(), &whole_cpu(), Some("tsc hpet\n")),
            Ok(())
        );
        assert_eq!(judge_contract(&contract(), &whole_cpu(), None), Ok(()));
    }

    #[test]
    fn what_a_host_lacks_is_named() {
        type Change = fn(&mut CpuContract);
        let cases: [(&str, Change); 4] = [
            ("lacks avx512f", |c| c.features.push("avx512f".into())),
            ("40 bits of physical addresses, not 48", |c| {
                c.physical_address_bits = 48
            }),
            ("XSAVE components 0x4", |c| c.xcr0 = 4),
            ("given frequency", |c| {
                c.tsc = Tsc {
                    needs: TscNeeds::Frequency,
                    khz: Some(1),
                }
            }),
        ];
        for (wanted, change) in cases {
            let mut contract = contract();
            change(&mut contract);
            let why = judge_contract(&contract, &whole_cpu(), None).unwrap_err();
            assert!(why.contains(wanted), "{why}");
        }
        let unstable = judge_contract(&contract(), &whole_cpu(), Some("hpet acpi_pm\n"));
        assert!(unstable.unwrap_err().contains("not stable"));
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
