//! The init: PID 1 of a guest, from the first mount to the reset.
//!
//! ```text
//! boot      mounts, network, identity          (mounts, network, identity)
//! service   as its user, in its cgroup; an init in namespaces of its own
//!                                              (users, process, cgroup, container)
//! ready     probes                             (probes, notify, output)
//! warm      commands, in a build and in a cold boot
//! snapshot  freeze, flush, snapshot, restore   (snapshot, cpus)
//! test      in a test restore: probe, requests    (test_restore)
//! serve     forwards, requests                 (forward, requests)
//! network   IP packets to and from the host    (tun), where the machine has one
//! end       stop, tell, reset                  (shutdown)
//! ```
//! A build step has a life of its own: a command, the files that it changed, the reset (`step`).
//!
//! Underneath: `supervisor` (the one poll loop), `streams` (events and logs to the host),
//! `console`, `signals`, and [`platform`] (what tests replace).

mod cgroup;
mod console;
mod container;
mod cpus;
mod forward;
#[doc(hidden)]
pub mod fuzz;
mod identity;
mod mounts;
mod network;
mod notify;
mod output;
pub mod platform;
mod probes;
mod process;
mod requests;
mod shutdown;
mod signals;
mod snapshot;
mod step;
mod streams;
mod supervisor;
mod test_restore;
pub mod tun;
pub mod users;

use std::convert::Infallible;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use cgroup::Cgroup;
use console::say;
use platform::{HostPorts, Platform};
use probes::NotReady;
use process::{Output, World};
use requests::Requests;
use signals::Signals;
use supervisor::{Interrupt, Supervisor};

use smol_protocol::step::STEP_PATH;
use smol_protocol::{
    CONFIG_PATH, Event, ExitStatus, GuestConfig, GuestFailure, Mode, RUN_MODE_WORD, Stage, Warm,
    guest_time,
};

/// How a machine's life ends early or late.
#[derive(Debug)]
enum End {
    /// The service ended by itself.
    Exited(ExitStatus),
    /// It was asked to stop, with this grace time.
    Stop(Duration),
    /// Something went wrong.
    Failed(Box<GuestFailure>),
}

/// A failure of this stage, in a box: most results are none.
fn failure_at(stage: Stage, reason: String) -> Box<GuestFailure> {
    Box::new(GuestFailure::at(stage, reason))
}

impl From<Box<GuestFailure>> for End {
    fn from(failure: Box<GuestFailure>) -> Self {
        End::Failed(failure)
    }
}

/// Lives the whole life of a guest. Never returns: PID 1 must not.
pub fn run(platform: &Platform) -> ! {
    std::panic::set_hook(Box::new(|panic| {
        say!("{panic}");
        shutdown::reset()
    }));
    let (mut sup, failed) = first_steps(platform);
    if let Some(why) = failed {
        tell(&mut sup, GuestFailure::at(Stage::Boot, why));
        shutdown::reset()
    }
    if Path::new(STEP_PATH).exists() {
        if let Err(failure) = step::run(platform, &mut sup) {
            tell(&mut sup, *failure);
        }
        shutdown::reset()
    }
    let mut world = None;
    let Err(end) = live(platform, &mut sup, &mut world);
    finish(&mut sup, world.as_ref(), end);
    shutdown::reset()
}

/// Devices, console, signals; and what went wrong with them.
fn first_steps(platform: &Platform) -> (Supervisor, Option<String>) {
    let mounted = mounts::early();
    console::open(&platform.console);
    let (signals, failed) = match Signals::take_over() {
        Ok(signals) => (Some(signals), mounted.err()),
        Err(e) => (None, Some(format!("cannot take over signals: {e}"))),
    };
    (Supervisor::new(platform.host.clone(), signals), failed)
}

/// Boots, serves, and returns only with the end. The world is left behind for it.
fn live(
    platform: &Platform,
    sup: &mut Supervisor,
    world: &mut Option<World>,
) -> Result<Infallible, End> {
    let config = boot(platform, sup)?;
    let world = start_service(&config, sup, world)?;
    get_ready(&config, sup, world)?;
    warm_up(&config, sup, world)?;
    if config.mode == Mode::Build {
        pass_snapshot(&config, platform, sup, world)?;
    }
    loop {
        sup.step(None, None);
        sup.check().map_err(|interrupt| match interrupt {
            Interrupt::ServiceExited(status) => End::Exited(status),
            Interrupt::Stop(grace) => End::Stop(grace),
        })?;
    }
}

