//! Ends the boot of a machine that does not end by itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use smol_cli::Interrupt;
use smol_machine::{Stop, StopHandle};

/// A limit of wall-clock time that counts from a moment that is yet to come.
#[derive(Clone, Debug)]
pub(super) struct Later {
    begun: Arc<AtomicBool>,
    length: Duration,
}

impl Later {
    pub(super) fn new(length: Duration) -> Self {
        Self {
            begun: Arc::default(),
            length,
        }
    }

    /// The moment has come.
    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }
}

/// Stops the machine when the user asks for it or the time is up; the thread's result says whether
/// it was the latter. That `later` is reached is told by the machine's stop ([`Stop::TimeIsUp`]).
///
/// Time is counted in poll intervals, not read off the clock: that of an emulated host has been seen
/// to jump ahead by minutes, which must not end the boot.
pub(super) fn spawn(
    handle: StopHandle,
    interrupt: &Interrupt,
    limit: Duration,
    later: Option<Later>,
    finished: mpsc::Receiver<()>,
) -> thread::JoinHandle<bool> {
    const POLL_INTERVAL: Duration = Duration::from_millis(50);
    let interrupt = interrupt.clone();
    thread::spawn(move || {
        let (mut waited, mut since) = (Duration::ZERO, Duration::ZERO);
        while let Err(mpsc::RecvTimeoutError::Timeout) = finished.recv_timeout(POLL_INTERVAL) {
            waited += POLL_INTERVAL;
            if let Some(later) = &later
                && later.begun.load(Ordering::Relaxed)
            {
                since += POLL_INTERVAL;
                if since >= later.length {
                    handle.request(Stop::TimeIsUp);
                    return false;
                }
            }
            let late = waited >= limit;
            if late || interrupt.is_set() {
                handle.request(Stop::Requested);
                return late;
            }
        }
        false
    })
}
