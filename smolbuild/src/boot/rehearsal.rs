//! What a restored machine touches first. The frozen machine is brought back once more, goes on
//! being built, and does what a restored one does first; its memory comes page by page as it is
//! touched, and which ones is written down.
//!
//! | machine | is watched until |
//! |---|---|
//! | with smol-guest | it has its identity, the service runs on, and has proved ready once more |
//! | just a kernel | it has printed a line, at most [`PATIENCE`] |
//!
//! With a smol kernel time stays virtual and every answer is fixed, so two builds see the same.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use smol_bundle::{Run, WorkingSet};
use smol_cli::Interrupt;
use smol_guest::protocol::{
    self, Entropy, Event, LineBuffer, MIN_ENTROPY, MachineId, RestoreParams,
};
use smol_machine::demand::{Area, Contents, Demand};
use smol_machine::devices::virtio::vsock::{StreamSink, Vsock};
use smol_machine::machine::{Hooks, Time};
use smol_machine::{Machine, MachineState, Stop, StopHandle};

use super::{Job, guard};

/// How long a machine that is just a kernel is watched if it prints nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// Watches the machine whose state and contents were captured. The inner error is a reason why
/// nothing can be said about it.
///
/// # Errors
/// If the machine cannot be brought back at all.
pub(super) fn watch(
    job: &Job,
    state: &MachineState,
    contents: Contents,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<Result<WorkingSet, String>> {
    let demand = match Demand::new(state.memory, state.pmem) {
        Ok(demand) => Arc::new(demand),
        Err(error) => return Ok(Err(error.to_string())),
    };
    let handle = Arc::<OnceLock<StopHandle>>::default();
    let seen = thread::spawn({
        let demand = demand.clone();
        move || serve(&demand, &contents)
    });
    let outcome = run(job, state, &demand, &handle, limit, interrupt);
    demand.end();
    let seen = seen.join().expect("serving pages does not panic");
    let in_time = outcome?;
    let seen = seen.context("cannot serve the memory of the rehearsal")?;
    Ok(match in_time {
        true => Ok(seen),
        false => Err("the machine did not become ready again in time".to_owned()),
    })
}

/// Gives every page that is touched its bytes, and notes it.
fn serve(demand: &Demand, contents: &Contents) -> std::io::Result<WorkingSet> {
    let mut seen = BTreeSet::new();
    let mut bytes = [0; smol_machine::memory::PAGE];
    while let Some((area, page)) = demand.next()? {
        contents.read(area, page, &mut bytes)?;
        demand.fill(area, page, &bytes)?;
        seen.insert((area == Area::Rootfs, page));
    }
    Ok(WorkingSet {
        memory: runs(&seen, false),
        rootfs: runs(&seen, true),
    })
}

/// The pages of one image as runs, by their numbers. Not in the order in which they were touched:
/// the set is the same in every build, but of two touches that lie close together the hypervisor
/// has been seen to bring either first.
fn runs(seen: &BTreeSet<(bool, u32)>, rootfs: bool) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (_, page) in seen.iter().filter(|(of, _)| *of == rootfs) {
        match runs.last_mut() {
            Some(run) if run.end() == Some(*page) => run.pages += 1,
            _ => runs.push(Run {
                first: *page,
                pages: 1,
            }),
        }
    }
    runs
}

/// Runs the machine until it has shown what it does first; false if that took too long.
fn run(
    job: &Job,
    state: &MachineState,
    demand: &Demand,
    handle: &Arc<OnceLock<StopHandle>>,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<bool> {
    let seed = blake3::Hash::from_hex(&job.seed).context("the seed of the job")?;
    let mut random = blake3::Hasher::new_keyed(seed.as_bytes())
        .update(b"rehearsal")
        .finalize_xof();
    let bare = job.ready_line.is_some();
    let console = || {
        Box::new(Line {
            ends: bare,
            begun: false,
            handle: handle.clone(),
        })
    };
    let hooks = Hooks {
        console: console(),
        serial: console(),
        vsock: Some(Vsock::for_build(
            protocol::GUEST_CID.into(),
            Box::new(Partner {
                params: params(job, state, &mut random),
                handle: handle.clone(),
                lines: LineBuffer::default(),
            }),
        )),
    };
    let mut fresh = [0; 32];
    random.fill(&mut fresh);
    let mut machine =
        Machine::restore_on_demand(demand, state, hooks, Time::Building { seed: fresh })?;
    let _ = handle.set(machine.stop_handle());
    let limit = if bare { limit.min(PATIENCE) } else { limit };
    let (done, finished) = mpsc::channel();
    let guard = guard::spawn(machine.stop_handle(), interrupt.clone(), limit, finished);
    let stop = machine.run();
    drop(done);
    let late = guard.join().expect("the guard does not panic");
    stop?;
    Ok(bare || !late)
}

/// The same in every build: nothing that is drawn from it goes into the bundle.
fn params(job: &Job, state: &MachineState, random: &mut blake3::OutputReader) -> RestoreParams {
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
        rehearsal: true,
    }
}

fn end(handle: &OnceLock<StopHandle>) {
    if let Some(handle) = handle.get() {
        handle.request(Stop::Requested);
    }
}

/// A console of which only the end of a line matters, if that. The line that meant ready may
/// have been cut before its end.
struct Line {
    ends: bool,
    begun: bool,
    handle: Arc<OnceLock<StopHandle>>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for byte in bytes {
            match byte {
                b'\r' => {}
                b'\n' if self.begun && self.ends => end(&self.handle),
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

/// Tells smol-guest who it is, and ends the machine when the rehearsal is over, well or not.
struct Partner {
    params: RestoreParams,
    handle: Arc<OnceLock<StopHandle>>,
    lines: LineBuffer,
}

impl StreamSink for Partner {
    fn open(&mut self, port: u32, _stream: u64) -> bool {
        [protocol::CONTROL_PORT, protocol::LOG_PORT].contains(&port)
    }

    fn data(&mut self, port: u32, _stream: u64, bytes: &[u8]) -> Vec<u8> {
        if port != protocol::CONTROL_PORT {
            return Vec::new();
        }
        let mut answer = Vec::new();
        self.lines.push(bytes);
        loop {
            let event = match self.lines.next_line() {
                Ok(None) => return answer,
                Ok(Some(line)) => protocol::decode_line::<Event>(&line),
                Err(e) => Err(e),
            };
            match event {
                Ok(Event::Restored) => {
                    answer.extend(protocol::encode_line(&self.params).expect("it is small"));
                }
                Ok(Event::Rehearsed | Event::Failed { .. } | Event::ServiceExited { .. })
                | Err(_) => {
                    end(&self.handle);
                    return answer;
                }
                Ok(_) => {}
            }
        }
    }

    fn close(&mut self, _port: u32, _stream: u64) {}
}
