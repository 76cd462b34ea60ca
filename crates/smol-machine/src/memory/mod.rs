//! Guest memory: where its pages come from.
//!
//! | module | purpose |
//! |---|---|
//! | `image` | RAM, anonymous or copy-on-write over a memory image; the root file system's image; writing RAM out |
//! | [`lazy`] | memory that is filled while the machine runs |
//! | `arrivals` | what a vCPU waits for where it cannot wait for a page by itself |
//! | [`prefetch`] | the working set in memory before the guest accesses it |
//! | `uffd` | userfaultfd(2) |

pub(crate) mod arrivals;
mod image;
pub mod lazy;
pub mod prefetch;
mod uffd;

pub(crate) use image::PmemImage;
pub use image::{ImageStats, PAGE, Ram, anonymous, copy_on_write, write_image};

/// What a page belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Area {
    /// RAM; pages are numbered as in a memory image.
    Memory,
    /// The root file system's image.
    Rootfs,
}
