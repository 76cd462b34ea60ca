//! One system call after the other fails, by strace's fault injection: the programs are linked statically,
//! so no library can be put between, and nothing in them has to be changed.
//!
//! The Nth call of a kind in each thread fails, for each N until a run has no Nth one any more. What strace
//! injects is truthful: the call is not made, and the program gets the error. So a call that does its work
//! in part cannot be had this way ([`crate::space`] has those); one that does nothing of it can: a read that
//! finds the end of the file, a write of no byte.
//!
//! Confinement is off. To fail a call, strace makes it one of number -1, which the programs' own filters
//! (seccomp) look at after it, and do not know: they would end the process.

use std::collections::BTreeMap;
use std::fs;

use libtest_mimic::{Failed, Trial};
use smol_tests::support::Outcome;

use crate::operations::{ALL, Ended, IMAGE, Operation};
use crate::scene::Scene;
use crate::{FIXTURE, NO_KVM, NO_STRACE, all, trial};

/// A system call, and what becomes of it.
struct Fault {
    call: &'static str,
    /// As strace has it.
    becomes: &'static str,
    /// Whether all later calls fail, too, as on a full disk.
    lasts: bool,
}

const fn fails(call: &'static str, becomes: &'static str) -> Fault {
    Fault {
        call,
        becomes,
        lasts: false,
    }
}

const fn fails_for_good(call: &'static str, becomes: &'static str) -> Fault {
    Fault {
        call,
        becomes,
        lasts: true,
    }
}

impl Fault {
    fn trace(&self) -> [String; 2] {
        ["-e".to_owned(), format!("trace={}", self.call)]
    }

    /// Whether this call, as strace shows it, can meet the fault. A disk does not fail what is on none,
    /// and what opens a folder or a device, or counts up an eventfd, waits for nothing, so that no signal
    /// interrupts it.
    fn can_hit(&self, call: &str) -> bool {
        let shows = |marks: &[&str]| marks.iter().any(|mark| call.contains(mark));
        if self.becomes == "error=EINTR" {
            return !shows(&["O_DIRECTORY", "\"/dev/", "<anon_inode:[eventfd]>"]);
        }
        if shows(&["KVM_IRQ_LINE", "FIONBIO"]) {
            return false; // They allocate nothing; where they fail, the monitor, or std, is wrong.
        }
        let on_descriptor = ["read", "write"].contains(&self.call);
        let nowhere = shows(&["<anon_inode:", "<pipe:", "<socket:", "<UNIX"]);
        !on_descriptor || !nowhere || shows(&["write(1<", "write(2<"])
    }

    /// Whether the operation would notice: a text that ends early is another text.
    fn suits(&self, operation: &Operation) -> bool {
        if operation.name == IMAGE && !all() && !OF_IMAGES.contains(&(self.call, self.becomes)) {
            return false;
        }
        let reads_text = ["lock", "images", IMAGE, "build", "logs"].contains(&operation.name);
        !(reads_text && self.call == "read" && self.becomes == "retval=0")
    }
}

const FAULTS: &[Fault] = &[
    // A disk that cannot be read.
    fails("openat", "error=EIO"),
    fails("openat2", "error=EIO"),
    fails("read", "error=EIO"),
    fails("pread64", "error=EIO"),
    fails("statx", "error=EIO"),
    fails("newfstatat", "error=EIO"),
    fails("getdents64", "error=EIO"),
    fails("lseek", "error=EIO"),
    // A file that ends where it did not.
    fails("read", "retval=0"),
    fails("pread64", "retval=0"),
    // A disk that is full, or cannot be written.
    fails("write", "error=ENOSPC"),
    fails_for_good("pwrite64", "error=ENOSPC"),
    fails("pwrite64", "error=EIO"),
    fails("pwrite64", "retval=0"),
    fails_for_good("copy_file_range", "error=ENOSPC"),
    fails("copy_file_range", "error=EIO"),
    fails("ftruncate", "error=ENOSPC"),
    fails_for_good("mkdir", "error=ENOSPC"),
    fails("fsync", "error=EIO"),
    fails("rename", "error=EIO"),
    fails("renameat", "error=EIO"),
    fails("linkat", "error=EIO"),
    fails("unlink", "error=EIO"),
    fails("unlinkat", "error=EIO"),
    fails("flock", "error=ENOLCK"),
    // No memory, no files, no processes.
    fails("mmap", "error=ENOMEM"),
    fails("ioctl", "error=ENOMEM"),
    fails("openat", "error=EMFILE"),
    fails("clone", "error=EAGAIN"),
    fails("eventfd2", "error=EMFILE"),
    fails("pipe2", "error=EMFILE"),
    fails("socket", "error=EMFILE"),
    fails("socketpair", "error=EMFILE"),
    fails("userfaultfd", "error=ENOMEM"),
    // Calls that are interrupted, of those that can be by their manual pages. They are to be made again.
    fails("openat", "error=EINTR"),
    fails("openat2", "error=EINTR"),
    fails("read", "error=EINTR"),
    fails("pread64", "error=EINTR"),
    fails("write", "error=EINTR"),
    fails("pwrite64", "error=EINTR"),
    fails("ftruncate", "error=EINTR"),
    fails("fsync", "error=EINTR"),
    fails("flock", "error=EINTR"),
    fails("wait4", "error=EINTR"),
    fails("poll", "error=EINTR"),
    fails("ppoll", "error=EINTR"),
    fails("recvfrom", "error=EINTR"),
];

