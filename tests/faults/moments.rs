//! Random moments at which something ends: the process, by SIGKILL; the cache, which is removed.
//!
//! The moments are drawn from a seed, which is printed, and lie within the time that an undisturbed run
//! takes here. What is killed is the process that was started, as by an impatient user, or every process
//! of it at once, as by the kernel when a group of processes has no memory left.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use libtest_mimic::{Failed, Trial};
use rustix::process::Signal;
use smol_tests::support::{Outcome, Running};

use crate::operations::{BUILD, DETACHED, Ended, FIRST_START, Operation};
use crate::scene::{Scene, kill};
use crate::{FIXTURE, NO_KVM, all, trial};

/// What happens at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// The process that was started is killed.
    Kill,
    /// All its processes are.
    KillAll,
    /// The cache is removed.
    RemoveCache,
}

/// One for each operation that takes a while.
pub fn trials() -> Vec<Trial> {
    let operations = [&BUILD, &FIRST_START, &DETACHED];
    let events = [
        ("killed", &[What::Kill, What::KillAll][..]),
        ("the cache disappears", &[What::RemoveCache]),
    ];
    let pairs = operations
        .into_iter()
        .flat_map(|operation| events.map(|event| (operation, event)));
    pairs
        .map(|(operation, (name, events))| {
            let name = format!("{}: {name} at any moment", operation.name);
            trial(name, || NO_KVM.clone(), move || try_all(operation, events))
        })
        .collect()
}

/// Number of moments of each trial: of the three that kill, 200 in all.
fn moments() -> usize {
    if all() { 67 } else { 14 }
}

fn try_all(operation: &Operation, events: &[What]) -> Result<(), Failed> {
    let scene = FIXTURE.scene();
    let seed = std::env::var("SMOL_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(1, |time| time.as_nanos() as u64)
    });
    let mut random = Random(seed);
    let usual = duration(operation, &scene);
    let (mut under_way, mut left) = (0, 0);
    for number in 0..moments() {
        let what = events[number % events.len()];
        let moment = usual.mul_f64(random.fraction());
        let found = try_one(operation, what, moment, &scene);
        let (was_running, was_left) = found.map_err(|why| {
            format!("seed {seed}, {what:?} number {number}, after {moment:?}: {why}")
        })?;
        under_way += usize::from(was_running);
        left += usize::from(was_left);
    }
    println!(
        "\n{}: seed {seed}, {} moments within {usual:?}, {under_way} of them before its end, {left} left something \
         to the next run",
        operation.name,
        moments()
    );
    Ok(())
}

/// The time within which the moments lie: half as long again as it takes undisturbed.
fn duration(operation: &Operation, scene: &Scene) -> Duration {
    let times = (0..5).map(|_| {
        operation.set_up(scene);
        let begin = Instant::now();
        finish(start(operation, scene), scene);
        begin.elapsed()
    });
    // Where the host has other things to do, most of the moments lie within the run all the same.
    times.min().expect("five").mul_f64(1.5)
}

fn start(operation: &Operation, scene: &Scene) -> Running {
    Running::start(&mut scene.command(operation.program, operation.arguments))
}

fn finish(running: Running, scene: &Scene) -> Outcome {
    let outcome = running.finish(smol_tests::support::LIMIT);
    scene.await_ends();
    outcome
}

/// Returns whether the process was there at that moment, and whether something was left.
fn try_one(
    operation: &Operation,
    what: What,
    moment: Duration,
    scene: &Scene,
) -> Result<(bool, bool), String> {
    let before = operation.set_up(scene);
    let running = start(operation, scene);
    thread::sleep(moment);
    let was_running = !scene.processes().is_empty();
    match what {
        What::Kill => running.signal(Signal::KILL),
        What::KillAll => scene.processes().into_iter().for_each(kill),
        What::RemoveCache => remove(&scene.path("cache")),
    }
    let outcome = finish(running, scene);
    let ended = Ended {
        killed: outcome.code.is_none(),
        ..Ended::from(&outcome)
    };
    if ended.killed && what == What::RemoveCache {
        return Err(format!("a signal ended it: {}", outcome.stderr));
    }
    let context = |why| format!("{why}\n{}", outcome.stderr);
    operation.check(scene, &before, &ended).map_err(context)?;
    operation.remove_instances(scene);
    let left = !scene.left().map_err(context)?.is_empty();
    let again = operation.check_again(scene);
    again.map_err(|why| format!("{}\n{}", context(why), holders(scene)))?;
    Ok((was_running, left))
}

/// Who may still hold what: the processes of the scene, and all locks of this host (proc_locks(5)).
fn holders(scene: &Scene) -> String {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let processes = scene.processes().into_iter().map(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        format!(
            "{status}{}",
            String::from_utf8_lossy(&line).replace('\0', " ")
        )
    });
    format!(
        "processes: {:#?}\nlocks:\n{locks}",
        processes.collect::<Vec<_>>()
    )
}

/// Removes a folder that a program is writing into.
fn remove(folder: &std::path::Path) {
    let _ = fs::remove_dir_all(folder);
    let mut rm = Command::new("rm");
    let _ = rm.arg("-rf").arg(folder).stderr(Stdio::null()).status();
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    /// From 0 to 1.
    fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1u64 << 53) as f64
    }
}
