//! Ends the boot of a machine that does not end by itself.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use smol_cli::Interrupt;
use smol_machine::{Stop, StopHandle};

/// Stops the machine when the user asks for it or the time is up; the thread's result says whether
/// it was the latter.
///
/// Time is counted in poll intervals, not read off the clock: that of an emulated host has been seen
/// to jump ahead by minutes, which must not end the boot.
pub(super) fn spawn(
    handle: StopHandle,
    interrupt: Interrupt,
    limit: Duration,
    finished: mpsc::Receiver<()>,
) -> thread::JoinHandle<bool> {
    const POLL_INTERVAL: Duration = Duration::from_millis(50);
    thread::spawn(move || {
        let mut waited = Duration::ZERO;
        while let Err(mpsc::RecvTimeoutError::Timeout) = finished.recv_timeout(POLL_INTERVAL) {
            waited += POLL_INTERVAL;
            let late = waited >= limit;
            if late || interrupt.is_set() {
                handle.request(Stop::Requested);
                return late;
            }
        }
        false
    })
}
