//! Runs a [`BootJob`] on this host's KVM, in this process.

use std::fs::File;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use smol_cli::{ExitKind, Failure, Interrupt};
use smol_machine::config::{Clock, MachineConfig};
use smol_machine::cpu::{Features, Level};
use smol_machine::devices::virtio::vsock::Vsock;
use smol_machine::machine::Hooks;
use smol_machine::{Machine, Stop, hv, memory};
use smol_protocol::{GuestFailure, Stage};

use super::guard::{self, Later};
use super::live_streams::LiveStreams;
use super::streams::{Console, GuestStreams, LayerFile, Observer};
use super::test_restore::{self, Outcome};
use super::uplink;
use super::{
    BootJob, Failed, Frozen, LAYER_FILE, MEMORY_FILE, Message, Purpose, STATE_FILE, Stepped,
    Touched, WORKING_SET_FILE,
};

/// Wall-clock limit of the test restore: the service is up already.
const TEST_RESTORE_LIMIT: Duration = Duration::from_secs(5 * 60);

/// Boots the job's machine, and freezes it or lets it run its build step. Its messages go to `report`,
/// the last of which is [`Message::Frozen`], [`Message::Stepped`] or [`Message::Failed`].
///
/// # Errors
/// For a machine that cannot be started at all: unreadable images, a host that refuses.
pub fn run(
    job: &BootJob,
    interrupt: &Interrupt,
    report: impl FnMut(Message) + Send + 'static,
) -> Result<()> {
    let (ready_line, layer) = match &job.purpose {
        Purpose::Freeze { ready_line, .. } => (ready_line.as_deref(), None),
        Purpose::Step { .. } => (None, Some(layer_file(job)?)),
    };
    let ready_line = ready_line.map(regex::bytes::Regex::new).transpose()?;
    let observer = Observer::new(Box::new(report), ready_line);
    let layer_copy = layer.as_ref().map(File::try_clone).transpose()?;
    let layer_copy = layer_copy.map(|file| LayerFile::new(file, job.memory));
    let (vsock, live) = vsock(job, GuestStreams::new(&observer, layer_copy))?;
    let hooks = Hooks {
        console: Console::new(&observer),
        serial: Console::new(&observer),
        vsock: Some(vsock),
    };
    let start = Instant::now();
    let mut machine = Machine::boot(&config(job)?, hooks).map_err(|e| refused(e, job.cpu))?;
    observer.attach(machine.stop_handle());
    let later = limit_step(job, &machine, &observer);

    let (done, finished) = mpsc::channel::<()>();
    let guard = guard::spawn(
        machine.stop_handle(),
        interrupt,
        Duration::from_secs(job.limit),
        later,
        finished,
    );
    let stop = machine.run();
    drop(done);
    let late = guard.join().expect("the guard does not panic");

    let message = match (stop?, &job.purpose) {
        (Stop::Snapshot, Purpose::Freeze { .. }) if !observer.guest_failed() => {
            let boot_ms = start.elapsed().as_millis() as u64;
            match freeze(job, &mut machine, boot_ms, &observer, interrupt)? {
                Ok(frozen) => Message::Frozen(frozen),
                Err(failed) => Message::Failed(failed),
            }
        }
        (stop, purpose) => {
            let first_tick = machine.first_tick();
            drop(machine);
            live.into_iter().for_each(LiveStreams::end);
            match (observer.layer_bytes(), layer) {
                (Some(bytes), Some(layer)) if matches!(stop, Stop::Reset) => {
                    stepped(first_tick, bytes, &layer)?
                }
                _ => Message::Failed(explain(&observer, &stop, purpose, interrupt, late)),
            }
        }
    };
    observer.report(message);
    Ok(())
}