/// Faults that the images of a container image meet unless all are wanted: those of the calls that make a
/// layer, or read one. The operation "images" meets the others at the same places.
const OF_IMAGES: &[(&str, &str)] = &[
    ("openat", "error=EIO"),
    ("read", "error=EIO"),
    ("write", "error=ENOSPC"),
    ("rename", "error=EIO"),
    ("unlink", "error=EIO"),
    ("clone", "error=EAGAIN"),
];

/// Places that are tried one after the other; from there on each next one is further away, unless all
/// are wanted.
const FIRST: usize = 4;

/// What Rust's own library says before it aborts where there is no memory for an allocation, or for the
/// stack on which a thread would report that its own has overflowed. No program can do better; files are
/// looked at all the same.
const RUNTIME: [&str; 2] = [
    "memory allocation of ",
    "failed to allocate an alternative stack",
];

/// One for each operation and fault.
pub fn trials() -> Vec<Trial> {
    let pairs = ALL
        .iter()
        .flat_map(|operation| FAULTS.iter().map(move |fault| (operation, fault)));
    pairs
        .filter(|(operation, fault)| fault.suits(operation))
        .map(|(operation, fault)| {
            let from_then_on = if fault.lasts { " from then on" } else { "" };
            let name = format!(
                "{}: {} {}{from_then_on}",
                operation.name,
                fault.call,
                fault
                    .becomes
                    .trim_start_matches("error=")
                    .replace("retval=", "returns ")
            );
            let missing = || {
                let no_kvm = NO_KVM.clone().filter(|_| operation.machine);
                NO_STRACE.clone().or(no_kvm)
            };
            trial(name, missing, || try_all(operation, fault))
        })
        .collect()
}

/// Lets the call fail at one place after the other.
fn try_all(operation: &Operation, fault: &Fault) -> Result<(), Failed> {
    let scene = FIXTURE.scene();
    let mut tally = Tally::default();
    let before = operation.set_up(&scene);
    let usual = traced(operation, &fault.trace(), &scene);
    operation.succeeds(&scene, &before, &usual.outcome)?;
    let usual: Vec<Vec<&str>> = usual.threads().collect();
    let places = usual.iter().map(Vec::len).max().unwrap_or(0);
    let mut place = 1;
    while place <= places {
        // What no disk can do is not tried: an eventfd that cannot be written to.
        let mut calls = usual.iter().filter_map(|calls| calls.get(place - 1));
        let is_possible = calls.all(|call| fault.can_hit(call));
        if is_possible && let Some(point) = try_one(operation, fault, place, &scene) {
            tally.take(place, point);
        }
        place += match all() || place < FIRST {
            true => 1,
            false => place / 2,
        };
    }
    tally.end(operation, fault)
}

/// What strace has recorded of a run.
struct Traced {
    outcome: Outcome,
    log: String,
}

impl Traced {
    /// Returns the calls of each thread, in their order.
    fn threads(&self) -> impl Iterator<Item = Vec<&str>> {
        let mut threads = BTreeMap::<&str, Vec<&str>>::new();
        for line in self.log.lines() {
            // The second half of a call that took long, and what is no call.
            let Some((thread, call)) = line.split_once(' ') else {
                continue;
            };
            let call = call.trim_start();
            if !call.starts_with(['<', '+', '-']) {
                threads.entry(thread).or_default().push(call);
            }
        }
        threads.into_values()
    }
}

