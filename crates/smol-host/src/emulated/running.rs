//! An emulated host that runs: QEMU's process, the stream of frames, and how it ends.

#![expect(clippy::disallowed_methods, reason = "the job's output, as it is")]

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use smol_cli::Interrupt;

use super::fault;
use super::process::{self, Launch, Logs, boot, excerpt, text};
use super::wire::{self, FrameKind, JobStatus};
use crate::error::{HostError, Result};

/// How long the emulated host may take until its init speaks, at its first boot and at its second;
/// about 3 s on an idle machine. About one boot in 200 was seen to hang on a busy one, in the emulator
/// and before any job: such a boot is done again, once.
pub(super) const BOOT_TIMEOUTS: [Duration; 2] = [Duration::from_secs(90), Duration::from_secs(180)];
/// An emulated host from which nothing is received for so long hangs: its init sends a frame each second
/// ([`super::pulse`]), and the host that runs it may be busy.
pub(super) const SILENCE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long QEMU may take to be gone when its end of the port is, or when it was killed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// An event of an emulated host.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The emulated host is up, the job starts.
    Started,
    /// The job wrote to stdout.
    Stdout(Vec<u8>),
    /// The job wrote to stderr.
    Stderr(Vec<u8>),
    /// The job wrote to its channel (see [`super::job_channel`]).
    Channel(Vec<u8>),
    /// The job ended; nothing follows.
    Exited(JobStatus),
}

/// A running emulated host. Dropping it ends it, and it does not outlive this process.
pub struct RunningHost {
    launch: Launch,
    /// Boots that were begun.
    boots: usize,
    /// Its init has sent a frame.
    up: bool,
    port: UnixStream,
    control: Controller,
    /// Receives how QEMU ended.
    ended: mpsc::Receiver<ExitStatus>,
    /// How it ended, once that was received.
    status: Option<ExitStatus>,
    logs: Logs,
}

/// Controls a running emulated host from any thread.
#[derive(Clone)]
pub struct Controller {
    port: Arc<Mutex<UnixStream>>,
    /// Not under the port's lock: a thread that is blocked while it writes holds that one.
    process: Arc<Mutex<QemuProcess>>,
}

struct QemuProcess {
    pidfd: OwnedFd,
    /// It is being stopped: QEMU is not started again.
    stopping: bool,
}

/// Starts the emulated host.
pub(super) fn start(launch: Launch) -> Result<RunningHost> {
    let booting = boot(&launch, launch.boot_timeouts[0])?;
    let process = QemuProcess {
        pidfd: booting.process,
        stopping: false,
    };
    let control = Controller {
        port: Arc::new(Mutex::new(duplicate(&booting.port)?)),
        process: Arc::new(Mutex::new(process)),
    };
    Ok(RunningHost {
        launch,
        boots: 1,
        up: false,
        port: booting.port,
        control,
        ended: booting.ended,
        status: None,
        logs: booting.logs,
    })
}

fn duplicate(port: &UnixStream) -> Result<UnixStream> {
    port.try_clone()
        .map_err(HostError::io("cannot duplicate a socket"))
}

impl RunningHost {
    /// Returns a handle to control it from another thread (a signal handler's, say).
    pub fn controller(&self) -> Controller {
        self.control.clone()
    }

