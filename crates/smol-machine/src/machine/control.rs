//! What the threads of a machine share: how it stops, and the watchdog.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::devices::bus::Board;
use crate::hv::{Exit, HostVcpu, Vcpu};
use crate::memory::arrivals::{Arrivals, Step};
use crate::{Error, Result, paravirt};

/// How often the watchdog looks whether the guest is getting anywhere.
const GLANCE: Duration = Duration::from_millis(500);

/// Why a machine stopped running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest stands at its snapshot point, or a [`StopHandle`] asked for a snapshot.
    Snapshot,
    /// The guest reset itself: its way to power off, and the end of a panic.
    Reset,
    /// The guest idles with nothing to wait for. Only on virtual time.
    Stuck,
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
    threads: Vec<libc::pthread_t>,
    first_tick: Option<u64>,
}

/// Stops a machine from any thread.
#[derive(Clone)]
pub struct StopHandle(Arc<Control>);

impl StopHandle {
    pub(crate) fn of(control: &Arc<Control>) -> Self {
        Self(control.clone())
    }

    /// Makes [`Machine::run`](crate::Machine::run) return with `stop`, unless it is about to return for another reason.
    /// Does not wait. A request before the run counts for the run.
    pub fn request(&self, stop: Stop) {
        self.stop(Ok(stop));
    }

    /// VM exits of the machine so far, each one caused by what the guest did.
    pub fn exits(&self) -> u64 {
        self.0.exits()
    }

    pub(crate) fn stop(&self, outcome: Result<Stop>) {
        self.0.stop(outcome);
        if self.0.running.load(Ordering::SeqCst) > 0 {
            let control = self.0.clone();
            std::thread::spawn(move || control.kick_until_stopped());
        }
    }
}

