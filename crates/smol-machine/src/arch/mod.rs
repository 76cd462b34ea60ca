//! What depends on the processor: the one that this program is compiled for, under the names that
//! the rest of the machine uses.
//!
//! | module | purpose |
//! |---|---|
//! | `layout` | the guest-physical memory map |
//! | `cpu` | the CPU that guests see |
//! | `contract` | what that CPU needs of a host |
//! | `ports` | which register of the board is at which address |
//! | `boot` | kernel images into guest RAM |
//! | `xsave` | the area of XSAVE |
//! | `state` | wire types of a captured processor and its interrupt controllers |

#[cfg(target_arch = "x86_64")]
pub mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::{boot, contract, cpu, layout, ports, state, xsave};
