//! Heartbeats of an emulated host: its init reports each second that it is alive, and that each of
//! its CPUs still runs the threads that are put on it.
//!
//! ```text
//! a thread on each CPU  ── counts ──> beat ── Alive, each second ──> host: silence means that it hangs
//!                                       └──── Failed: which CPU has not counted for a long time
//! ```
//! A host that hangs as a whole is silent. One that hangs in part, with one CPU in an endless loop of
//! its kernel, reports that itself.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::wire::FrameKind;

/// Time between two heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Starts the heartbeats, on threads of their own. `send` returns an error when the host is gone. A CPU
/// that has not counted for `missed` beats hangs: beats and not seconds, because the clock of an emulated
/// host has been seen to jump.
///
/// # Errors
/// If a thread cannot be started.
pub(super) fn begin(
    missed: u64,
    mut send: impl FnMut(FrameKind, &[u8]) -> io::Result<()> + Send + 'static,
) -> io::Result<()> {
    let mut counters = Vec::new();
    for cpu in cpus()? {
        let counter = Arc::new(AtomicU64::new(0));
        counters.push((cpu, counter.clone()));
        thread::Builder::new().spawn(move || count(cpu, &counter))?;
    }
    let mut seen = Counters::new(missed, counters.iter().map(|(cpu, _)| *cpu));
    thread::Builder::new().spawn(move || {
        loop {
            let counts = counters
                .iter()
                .map(|(_, count)| count.load(Ordering::Relaxed));
            let told = match seen.beat(counts) {
                None => send(FrameKind::Alive, &[]),
                Some(cpu) => send(FrameKind::Failed, hangs(cpu, missed).as_bytes()),
            };
            if told.is_err() {
                return;
            }
            thread::sleep(HEARTBEAT_INTERVAL);
        }
    })?;
    Ok(())
}

/// Returns the CPUs that this process may run on.
fn cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect())
}

fn hangs(cpu: usize, missed: u64) -> String {
    let seconds = HEARTBEAT_INTERVAL.as_secs() * missed;
    format!("its CPU {cpu} hangs: it has run nothing for {seconds} s")
}

/// Counts seconds, on this CPU only.
fn count(cpu: usize, counter: &AtomicU64) {
    let mut only = CpuSet::new();
    only.set(cpu);
    // A thread that cannot be moved there never counts, which is reported as a CPU that hangs.
    if sched_setaffinity(None, &only).is_err() {
        return;
    }
    loop {
        counter.fetch_add(1, Ordering::Relaxed);
        thread::sleep(HEARTBEAT_INTERVAL);
    }
}

/// The counters of all CPUs at the last heartbeat.
struct Counters {
    /// A CPU that has not counted for so many heartbeats hangs.
    limit: u64,
    cpus: Vec<CpuCounter>,
}

struct CpuCounter {
    cpu: usize,
    last: u64,
    /// Heartbeats since it has changed.
    missed: u64,
}

impl Counters {
    fn new(limit: u64, cpus: impl Iterator<Item = usize>) -> Self {
        let count = |cpu| CpuCounter {
            cpu,
            last: 0,
            missed: 0,
        };
        Self {
            limit,
            cpus: cpus.map(count).collect(),
        }
    }

    /// Takes the counters of now; returns the CPU that hangs, if one does.
    fn beat(&mut self, counts: impl Iterator<Item = u64>) -> Option<usize> {
        for (count, now) in self.cpus.iter_mut().zip(counts) {
            count.missed = if now == count.last {
                count.missed + 1
            } else {
                0
            };
            count.last = now;
        }
        let hangs = self.cpus.iter().find(|count| count.missed >= self.limit);
        hangs.map(|count| count.cpu)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_cpu_that_counts_no_more_is_named_after_many_beats() {
        let mut seen = Counters::new(120, [0, 4].into_iter());
        for beat in 1..=999 {
            assert_eq!(seen.beat([beat, beat].into_iter()), None);
        }
        for beat in 1..120 {
            assert_eq!(seen.beat([1000 + beat, 999].into_iter()), None);
        }
        // It was only slow.
        assert_eq!(seen.beat([2000, 1000].into_iter()), None);
        for beat in 1..120 {
            assert_eq!(seen.beat([2000 + beat, 1000].into_iter()), None);
        }
        assert_eq!(seen.beat([3000, 1000].into_iter()), Some(4));
    }

    #[test]
    fn a_host_that_is_alive_beats_until_nobody_listens() {
        let (sender, beats) = mpsc::sync_channel(0);
        let send = move |kind, _: &[u8]| {
            let gone = |_| io::ErrorKind::BrokenPipe.into();
            sender.send(kind).map_err(gone)
        };
        begin(120, send).unwrap();
        for _ in 0..2 {
            assert_eq!(beats.recv(), Ok(FrameKind::Alive));
        }
    }
}
