//! The registers of the paravirtual interface, by their offsets. Where they are in the guest's
//! address space depends on the processor (`arch::ports`).

use serde::{Deserialize, Serialize};

use super::clock::{STEP_NS, TICK_NS, VirtualClock, WORK_NS};
use crate::arch::cpu::TIMER_KHZ;

/// Version of the interface, in CPUID, in the ELF note and as the operand of SNAPSHOT.
pub const ABI: u32 = 1;
/// Bytes of the registers, four each.
pub const REGISTERS_LEN: u16 = 0x38;

const IDLE: u16 = 0x00;
const CLOCK_LO: u16 = 0x04;
const CLOCK_HI: u16 = 0x08;
const WORK: u16 = 0x0c;
const SNAPSHOT: u16 = 0x10;
const PHASE: u16 = 0x14;
const COUNTER_KHZ: u16 = 0x18;
const WALL_SEC_LO: u16 = 0x1c;
const WALL_SEC_HI: u16 = 0x20;
const WALL_NSEC: u16 = 0x24;
const SEED: u16 = 0x28;
const DEADLINE_LO: u16 = 0x2c;
const DEADLINE_HI: u16 = 0x30;
const TIMER_KHZ_REGISTER: u16 = 0x34;

/// What the guest asked for by a register write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRequest {
    /// Nothing that concerns the machine.
    None,
    /// The guest is at its snapshot point.
    Snapshot,
    /// The guest idles and no deadline is armed: nothing will ever happen again.
    Stuck,
    /// The limit of virtual time is reached: stop the machine.
    TimeIsUp,
}

/// Where a machine's time comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// From what the guest did: it is being built.
    #[default]
    Virtual,
    /// From the host's clocks: it was restored, or booted on them.
    Host,
}

impl Phase {
    fn is_virtual(&self) -> bool {
        *self == Phase::Virtual
    }
}

/// Captured state of the interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParavirtState {
    /// Virtual clock, ns since power-on.
    pub now: u64,
    /// Armed deadline, `u64::MAX` when none.
    pub deadline: u64,
    /// Low half of a deadline that is being written.
    pub deadline_low: u32,
    /// Wall clock at power-on, seconds since the Unix epoch.
    pub epoch: u64,
    /// Where the machine's time came from. Left out in JSON while it is virtual.
    #[serde(default, skip_serializing_if = "Phase::is_virtual")]
    pub phase: Phase,
}

/// The interface of one machine.
#[derive(Debug)]
pub struct Paravirt {
    clock: VirtualClock,
    /// Low half of a deadline that is being written.
    deadline_low: u32,
    phase: Phase,
    /// Frequency of the processor's counter, kHz; only on the host's clock.
    counter_khz: u32,
    clock_latch: u64,
    wall_latch: (u64, u32),
    /// Whether the watchdog has raised the timer interrupt since the guest was last idle. It may do so
    /// just before the guest says that it idles, which is then wrong: it has yet to take the interrupt.
    ticked: bool,
    /// Virtual time at which the machine is to stop, ns.
    limit: u64,
}

impl Paravirt {
    fn new(clock: VirtualClock, phase: Phase, counter_khz: u32) -> Self {
        Self {
            clock,
            deadline_low: 0,
            phase,
            counter_khz,
            clock_latch: 0,
            wall_latch: (0, 0),
            ticked: false,
            limit: u64::MAX,
        }
    }

    /// Returns the interface of a machine on virtual time, whose wall clock starts at `epoch`.
    pub fn building(epoch: u64) -> Self {
        Self::new(VirtualClock::new(epoch), Phase::Virtual, 0)
    }

    /// Returns the interface of a machine that boots on the host's clock.
    pub fn live(counter_khz: u32) -> Self {
        Self::new(VirtualClock::new(0), Phase::Host, counter_khz)
    }

    /// Returns the interface of a captured machine that goes on in this phase; the counter only
    /// matters on the host's clock.
    pub fn restored(state: &ParavirtState, phase: Phase, counter_khz: u32) -> Self {
        let clock = VirtualClock {
            now: state.now,
            deadline: state.deadline,
            epoch: state.epoch,
        };
        Self {
            deadline_low: state.deadline_low,
            ..Self::new(clock, phase, counter_khz)
        }
    }

    /// Returns what a snapshot keeps.
    pub fn save(&self) -> ParavirtState {
        ParavirtState {
            now: self.clock.now,
            deadline: self.clock.deadline,
            deadline_low: self.deadline_low,
            epoch: self.clock.epoch,
            phase: self.phase,
        }
    }