    /// Waits for the next event. Call it until [`Event::Exited`]: the job starts only when this is
    /// called, and blocks when what it writes is not taken.
    ///
    /// # Errors
    /// QEMU or the emulated host ended early, or hangs; the message holds the last lines of its
    /// console. What is a fault of the emulator and not of the job says so ([`HostError::fault`]).
    pub fn next_event(&mut self) -> Result<Event> {
        loop {
            let (kind, payload) = match wire::read_frame(&mut self.port) {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    self.ended_early()?;
                    continue;
                }
                // Its end came before it had read all that we wrote.
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {
                    self.ended_early()?;
                    continue;
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    self.silent()?;
                    continue;
                }
                Err(e) => return Err(self.broken(&format!("stopped: {e}"), true)),
            };
            match kind {
                FrameKind::Started => {
                    self.begin()?;
                    return Ok(Event::Started);
                }
                FrameKind::Alive => {}
                FrameKind::Stdout => return Ok(Event::Stdout(payload)),
                FrameKind::Stderr => return Ok(Event::Stderr(payload)),
                FrameKind::Channel => return Ok(Event::Channel(payload)),
                FrameKind::Exited => {
                    let status = serde_json::from_slice(&payload).map_err(|e| {
                        HostError::new(format!("the emulated host sent a bad exit status: {e}"))
                    })?;
                    self.control.kill(); // all is written and the shares are unmounted: init waits for this
                    return Ok(Event::Exited(status));
                }
                FrameKind::Failed => {
                    let why = String::from_utf8_lossy(&payload).into_owned();
                    return Err(match self.up {
                        true => self.broken(&format!("hangs: {why}"), true),
                        false => self.broken(&format!("could not be set up: {why}"), false),
                    });
                }
                FrameKind::Stop | FrameKind::Clock => {
                    return Err(self.broken("sent what only the host sends", true));
                }
            }
        }
    }

    /// Handles a timeout: nothing was received for too long.
    fn silent(&mut self) -> Result<()> {
        if self.up {
            let limit = self.launch.silence_timeout.as_secs();
            let what = format!("hangs: it has sent nothing for {limit} s");
            return Err(self.broken(&what, true));
        }
        let limit = self.launch.boot_timeouts[self.boots - 1].as_secs();
        match self.boot_again()? {
            true => Ok(()),
            false => Err(self.broken(&format!("did not come up within {limit} s"), true)),
        }
    }

    /// Waits for the job's end; what it writes is lost.
    pub fn wait(mut self) -> Result<JobStatus> {
        loop {
            if let Event::Exited(status) = self.next_event()? {
                return Ok(status);
            }
        }
    }

    /// Waits for the job's end; what it writes goes to our own stdout and stderr.
    pub fn relay(mut self) -> Result<JobStatus> {
        loop {
            // A closed stdout does not end the job: its result may be elsewhere.
            match self.next_event()? {
                Event::Stdout(bytes) => drop(
                    std::io::stdout()
                        .write_all(&bytes)
                        .and_then(|()| std::io::stdout().flush()),
                ),
                Event::Stderr(bytes) => drop(std::io::stderr().write_all(&bytes)),
                Event::Exited(status) => return Ok(status),
                Event::Started | Event::Channel(_) => {}
            }
        }
    }

    /// Returns the emulated host's console: warnings and errors of its kernel while it booted, and all
    /// messages since.
    pub fn console(&self) -> String {
        text(&self.logs.console)
    }

    /// Returns whether its kernel reports a failure on the console, which is the emulator's fault rather
    /// than a job's.
    pub fn has_failed(&self) -> bool {
        process::has_failed(&self.console())
    }

    /// Kills a QEMU that hangs or has ended, and starts another; returns false if that was done before,
    /// or it is being stopped.
    fn boot_again(&mut self) -> Result<bool> {
        let control = self.control.clone();
        let mut process = lock(&control.process);
        let Some(&limit) = self.launch.boot_timeouts.get(self.boots) else {
            return Ok(false);
        };
        if process.stopping {
            return Ok(false);
        }
        // It must be gone before the next one: a forwarded port is for one of them.
        process.kill();
        self.end_of_qemu();
        let (qemu, console) = (text(&self.logs.qemu), self.console());
        let _ = fault::keep(
            &self.launch.cache,
            "did not come up: booted again",
            &qemu,
            &console,
        );
        let booting = boot(&self.launch, limit)?;
        self.boots += 1;
        *lock(&control.port) = duplicate(&booting.port)?;
        process.pidfd = booting.process;
        drop(process);
        self.port = booting.port;
        self.ended = booting.ended;
        self.status = None;
        self.logs = booting.logs;
        Ok(true)
    }

    /// Sends init, which is up, the time of day, at which it starts the job.
    fn begin(&mut self) -> Result<()> {
        self.up = true;
        self.port
            .set_read_timeout(Some(self.launch.silence_timeout))
            .map_err(HostError::io("cannot set a time limit"))?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos() as u64;
        // If it has ended by now, the next frame is not there, which tells more.
        let _ = self.control.write(FrameKind::Clock, &now.to_le_bytes());
        Ok(())
    }

    /// Handles the end of QEMU. Before the emulated host is up, that may be because of its arguments; a
    /// signal or a panic is a fault of the emulator, and the boot is done again.
    fn ended_early(&mut self) -> Result<()> {
        let killed = self.end_of_qemu().is_some_and(|s| s.signal().is_some());
        let crashed = killed || self.has_failed();
        if !self.up && crashed && self.boot_again()? {
            return Ok(());
        }
        Err(self.broken("ended before its job did", self.up || crashed))
    }

    /// Waits for QEMU's end and returns its status; `None` if it does not end.
    fn end_of_qemu(&mut self) -> Option<ExitStatus> {
        self.status = self
            .status
            .or_else(|| self.ended.recv_timeout(EXIT_TIMEOUT).ok());
        self.status
    }

    /// Returns the error for an end before the job's, with QEMU's output and the end of the console. It is
    /// a `fault` of the emulated host's, unless it is being stopped.
    fn broken(&mut self, what: &str, fault: bool) -> HostError {
        let fault = fault && !lock(&self.control.process).stopping;
        self.control.kill();
        let mut message = format!("the emulated host {what}");
        if let Some(status) = self.status {
            message += &format!("; QEMU: {status}");
        }
        let (qemu, console) = (text(&self.logs.qemu), self.console());
        let kept = fault.then(|| fault::keep(&self.launch.cache, &message, &qemu, &console));
        for (name, log) in [("QEMU", qemu), ("its console", console)] {
            let shown = excerpt(&log);
            if !shown.is_empty() {
                message += &format!("\n{name}:\n{shown}");
            }
        }
        let mut error = HostError::new(message);
        error.fault = fault;
        match kept {
            Some(Ok(path)) => error.fix(format!(
                "run it again: the emulator has failed, not the machine (details: {})",
                path.display()
            )),
            _ => error,
        }
    }
}

