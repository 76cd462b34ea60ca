//! Who ends a machine that is built, if it does not end by itself.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use smol_cli::Interrupt;
use smol_machine::{Stop, StopHandle};

/// Stops the machine when the user asks for it or the time is up.
pub(super) fn spawn(
    handle: StopHandle,
    interrupt: Interrupt,
    limit: Duration,
    finished: mpsc::Receiver<()>,
) -> thread::JoinHandle<()> {
    const GLANCE: Duration = Duration::from_millis(50);
    thread::spawn(move || {
        let deadline = Instant::now() + limit;
        while let Err(mpsc::RecvTimeoutError::Timeout) = finished.recv_timeout(GLANCE) {
            if interrupt.is_set() || Instant::now() >= deadline {
                handle.request(Stop::Requested);
                return;
            }
        }
    })
}
