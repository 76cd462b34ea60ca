//! smol's virtual machine monitor: boots a Linux machine, freezes it, brings it back.
//!
//! | room | purpose |
//! |---|---|
//! | [`config`] | what a machine is made of |
//! | [`machine`] | the machine: boot or restore, run until it stops, capture |
//! | `control` | what its threads share: how it stops, the watchdog |
//! | [`beside`] | threads that begin at once |
//! | [`layout`] | the guest-physical memory map |
//! | [`memory`] | guest RAM: anonymous or copy-on-write over a memory image; writing it out |
//! | [`demand`] | memory that is filled while the machine runs |
//! | `arrivals` | what a vCPU waits for where it cannot wait for a page by itself |
//! | [`prefetch`] | the working set in memory before it is asked for |
//! | `uffd` | userfaultfd(2), under them |
//! | [`boot`] | kernel images into guest RAM: 64-bit Linux protocol and PVH |
//! | [`cpu`] | the pinned CPU model, and what it asks of a host |
//! | [`paravirt`] | smol ABI 1: virtual time, the snapshot point, the thaw |
//! | [`devices`] | the board: early serial port and the virtio devices on it |
//! | [`hv`] | hypervisor back ends behind two traits |
//! | [`state`] | versioned wire types of everything that is captured |
//! | [`probe`] | finds out by trying whether this host's KVM runs a real kernel |
//!
//! The crate knows nothing of Smolfiles, bundles or registries.

mod arrivals;
pub mod beside;
pub mod boot;
pub mod config;
mod control;
pub mod cpu;
pub mod demand;
pub mod devices;
mod error;
pub mod hv;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod paravirt;
pub mod prefetch;
pub mod probe;
pub mod state;
mod uffd;

pub use config::{Clock, MachineConfig};
pub use control::{Stop, StopHandle};
pub use error::{Error, Result};
pub use machine::Machine;
pub use state::MachineState;
