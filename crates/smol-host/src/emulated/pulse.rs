//! Whether an emulated host is alive: its init shows the host, again and again, that each of its
//! CPUs still runs what is put on it.
//!
//! ```text
//! a thread on each CPU  ── counts ──> beat ── Alive, each second ──> host: silence means that it hangs
//!                                       └──── Failed: which CPU has not counted for a long time
//! ```
//! What hangs as a whole is silent. What hangs in part, one CPU in an endless loop of its kernel
//! while the others go on, says so itself.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::wire::Kind;

/// Time between two beats.
const PERIOD: Duration = Duration::from_secs(1);

/// Begins to beat, on threads of its own. `send` tells the host, and is an error when it is gone. A CPU
/// that has not counted for `missed` beats hangs: beats and not seconds, because the clock of an emulated
/// host has been seen to jump.
///
/// # Errors
/// If a thread cannot be started.
pub(super) fn begin(
    missed: u64,
    mut send: impl FnMut(Kind, &[u8]) -> io::Result<()> + Send + 'static,
) -> io::Result<()> {
    let mut counters = Vec::new();
    for cpu in cpus()? {
        let counter = Arc::new(AtomicU64::new(0));
        counters.push((cpu, counter.clone()));
        thread::Builder::new().spawn(move || count(cpu, &counter))?;
    }
    let mut watch = Watch::new(missed, counters.iter().map(|(cpu, _)| *cpu));
    thread::Builder::new().spawn(move || {
        loop {
            let counts = counters
                .iter()
                .map(|(_, count)| count.load(Ordering::Relaxed));
            let told = match watch.beat(counts) {
                None => send(Kind::Alive, &[]),
                Some(cpu) => send(Kind::Failed, hangs(cpu, missed).as_bytes()),
            };
            if told.is_err() {
                return;
            }
            thread::sleep(PERIOD);
        }
    })?;
    Ok(())
}

/// The CPUs that this process may run on.
fn cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect())
}

fn hangs(cpu: usize, missed: u64) -> String {
    let seconds = PERIOD.as_secs() * missed;
    format!("its CPU {cpu} hangs: it has run nothing for {seconds} s")
}

/// Counts, on this CPU and no other.
fn count(cpu: usize, counter: &AtomicU64) {
    let mut only = CpuSet::new();
    only.set(cpu);
    // It was there a moment ago. A thread that cannot go there never counts, which is told.
    if sched_setaffinity(None, &only).is_err() {
        return;
    }
    loop {
        counter.fetch_add(1, Ordering::Relaxed);
        thread::sleep(PERIOD);
    }
}

/// What was counted until the last beat.
struct Watch {
    /// So many beats without a count are too many.
    limit: u64,
    cpus: Vec<Count>,
}

struct Count {
    cpu: usize,
    last: u64,
    /// Beats since it was another one.
    missed: u64,
}

impl Watch {
    fn new(limit: u64, cpus: impl Iterator<Item = usize>) -> Self {
        let count = |cpu| Count {
            cpu,
            last: 0,
            missed: 0,
        };
        Self {
            limit,
            cpus: cpus.map(count).collect(),
        }
    }

    /// The CPU that hangs, if one does.
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
        let mut watch = Watch::new(120, [0, 4].into_iter());
        for beat in 1..=999 {
            assert_eq!(watch.beat([beat, beat].into_iter()), None);
        }
        for beat in 1..120 {
            assert_eq!(watch.beat([1000 + beat, 999].into_iter()), None);
        }
        // It was only slow.
        assert_eq!(watch.beat([2000, 1000].into_iter()), None);
        for beat in 1..120 {
            assert_eq!(watch.beat([2000 + beat, 1000].into_iter()), None);
        }
        assert_eq!(watch.beat([3000, 1000].into_iter()), Some(4));
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
            assert_eq!(beats.recv(), Ok(Kind::Alive));
        }
    }
}
