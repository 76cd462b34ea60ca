//! Work on hostile data on a thread that can do nothing else.

use std::io;
use std::thread;

use crate::access::Access;
use crate::filter::Filter;
use crate::mode::Mode;

/// Does `work` on a thread of its own that is confined to `access` and to `filter`, and returns
/// what it returns. For a stage of a program whose other stages need more: the threads share their
/// memory, so this stops what the stage itself might be led to do, such as opening another file by
/// a link, and not code that has taken over the process.
///
/// # Errors
/// If there can be no thread, or it cannot be confined.
///
/// # Panics
/// If `work` does.
pub fn confined<T: Send>(
    access: &Access,
    filter: Filter,
    mode: Mode,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    let confined_work = || {
        access.restrict_thread(mode)?;
        filter.restrict_thread(mode)?;
        Ok(work())
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("confined".to_owned())
            .spawn_scoped(scope, confined_work)?;
        match thread.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
