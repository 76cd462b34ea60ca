//! What a restored machine does first, shown to the builder: the service proves ready once more,
//! then it is asked what the Smolfile says real clients will ask (`[[warm_restore]]`).

use std::time::{Duration, Instant};

use super::process::World;
use super::supervisor::{Interrupt, Supervisor};
use super::{End, get_ready, probes};
use smol_protocol::{
    Event, ExitStatus, GuestConfig, GuestFailure, Probe, Stage, WarmRestore, guest_time,
};

/// Shows it, and tells [`Event::TestRestored`].
pub(super) fn test_restore(
    config: &GuestConfig,
    sup: &mut Supervisor,
    world: &World,
) -> Result<(), End> {
    // A line of the log and a notification come once.
    if !matches!(config.ready.probe, Probe::Log { .. } | Probe::Notify) {
        get_ready(config, sup, world)?;
    }
    for (number, request) in (1..).zip(&config.warm_restore) {
        make(number, request, sup, world)?;
    }
    sup.control.send(&Event::TestRestored);
    Ok(())
}

/// Makes a request, once: the service is ready, so one that is not answered now never is.
fn make(
    number: u32,
    request: &WarmRestore,
    sup: &mut Supervisor,
    world: &World,
) -> Result<(), End> {
    let failed = |what: &str, last_saw, status: Option<ExitStatus>| {
        let reason = format!("request {number} of [[warm_restore]] {what}");
        Box::new(GuestFailure {
            probe: Some(request.probe.clone()),
            last_saw,
            status,
            ..GuestFailure::at(Stage::TestRestore, reason)
        })
    };
    let deadline = Instant::now() + Duration::from_millis(request.timeout_ms);
    match probes::try_once(&request.probe, sup, world, deadline) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(saw)) => {
            let what = match Instant::now() < deadline {
                true => "was not answered as it must be".to_owned(),
                false => format!("was not answered within {}", guest_time(request.timeout_ms)),
            };
            Err(failed(&what, Some(saw), None).into())
        }
        Err(Interrupt::ServiceExited(status)) => {
            let what = format!("ended the service, with {status}");
            Err(failed(&what, None, Some(status)).into())
        }
        Err(Interrupt::Stop(grace)) => Err(End::Stop(grace)),
    }
}