/// Limits the time of a build step, from when its guest has booted. On virtual time the machine looks at its
/// own clock; what is returned is for the host's.
fn limit_step(job: &BootJob, machine: &Machine, observer: &Observer) -> Option<Later> {
    let Purpose::Step { timeout_ms, .. } = job.purpose else {
        return None;
    };
    let length = Duration::from_millis(timeout_ms);
    if job.purpose.has_network() {
        let later = Later::new(length);
        let begun = later.clone();
        observer.on_booted(move || begun.begin());
        return Some(later);
    }
    let limit = machine.time_limit();
    observer.on_booted(move || limit.begin(length));
    None
}

/// The file for the layer of a build step.
fn layer_file(job: &BootJob) -> Result<File> {
    let path = job.out.join(LAYER_FILE);
    File::create_new(&path).with_context(|| format!("cannot write {}", path.display()))
}

/// A host without the CPU that is asked for: what to write to build on it all the same.
fn refused(error: smol_machine::Error, cpu: Level) -> anyhow::Error {
    let smol_machine::Error::Cpu { .. } = error else {
        return error.into();
    };
    let what = format!(
        "a machine with the CPU {} cannot be built: {error}",
        cpu.name()
    );
    let mut failure = Failure::new(ExitKind::Host, what);
    let has_v2 =
        hv::host_cpu().is_ok_and(|here| Features::supported(&here).lacking(Level::V2).is_empty());
    if cpu > Level::V2 && has_v2 {
        failure = failure.hint("write `cpu = \"x86-64-v2\"` in the Smolfile");
    }
    let other = match smol_host::emulated::is_inside() {
        true => "install QEMU 7.2 or later, which emulates x86-64-v3",
        false => "build it with --accel emulated, which is slow",
    };
    failure.hint(other).into()
}

fn config(job: &BootJob) -> Result<MachineConfig> {
    Ok(MachineConfig {
        vcpus: job.vcpus,
        cpu: job.cpu,
        memory: job.memory,
        kernel: job.kernel.clone(),
        initramfs: job.initramfs.clone(),
        cmdline: job.cmdline.clone(),
        rootfs: job.rootfs.clone(),
        clock: match job.purpose.has_network() {
            true => Clock::Host,
            false => Clock::Virtual {
                epoch: job.epoch,
                watchdog: Duration::from_secs(job.watchdog),
            },
        },
        seed: match job.purpose.has_network() {
            true => random()?,
            false => seed(&job.seed)?,
        },
        kernel_seed: seed(&job.kernel_seed)?,
    })
}

/// The device for the guest's streams, and what reads them if it is not the device itself.
fn vsock(job: &BootJob, streams: Box<GuestStreams>) -> Result<(Vsock, Option<LiveStreams>)> {
    if !job.purpose.has_network() {
        let cid = smol_protocol::GUEST_CID.into();
        return Ok((Vsock::for_build(cid, streams), None));
    }
    let uplink = uplink::of_this_process().context("there is no way to the network")?;
    let (vsock, live) =
        LiveStreams::new(streams, uplink).context("cannot make the vsock device")?;
    Ok((vsock, Some(live)))
}

/// Keys of TLS are made of it.
fn random() -> Result<[u8; 32]> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("no random numbers")?;
    Ok(seed)
}

fn seed(hex: &str) -> Result<[u8; 32]> {
    let seed = blake3::Hash::from_hex(hex).context("a seed of the job")?;
    Ok(*seed.as_bytes())
}

/// The end of a build step whose layer is in a file, and has this length by what the guest says.
fn stepped(first_tick: Option<u64>, layer_bytes: u64, layer: &File) -> Result<Message> {
    let written = layer.sync_all().and_then(|()| Ok(layer.metadata()?.len()));
    let written = written.context("cannot write the layer of the build step")?;
    if written != layer_bytes {
        let what = format!("{written} bytes of the changed files came, of {layer_bytes}");
        return Ok(Message::Failed(Failed::new(what)));
    }
    Ok(Message::Stepped(Stepped {
        layer_bytes,
        first_tick_ms: first_tick.map(|ns| ns / 1_000_000),
    }))
}