/// Sets up the machine, and connects to the host.
fn boot(platform: &Platform, sup: &mut Supervisor) -> Result<GuestConfig, End> {
    let failed = |why: String| failure_at(Stage::Boot, why);
    let config = read_config().map_err(failed)?;
    let mut warnings = match &config.rootfs {
        Some(rootfs) => {
            let entered = mounts::enter(rootfs, mounts::Share::Half);
            entered.map_err(failed)?.warnings
        }
        None => Vec::new(),
    };
    mounts::late().map_err(failed)?;
    identity::set_up(&config.hostname).map_err(failed)?;
    if config.mode == Mode::Run {
        identity::make_machine_id().map_err(failed)?;
    } else if process::container_kind(&config.service).is_some() {
        identity::make_build_machine_id().map_err(failed)?;
    }
    warnings.extend(
        network::loopback_up()
            .err()
            .map(|e| format!("the loopback interface does not come up: {e}")),
    );
    warnings.extend(
        network::free_ports()
            .err()
            .map(|e| format!("ports below 1024 are for root alone: {e}")),
    );
    // Ctrl-alt-del becomes a SIGINT to us instead of a reset.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::CadOff);

    sup.ports = Some(HostPorts::take(&platform.host));
    match (sup.control.connect(), config.mode) {
        (Ok(()), _) => {}
        (Err(e), Mode::Run) => say!("no control stream to the host: {e}"),
        (Err(e), Mode::Build) => {
            return Err(failed(format!("no control stream to the host: {e}")).into());
        }
    }
    snapshot::open_log(sup, Stage::Boot);
    sup.control.send(&Event::Booted);
    warn(sup, Stage::Boot, warnings);
    if config.mode == Mode::Run {
        serve_host(sup);
    }
    Ok(config)
}

/// Runs the `[[warm]]` commands, one after the other. A cold boot does so, too: it must come to the
/// state that the snapshot has.
fn warm_up(config: &GuestConfig, sup: &mut Supervisor, world: &World) -> Result<(), End> {
    for (number, warm) in (1..).zip(&config.warm) {
        sup.control.send(&Event::WarmStarted { number });
        let (status, output_tail) = run_command(Stage::Warm, number, warm, sup, world)?;
        sup.control.send(&Event::WarmFinished {
            number,
            status,
            output_tail,
        });
    }
    Ok(())
}

/// Freezes the machine at its snapshot point; what follows is done by each machine that is restored
/// from the snapshot.
fn pass_snapshot(
    config: &GuestConfig,
    platform: &Platform,
    sup: &mut Supervisor,
    world: &World,
) -> Result<(), End> {
    snapshot::take(&config.snapshot, platform, sup, world)?;
    let built = world.container.is_some().then(identity::machine_id);
    let params = snapshot::resume(platform, sup)?;
    if let Some(built) = built {
        let renamed = container::renamed(&built, &params.machine_id.to_string());
        warn(sup, Stage::Restore, renamed.err());
    }
    run_restore(config, sup, world)?;
    snapshot::thaw(world)?;
    serve_host(sup);
    let sample = identity::random_sample();
    sup.control.send(&Event::Resumed { sample });
    warn(sup, Stage::Restore, cpus::bring_online(params.online_cpus));
    if params.test_restore {
        test_restore::test_restore(config, sup, world)?;
    }
    Ok(())
}

/// Tells the host what went wrong without keeping the machine from going on.
fn warn(sup: &mut Supervisor, stage: Stage, reasons: impl IntoIterator<Item = String>) {
    for reason in reasons {
        sup.control.send(&Event::Warning { stage, reason });
    }
}

fn read_config() -> Result<GuestConfig, String> {
    let text = fs::read(CONFIG_PATH).map_err(|e| format!("{CONFIG_PATH}: {e}"))?;
    let mut config = GuestConfig::parse(&text).map_err(|e| format!("{CONFIG_PATH}: {e}"))?;
    let command_line =
        fs::read_to_string("/proc/cmdline").map_err(|e| format!("/proc/cmdline: {e}"))?;
    if command_line
        .split_whitespace()
        .any(|word| word == RUN_MODE_WORD)
    {
        config.mode = Mode::Run;
    }
    Ok(config)
}

/// Serves the host's connections from now on. Without vsock there are none, and the machine runs on.
fn serve_host(sup: &mut Supervisor) {
    let opened = sup
        .ports
        .take()
        .unwrap_or_else(|| Err(ErrorKind::NotConnected.into()));
    let opened = opened.and_then(|ports| {
        sup.requests = Some(Requests::of(ports.requests)?);
        forward::start(ports.forward)
    });
    if let Err(e) = opened {
        let reason = format!("the host cannot reach this machine: {e}");
        sup.control.send(&Event::Warning {
            stage: Stage::Serve,
            reason,
        });
    }
}

