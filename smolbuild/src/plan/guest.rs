//! What PID 1 has to do, from the Smolfile.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use smol_cli::{ExitKind, Failure};
use smol_image::RunConfig;
use smol_protocol::{GuestConfig, is_init};
use toml::Spanned;

use crate::smolfile::{self, Smolfile, Workload, signal};

/// The configuration of a service's machine; none for one that is just a kernel. What the Smolfile leaves
/// out is as the image has it.
///
/// # Errors
/// Of kind Usage: neither of the two says what runs, or when it is ready; the image says what cannot be.
pub fn guest_config(smolfile: &Smolfile, image: Option<&RunConfig>) -> Result<Option<GuestConfig>> {
    let Workload::Service {
        service,
        warm,
        restore,
        warm_restore,
        ..
    } = &smolfile.workload
    else {
        return Ok(None);
    };
    let none = RunConfig::default();
    let image = image.unwrap_or(&none);
    let words = command(service, image)?;
    let warm_command = |command: &smolfile::Warm| smol_protocol::Warm {
        cmd: command.cmd.clone(),
        timeout_ms: milliseconds(command.timeout),
    };
    Ok(Some(GuestConfig {
        // Names may hold `_`, host names not.
        hostname: smolfile.name.replace('_', "-"),
        rootfs: Some(smol_protocol::Rootfs::default()),
        service: smol_protocol::Service {
            stop_signal: stop_signal(service, image, &words)?,
            cmd: words,
            env: environment(service, image),
            user: named_user(service.user.as_ref()).or_else(|| image.user.clone()),
            workdir: service.workdir.clone().or_else(|| image_workdir(image)),
            init: service.init,
        },
        warm: warm.iter().map(warm_command).collect(),
        restore: restore.iter().map(warm_command).collect(),
        warm_restore: warm_restore.iter().map(warm_restore_request).collect(),
        ready: when_ready(smolfile, image)?,
        ports: match &smolfile.ports {
            Some(ports) => ports.clone(),
            None => image.tcp_ports(),
        },
        snapshot: smol_protocol::SnapshotPolicy {
            drop_caches: smolfile.drop_caches,
        },
        mode: smol_protocol::Mode::Build,
    }))
}

/// The command, as container engines put it together: a `cmd` of the Smolfile takes the place of the
/// image's, and an `entrypoint` the place of both.
fn command(service: &smolfile::Service, image: &RunConfig) -> Result<Vec<String>> {
    let (entrypoint, cmd) = match (&service.entrypoint, &service.cmd) {
        (Some(entrypoint), cmd) => {
            let cmd = cmd.as_ref().map(Spanned::get_ref);
            (entrypoint.get_ref(), cmd.map_or(&[][..], Vec::as_slice))
        }
        (None, Some(cmd)) => (&image.entrypoint, &cmd.get_ref()[..]),
        (None, None) => (&image.entrypoint, &image.cmd[..]),
    };
    let words = [entrypoint, cmd].concat();
    match words.is_empty() {
        false => Ok(words),
        true => Err(
            Failure::new(ExitKind::Usage, "the image says nothing about what it runs")
                .hint("write the command: [service] cmd = [\"program\", \"argument\"]")
                .into(),
        ),
    }
}

fn environment(service: &smolfile::Service, image: &RunConfig) -> BTreeMap<String, String> {
    let mut env = image_environment(image);
    env.extend(service.env.clone());
    env
}

/// A user of the Smolfile, without its place.
pub(super) fn named_user(user: Option<&Spanned<String>>) -> Option<String> {
    user.map(|user| user.get_ref().clone())
}

/// The environment of an image.
pub(super) fn image_environment(image: &RunConfig) -> BTreeMap<String, String> {
    // One without `=` would be taken over from whoever starts a container.
    let pairs = image.env.iter().filter_map(|pair| pair.split_once('='));
    let named = pairs.filter(|(name, _)| !name.is_empty());
    named
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The working directory of an image, which engines take to be below `/`.
pub(super) fn image_workdir(image: &RunConfig) -> Option<String> {
    let workdir = image.workdir.as_ref()?;
    Some(match workdir.starts_with('/') {
        true => workdir.clone(),
        false => format!("/{workdir}"),
    })
}

fn stop_signal(
    service: &smolfile::Service,
    image: &RunConfig,
    words: &[String],
) -> Result<Option<u8>> {
    const SIGTERM: u8 = 15;
    let number = match (service.stop_signal, &image.stop_signal) {
        (Some(number), _) => Some(number),
        (None, None) => None,
        (None, Some(name)) => Some(signal(name).map_err(|_| {
            let what = format!("the image is stopped by {name:?}, which is no signal");
            Failure::new(ExitKind::Usage, what)
                .hint("name another: [service] stop_signal = \"SIGTERM\"")
        })?),
    };
    // The default of a service; an init may have another one, and then it is said on purpose.
    let may_be_init = service.init == Some(true) || words.first().is_some_and(|w| is_init(w));
    Ok(number.filter(|number| *number != SIGTERM || may_be_init))
}

/// When the machine is ready: by `[ready]`, else when the image's own check passes, else when the only
/// port of the image accepts.
fn when_ready(smolfile: &Smolfile, image: &RunConfig) -> Result<smol_protocol::Ready> {
    if let Some(given) = &smolfile.ready {
        return Ok(ready(given));
    }
    let assumed = |probe, start_ms: u64| smol_protocol::Ready {
        probe,
        timeout_ms: milliseconds(smolfile::DEFAULT_TIMEOUT).max(start_ms),
        interval_ms: milliseconds(smolfile::DEFAULT_INTERVAL),
        successes: 1,
    };
    if let Some(check) = &image.healthcheck {
        let cmd = check.cmd.clone();
        return Ok(assumed(
            smol_protocol::Probe::Exec { cmd },
            check.start_period_ms,
        ));
    }
    if let Some(port) = assumed_port(smolfile, image) {
        return Ok(assumed(smol_protocol::Probe::Tcp { port }, 0));
    }
    let ports = image.tcp_ports();
    let example = ports.first().copied().unwrap_or(8080);
    let why = match ports.len() {
        0 => "the image has no health check, and no port",
        _ => "the image has no health check, and several ports",
    };
    Err(Failure::new(ExitKind::Usage, format!("{why}: when the machine is ready has to be told"))
        .hint(format!(
            "write [ready], for example tcp = {example}, http = \"http://:{example}/\" or log = \"listening\""
        ))
        .into())
}

/// The port by which a machine is taken to be ready, of which nobody has said so.
pub fn assumed_port(smolfile: &Smolfile, image: &RunConfig) -> Option<u16> {
    let said = smolfile.ready.is_some() || image.healthcheck.is_some();
    match image.tcp_ports()[..] {
        [port] if !said => Some(port),
        _ => None,
    }
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
