//! What a restored machine touches first. The frozen machine is restored once more, still on virtual
//! time, and does what a restored one does first. Its memory is loaded page by page as it is touched,
//! and the pages are recorded.
//!
//! | machine | runs until |
//! |---|---|
//! | with smol-guest | it has its identity, the service runs on, has proved ready once more, and has answered the requests that the Smolfile names (`[[warm_restore]]`) |
//! | just a kernel | it has printed a line, at most [`QUIET_TIMEOUT`] |
//!
//! With a smol kernel time stays virtual and every answer is fixed, so two builds see the same.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use smol_bundle::{Run, WorkingSet};
use smol_cli::Interrupt;
use smol_machine::devices::virtio::vsock::{StreamSink, Vsock};
use smol_machine::machine::{Hooks, Time};
use smol_machine::memory::PAGE;
use smol_machine::memory::lazy::{Area, Contents, LazyMemory};
use smol_machine::{Machine, MachineState, Stop, StopHandle};
use smol_protocol::{Entropy, Event, MIN_ENTROPY, MachineId, RestoreParams, Stage};

use super::streams::{Console, GuestStreams, Observer};
use super::{BootJob, Failed, Message, guard};

/// How long a machine that is just a kernel runs if it prints nothing.
const QUIET_TIMEOUT: Duration = Duration::from_secs(2);

/// How a test restore came out.
pub(super) enum Outcome {
    /// With what the machine touched.
    Seen(WorkingSet),
    /// Without anything that can be said about it, and why.
    Unseen(String),
    /// Without the answers to the job's requests. What is named in a Smolfile and cannot be had is a
    /// mistake there; and a working set that lacks it would pass for one that does not.
    Failed(Failed),
}

/// Restores the machine whose state and contents were captured, and records what it touches.
///
/// # Errors
/// If the machine cannot be restored at all.
pub(super) fn test_restore(
    job: &BootJob,
    state: &MachineState,
    contents: Contents,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    let demand = match LazyMemory::new(state.memory, state.pmem) {
        Ok(demand) => Arc::new(demand),
        Err(error) => return Ok(Outcome::Unseen(error.to_string())),
    };
    let machine = Arc::<OnceLock<StopHandle>>::default();
    let pages = [(Area::Memory, state.memory), (Area::Rootfs, state.pmem)]
        .map(|(area, bytes)| (area, u32::try_from(bytes / PAGE as u64).unwrap_or(u32::MAX)));
    let touches = thread::spawn({
        let (demand, contents, machine) = (demand.clone(), contents.clone(), machine.clone());
        move || {
            let served = serve(&demand, &contents, &machine);
            if served.is_err() {
                give_up(&demand, &machine, pages);
            }
            served
        }
    });
    let outcome = run(job, state, &demand, &machine, limit, interrupt);
    demand.end();
    let touches = touches.join().expect("serving pages does not panic");
    let outcome = outcome?;
    let touches = touches.context("cannot serve the memory of the test restore")?;
    if let Some(outcome) = outcome {
        return Ok(outcome);
    }
    let set = working_set(&touches, &contents, &demand.contents());
    Ok(Outcome::Seen(set.context("cannot compare memory")?))
}

/// The first touch of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Touch {
    /// How often the guest had spoken to the host before.
    step: u64,
    rootfs: bool,
    page: u32,
}

/// Fills every page that is touched, and records it.
fn serve(
    demand: &LazyMemory,
    contents: &Contents,
    machine: &OnceLock<StopHandle>,
) -> std::io::Result<Vec<Touch>> {
    let mut touches = Vec::new();
    let mut bytes = [0; PAGE];
    while let Some((area, page)) = demand.next()? {
        touches.push(Touch {
            // The vCPU waits for the page, so the count stands still.
            step: machine.get().map_or(0, StopHandle::exits),
            rootfs: area == Area::Rootfs,
            page,
        });
        contents.read(area, page, &mut bytes)?;
        demand.fill(area, page, &bytes)?;
    }
    Ok(touches)
}

