//! smol ABI 1, the host side: virtual time, the snapshot point, the thaw (docs/paravirt.md).
//!
//! While a machine is built its time is a function of what the guest did: [`STEP_NS`] per VM exit,
//! 1 µs per unit of work that the guest reports, and a jump to the next deadline when it idles. So
//! two builds see the same time at the same instruction, and idle waits cost nothing.

use serde::{Deserialize, Serialize};

/// First I/O port of the interface.
pub const PORT_BASE: u16 = 0x520;
/// Ports of the interface, four bytes each.
pub const PORT_END: u16 = PORT_BASE + 0x38;
/// Version of the interface, in CPUID, in the ELF note and as the operand of SNAPSHOT.
pub const ABI: u32 = 1;
/// Virtual time that a VM exit takes, ns.
pub const STEP_NS: u64 = 1000;
/// Virtual time of one unit of reported work, ns.
pub const WORK_NS: u64 = 1000;
/// Virtual time, and wall-clock time, between two ticks of the watchdog, ns.
pub const TICK_NS: u64 = 10_000_000;
/// Input clock of KVM's LAPIC timer, kHz.
pub const LAPIC_KHZ: u32 = 1_000_000;

const IDLE: u16 = 0x00;
const CLOCK_LO: u16 = 0x04;
const CLOCK_HI: u16 = 0x08;
const WORK: u16 = 0x0c;
const SNAPSHOT: u16 = 0x10;
const PHASE: u16 = 0x14;
const TSC_KHZ: u16 = 0x18;
const WALL_SEC_LO: u16 = 0x1c;
const WALL_SEC_HI: u16 = 0x20;
const WALL_NSEC: u16 = 0x24;
const SEED: u16 = 0x28;
const DEADLINE_LO: u16 = 0x2c;
const DEADLINE_HI: u16 = 0x30;
const LAPIC: u16 = 0x34;

/// No deadline is armed.
pub const DISARMED: u64 = u64::MAX;

/// What the guest asked for by a port write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing that concerns the machine.
    None,
    /// The guest stands at its snapshot point.
    Snapshot,
    /// The guest idles and no deadline is armed: nothing will ever happen again.
    Stuck,
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
}

/// The interface of one machine.
#[derive(Debug)]
pub struct Paravirt {
    state: ParavirtState,
    live: bool,
    tsc_khz: u32,
    clock_latch: u64,
    wall_latch: (u64, u32),
}

impl Paravirt {
    /// The interface of a machine under construction, whose wall clock starts at `epoch`.
    pub fn building(epoch: u64) -> Self {
        let state = ParavirtState {
            now: 0,
            deadline: DISARMED,
            deadline_low: 0,
            epoch,
        };
        Self {
            state,
            live: false,
            tsc_khz: 0,
            clock_latch: 0,
            wall_latch: (0, 0),
        }
    }

    /// The interface of a machine under construction that was captured and goes on.
    pub fn still_building(state: ParavirtState) -> Self {
        Self {
            state,
            ..Self::building(0)
        }
    }

    /// The interface of a machine on the host's clock; `state` where it was restored.
    pub fn live(state: Option<ParavirtState>, tsc_khz: u32) -> Self {
        let state = state.unwrap_or(ParavirtState {
            now: 0,
            deadline: DISARMED,
            deadline_low: 0,
            epoch: 0,
        });
        Self {
            state,
            live: true,
            tsc_khz,
            clock_latch: 0,
            wall_latch: (0, 0),
        }
    }

    /// What a snapshot keeps.
    pub fn save(&self) -> ParavirtState {
        self.state.clone()
    }

    /// Virtual time since power-on, ns.
    pub fn now(&self) -> u64 {
        self.state.now
    }

    /// Accounts for one VM exit; true when the timer interrupt is due.
    pub fn exit(&mut self) -> bool {
        if self.live {
            return false;
        }
        self.state.now = self.state.now.saturating_add(STEP_NS);
        self.expire()
    }

    /// A tick of the watchdog: time passes although the guest did nothing. True when the timer
    /// interrupt is due.
    pub fn tick(&mut self) -> bool {
        if self.live {
            return false;
        }
        self.state.now = self.state.now.saturating_add(TICK_NS);
        self.expire()
    }

    fn expire(&mut self) -> bool {
        let due = self.state.deadline != DISARMED && self.state.now >= self.state.deadline;
        if due {
            self.state.deadline = DISARMED;
        }
        due
    }

    /// Port read; `None` when no register stands there.
    pub fn read(&mut self, port: u16) -> Option<u32> {
        Some(match port.checked_sub(PORT_BASE)? {
            CLOCK_LO => {
                self.clock_latch = self.state.now;
                self.clock_latch as u32
            }
            CLOCK_HI => (self.clock_latch >> 32) as u32,
            PHASE => u32::from(self.live),
            TSC_KHZ if self.live => self.tsc_khz,
            TSC_KHZ => 0,
            WALL_SEC_LO => {
                self.wall_latch = self.wall();
                self.wall_latch.0 as u32
            }
            WALL_SEC_HI => (self.wall_latch.0 >> 32) as u32,
            WALL_NSEC => self.wall_latch.1,
            SEED if self.live => random_u32(),
            SEED => 0,
            LAPIC => LAPIC_KHZ,
            _ => return None,
        })
    }