impl Drop for RunningHost {
    fn drop(&mut self) {
        self.control.kill();
    }
}

impl Controller {
    /// Asks the job to end (SIGTERM to its process group inside).
    pub fn stop(&self) {
        lock(&self.process).stopping = true;
        let _ = self.write(FrameKind::Stop, &[]);
    }

    /// Kills the whole emulated host at once.
    pub fn kill(&self) {
        let mut process = lock(&self.process);
        process.stopping = true;
        process.kill();
    }

    /// Writes to the job's channel (see [`super::job_channel`]).
    pub fn send(&self, bytes: &[u8]) -> std::io::Result<()> {
        bytes
            .chunks(wire::MAX_PAYLOAD)
            .try_for_each(|chunk| self.write(FrameKind::Channel, chunk))
    }

    /// Stops the job when `interrupt` is set, and kills the whole emulated host if that takes longer than
    /// `grace`. Runs on a thread that ends with the host.
    pub fn stop_on(&self, interrupt: Interrupt, grace: Duration) {
        let control = self.clone();
        thread::spawn(move || {
            while !control.ended_within(Duration::ZERO) {
                if !matches!(interrupt.wait(Some(Duration::from_millis(100))), Ok(false)) {
                    control.stop();
                    if !control.ended_within(grace) {
                        control.kill();
                    }
                    return;
                }
            }
        });
    }

    /// Waits for QEMU's end, at most this long.
    fn ended_within(&self, limit: Duration) -> bool {
        let Ok(process) = lock(&self.process).pidfd.try_clone() else {
            return true;
        };
        let limit = Timespec::try_from(limit).ok();
        let mut ended = [PollFd::new(&process, PollFlags::IN)]; // a pidfd is readable when its process ended
        matches!(poll(&mut ended, limit.as_ref()), Ok(1..))
    }

    fn write(&self, kind: FrameKind, payload: &[u8]) -> std::io::Result<()> {
        wire::write_frame(&mut *lock(&self.port), kind, payload)
    }
}

impl QemuProcess {
    fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::path::Path;

    use smol_sandbox::{Access, Mode};

    use super::super::process::memory_file;
    use super::*;

    /// A shell in QEMU's place, which runs this script with the port at hand as `$PORT`.
    fn shell(script: &str) -> Launch {
        let script = script.to_owned();
        Launch {
            qemu: "/bin/bash".into(),
            initramfs: memory_file("initramfs", &[]).unwrap(),
            arguments: Box::new(move |fds| {
                let console = fds.console.as_raw_fd();
                let variables = format!("PORT={}; CONSOLE={console}", fds.port);
                vec!["-c".into(), format!("{variables}; {script}")]
            }),
            boot_timeouts: [Duration::from_millis(500), Duration::from_secs(600)],
            silence_timeout: Duration::from_secs(600),
            cache: std::env::temp_dir(),
            access: Access::none(),
            sandbox: Mode::Off,
        }
    }

    /// The script's words for a frame of init's.
    fn speak(kind: FrameKind, payload: &[u8]) -> String {
        let mut frame = Vec::new();
        wire::write_frame(&mut frame, kind, payload).unwrap();
        let octal: String = frame.iter().map(|byte| format!("\\{byte:03o}")).collect();
        format!("printf '{octal}' >&$PORT;")
    }

    /// A host that does this the first time, and comes up the second.
    fn first(folder: &Path, what: &str) -> Launch {
        let script = format!(
            "if mkdir {}/flag 2>/dev/null; then {what}; fi; {} exec sleep 600",
            folder.display(),
            speak(FrameKind::Started, &[])
        );
        Launch {
            boot_timeouts: [Duration::from_secs(600); 2],
            cache: folder.into(),
            ..shell(&script)
        }
    }