/// Stops the machine, one of whose pages cannot be had. Its pages become zeros, so that nothing waits for
/// one for ever: what it does with them does not matter any more.
fn give_up(demand: &LazyMemory, machine: &OnceLock<StopHandle>, pages: [(Area, u32); 2]) {
    // First: a machine that is not there yet is stopped for it.
    demand.end();
    if let Some(machine) = machine.get() {
        machine.request(Stop::Requested);
    }
    for (area, pages) in pages {
        // It fails for what is not mapped only, and all of this is.
        let _ = demand.release(area, 0, pages);
    }
}

/// What was touched, step by step, in each step by the numbers of the pages: which pages these are
/// is the same in every build, but of two touches that lie close together the hypervisor has been
/// seen to report either first.
fn working_set(
    touches: &[Touch],
    before: &Contents,
    after: &Contents,
) -> std::io::Result<WorkingSet> {
    let mut touches = touches.to_vec();
    touches.sort_unstable();
    let mut set = WorkingSet::default();
    let (mut old, mut new) = ([0; PAGE], [0; PAGE]);
    for Touch { rootfs, page, .. } in touches {
        if rootfs {
            append(&mut set.rootfs, page, false);
            continue;
        }
        before.read(Area::Memory, page, &mut old)?;
        after.read(Area::Memory, page, &mut new)?;
        // What is written to a free page, which is zero, does not matter.
        append(&mut set.memory, page, old == [0; PAGE] || old != new);
    }
    Ok(set)
}

fn append(runs: &mut Vec<Run>, page: u32, written: bool) {
    match runs.last_mut() {
        Some(run) if run.end() == Some(page) && run.written == written => run.pages += 1,
        _ => runs.push(Run {
            first: page,
            pages: 1,
            written,
        }),
    }
}

