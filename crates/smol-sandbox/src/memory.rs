//! Keeps the memory of this process to itself.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Keeps the memory of this process, which holds the secrets of a guest, out of core dumps, and out
/// of reach of other processes of the same user (ptrace(2), /proc/PID/mem).
///
/// # Errors
/// Those of the kernel.
pub fn keep_memory_private() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    Ok(())
}
