//! The end: the service stopped, everything told and flushed, the machine reset.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::system::RebootCommand;

use super::console::say;
use super::process::World;
use super::supervisor::Supervisor;
use smol_protocol::{Event, ExitStatus};

/// After SIGKILL a process is gone as soon as the kernel lets go of it.
const KILL_LIMIT: Duration = Duration::from_secs(5);
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// Stops the service: SIGTERM to its process group, or a signal of its own to its process; the grace
/// time; SIGKILL to its cgroup.
pub(super) fn stop_service(
    sup: &mut Supervisor,
    world: &World,
    grace: Duration,
) -> Option<ExitStatus> {
    sup.control.send(&Event::Stopping);
    match world.stop_signal {
        // Others of the group may not know such a signal, and would end by it.
        Some(signal) => sup.signal_process(signal),
        None => sup.signal_service(Signal::TERM),
    }
    // It may have been stopped by a signal of its own kind.
    sup.signal_service(Signal::CONT);
    wait_for_end(sup, grace);
    kill_rest(sup, world);
    sup.service_status()
}

/// Kills whatever of the service is left, and carries its last output to the host.
pub(super) fn kill_rest(sup: &mut Supervisor, world: &World) {
    if let Some(cgroup) = &world.cgroup {
        // cgroup.kill works on a frozen cgroup too.
        if let Err(e) = cgroup.kill() {
            say!("cannot kill the service's cgroup: {e}");
        }
    }
    wait_for_end(sup, KILL_LIMIT);
    sup.drain(None);
    sup.flush_log(FLUSH_LIMIT);
    sup.log.close();
}

fn wait_for_end(sup: &mut Supervisor, limit: Duration) {
    let deadline = Instant::now() + limit;
    while sup.service_runs() && Instant::now() < deadline {
        sup.step(None, Some(deadline));
    }
}

/// Resets the machine. Our kernel has no ACPI to power off with, so a restart is what the
/// VMM sees as the end, however the machine ends. (In a PID namespace the kernel ends the
/// namespace instead.)
pub(super) fn reset() -> ! {
    rustix::fs::sync();
    let failed: Result<Infallible, _> = match rustix::system::reboot(RebootCommand::Restart) {
        Err(e) => Err(e),
        // Returns only in a PID namespace, whose end is on its way.
        Ok(()) => loop {
            std::thread::park();
        },
    };
    let Err(e) = failed;
    say!("cannot reset the machine: {e}");
    // The end of PID 1 is a kernel panic, which the VMM sees too.
    std::process::exit(1)
}
