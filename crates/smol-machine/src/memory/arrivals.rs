//! How a vCPU waits for absent pages where an access fails instead of waiting: how much of the
//! memory has been loaded, and which pages are needed first.
//!
//! ```text
//! vCPU    KVM_RUN -> EFAULT -> wait() until more is loaded -> KVM_RUN, and so on
//! loader  page after page -> arrived(); the working set -> open(); the last page -> complete()
//! ```

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::memory::Area;
use crate::memory::PAGE;

/// How often a vCPU that waits checks whether the machine is to stop.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Of [`Arrivals::steps`]: no more pages come.
const OVER: u64 = u64::MAX;

/// What is shared between the vCPUs and the loader of pages.
#[derive(Debug)]
pub(crate) struct Arrivals {
    places: Vec<Place>,
    /// Grows with what arrives; [`OVER`] at the end. Read without the lock at each entry into the
    /// guest, changed under it.
    steps: AtomicU64,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// An eventfd that becomes readable when a page is wanted.
    wakeup: Arc<OwnedFd>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The machine may begin to run.
    open: bool,
    /// Pages that a vCPU is known to need, the one that was asked for first in front.
    wanted: VecDeque<(Area, u32)>,
}

/// Where pages are in the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) gpa: u64,
    pub(crate) area: Area,
    pub(crate) first: u32,
    pub(crate) pages: u32,
}

/// How much had arrived at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step(u64);

impl Arrivals {
    /// Returns that of memory of which nothing is loaded yet.
    pub(crate) fn new(places: Vec<Place>, wakeup: Arc<OwnedFd>) -> Self {
        Self {
            places,
            steps: AtomicU64::new(0),
            inner: Mutex::default(),
            changed: Condvar::new(),
            wakeup,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that more is loaded: vCPUs that wait try again.
    pub(crate) fn arrived(&self) {
        let _lock = self.lock();
        if let Some(Step(steps)) = self.step() {
            self.steps.store(steps + 1, Ordering::SeqCst);
        }
        self.changed.notify_all();
    }

    /// Notes that the working set is loaded: the machine may run.
    pub(crate) fn open(&self) {
        self.lock().open = true;
        self.changed.notify_all();
    }

    /// Notes that everything is loaded, or nothing more will be.
    pub(crate) fn complete(&self) {
        let mut inner = self.lock();
        inner.open = true;
        self.steps.store(OVER, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Returns how much is loaded now; `None` if no more will be, so that an access that fails from
    /// here on fails for good.
    pub(crate) fn step(&self) -> Option<Step> {
        let steps = self.steps.load(Ordering::SeqCst);
        (steps != OVER).then_some(Step(steps))
    }

    /// Waits until the machine may run, or is to stop.
    pub(crate) fn wait_until_open(&self, stopping: impl Fn() -> bool) {
        self.wait_for(stopping, |inner| inner.open);
    }

    /// Waits until more is loaded than was `before` the access that failed, or the machine is to
    /// stop. What arrived between the two counts, so nothing can be missed.
    pub(crate) fn wait(&self, before: Step, stopping: impl Fn() -> bool) {
        self.wait_for(stopping, |_| self.step() != Some(before));
    }

    fn wait_for(&self, stopping: impl Fn() -> bool, reached: impl Fn(&Inner) -> bool) {
        let mut inner = self.lock();
        while !reached(&inner) && !stopping() {
            let waited = self.changed.wait_timeout(inner, POLL_INTERVAL);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Puts the page at this guest-physical address on the list of those that are needed, if there
    /// is such a page and it is not on the list yet.
    pub(crate) fn want(&self, gpa: u64) {
        let page = self.places.iter().find_map(|place| {
            let page = u32::try_from(gpa.checked_sub(place.gpa)? / PAGE as u64).ok()?;
            (page < place.pages).then_some((place.area, place.first + page))
        });
        let Some(page) = page else { return };
        let mut inner = self.lock();
        if !inner.wanted.contains(&page) {
            inner.wanted.push_back(page);
            signal(&self.wakeup);
        }
    }

    /// Returns the next page that is needed.
    pub(crate) fn wanted(&self) -> Option<(Area, u32)> {
        self.lock().wanted.pop_front()
    }
}

/// Makes an eventfd readable. It takes any number of small writes.
pub(crate) fn signal(wakeup: &OwnedFd) {
    let write = || rustix::io::write(wakeup, &1u64.to_ne_bytes());
    // A wakeup that is lost is waited for for ever.
    let _ = rustix::io::retry_on_intr(write);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::sync::atomic::AtomicBool;
    use std::thread;

    fn arrivals() -> Arc<Arrivals> {
        let place = |gpa, area, first, pages| Place {
            gpa,
            area,
            first,
            pages,
        };
        let places = vec![
            place(0, Area::Memory, 0, 512),
            place(4 << 30, Area::Memory, 512, 256),
            place(8 << 30, Area::Rootfs, 0, 16),
        ];
        let wakeup = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        Arc::new(Arrivals::new(places, Arc::new(wakeup)))
    }

    #[test]
    fn what_arrived_before_the_wait_ends_it_and_nothing_else_does() {
        let arrivals = arrivals();
        let before = arrivals.step().unwrap();
        arrivals.arrived();
        arrivals.wait(before, || false);
        let now = arrivals.step().unwrap();
        assert_ne!(now, before);
        let waiter = thread::spawn({
            let arrivals = arrivals.clone();
            move || arrivals.wait(now, || false)
        });
        thread::sleep(3 * POLL_INTERVAL);
        assert!(!waiter.is_finished());
        arrivals.arrived();
        waiter.join().unwrap();
    }

    #[test]
    fn the_end_lets_everybody_go_on_and_more_does_not_undo_it() {
        let arrivals = arrivals();
        let before = arrivals.step().unwrap();
        arrivals.complete();
        arrivals.arrived();
        arrivals.wait(before, || false);
        arrivals.wait_until_open(|| false);
        assert_eq!(arrivals.step(), None);
    }

    #[test]
    fn a_machine_that_is_to_stop_waits_no_longer() {
        let (arrivals, stopping) = (arrivals(), Arc::new(AtomicBool::new(false)));
        let waiters = [true, false].map(|begun| {
            let (arrivals, stopping) = (arrivals.clone(), stopping.clone());
            thread::spawn(move || {
                let stopping = || stopping.load(Ordering::SeqCst);
                match begun {
                    true => arrivals.wait(arrivals.step().unwrap(), stopping),
                    false => arrivals.wait_until_open(stopping),
                }
            })
        });
        thread::sleep(3 * POLL_INTERVAL);
        assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
        stopping.store(true, Ordering::SeqCst);
        waiters
            .into_iter()
            .for_each(|waiter| waiter.join().unwrap());
    }

    #[test]
    fn an_address_is_wanted_once_and_only_if_there_is_a_page() {
        let arrivals = arrivals();
        arrivals.want((4 << 30) + 4097);
        arrivals.want((4 << 30) + 8191);
        arrivals.want((8 << 30) + (15 << 12));
        for nowhere in [512 << 12, (8 << 30) + (16 << 12), u64::MAX] {
            arrivals.want(nowhere);
        }
        assert_eq!(arrivals.wanted(), Some((Area::Memory, 513)));
        assert_eq!(arrivals.wanted(), Some((Area::Rootfs, 15)));
        assert_eq!(arrivals.wanted(), None);
    }
}