    /// The error of a host that runs this script, and whether it is told as a fault and kept as one.
    fn failure(script: &str, silence: Duration) -> (HostError, bool) {
        let cache = tempfile::tempdir().unwrap();
        let launch = Launch {
            boot_timeouts: [Duration::from_secs(600); 2],
            silence_timeout: silence,
            cache: cache.path().into(),
            ..shell(script)
        };
        let mut host = start(launch).unwrap();
        let error = loop {
            match host.next_event() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        (error, cache.path().join(fault::FOLDER).exists())
    }

    #[test]
    fn a_host_that_dies_or_hangs_by_itself_is_told_from_one_that_cannot_do_its_job() {
        let long = Duration::from_secs(600);
        let up = speak(FrameKind::Started, &[]);
        let stuck = speak(FrameKind::Failed, b"its CPU 1 hangs");
        let alive = speak(FrameKind::Alive, &[]);
        let panic = "echo 'Kernel panic - not syncing' >/proc/self/fd/$CONSOLE";
        let signal = "kill -ABRT $$";
        for (script, silence, words, fault) in [
            (
                format!("{up} exit 3"),
                long,
                "ended before its job did; QEMU: exit status: 3",
                true,
            ),
            (
                format!("{up} {alive} {stuck} exec sleep 600"),
                long,
                "hangs: its CPU 1 hangs",
                true,
            ),
            (
                format!("{up} {alive} exec sleep 600"),
                Duration::from_millis(300),
                "has sent nothing for",
                true,
            ),
            (panic.into(), long, "ended before its job did", true),
            (
                signal.into(),
                long,
                "ended before its job did; QEMU: signal: 6",
                true,
            ),
            (
                "echo the port is taken; exit 1".into(),
                long,
                "the port is taken",
                false,
            ),
            (
                format!("{stuck} exec sleep 600"),
                long,
                "could not be set up: its CPU",
                false,
            ),
        ] {
            let (error, kept) = failure(&script, silence);
            assert!(
                error.message.contains(words),
                "{words:?} is not in: {error}"
            );
            assert_eq!((error.fault, kept), (fault, fault), "{script}: {error}");
            assert_eq!(error.fix.is_some(), fault);
        }
    }

    #[test]
    fn a_host_that_somebody_has_ended_is_no_fault() {
        let cache = tempfile::tempdir().unwrap();
        let launch = Launch {
            cache: cache.path().into(),
            ..shell(&format!(
                "{} exec sleep 600",
                speak(FrameKind::Started, &[])
            ))
        };
        let mut host = start(launch).unwrap();
        assert_eq!(host.next_event().unwrap(), Event::Started);
        host.controller().kill();
        let error = host.next_event().unwrap_err();
        assert!(!error.fault && error.message.contains("ended before its job did"));
        assert!(!cache.path().join(fault::FOLDER).exists());
    }

    #[test]
    fn a_boot_that_dies_is_done_again_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut host = start(first(folder.path(), "kill -ABRT $$")).unwrap();
        assert_eq!(host.next_event().unwrap(), Event::Started);
        assert_eq!(host.boots, 2);
        assert!(folder.path().join(fault::FOLDER).exists());
    }

    #[test]
    fn a_boot_that_hangs_is_done_again_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut hangs = first(folder.path(), "exec sleep 600");
        hangs.boot_timeouts[0] = Duration::from_millis(500);
        let mut host = start(hangs).unwrap();
        let early = host.controller();
        assert_eq!(host.next_event().unwrap(), Event::Started);
        assert_eq!(host.boots, 2);
        assert!(!early.ended_within(Duration::ZERO));
        early.kill();
        assert!(early.ended_within(Duration::from_secs(600)));

        let mut hangs = shell("exec sleep 600");
        hangs.boot_timeouts[1] = hangs.boot_timeouts[0];
        hangs.cache = folder.path().into();
        let mut host = start(hangs).unwrap();
        let error = host.next_event().unwrap_err();
        assert!(
            error.fault && error.message.contains("did not come up"),
            "{error}"
        );
        assert_eq!(host.boots, 2);
    }

    #[test]
    fn a_boot_that_hangs_is_not_done_again_for_somebody_who_wants_an_end() {
        let mut host = start(shell("exec sleep 600")).unwrap();
        host.controller().stop();
        assert!(host.next_event().is_err());
        assert_eq!(host.boots, 1);
    }
}
