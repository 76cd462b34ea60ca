//! Confinement of this process by the kernel: even if a bundle or a guest took it over, it could
//! not do more than what it is there for.
//!
//! | what | by | module |
//! |---|---|---|
//! | files, programs, TCP ports, signals to others, abstract sockets | Landlock ([`Access`]) | `access` |
//! | system calls and their arguments | seccomp ([`Filter`]) | `filter`, `calls`, `program`, `arch` |
//! | work on one thread, by both | [`confined`] | `thread` |
//! | core dumps, being traced | prctl(2), setrlimit(2) ([`keep_memory_private`]) | `memory` |
//!
//! Both are inherited by threads and programs that are started from then on, and nothing takes them
//! back. They are on unless [`Mode`] (`mode`) says otherwise. A kernel that lacks one of them
//! (`support`) does not keep a machine from running; [`warning`] says what is lacking, and the caller
//! tells the user.
//!
//! Landlock: Documentation/userspace-api/landlock.rst; seccomp: Documentation/userspace-api/
//! seccomp_filter.rst, both of the Linux kernel.

mod access;
mod arch;
#[cfg(feature = "backdoor")]
pub mod backdoor;
mod calls;
mod filter;
mod memory;
mod mode;
mod program;
mod support;
mod thread;

pub use access::Access;
pub use filter::{Filter, Prepared};
pub use memory::keep_memory_private;
pub use mode::{MODE_VARIABLE, Mode, warning};
pub use support::{Support, missing};
pub use thread::confined;
