//! Compresses frames on several threads and returns them in order.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::format::frame::Packed;

/// Most threads. Each takes up to 13 MiB: zstd's tables, and its frames in flight.
const MAX_THREADS: usize = 12;
/// Frames in flight, for each thread. While the first of them is waited for, the others keep the
/// threads busy. A frame has 1.5 MiB at most, raw and, if it does not compress, once more.
const IN_FLIGHT: usize = 3;

/// Returns how many CPUs this program may use.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// What is done with a raw frame.
pub(crate) type Work<'w> = dyn Fn(&[u8]) -> io::Result<Packed> + Sync + 'w;

/// Threads that compress, and what they have been given.
pub(crate) struct Pool {
    threads: usize,
    jobs: Sender<Job>,
    /// What comes of the frames, in their order.
    results: VecDeque<Receiver<io::Result<Packed>>>,
}

struct Job {
    raw: Vec<u8>,
    result: Sender<io::Result<Packed>>,
}

impl Pool {
    /// Calls `body` with a pool of so many threads, [`MAX_THREADS`] at most, which do `work`. What is
    /// still in flight when `body` returns is done, too.
    ///
    /// # Errors
    /// If there can be no threads.
    pub(crate) fn with<T>(
        threads: usize,
        work: &Work<'_>,
        body: impl FnOnce(&mut Pool) -> T,
    ) -> io::Result<T> {
        let threads = threads.clamp(1, MAX_THREADS);
        let (jobs, waiting) = mpsc::channel();
        let waiting = Mutex::new(waiting);
        thread::scope(|scope| {
            // Its end, also by an error, is what ends the threads.
            let mut pool = Pool {
                threads,
                jobs,
                results: VecDeque::new(),
            };
            for _ in 0..threads {
                thread::Builder::new().spawn_scoped(scope, || serve(&waiting, work))?;
            }
            Ok(body(&mut pool))
        })
    }

    /// Takes a frame. The pool must not be full.
    pub(crate) fn push(&mut self, raw: Vec<u8>) {
        let (result, receiver) = mpsc::channel();
        self.jobs
            .send(Job { raw, result })
            .expect("the receiver lives as long as the pool");
        self.results.push_back(receiver);
    }

    /// Returns whether a result must be taken before the next frame can be.
    pub(crate) fn is_full(&self) -> bool {
        self.results.len() >= self.threads * IN_FLIGHT
    }

    /// Waits for the result of the oldest frame; `None` if none is in flight.
    pub(crate) fn pop(&mut self) -> Option<io::Result<Packed>> {
        let result = self.results.pop_front()?;
        Some(result.recv().expect("no thread of the pool panics"))
    }
}

fn serve(jobs: &Mutex<Receiver<Job>>, work: &Work<'_>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { raw, result }) = job else {
            return;
        };
        // Nobody waits for it after an error.
        let _ = result.send(work(&raw));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes the longer the earlier a frame is.
    fn slow(raw: &[u8]) -> io::Result<Packed> {
        thread::sleep(std::time::Duration::from_millis(u64::from(20 - raw[0])));
        match raw[0] {
            13 => Err(io::Error::other("an unlucky one")),
            _ => Ok(Packed {
                bytes: raw.to_vec(),
                hash: [raw[0]; 32],
            }),
        }
    }

    #[test]
    fn frames_come_back_in_their_order_with_their_errors() {
        let results = Pool::with(3, &slow, |pool| {
            let mut results = Vec::new();
            for frame in 0..20 {
                if pool.is_full() {
                    results.extend(pool.pop());
                }
                pool.push(vec![frame]);
            }
            results.extend(std::iter::from_fn(|| pool.pop()));
            results
        });
        for (frame, result) in results.unwrap().into_iter().enumerate() {
            match frame {
                13 => assert_eq!(result.err().unwrap().to_string(), "an unlucky one"),
                _ => assert_eq!(result.unwrap().bytes, [frame as u8]),
            }
        }
    }

    #[test]
    fn a_pool_that_is_left_early_ends() {
        Pool::with(2, &slow, |pool| pool.push(vec![0])).unwrap();
    }
}