/// Runs an operation under strace.
fn traced(operation: &Operation, options: &[String], scene: &Scene) -> Traced {
    let log = scene.path("strace");
    let _ = fs::remove_file(&log);
    let mut strace = [
        "strace",
        "-f",
        "-y",
        "--seccomp-bpf",
        "-qq",
        "-e",
        "signal=none",
        "-o",
    ]
    .to_vec();
    strace.push(log.to_str().expect("our own paths are UTF-8"));
    strace.extend(options.iter().map(String::as_str));
    let mut command = scene.command_under(&strace, operation.program, operation.arguments);
    let outcome = scene.run(command.env("SMOL_SANDBOX", "off"));
    let log = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
    Traced { outcome, log }
}

/// What came of a fault at one place.
struct Point {
    code: Option<i32>,
    /// Whether something was left until the next run.
    left: bool,
    injected: String,
    outcome: Result<(), String>,
}

/// `None` if there was no such place this time, or not the one that was wanted.
fn try_one(operation: &Operation, fault: &Fault, place: usize, scene: &Scene) -> Option<Point> {
    let before = operation.set_up(scene);
    let mut options = fault.trace().to_vec();
    let lasts = if fault.lasts { "+" } else { "" };
    let inject = format!(
        "inject={}:{}:when={place}{lasts}",
        fault.call, fault.becomes
    );
    options.extend(["-e".to_owned(), inject]);
    let Traced { outcome, log } = &traced(operation, &options, scene);
    let injected: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("(INJECTED)"))
        .collect();
    if !injected.iter().all(|line| fault.can_hit(line)) {
        return None;
    }
    let hits = |start: &str| injected.iter().any(|line| line.contains(start));
    let ended = Ended {
        mute: hits("write(1<"),
        silent: hits("write(2<"),
        killed: fault.call == "mmap" && RUNTIME.iter().any(|words| outcome.stderr.contains(words)),
        ..Ended::from(outcome)
    };
    let checked = operation.check(scene, &before, &ended);
    let interrupted =
        fault.becomes == "error=EINTR" && !operation.codes.contains(&outcome.code.unwrap_or(-1));
    let checked = match checked {
        Ok(()) if interrupted => Err("an interrupted call was not made again".into()),
        other => other,
    };
    let (left, checked) = leftovers(operation, scene, checked);
    let point = Point {
        code: outcome.code,
        left,
        injected: injected.first().copied().unwrap_or_default().to_owned(),
        outcome: checked.map_err(|why| format!("{why}\n{}", outcome.stderr)),
    };
    (!injected.is_empty()).then_some(point)
}

/// Looks at what was left, and whether the next run removes it.
fn leftovers(
    operation: &Operation,
    scene: &Scene,
    checked: Result<(), String>,
) -> (bool, Result<(), String>) {
    if checked.is_err() {
        return (false, checked);
    }
    operation.remove_instances(scene);
    match scene.left() {
        Ok(left) if left.is_empty() => (false, Ok(())),
        Ok(_) => (true, operation.check_again(scene)),
        Err(why) => (false, Err(why)),
    }
}

/// What came of the places of a trial.
#[derive(Default)]
struct Tally {
    codes: BTreeMap<Option<i32>, usize>,
    left: usize,
    failures: Vec<String>,
}

impl Tally {
    /// Takes the outcome at a place.
    fn take(&mut self, place: usize, point: Point) {
        *self.codes.entry(point.code).or_default() += 1;
        self.left += usize::from(point.left);
        if let Err(why) = point.outcome {
            self.failures
                .push(format!("at {place}: {}\n  {why}", point.injected));
        }
    }

    fn end(self, operation: &Operation, fault: &Fault) -> Result<(), Failed> {
        if std::env::var_os("SMOL_TEST_FAULTS").is_some() && !self.codes.is_empty() {
            let codes = self.codes.iter().map(|(code, count)| match code {
                Some(code) => format!("{count} x exit code {code}"),
                None => format!("{count} x signal"),
            });
            let codes: Vec<String> = codes.collect();
            println!(
                "\n{}: {} {}: {}; left until the next run: {}",
                operation.name,
                fault.call,
                fault.becomes,
                codes.join(", "),
                self.left
            );
        }
        match self.failures.as_slice() {
            [] => Ok(()),
            failures => Err(failures.join("\n").into()),
        }
    }
}
