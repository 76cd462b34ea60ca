//! What the threads of a machine share: how it stops, and the watchdog.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::devices::bus::Bus;
use crate::hv::{HostKicker, Kicker};
use crate::memory::arrivals::Arrivals;
use crate::{Result, paravirt};

/// How often the watchdog looks for VM exits.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How often a vCPU that does not come out of the guest is kicked again.
const KICK_INTERVAL: Duration = Duration::from_millis(2);
/// How often [`StopHandle::wait`] looks whether the machine has stopped.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Why a machine stopped running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest is at its snapshot point, or a [`StopHandle`] asked for a snapshot.
    Snapshot,
    /// The guest reset itself: its way to power off, and the end of a panic.
    Reset,
    /// The guest idles with nothing to wait for. Only on virtual time.
    Stuck,
    /// The limit of a [`TimeLimit`] is reached.
    TimeIsUp,
    /// A [`StopHandle`] asked for it.
    Requested,
    /// The hypervisor cannot run the guest on.
    Crashed(String),
}

/// What the threads of a machine share.
#[derive(Default)]
pub(crate) struct Control {
    inner: Mutex<Inner>,
    changed: Condvar,
    running: AtomicUsize,
    exits: AtomicU64,
    /// What the vCPUs wait for where a page that is not there makes them fail.
    arrivals: Option<Arc<Arrivals>>,
}

#[derive(Default)]
struct Inner {
    outcome: Option<Result<Stop>>,
    /// Of the vCPUs that are in their run loops, by their numbers.
    kickers: BTreeMap<usize, HostKicker>,
    first_tick: Option<u64>,
}

/// Stops a machine from any thread.
#[derive(Clone)]
pub struct StopHandle(Arc<Control>);

impl StopHandle {
    pub(crate) fn of(control: &Arc<Control>) -> Self {
        Self(control.clone())
    }

    /// Makes [`Machine::run`](crate::Machine::run) return with `stop`, unless it is about to return
    /// for another reason. Does not wait. A request before the run counts for the run.
    pub fn request(&self, stop: Stop) {
        self.stop(Ok(stop));
    }

    /// Returns the number of VM exits so far, each one caused by what the guest did.
    pub fn exits(&self) -> u64 {
        self.0.exits()
    }

    /// Waits until no vCPU runs, at most about as long as `timeout`; returns whether none does. After
    /// a request, those that still do wait for a page of memory, in the kernel or in a device.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.0.wait_until_stopped(timeout)
    }

    pub(crate) fn stop(&self, outcome: Result<Stop>) {
        self.0.stop(outcome);
        if self.0.running.load(Ordering::SeqCst) > 0 {
            let control = self.0.clone();
            std::thread::spawn(move || control.kick_until_stopped());
        }
    }
}

/// Limits the virtual time of a machine, from any thread, and also from its devices.
#[derive(Clone)]
pub struct TimeLimit(pub(crate) Arc<Bus>);

impl TimeLimit {
    /// Has [`Machine::run`](crate::Machine::run) return with [`Stop::TimeIsUp`] once the guest's clock has
    /// gone on by `length`, and the guest says that it works or idles, or uses its timer. Nothing that the
    /// guest sees depends on it. On the host's clock it does nothing.
    pub fn begin(&self, length: Duration) {
        self.0
            .limit(u64::try_from(length.as_nanos()).unwrap_or(u64::MAX));
    }
}