/// Writes the machine down and restores it for a test. The inner error is a test restore that failed.
fn freeze(
    job: &BootJob,
    machine: &mut Machine,
    boot_ms: u64,
    observer: &Observer,
    interrupt: &Interrupt,
) -> Result<Result<Frozen, Failed>> {
    let start = Instant::now();
    let state = machine.capture()?;
    let write = |name: &str| format!("cannot write {}", job.out.join(name).display());
    let image = File::create(job.out.join(MEMORY_FILE)).with_context(|| write(MEMORY_FILE))?;
    let stats = memory::write_image(machine.ram(), &image).with_context(|| write(MEMORY_FILE))?;
    image.sync_all().with_context(|| write(MEMORY_FILE))?;
    std::fs::write(job.out.join(STATE_FILE), state.to_json()).with_context(|| write(STATE_FILE))?;
    let capture_ms = start.elapsed().as_millis() as u64;
    observer.report(Message::Captured {
        nonzero_pages: stats.nonzero,
    });
    let limit = Duration::from_secs(job.limit).min(TEST_RESTORE_LIMIT);
    let outcome = test_restore::test_restore(job, &state, machine.contents(), limit, interrupt)
        .context("cannot restore the frozen machine")?;
    let set = match outcome {
        Outcome::Seen(set) => Ok(set),
        Outcome::Unseen(why) => Err(why),
        Outcome::Failed(failed) => return Ok(Err(failed)),
    };
    if let Ok(set) = &set {
        std::fs::write(job.out.join(WORKING_SET_FILE), serde_json::to_vec(set)?)
            .with_context(|| write(WORKING_SET_FILE))?;
    }
    let count = |runs: &[smol_bundle::Run]| runs.iter().map(|run| u64::from(run.pages)).sum();
    Ok(Ok(Frozen {
        working_set: set.as_ref().ok().map(|set| Touched {
            memory_pages: count(&set.memory),
            rootfs_pages: count(&set.rootfs),
        }),
        no_working_set: set.err(),
        cpu_features: state
            .cpu
            .features
            .names()
            .into_iter()
            .map(str::to_owned)
            .collect(),
        xcr0: state.cpu.features.xcr0(),
        virtual_time: state.phase() == smol_machine::paravirt::Phase::Virtual,
        virtual_ms: machine.virtual_time().map(|ns| ns / 1_000_000),
        first_tick_ms: machine.first_tick().map(|ns| ns / 1_000_000),
        exits: machine.exits(),
        pages: stats.pages,
        nonzero_pages: stats.nonzero,
        boot_ms,
        capture_ms,
    }))
}

fn explain(
    observer: &Observer,
    stop: &Stop,
    purpose: &Purpose,
    interrupt: &Interrupt,
    time_is_up: bool,
) -> Failed {
    if interrupt.is_set() {
        return Failed {
            interrupted: true,
            ..Failed::new("the build was interrupted")
        };
    }
    let until = match purpose {
        Purpose::Freeze { .. } => "it was ready",
        Purpose::Step { .. } => "its command had ended",
    };
    if let (
        Stop::TimeIsUp,
        Purpose::Step {
            step, timeout_ms, ..
        },
    ) = (stop, purpose)
    {
        let limit = smol_protocol::guest_time(*timeout_ms);
        let why = format!("{step} did not end within {limit}");
        let failed = observer.failure("");
        return Failed {
            log: failed.log,
            console: failed.console,
            ..Failed::of_guest(GuestFailure::at(Stage::Step, why))
        };
    }
    observer.failure(&match stop {
        Stop::Requested if time_is_up => {
            format!("the limit of wall-clock time was reached before {until}")
        }
        Stop::Reset => {
            format!("the guest reset itself before {until}: a kernel panic, or its init ended")
        }
        Stop::Stuck => "the guest is idle with no timer armed, and will never wake up".to_owned(),
        Stop::Crashed(what) => format!("the virtual CPU cannot go on: {what}"),
        Stop::Snapshot | Stop::Requested | Stop::TimeIsUp => {
            format!("the machine stopped before {until}")
        }
    })
}
