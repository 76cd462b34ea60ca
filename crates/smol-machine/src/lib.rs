//! smol's virtual machine monitor: boots a Linux machine, captures it, restores it.
//!
//! | module | purpose |
//! |---|---|
//! | [`machine`] | the machine: what it is made of, boot or restore, run until it stops, capture |
//! | [`memory`] | guest memory: mapped, filled while the machine runs, written out |
//! | [`arch`] | what depends on the processor: address map, CPU, boot protocols, register state |
//! | [`hv`] | hypervisor back ends behind two traits; [`probe`] finds out by trying whether this host's KVM runs a real kernel |
//! | [`paravirt`] | smol ABI 1: virtual time, the snapshot point, the thaw |
//! | [`devices`] | the bus and the devices on it |
//! | [`threads`] | threads that begin at once |
//! | `fuzz` | what the fuzz targets call |
//!
//! The crate knows nothing of Smolfiles, bundles or registries.

pub mod arch;
pub mod devices;
mod error;
#[doc(hidden)]
pub mod fuzz;
pub mod hv;
pub mod machine;
pub mod memory;
pub mod paravirt;
pub mod threads;

pub use arch::{boot, cpu, layout};
pub use error::{Error, Result};
pub use hv::probe;
pub use machine::config::{Clock, MachineConfig};
pub use machine::control::{Stop, StopHandle, TimeLimit};
pub use machine::state::MachineState;
pub use machine::{Machine, config, state};
pub use memory::prefetch;