/// Runs the machine until it has shown what it does first; what came of it if it has not.
fn run(
    job: &BootJob,
    state: &MachineState,
    demand: &LazyMemory,
    running: &OnceLock<StopHandle>,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<Option<Outcome>> {
    let seed = blake3::Hash::from_hex(&job.seed).context("the seed of the job")?;
    let mut random = blake3::Hasher::new_keyed(seed.as_bytes())
        .update(b"test restore")
        .finalize_xof();
    let bare = job.purpose.is_bare();
    let (observer, host) = FakeHost::new(params(job, state, &mut random));
    let test_restored = host.test_restored.clone();
    let console = || -> Box<dyn Write + Send> {
        match bare {
            true => Box::new(Line::new(&observer)),
            false => Console::new(&observer),
        }
    };
    let hooks = Hooks {
        console: console(),
        serial: console(),
        vsock: Some(Vsock::for_build(
            smol_protocol::GUEST_CID.into(),
            Box::new(host),
        )),
    };
    let mut fresh = [0; 32];
    random.fill(&mut fresh);
    let mut machine = Machine::restore_lazy(demand, state, hooks, Time::Building { seed: fresh })?;
    observer.attach(machine.stop_handle());
    let _ = running.set(machine.stop_handle());
    if demand.has_ended() {
        machine.stop_handle().request(Stop::Requested);
    }
    let limit = if bare {
        limit.min(QUIET_TIMEOUT)
    } else {
        limit
    };
    let (done, finished) = mpsc::channel();
    let guard = guard::spawn(machine.stop_handle(), interrupt, limit, None, finished);
    let stop = machine.run();
    drop(done);
    let late = guard.join().expect("the guard does not panic");
    let stop = stop?;
    let unanswered = job.purpose.has_requests() && !test_restored.load(Ordering::Relaxed);
    // What fails here, fails in each restored machine.
    if (unanswered || observer.failed_at(Stage::Restore)) && !interrupt.is_set() {
        let failed = observer.failure(&why(&stop, late, limit));
        return Ok(Some(Outcome::Failed(Failed {
            reason: format!("the test restore failed: {}", failed.reason),
            ..failed
        })));
    }
    let unseen = || Outcome::Unseen("the machine did not become ready again in time".to_owned());
    Ok((late && !bare).then(unseen))
}

/// Why a machine that has not complained did not get through its test restore.
fn why(stop: &Stop, late: bool, limit: Duration) -> String {
    match stop {
        Stop::Requested if late => format!(
            "the requests of [[warm_restore]] were not answered within {} s of wall-clock time",
            limit.as_secs()
        ),
        Stop::Reset => "the guest reset itself: a kernel panic, or its init ended".to_owned(),
        Stop::Stuck => "the guest is idle with no timer armed, and will never wake up".to_owned(),
        Stop::Crashed(what) => format!("the virtual CPU cannot go on: {what}"),
        Stop::Snapshot | Stop::Requested | Stop::TimeIsUp => {
            "the machine stopped before its end".to_owned()
        }
    }
}

/// The same in every build: nothing that is drawn from it goes into the bundle.
fn params(job: &BootJob, state: &MachineState, random: &mut blake3::OutputReader) -> RestoreParams {
    let mut entropy = vec![0; MIN_ENTROPY];
    let mut id = [0; 16];
    random.fill(&mut entropy);
    random.fill(&mut id);
    let age = state.paravirt.as_ref().map_or(0, |p| p.now);
    RestoreParams {
        entropy: Entropy::new(entropy).expect("as many bytes as are asked for"),
        wall_clock_ns: (job.epoch.saturating_mul(1_000_000_000)).saturating_add(age),
        machine_id: MachineId::from_random(id),
        hostname: None,
        online_cpus: 1,
        test_restore: true,
    }
}

/// A console of which only the end of a line matters: with it the machine has shown what it does
/// first. The line that meant ready may have been cut before its end.
struct Line {
    begun: bool,
    observer: Observer,
}

impl Line {
    fn new(observer: &Observer) -> Self {
        Self {
            begun: false,
            observer: observer.clone(),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for byte in bytes {
            match byte {
                b'\r' => {}
                b'\n' if self.begun => self.observer.stop(),
                b'\n' => {}
                _ => self.begun = true,
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Stands in for smolrun: tells smol-guest who it is, and ends the machine when the test restore is
/// over, successful or not.
struct FakeHost {
    params: RestoreParams,
    observer: Observer,
    streams: Box<GuestStreams>,
    /// The events of the streams.
    events: mpsc::Receiver<Event>,
    /// Whether the guest has shown everything.
    test_restored: Arc<AtomicBool>,
}

impl FakeHost {
    /// One with these parameters, and the observer that sees what it sees.
    fn new(params: RestoreParams) -> (Observer, Self) {
        let (sender, events) = mpsc::channel();
        let report = move |message| {
            if let Message::Guest(event) = message {
                // The receiver is gone only with the machine.
                let _ = sender.send(event);
            }
        };
        let observer = Observer::new(Box::new(report), None);
        let host = Self {
            params,
            observer: observer.clone(),
            streams: GuestStreams::new(&observer, None),
            events,
            test_restored: Arc::default(),
        };
        (observer, host)
    }
}

impl StreamSink for FakeHost {
    fn open(&mut self, port: u32, stream: u64) -> bool {
        self.streams.open(port, stream)
    }

    fn data(&mut self, port: u32, stream: u64, bytes: &[u8]) -> Vec<u8> {
        let mut answer = self.streams.data(port, stream, bytes);
        for event in self.events.try_iter() {
            match event {
                Event::Restored => {
                    answer.extend(smol_protocol::encode_line(&self.params).expect("it is small"));
                }
                Event::TestRestored => {
                    self.test_restored.store(true, Ordering::Relaxed);
                    self.observer.stop();
                }
                Event::Failed { .. } | Event::ServiceExited { .. } => self.observer.stop(),
                _ => {}
            }
        }
        answer
    }

    fn close(&mut self, port: u32, stream: u64) {
        self.streams.close(port, stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol_protocol::{CONTROL_PORT, GuestFailure, Probe, Stage};

    /// Pages 1 to 4 of 16 MiB, each full of its byte; `None`, with a word, where userfaultfd is not
    /// permitted.
    fn memory(bytes: [u8; 4]) -> Option<LazyMemory> {
        let demand = LazyMemory::new(16 << 20, 0);
        let demand = demand.map_err(smol_testing::left_out).ok()?;
        for (page, byte) in (1..).zip(bytes) {
            demand.fill(Area::Memory, page, &[byte; PAGE]).unwrap();
        }
        Some(demand)
    }

    #[test]
    fn a_working_set_is_in_order_of_steps_and_tells_what_was_written() {
        let touch = |step, rootfs, page| Touch { step, rootfs, page };
        // Page 1 is changed, 2 read, 3 a free one, 4 read.
        let (Some(before), Some(after)) = (memory([7, 7, 0, 7]), memory([8, 7, 0, 7])) else {
            return;
        };
        let touches = [
            touch(5, false, 4),
            touch(5, false, 2),
            touch(5, true, 9),
            touch(5, true, 8),
            touch(6, false, 1),
            touch(6, true, 2),
            touch(6, false, 3),
        ];
        let mut swapped = touches;
        swapped.swap(0, 1);
        for touches in [touches, swapped] {
            let set = working_set(&touches, &before.contents(), &after.contents()).unwrap();
            let run = |first, pages, written| Run {
                first,
                pages,
                written,
            };
            let memory = [
                run(2, 1, false),
                run(4, 1, false),
                run(1, 1, true),
                run(3, 1, true),
            ];
            assert_eq!(set.memory, memory);
            assert_eq!(set.rootfs, [run(8, 2, false), run(2, 1, false)]);
        }
    }

    fn fake_host() -> (Observer, FakeHost) {
        FakeHost::new(RestoreParams {
            entropy: Entropy::new(vec![7; MIN_ENTROPY]).unwrap(),
            wall_clock_ns: 1,
            machine_id: MachineId::from_random([9; 16]),
            hostname: None,
            online_cpus: 1,
            test_restore: true,
        })
    }

    fn say(host: &mut FakeHost, event: &Event) -> Vec<u8> {
        host.data(CONTROL_PORT, 0, &smol_protocol::encode_line(event).unwrap())
    }

    #[test]
    fn a_guest_is_told_who_it_is_and_nothing_else() {
        let (observer, mut host) = fake_host();
        let told = say(&mut host, &Event::Restored);
        let params: RestoreParams = smol_protocol::decode_line(&told).unwrap();
        assert_eq!(params, host.params);
        for event in [
            Event::Resumed {
                sample: "00".into(),
            },
            Event::Ready { attempts: 1 },
        ] {
            assert!(say(&mut host, &event).is_empty());
        }
        assert!(!host.test_restored.load(Ordering::Relaxed));
        assert!(say(&mut host, &Event::TestRestored).is_empty());
        assert!(host.test_restored.load(Ordering::Relaxed));
        assert!(!observer.guest_failed());
    }

    #[test]
    fn a_request_that_is_not_answered_is_told_with_what_came_instead() {
        let (observer, mut host) = fake_host();
        let reason = "request 2 of [[warm_restore]] was not answered as it must be";
        let failed = GuestFailure {
            probe: Some(Probe::Tcp { port: 80 }),
            last_saw: Some("connection refused".into()),
            ..GuestFailure::at(Stage::TestRestore, reason.into())
        };
        say(&mut host, &Event::Failed(failed));
        assert!(!host.test_restored.load(Ordering::Relaxed));
        let failed = observer.failure("unused");
        assert!(failed.reason.starts_with("request 2 of "), "{failed:?}");
        assert_eq!(
            failed.details(),
            [
                "stage: test restore",
                "probe: tcp 80",
                "it last saw: connection refused"
            ]
        );
    }

    #[test]
    fn rubbish_is_no_answer() {
        let (observer, mut host) = fake_host();
        host.data(CONTROL_PORT, 0, b"{}\n");
        assert!(!host.test_restored.load(Ordering::Relaxed) && observer.guest_failed());
    }

    #[test]
    fn a_machine_that_falls_silent_is_explained() {
        let limit = Duration::from_secs(300);
        let late = why(&Stop::Requested, true, limit);
        assert!(
            late.contains("[[warm_restore]]") && late.contains(" 300 s "),
            "{late}"
        );
        assert!(why(&Stop::Reset, false, limit).contains("reset itself"));
        assert!(why(&Stop::Crashed("triple fault".into()), false, limit).contains("triple fault"));
    }
}
