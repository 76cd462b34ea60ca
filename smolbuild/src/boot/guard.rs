//! Who ends a machine that is built, if it does not end by itself.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use smol_cli::Interrupt;
use smol_machine::{Stop, StopHandle};

/// Stops the machine when the user asks for it or the time is up; the thread's result says whether
/// it was the latter.
///
/// Time is counted in glances, not read off the clock: that of an emulated host has been seen to
/// jump ahead by minutes, and a machine must not be called late for it.
pub(super) fn spawn(
    handle: StopHandle,
    interrupt: Interrupt,
    limit: Duration,
    finished: mpsc::Receiver<()>,
) -> thread::JoinHandle<bool> {
    const GLANCE: Duration = Duration::from_millis(50);
    thread::spawn(move || {
        let mut waited = Duration::ZERO;
        while let Err(mpsc::RecvTimeoutError::Timeout) = finished.recv_timeout(GLANCE) {
            waited += GLANCE;
            let late = waited >= limit;
            if late || interrupt.is_set() {
                handle.request(Stop::Requested);
                return late;
            }
        }
        false
    })
}
