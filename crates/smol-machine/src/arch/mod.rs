//! What depends on the processor: the one that this program is compiled for, under the names that
//! the rest of the machine uses.
//!
//! | module | purpose |
//! |---|---|
//! | `layout` | the guest-physical memory map |
//! | `cpu` | the CPU that guests see, and what it needs of a host |
//! | `boot` | kernel images into guest RAM |
//! | `state` | wire types of a captured processor and its interrupt controllers |

#[cfg(target_arch = "x86_64")]
pub mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::{boot, cpu, layout, state};
