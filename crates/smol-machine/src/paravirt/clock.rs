//! The virtual clock and its timer.
//!
//! Virtual time is a function of what the guest did: [`STEP_NS`] per VM exit, [`WORK_NS`] per unit
//! of work that the guest reports, and a jump to the next deadline when it idles. So two builds
//! see the same time at the same instruction, and idle waits cost nothing.

/// Virtual time that a VM exit takes, ns.
pub const STEP_NS: u64 = 1000;
/// Virtual time of one unit of reported work, ns.
pub const WORK_NS: u64 = 1000;
/// Virtual time, and wall-clock time, between two ticks of the watchdog, ns.
pub const TICK_NS: u64 = 10_000_000;
/// No deadline is armed.
pub const DISARMED: u64 = u64::MAX;

/// The clock and its timer. What advances it returns whether the timer interrupt is due.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct VirtualClock {
    /// Time since power-on, ns.
    pub now: u64,
    /// When the timer fires, or [`DISARMED`].
    pub deadline: u64,
    /// Wall clock at power-on, seconds since the Unix epoch.
    pub epoch: u64,
}

impl VirtualClock {
    /// Returns a clock at power-on.
    pub fn new(epoch: u64) -> Self {
        Self {
            now: 0,
            deadline: DISARMED,
            epoch,
        }
    }

    /// Lets time pass.
    pub fn advance(&mut self, ns: u64) -> bool {
        self.now = self.now.saturating_add(ns);
        self.expire()
    }

    /// Jumps to the deadline, unless it is past already; `None` if there is none.
    pub fn idle(&mut self) -> Option<bool> {
        if self.deadline == DISARMED {
            return None;
        }
        self.now = self.now.max(self.deadline);
        Some(self.expire())
    }

    /// Sets the deadline, which may be past already.
    pub fn arm(&mut self, deadline: u64) -> bool {
        self.deadline = deadline;
        self.expire()
    }

    fn expire(&mut self) -> bool {
        let due = self.deadline != DISARMED && self.now >= self.deadline;
        if due {
            self.deadline = DISARMED;
        }
        due
    }

    /// Returns the wall clock: seconds since the Unix epoch, and nanoseconds.
    pub fn wall(&self) -> (u64, u32) {
        let (seconds, nanos) = (self.now / 1_000_000_000, self.now % 1_000_000_000);
        (self.epoch.saturating_add(seconds), nanos as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_jumps_to_the_deadline_and_fires_once() {
        let mut clock = VirtualClock::new(1_000);
        assert!(!clock.arm(5_000_000));
        assert_eq!(clock.idle(), Some(true));
        assert_eq!(clock.now, 5_000_000);
        assert_eq!(clock.idle(), None);
    }

    #[test]
    fn a_deadline_in_the_past_is_due_at_once_and_time_never_goes_back() {
        let mut clock = VirtualClock::new(0);
        clock.advance(10);
        assert!(clock.arm(9));
        assert_eq!((clock.now, clock.deadline), (10, DISARMED));
        assert!(!clock.arm(DISARMED));
        assert!(!clock.advance(u64::MAX), "the end of time is no deadline");
    }

    #[test]
    fn the_wall_clock_is_the_epoch_and_virtual_time() {
        let mut clock = VirtualClock::new(77);
        assert_eq!(clock.wall(), (77, 0));
        clock.advance(2_000_000_003);
        assert_eq!(clock.wall(), (79, 3));
    }
}