impl Control {
    /// Of a machine whose pages may yet have to arrive.
    pub(crate) fn new(arrivals: Option<Arc<Arrivals>>) -> Self {
        Self {
            arrivals,
            ..Self::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// VM exits so far.
    pub(crate) fn exits(&self) -> u64 {
        self.exits.load(Ordering::Relaxed)
    }

    /// Virtual time of the watchdog's first tick, ns.
    pub(crate) fn first_tick(&self) -> Option<u64> {
        self.lock().first_tick
    }

    pub(crate) fn begin(&self, vcpus: usize) {
        self.running.store(vcpus, Ordering::SeqCst);
        self.lock().threads.clear();
    }

    fn stop(&self, outcome: Result<Stop>) {
        self.lock().outcome.get_or_insert(outcome);
    }

    pub(crate) fn take_outcome(&self) -> Result<Stop> {
        self.lock().outcome.take().unwrap_or(Ok(Stop::Requested))
    }

    fn stopping(&self) -> bool {
        self.lock().outcome.is_some()
    }

    /// Brings every vCPU out of the guest, once there is an outcome. A signal that arrives just
    /// before KVM_RUN is lost, so it is sent again until the last thread has left its loop.
    /// Whoever stops the machine does this: no thread has to stand by for it.
    fn kick_until_stopped(&self) {
        let mut inner = self.lock();
        while self.running.load(Ordering::SeqCst) > 0 {
            for thread in &inner.threads {
                // SAFETY: threads take themselves off this list, under its lock, before they end.
                unsafe { libc::pthread_kill(*thread, kick_signal()) };
            }
            let retry = Duration::from_millis(2);
            inner = self
                .changed
                .wait_timeout(inner, retry)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// The watchdog of a machine on virtual time, until it stops. A guest that computes without
    /// an exit stops its own clock: what waits for it to be preempted would wait for ever. Once it
    /// has done so for as long as `patience`, time is the host's: one tick after the other.
    ///
    /// Time is counted in glances, not read off the clock: that of an emulated host has been seen
    /// to jump ahead by minutes.
    pub(crate) fn watch(&self, board: &Board, patience: Duration) {
        let mut seen = self.exits();
        let mut quiet = Duration::ZERO;
        let mut inner = self.lock();
        while inner.outcome.is_none() {
            let exits = self.exits();
            if exits != seen {
                (seen, quiet) = (exits, Duration::ZERO);
            }
            let ticks = inner.first_tick.is_some() || quiet >= patience;
            if ticks {
                // The board's lock may be held by a vCPU thread that waits for ours.
                drop(inner);
                let before = board.tick();
                inner = self.lock();
                inner.first_tick = inner.first_tick.or(before);
            }
            let pause = match ticks {
                true => Duration::from_nanos(paravirt::TICK_NS),
                false => patience.min(GLANCE),
            };
            inner = self
                .changed
                .wait_timeout(inner, pause)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            quiet += pause;
        }
    }

    pub(crate) fn run_vcpu(&self, vcpu: &mut HostVcpu, board: &Board) {
        // SAFETY: no arguments, no failure.
        let me = unsafe { libc::pthread_self() };
        self.lock().threads.push(me);
        let outcome = self.exit_loop(vcpu, board);
        if let Some(outcome) = outcome.transpose() {
            self.stop(outcome);
        }
        let mut inner = self.lock();
        // SAFETY: both ids are of live threads.
        inner
            .threads
            .retain(|t| unsafe { libc::pthread_equal(*t, me) } == 0);
        self.running.fetch_sub(1, Ordering::SeqCst);
        drop(inner);
        self.changed.notify_all();
        self.kick_until_stopped();
    }

    /// Runs the guest, exit by exit. `None` when another thread has stopped the machine.
    fn exit_loop(&self, vcpu: &mut HostVcpu, board: &Board) -> Result<Option<Stop>> {
        if let Some(arrivals) = &self.arrivals {
            // Each page that is not there yet costs a way out of the guest and back.
            arrivals.wait_until_open(|| self.stopping());
        }
        let mut absent = None;
        while !self.stopping() {
            if let Some((address, before)) = absent.take() {
                self.await_page(vcpu, address, before)?;
            }
            let before = self.arrivals.as_ref().and_then(|arrivals| arrivals.step());
            let stop = match vcpu.run()? {
                Exit::IoOut { port, data } => {
                    let stop = board.io_out(port, data);
                    board.exit();
                    stop
                }
                Exit::IoIn { port, data } => {
                    board.io_in(port, data);
                    board.exit();
                    None
                }
                Exit::MmioRead { address, data } => {
                    board.mmio_read(address, data);
                    board.exit();
                    None
                }
                Exit::MmioWrite { address, data } => {
                    board.mmio_write(address, data);
                    board.exit();
                    None
                }
                Exit::Interrupted => continue,
                Exit::Absent { address } => {
                    absent = Some((address, before));
                    continue;
                }
                Exit::Shutdown => Some(Stop::Reset),
                Exit::Broken(what) => Some(Stop::Crashed(what)),
            };
            self.exits.fetch_add(1, Ordering::Relaxed);
            if stop.is_some() {
                return Ok(stop);
            }
        }
        Ok(None)
    }

    /// Waits until more has arrived than there was `before` the guest needed a page that is not
    /// there.
    ///
    /// # Errors
    /// If everything was there: then it is another page that cannot be had.
    fn await_page(
        &self,
        vcpu: &HostVcpu,
        address: Option<u64>,
        before: Option<Step>,
    ) -> Result<()> {
        let Some((arrivals, before)) = self.arrivals.as_ref().zip(before) else {
            let at = address.map_or(String::new(), |gpa| format!(" (at {gpa:#x})"));
            let message = format!("the hypervisor cannot have a page that the guest needs{at}");
            return Err(Error::Memory(message));
        };
        // Without an address it may be the page that the instruction is on. If it is not, that one
        // is there, or is brought earlier than it need be.
        if let Some(gpa) = address.or_else(|| vcpu.instruction()) {
            arrivals.want(gpa);
        }
        arrivals.wait(before, || self.stopping());
        Ok(())
    }
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// The kick only has to interrupt KVM_RUN, so its handler does nothing.
pub(crate) fn install_kick_handler() -> Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    vmm_sys_util::signal::register_signal_handler(kick_signal(), nothing).map_err(|e| {
        Error::Hypervisor {
            call: "sigaction",
            source: std::io::Error::from_raw_os_error(e.errno()),
        }
    })
}