    /// Returns where time comes from.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    fn is_live(&self) -> bool {
        self.phase == Phase::Host
    }

    /// Returns virtual time since power-on, ns.
    pub fn now(&self) -> u64 {
        self.clock.now
    }

    /// Has the machine stop once `ns` of virtual time have passed from now on. Nothing that the guest sees
    /// depends on it.
    pub fn limit(&mut self, ns: u64) {
        self.limit = self.clock.now.saturating_add(ns);
    }

    /// Accounts for one VM exit; true when the timer interrupt is due.
    pub fn exit(&mut self) -> bool {
        !self.is_live() && self.clock.advance(STEP_NS)
    }

    /// Accounts for a tick of the watchdog: time passes although the guest did nothing. True when
    /// the timer interrupt is due.
    pub fn tick(&mut self) -> bool {
        let due = !self.is_live() && self.clock.advance(TICK_NS);
        self.ticked |= due;
        due
    }

    /// Reads a register; `None` when there is none at this offset.
    pub fn read(&mut self, offset: u16) -> Option<u32> {
        let live = self.is_live();
        Some(match offset {
            CLOCK_LO => {
                self.clock_latch = self.clock.now;
                self.clock_latch as u32
            }
            CLOCK_HI => (self.clock_latch >> 32) as u32,
            PHASE => u32::from(live),
            COUNTER_KHZ if live => self.counter_khz,
            COUNTER_KHZ => 0,
            WALL_SEC_LO => {
                self.wall_latch = if live { host_wall() } else { self.clock.wall() };
                self.wall_latch.0 as u32
            }
            WALL_SEC_HI => (self.wall_latch.0 >> 32) as u32,
            WALL_NSEC => self.wall_latch.1,
            SEED if live => random_u32(),
            SEED => 0,
            TIMER_KHZ_REGISTER => TIMER_KHZ,
            _ => return None,
        })
    }

    /// Writes a register. The second value is true when the timer interrupt is due.
    pub fn write(&mut self, offset: u16, value: u32) -> (GuestRequest, bool) {
        match offset {
            SNAPSHOT if value == ABI => (GuestRequest::Snapshot, false),
            DEADLINE_LO => {
                self.deadline_low = value;
                (GuestRequest::None, false)
            }
            DEADLINE_HI => {
                let deadline = u64::from(value) << 32 | u64::from(self.deadline_low);
                match self.phase {
                    Phase::Virtual => (self.is_late(), self.clock.arm(deadline)),
                    Phase::Host => {
                        self.clock.deadline = deadline;
                        (GuestRequest::None, false)
                    }
                }
            }
            WORK if !self.is_live() => {
                let due = self.clock.advance(u64::from(value) * WORK_NS);
                (self.is_late(), due)
            }
            IDLE if !self.is_live() => {
                let ticked = std::mem::take(&mut self.ticked);
                match self.clock.idle() {
                    Some(due) => (self.is_late(), due),
                    None if ticked => (GuestRequest::None, false),
                    None => (GuestRequest::Stuck, false),
                }
            }
            _ => (GuestRequest::None, false),
        }
    }

    /// Whether the limit is behind it. It is asked where the guest works, idles, or arms its timer, which it
    /// does after each interrupt of the timer: also one that computes without pause, with the watchdog's.
    fn is_late(&self) -> GuestRequest {
        match self.clock.now >= self.limit {
            true => GuestRequest::TimeIsUp,
            false => GuestRequest::None,
        }
    }
}

/// Returns the host's wall clock: seconds since the Unix epoch, and nanoseconds.
fn host_wall() -> (u64, u32) {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    (now.as_secs(), now.subsec_nanos())
}

