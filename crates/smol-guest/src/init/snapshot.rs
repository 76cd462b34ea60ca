//! The build's last moments and the clone's first: everything still and flushed, the
//! snapshot, a new identity, and on.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use super::cgroup::Cgroup;
use super::failure_at;
use super::identity;
use super::platform::Platform;
use super::process::World;
use super::supervisor::Supervisor;
use smol_protocol::{
    Event, GuestFailure, LineBuffer, RestoreParams, SnapshotPolicy, Stage, decode_line,
};

const FREEZE_LIMIT: Duration = Duration::from_secs(10);
const FLUSH_LIMIT: Duration = Duration::from_secs(10);
/// How long the host may take to give a clone its identity.
const PARAMS_LIMIT: Duration = Duration::from_secs(10);

/// Freezes the service, flushes everything, asks for the snapshot; returns in the clone.
pub(super) fn take(
    policy: &SnapshotPolicy,
    platform: &Platform,
    sup: &mut Supervisor,
    world: &World,
) -> Result<(), Box<GuestFailure>> {
    let failed = |what: &str, e: io::Error| failure_at(Stage::Quiesce, format!("{what}: {e}"));
    let device = platform
        .open_snapshot_device()
        .map_err(|e| failed("/dev/smol", e))?;
    if let Some(cgroup) = &world.cgroup {
        cgroup
            .freeze(FREEZE_LIMIT)
            .map_err(|e| failed("cannot freeze the service", e))?;
    }
    sup.drain(None);
    sup.flush_log(FLUSH_LIMIT);
    rustix::fs::sync();
    sup.control.send(&Event::Quiesced);
    sup.log.close();
    if device.is_some() {
        sup.control.close();
    }
    if policy.drop_caches {
        fs::write("/proc/sys/vm/drop_caches", "3")
            .map_err(|e| failed("/proc/sys/vm/drop_caches", e))?;
    }
    match device {
        // Returns in the clone.
        Some(mut device) => device.write_all(b"1").map_err(|e| failed("/dev/smol", e)),
        None => {
            sup.control.send(&Event::Snapshot);
            wait_for_break(sup).map_err(|e| failed("waiting for the snapshot", e))
        }
    }
}

/// Without a device of our own: in the clone, the stream that the build had is broken.
fn wait_for_break(sup: &mut Supervisor) -> io::Result<()> {
    let mut byte = [0];
    while let Some(mut stream) = sup.control.stream() {
        match stream.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => {
                return Err(io::Error::other(
                    "the host sent something instead of closing the stream",
                ));
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    sup.control.close();
    Ok(())
}

/// Takes up the clone's identity. Returns what else is asked for.
pub(super) fn resume(
    platform: &Platform,
    sup: &mut Supervisor,
) -> Result<RestoreParams, Box<GuestFailure>> {
    let failed = |reason: String| failure_at(Stage::Restore, reason);
    sup.control
        .connect()
        .map_err(|e| failed(format!("no control stream to the host: {e}")))?;
    sup.control.send(&Event::Restored);
    let params = read_params(sup).map_err(failed)?;
    identity::apply(&params, platform).map_err(failed)?;
    open_log(sup, Stage::Restore);
    Ok(params)
}

/// Lets the service run on.
pub(super) fn thaw(world: &World) -> Result<(), Box<GuestFailure>> {
    let thawed = world.cgroup.as_ref().map_or(Ok(()), Cgroup::thaw);
    thawed.map_err(|e| failure_at(Stage::Restore, format!("cannot thaw the service: {e}")))
}

/// Opens the log stream; without one output goes to the console.
pub(super) fn open_log(sup: &mut Supervisor, stage: Stage) {
    if !sup.control.is_connected() {
        return;
    }
    if let Err(e) = sup.log.open() {
        let reason = format!("no log stream to the host, output goes to the console: {e}");
        sup.control.send(&Event::Warning { stage, reason });
    }
}

fn read_params(sup: &Supervisor) -> Result<RestoreParams, String> {
    let deadline = Instant::now() + PARAMS_LIMIT;
    let mut stream = sup.control.stream().ok_or("the control stream broke")?;
    let mut lines = LineBuffer::default();
    loop {
        if let Some(line) = lines
            .next_line()
            .map_err(|e| format!("restore parameters: {e}"))?
        {
            return decode_line(&line).map_err(|e| format!("restore parameters: {e}"));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| "an invalid time limit")?;
        let ready = poll(
            &mut [PollFd::new(&stream.as_fd(), PollFlags::IN)],
            Some(&timeout),
        );
        if left.is_zero() || ready == Ok(0) {
            return Err(format!(
                "the host gave no restore parameters within {PARAMS_LIMIT:?}; the service must not run with a stale identity"
            ));
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(0) => {
                return Err(
                    "the host closed the control stream without giving restore parameters"
                        .to_owned(),
                );
            }
            Ok(n) => lines.push(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(format!("restore parameters: {e}")),
        }
    }
}
