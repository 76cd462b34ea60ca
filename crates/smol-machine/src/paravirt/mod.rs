//! smol ABI 1, the host side: virtual time, the snapshot point, the thaw (docs/paravirt.md).
//!
//! | module | purpose |
//! |---|---|
//! | `clock` | virtual time: a function of what the guest did |
//! | `registers` | the registers that the guest reads and writes, and what is captured of them |

mod clock;
mod registers;

pub use clock::{DISARMED, STEP_NS, TICK_NS, WORK_NS};
pub use registers::{ABI, GuestRequest, Paravirt, ParavirtState, Phase, REGISTERS_LEN};
