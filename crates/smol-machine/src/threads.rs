//! Background threads that begin at once.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// On hosts with more CPUs the scheduler places the threads.
const MOST_CPUS: u32 = 4;

/// Spawns a thread for work in the background. Linux without scheduling domains, as in small
/// virtual machines, leaves a new thread on the CPU of the thread that made it, where it waits
/// until that one has used up its time slice: milliseconds, which is longer than the work. So on
/// small hosts the thread begins on another CPU; from there on it may run anywhere.
///
/// # Errors
/// If there can be no more threads.
pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let builder = thread::Builder::new().name(name.to_owned());
    let allowed = sched_getaffinity(None).ok();
    let Some((allowed, other)) = allowed.and_then(|all| Some((all, another(&all)?))) else {
        return builder.spawn(work);
    };
    let placed = Arc::new(AtomicBool::new(false));
    let thread = builder.spawn({
        let placed = placed.clone();
        move || {
            while !placed.load(Ordering::Acquire) {
                thread::yield_now();
            }
            let _ = sched_setaffinity(None, &allowed);
            work()
        }
    })?;
    place(&thread, other);
    placed.store(true, Ordering::Release);
    Ok(thread)
}

/// Returns another of these CPUs than the one that the caller runs on, if they are few.
fn another(allowed: &CpuSet) -> Option<usize> {
    let here = sched_getcpu();
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    (allowed.count() <= MOST_CPUS).then(|| cpus.find(|cpu| *cpu != here))?
}

/// Moves a thread to a CPU. That only saves time, so a failure is ignored.
fn place<T>(thread: &JoinHandle<T>, cpu: usize) {
    // SAFETY: an all-zero set is an empty one; CPU_SET writes inside of it for a CPU that the kernel's
    // set of the same size has; the thread's handle is valid until it is joined, which `thread` rules out.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::pthread_setaffinity_np(thread.as_pthread_t(), size_of_val(&set), &set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_may_run_where_the_one_that_made_it_may() {
        let ours = sched_getaffinity(None).unwrap();
        let theirs = spawn("test", || sched_getaffinity(None).unwrap()).unwrap();
        assert_eq!(theirs.join().unwrap(), ours);
    }

    #[test]
    fn another_cpu_is_one_that_is_allowed() {
        let mut set = CpuSet::new();
        set.set(sched_getcpu());
        assert_eq!(another(&set), None);
        let other = (0..3).find(|cpu| !set.is_set(*cpu)).unwrap();
        set.set(other);
        assert!(another(&set).is_some_and(|cpu| set.is_set(cpu)));
        (0..8).for_each(|cpu| set.set(cpu));
        assert_eq!(another(&set), None);
    }
}