fn start_service<'w>(
    config: &GuestConfig,
    sup: &mut Supervisor,
    world: &'w mut Option<World>,
) -> Result<&'w World, End> {
    let failed = |why: String| failure_at(Stage::Service, why);
    let cgroup = Cgroup::create(Path::new("/sys/fs/cgroup"), "service")
        .map_err(|e| failed(format!("cannot make the service's cgroup: {e}")))?;
    let mut new = World::new(&config.service, cgroup).map_err(failed)?;
    new.env
        .extend(probes::prepare(&config.ready.probe, sup).map_err(failed)?);
    let new = world.insert(new);
    if config.mode == Mode::Run {
        run_restore(config, sup, new)?;
    }
    let pid = sup
        .start_service(new, &config.service.cmd)
        .map_err(failed)?;
    sup.control.send(&Event::ServiceStarted {
        pid: pid.as_raw_nonzero().get(),
    });
    Ok(new)
}

fn get_ready(config: &GuestConfig, sup: &mut Supervisor, world: &World) -> Result<(), End> {
    let failed = |reason: String, last_saw, status| {
        Box::new(GuestFailure {
            probe: Some(config.ready.probe.clone()),
            last_saw,
            status,
            ..GuestFailure::at(Stage::Ready, reason)
        })
    };
    let attempts = probes::wait_ready(&config.ready, sup, world).map_err(|e| match e {
        NotReady::Timeout(saw) => End::from(failed(
            format!("not ready within {}", guest_time(config.ready.timeout_ms)),
            Some(saw),
            None,
        )),
        NotReady::Interrupted(Interrupt::ServiceExited(status), saw) => End::from(failed(
            format!("the service ended before it was ready, with {status}"),
            saw,
            Some(status),
        )),
        NotReady::Interrupted(Interrupt::Stop(grace), _) => End::Stop(grace),
        NotReady::Unusable(why) => End::from(failed(why, None, None)),
    })?;
    sup.matcher = None;
    sup.control.send(&Event::Ready { attempts });
    Ok(())
}

/// Gives the machine what it must have for itself, while the service stands still.
fn run_restore(config: &GuestConfig, sup: &mut Supervisor, world: &World) -> Result<(), End> {
    let beside = world.beside();
    for (number, command) in (1..).zip(&config.restore) {
        run_command(Stage::Restore, number, command, sup, &beside)?;
    }
    Ok(())
}

/// Runs a `[[warm]]` or `[[restore]]` command, which must succeed; how it ended, and its last output.
fn run_command(
    stage: Stage,
    number: u32,
    command: &Warm,
    sup: &mut Supervisor,
    world: &World,
) -> Result<(ExitStatus, String), End> {
    let failed = |what: String, last_saw, status| {
        let name = format!("[[{stage}]] command {number} ({})", command.cmd.join(" "));
        Box::new(GuestFailure {
            last_saw,
            status,
            ..GuestFailure::at(stage, format!("{name} {what}"))
        })
    };
    let deadline = Instant::now() + Duration::from_millis(command.timeout_ms);
    let pid = sup
        .start(world, &command.cmd, Output::Separate, true)
        .map_err(|e| failed(format!("cannot be started: {e}"), None, None))?;
    let (status, output_tail) = sup
        .finish(pid, deadline)
        .map_err(|interrupt| match interrupt {
            Interrupt::ServiceExited(status) => End::from(failed(
                format!("did not end: the service ended meanwhile with {status}"),
                None,
                Some(status),
            )),
            Interrupt::Stop(grace) => End::Stop(grace),
        })?;
    let Some(status) = status else {
        let what = format!("did not end within {}", guest_time(command.timeout_ms));
        return Err(failed(what, Some(output_tail), None).into());
    };
    if status.success() {
        return Ok((status, output_tail));
    }
    let what = format!("ended with {status}");
    Err(failed(what, Some(output_tail), Some(status)).into())
}

/// Ends what is left of the service and tells the host how it ended.
fn finish(sup: &mut Supervisor, world: Option<&World>, end: End) {
    let status = match (end, world) {
        (End::Failed(failure), world) => {
            world
                .iter()
                .for_each(|world| shutdown::kill_rest(sup, world));
            return tell(sup, *failure);
        }
        (End::Exited(status), world) => {
            world
                .iter()
                .for_each(|world| shutdown::kill_rest(sup, world));
            status
        }
        // Even SIGKILL may not have ended it within its time.
        (End::Stop(grace), Some(world)) => {
            shutdown::stop_service(sup, world, grace).unwrap_or(ExitStatus::KILLED)
        }
        (End::Stop(_), None) => ExitStatus::KILLED,
    };
    sup.control.send(&Event::ServiceExited { status });
    sup.control.close();
}

fn tell(sup: &mut Supervisor, failure: GuestFailure) {
    say!("{}: {}", failure.stage, failure.reason);
    if !sup.control.is_connected() {
        // It may never have been connected, or closed for the snapshot.
        let _ = sup.control.connect();
    }
    sup.control.send(&Event::Failed(failure));
    sup.control.close();
}