/// Panics where the operating system has no random numbers: no machine is safe to run there.
fn random_u32() -> u32 {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).expect("the operating system gives random numbers");
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_jumps_to_the_deadline_and_fires_once() {
        let mut p = Paravirt::building(1_000);
        p.write(DEADLINE_LO, 5_000_000);
        assert_eq!(p.write(DEADLINE_HI, 0), (GuestRequest::None, false));
        assert_eq!(p.write(IDLE, 1), (GuestRequest::None, true));
        assert_eq!(p.now(), 5_000_000);
        assert_eq!(p.write(IDLE, 1), (GuestRequest::Stuck, false));
    }

    #[test]
    fn exits_and_work_advance_time_to_the_deadline() {
        let mut p = Paravirt::building(0);
        p.write(DEADLINE_LO, 10_000);
        p.write(DEADLINE_HI, 0);
        assert!(!p.exit());
        assert_eq!(p.write(WORK, 8), (GuestRequest::None, false));
        assert!(p.exit(), "1 + 8 + 1 us have passed");
        assert!(!p.exit(), "the deadline fired once");
    }

    #[test]
    fn ticks_of_the_watchdog_bring_time_to_the_deadline() {
        let mut p = Paravirt::building(0);
        p.write(DEADLINE_LO, 15_000_000);
        p.write(DEADLINE_HI, 0);
        assert!(!p.tick());
        assert!(p.tick(), "20 ms have passed");
        assert!(!p.tick(), "the deadline fired once");
        assert_eq!(p.now(), 3 * TICK_NS);
        assert!(!Paravirt::live(1).tick());
    }

    #[test]
    fn a_guest_that_idles_before_it_takes_the_interrupt_of_a_tick_is_not_stuck() {
        let mut p = Paravirt::building(0);
        p.write(DEADLINE_LO, TICK_NS as u32);
        p.write(DEADLINE_HI, 0);
        assert!(p.tick());
        assert_eq!(p.write(IDLE, 1), (GuestRequest::None, false));
        assert_eq!(p.write(IDLE, 1), (GuestRequest::Stuck, false));
    }

    #[test]
    fn the_limit_is_of_virtual_time_that_passes_from_then_on_and_idling_beyond_it_stops() {
        let late = |how: fn(&mut Paravirt) -> GuestRequest| {
            let mut p = Paravirt::building(0);
            p.write(WORK, 5_000);
            p.limit(10_000_000);
            how(&mut p)
        };
        let idle = |p: &mut Paravirt, deadline: u32| {
            p.write(DEADLINE_LO, deadline);
            p.write(DEADLINE_HI, 0);
            p.write(IDLE, 1).0
        };
        assert_eq!(late(|p| p.write(WORK, 9_999).0), GuestRequest::None);
        assert_eq!(late(|p| p.write(WORK, 10_000).0), GuestRequest::TimeIsUp);
        let ticks = |p: &mut Paravirt| {
            p.tick();
            p.write(DEADLINE_HI, 1).0
        };
        assert_eq!(late(ticks), GuestRequest::TimeIsUp);
        assert_eq!(
            idle(&mut Paravirt::building(0), u32::MAX),
            GuestRequest::None
        );
        let mut p = Paravirt::building(0);
        p.limit(10_000_000);
        assert_eq!(idle(&mut p, 9_000_000), GuestRequest::None);
        assert_eq!(idle(&mut p, 11_000_000), GuestRequest::TimeIsUp);
    }

    #[test]
    fn the_clock_is_latched_by_its_low_half() {
        let mut p = Paravirt::building(0);
        p.write(WORK, 5_000_000);
        assert_eq!(p.read(CLOCK_LO), Some(5_000_000_000u64 as u32));
        p.write(WORK, u32::MAX);
        assert_eq!(p.read(CLOCK_HI), Some(1));
        assert_eq!(
            p.read(WALL_SEC_LO),
            Some((5_000_000_000 + u64::from(u32::MAX) * 1000).div_euclid(1_000_000_000) as u32)
        );
    }

    #[test]
    fn nothing_of_the_host_shows_while_building() {
        let mut p = Paravirt::building(77);
        assert_eq!(p.read(SEED), Some(0));
        assert_eq!(p.read(COUNTER_KHZ), Some(0));
        assert_eq!(p.read(PHASE), Some(0));
        assert_eq!(p.read(WALL_SEC_LO), Some(77));
    }

    #[test]
    fn a_live_machine_has_the_hosts_clock_and_fresh_seeds() {
        let mut p = Paravirt::live(2_000_000);
        assert_eq!(p.read(PHASE), Some(1));
        assert_eq!(p.read(COUNTER_KHZ), Some(2_000_000));
        assert!(p.read(WALL_SEC_LO).unwrap() > 1_700_000_000);
        assert!((0..4).any(|_| p.read(SEED) != p.read(SEED)));
        assert_eq!(
            p.write(IDLE, 1),
            (GuestRequest::None, false),
            "live machines halt instead"
        );
    }

    #[test]
    fn unknown_registers_and_odd_snapshot_operands_do_nothing() {
        let mut p = Paravirt::building(0);
        assert_eq!(p.read(REGISTERS_LEN), None);
        assert_eq!(p.read(u16::MAX), None);
        assert_eq!(p.write(SNAPSHOT, 2), (GuestRequest::None, false));
        assert_eq!(p.write(SNAPSHOT, 1), (GuestRequest::Snapshot, false));
    }

    #[test]
    fn a_state_on_virtual_time_is_written_as_ever_and_one_on_the_hosts_clock_says_so() {
        let state = Paravirt::building(5).save();
        let json = serde_json::to_string(&state).unwrap();
        assert_eq!(
            json,
            r#"{"now":0,"deadline":18446744073709551615,"deadline_low":0,"epoch":5}"#
        );
        assert_eq!(serde_json::from_str::<ParavirtState>(&json).unwrap(), state);
        let live = Paravirt::restored(&state, Phase::Host, 1).save();
        let json = serde_json::to_string(&live).unwrap();
        assert!(json.ends_with(r#""epoch":5,"phase":"host"}"#), "{json}");
        assert_eq!(serde_json::from_str::<ParavirtState>(&json).unwrap(), live);
    }
}