impl Control {
    /// Returns that of a machine whose pages may yet have to arrive.
    pub(crate) fn new(arrivals: Option<Arc<Arrivals>>) -> Self {
        Self {
            arrivals,
            ..Self::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of VM exits so far.
    pub(crate) fn exits(&self) -> u64 {
        self.exits.load(Ordering::Relaxed)
    }

    /// Returns the virtual time of the watchdog's first tick, ns.
    pub(crate) fn first_tick(&self) -> Option<u64> {
        self.lock().first_tick
    }

    pub(crate) fn begin(&self, vcpus: usize) {
        self.running.store(vcpus, Ordering::SeqCst);
    }

    /// Notes that a vCPU enters its run loop.
    pub(super) fn enter(&self, vcpu: usize, kicker: HostKicker) {
        self.lock().kickers.insert(vcpu, kicker);
    }

    /// Notes that a vCPU has left its run loop.
    pub(super) fn leave(&self, vcpu: usize) {
        self.lock().kickers.remove(&vcpu);
        self.running.fetch_sub(1, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Counts a VM exit.
    pub(super) fn count_exit(&self) {
        self.exits.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns what the vCPUs wait for where a page that is absent makes them fail.
    pub(super) fn arrivals(&self) -> Option<&Arrivals> {
        self.arrivals.as_deref()
    }

    /// Stops the machine, unless it is stopping for another reason.
    pub(super) fn stop(&self, outcome: Result<Stop>) {
        self.lock().outcome.get_or_insert(outcome);
    }

    pub(crate) fn take_outcome(&self) -> Result<Stop> {
        self.lock().outcome.take().unwrap_or(Ok(Stop::Requested))
    }

    /// Whether the machine is to stop.
    pub(super) fn stopping(&self) -> bool {
        self.lock().outcome.is_some()
    }

    /// Makes every vCPU leave the guest, once there is an outcome. A kick just before a vCPU
    /// enters the guest may be lost, so kicks are repeated until the last vCPU has left its loop.
    /// Whoever stops the machine does this: no thread has to wait for it.
    pub(super) fn kick_until_stopped(&self) {
        let mut inner = self.lock();
        while self.running.load(Ordering::SeqCst) > 0 {
            inner.kickers.values().for_each(Kicker::kick);
            inner = self
                .changed
                .wait_timeout(inner, KICK_INTERVAL)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// See [`StopHandle::wait`]. Time is the sum of the intervals waited, as in [`Control::watch`].
    fn wait_until_stopped(&self, timeout: Duration) -> bool {
        let mut waited = Duration::ZERO;
        let mut inner = self.lock();
        while self.running.load(Ordering::SeqCst) > 0 {
            if waited >= timeout {
                return false;
            }
            inner = self
                .changed
                .wait_timeout(inner, STOP_POLL_INTERVAL)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            waited += STOP_POLL_INTERVAL;
        }
        true
    }

    /// Runs the watchdog of a machine on virtual time, until the machine stops. A guest that
    /// computes without an exit stops its own clock: what waits for it to be preempted would wait
    /// for ever. Once it has done so for as long as `timeout`, time is the host's: one tick after
    /// the other.
    ///
    /// Time is the sum of the intervals waited, not read off the clock: that of an emulated host
    /// has been seen to jump ahead by minutes.
    pub(crate) fn watch(&self, bus: &Bus, timeout: Duration) {
        let mut seen = self.exits();
        let mut quiet = Duration::ZERO;
        let mut inner = self.lock();
        while inner.outcome.is_none() {
            let exits = self.exits();
            if exits != seen {
                (seen, quiet) = (exits, Duration::ZERO);
            }
            let ticks = inner.first_tick.is_some() || quiet >= timeout;
            if ticks {
                // The bus's lock may be held by a vCPU thread that waits for ours.
                drop(inner);
                let before = bus.tick();
                inner = self.lock();
                inner.first_tick = inner.first_tick.or(before);
            }
            let pause = match ticks {
                true => Duration::from_nanos(paravirt::TICK_NS),
                false => timeout.min(POLL_INTERVAL),
            };
            inner = self
                .changed
                .wait_timeout(inner, pause)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            quiet += pause;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_the_vcpus_learns_whether_they_have_stopped() {
        let control = Arc::new(Control::default());
        let handle = StopHandle::of(&control);
        assert!(handle.wait(Duration::ZERO));
        control.begin(1);
        assert!(!handle.wait(Duration::from_millis(20)));
        let waiter = std::thread::spawn(move || handle.wait(smol_testing::LIMIT));
        control.leave(0);
        assert!(waiter.join().unwrap());
    }
}
