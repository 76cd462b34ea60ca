//! What PID 1 has to do, from the Smolfile.

use std::time::Duration;

use smol_protocol::GuestConfig;

use crate::smolfile::{self, Smolfile, Workload};

/// The configuration of a service's machine; none for one that is just a kernel.
pub fn guest_config(smolfile: &Smolfile) -> Option<GuestConfig> {
    let Workload::Service {
        service,
        warm,
        restore,
        warm_restore,
        ..
    } = &smolfile.workload
    else {
        return None;
    };
    let warm_command = |command: &smolfile::Warm| smol_protocol::Warm {
        cmd: command.cmd.clone(),
        timeout_ms: milliseconds(command.timeout),
    };
    Some(GuestConfig {
        // Names may hold `_`, host names not.
        hostname: smolfile.name.replace('_', "-"),
        rootfs: Some(smol_protocol::Rootfs::default()),
        service: smol_protocol::Service {
            cmd: service.cmd.clone(),
            env: service.env.clone(),
            user: service.user.clone(),
            workdir: service.workdir.clone(),
        },
        warm: warm.iter().map(warm_command).collect(),
        restore: restore.iter().map(warm_command).collect(),
        warm_restore: warm_restore.iter().map(warm_restore_request).collect(),
        ready: ready(&smolfile.ready),
        ports: smolfile.ports.clone(),
        snapshot: smol_protocol::SnapshotPolicy {
            drop_caches: smolfile.drop_caches,
        },
        mode: smol_protocol::Mode::Build,
    })
}

fn warm_restore_request(request: &smolfile::WarmRestore) -> smol_protocol::WarmRestore {
    smol_protocol::WarmRestore {
        probe: probe(&request.probe),
        timeout_ms: milliseconds(request.timeout),
    }
}

fn probe(probe: &smolfile::Probe) -> smol_protocol::Probe {
    use smol_protocol::Probe;
    match probe {
        smolfile::Probe::Exec(cmd) => Probe::Exec { cmd: cmd.clone() },
        smolfile::Probe::Tcp(port) => Probe::Tcp { port: *port },
        smolfile::Probe::Http(http) => Probe::Http {
            port: http.port,
            path: http.path.clone(),
            status: http.status.clone(),
            body: http.body.clone(),
        },
        smolfile::Probe::Log(pattern) => Probe::Log {
            pattern: pattern.clone(),
        },
        smolfile::Probe::File(path) => Probe::File { path: path.clone() },
        smolfile::Probe::Notify => Probe::Notify,
    }
}

/// When the machine is ready.
pub fn ready(ready: &smolfile::Ready) -> smol_protocol::Ready {
    smol_protocol::Ready {
        probe: probe(&ready.probe),
        timeout_ms: milliseconds(ready.timeout),
        interval_ms: milliseconds(ready.interval),
        successes: ready.successes,
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