    fn wall(&self) -> (u64, u32) {
        if self.live {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default();
            (now.as_secs(), now.subsec_nanos())
        } else {
            let (secs, nanos) = (
                self.state.now / 1_000_000_000,
                self.state.now % 1_000_000_000,
            );
            (self.state.epoch.saturating_add(secs), nanos as u32)
        }
    }

    /// Port write. The second value is true when the timer interrupt is due.
    pub fn write(&mut self, port: u16, value: u32) -> (Request, bool) {
        match port.wrapping_sub(PORT_BASE) {
            SNAPSHOT if value == ABI => return (Request::Snapshot, false),
            DEADLINE_LO => self.state.deadline_low = value,
            DEADLINE_HI => {
                self.state.deadline = u64::from(value) << 32 | u64::from(self.state.deadline_low)
            }
            WORK if !self.live => {
                self.state.now = self.state.now.saturating_add(u64::from(value) * WORK_NS);
            }
            IDLE if !self.live => {
                if self.state.deadline == DISARMED {
                    return (Request::Stuck, false);
                }
                self.state.now = self.state.now.max(self.state.deadline);
            }
            _ => {}
        }
        (Request::None, !self.live && self.expire())
    }
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

    fn at(offset: u16) -> u16 {
        PORT_BASE + offset
    }

    #[test]
    fn idle_jumps_to_the_deadline_and_fires_once() {
        let mut p = Paravirt::building(1_000);
        p.write(at(DEADLINE_LO), 5_000_000);
        assert_eq!(p.write(at(DEADLINE_HI), 0), (Request::None, false));
        assert_eq!(p.write(at(IDLE), 1), (Request::None, true));
        assert_eq!(p.now(), 5_000_000);
        assert_eq!(p.write(at(IDLE), 1), (Request::Stuck, false));
    }

    #[test]
    fn exits_and_work_advance_time_to_the_deadline() {
        let mut p = Paravirt::building(0);
        p.write(at(DEADLINE_LO), 10_000);
        p.write(at(DEADLINE_HI), 0);
        assert!(!p.exit());
        assert_eq!(p.write(at(WORK), 8), (Request::None, false));
        assert!(p.exit(), "1 + 8 + 1 us have passed");
        assert!(!p.exit(), "the deadline fired once");
    }

    #[test]
    fn ticks_of_the_watchdog_bring_time_to_the_deadline() {
        let mut p = Paravirt::building(0);
        p.write(at(DEADLINE_LO), 15_000_000);
        p.write(at(DEADLINE_HI), 0);
        assert!(!p.tick());
        assert!(p.tick(), "20 ms have passed");
        assert!(!p.tick(), "the deadline fired once");
        assert_eq!(p.now(), 3 * TICK_NS);
        assert!(!Paravirt::live(None, 1).tick());
    }

    #[test]
    fn the_clock_is_latched_by_its_low_half() {
        let mut p = Paravirt::building(0);
        p.write(at(WORK), 5_000_000);
        assert_eq!(p.read(at(CLOCK_LO)), Some(5_000_000_000u64 as u32));
        p.write(at(WORK), u32::MAX);
        assert_eq!(p.read(at(CLOCK_HI)), Some(1));
        assert_eq!(
            p.read(at(WALL_SEC_LO)),
            Some((5_000_000_000 + u64::from(u32::MAX) * 1000).div_euclid(1_000_000_000) as u32)
        );
    }

    #[test]
    fn nothing_of_the_host_shows_while_building() {
        let mut p = Paravirt::building(77);
        assert_eq!(p.read(at(SEED)), Some(0));
        assert_eq!(p.read(at(TSC_KHZ)), Some(0));
        assert_eq!(p.read(at(PHASE)), Some(0));
        assert_eq!(p.read(at(WALL_SEC_LO)), Some(77));
    }

    #[test]
    fn a_live_machine_has_the_hosts_clock_and_fresh_seeds() {
        let mut p = Paravirt::live(None, 2_000_000);
        assert_eq!(p.read(at(PHASE)), Some(1));
        assert_eq!(p.read(at(TSC_KHZ)), Some(2_000_000));
        assert!(p.read(at(WALL_SEC_LO)).unwrap() > 1_700_000_000);
        assert!((0..4).any(|_| p.read(at(SEED)) != p.read(at(SEED))));
        assert_eq!(
            p.write(at(IDLE), 1),
            (Request::None, false),
            "live machines halt instead"
        );
    }

    #[test]
    fn unknown_ports_and_odd_snapshot_operands_do_nothing() {
        let mut p = Paravirt::building(0);
        assert_eq!(p.read(PORT_END), None);
        assert_eq!(p.read(PORT_BASE - 1), None);
        assert_eq!(p.write(at(SNAPSHOT), 2), (Request::None, false));
        assert_eq!(p.write(at(SNAPSHOT), 1), (Request::Snapshot, false));
    }
}
