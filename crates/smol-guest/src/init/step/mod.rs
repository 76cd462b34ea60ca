//! A build step: one command, and then the files that it changed go to the host.
//!
//! What the machine itself writes (host name, addresses) is put over the root file system, not into it,
//! so that the layer has what the command did and nothing else.

mod layer;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;

use smol_protocol::net::NET_PORT;
use smol_protocol::step::{LAYER_PORT, STEP_PATH, StepConfig};
use smol_protocol::{Event, GuestFailure, Stage, Warm};

use super::cgroup::Cgroup;
use super::platform::Platform;
use super::process::World;
use super::supervisor::Supervisor;
use super::{
    End, failure_at, identity, mounts, network, run_command, shutdown, snapshot, tun, warn,
};

/// The host ends a step that takes too long: this is longer than any that it lets run, milliseconds.
const LIMIT_MS: u64 = 7 * 24 * 3600 * 1000;

/// Runs the step, and sends its layer. The machine has nothing to do after it.
pub(super) fn run(platform: &Platform, sup: &mut Supervisor) -> Result<(), Box<GuestFailure>> {
    let at_boot = |why: String| failure_at(Stage::Boot, why);
    let text = fs::read(STEP_PATH).map_err(|e| at_boot(format!("{STEP_PATH}: {e}")))?;
    let config = StepConfig::parse(&text).map_err(|e| at_boot(format!("{STEP_PATH}: {e}")))?;
    let entered = mounts::enter(&config.rootfs, mounts::Share::Most).map_err(at_boot)?;
    mounts::late().map_err(at_boot)?;
    identity::set_up_step(&config.hostname, config.network).map_err(at_boot)?;
    let loopback = network::loopback_up();
    loopback.map_err(|e| at_boot(format!("the loopback interface does not come up: {e}")))?;

    let no_stream = |e| at_boot(format!("no stream to the host: {e}"));
    sup.control.connect().map_err(no_stream)?;
    // Before the command runs, which could take it: what comes in it is believed to be the layer.
    let stream = platform.host.connect(LAYER_PORT).map_err(no_stream)?;
    if config.network {
        let stream = platform.host.connect(NET_PORT).map_err(no_stream)?;
        tun::start(stream).map_err(|e| at_boot(format!("cannot set up the network: {e}")))?;
    }
    snapshot::open_log(sup, Stage::Boot);
    sup.control.send(&Event::Booted);
    warn(sup, Stage::Boot, entered.warnings);

    run_to_its_end(&config, sup, &entered.upper)?;
    let layer_bytes = layer::send(&entered.upper, File::from(stream), config.epoch)
        .map_err(|e| failure_at(Stage::Step, format!("cannot send the changed files: {e}")))?;
    sup.control.send(&Event::StepFinished { layer_bytes });
    sup.control.close();
    Ok(())
}

/// Runs the command; whatever it leaves running ends with it.
fn run_to_its_end(
    config: &StepConfig,
    sup: &mut Supervisor,
    upper: &OwnedFd,
) -> Result<(), Box<GuestFailure>> {
    let failed = |why: String| failure_at(Stage::Step, why);
    let cgroup = Cgroup::create(Path::new("/sys/fs/cgroup"), "step")
        .map_err(|e| failed(format!("cannot make the command's cgroup: {e}")))?;
    let world = World::new(&config.command, cgroup).map_err(failed)?;
    let command = Warm {
        cmd: config.command.cmd.clone(),
        timeout_ms: LIMIT_MS,
    };
    let outcome = run_command(Stage::Step, config.number, &command, sup, &world);
    shutdown::kill_rest(sup, &world);
    outcome.map(drop).map_err(|end| match end {
        End::Failed(mut failure) => {
            if is_full(upper) {
                failure.reason += "; its files have filled the memory that there is for them";
            }
            failure
        }
        End::Exited(_) | End::Stop(_) => failed("the machine was stopped".into()),
    })
}

/// Whether no file can be written any more.
fn is_full(upper: &OwnedFd) -> bool {
    const LEFT: u64 = 1 << 20;
    rustix::fs::fstatvfs(upper)
        .is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) < LEFT || fs.f_favail == 0)
}
