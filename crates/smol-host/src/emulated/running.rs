//! An emulated host that runs: QEMU's process, the stream of frames, and how it ends.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use smol_cli::Interrupt;

use super::qemu::Fds;
use super::wire::{self, JobStatus, Kind};
use crate::error::{HostError, Result};

/// How long the emulated host may take until its init speaks, at its first boot and at its second;
/// about 3 s on an idle machine. About one boot in 200 was seen to hang on a busy one, in the emulator
/// and before any job: such a boot is done again, once.
pub(super) const BOOT_LIMITS: [Duration; 2] = [Duration::from_secs(90), Duration::from_secs(180)];
/// How long QEMU may take to be gone when its end of the port is.
const END: Duration = Duration::from_millis(500);
/// How many of the console's last lines an error shows.
const TAIL_LINES: usize = 20;

/// Something that happened in the emulated host.
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
    port: UnixStream,
    control: Controller,
    /// How QEMU ended, once it has.
    ended: mpsc::Receiver<ExitStatus>,
    logs: Logs,
}

/// Steers a running emulated host from any thread.
#[derive(Clone)]
pub struct Controller {
    port: Arc<Mutex<UnixStream>>,
    /// Not behind the port's lock: who writes may have to be ended.
    process: Arc<Mutex<Process>>,
}

struct Process {
    pidfd: OwnedFd,
    /// Somebody wants an end: nothing is begun again.
    stopping: bool,
}

struct Logs {
    console: File,
    qemu: File,
}

/// Makes QEMU's arguments of the descriptors that it inherits.
type Arguments = Box<dyn Fn(&Fds) -> Vec<String> + Send>;

/// What it takes to start QEMU.
pub(super) struct Launch {
    pub qemu: PathBuf,
    pub initramfs: File,
    pub arguments: Arguments,
    /// How long the first boot may take, and the second.
    pub limits: [Duration; 2],
}

/// A QEMU that was started.
struct Booting {
    port: UnixStream,
    process: OwnedFd,
    ended: mpsc::Receiver<ExitStatus>,
    logs: Logs,
}

/// Starts the emulated host.
pub(super) fn start(launch: Launch) -> Result<RunningHost> {
    let booting = boot(&launch, launch.limits[0])?;
    let process = Process {
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
        port: booting.port,
        control,
        ended: booting.ended,
        logs: booting.logs,
    })
}

fn duplicate(port: &UnixStream) -> Result<UnixStream> {
    port.try_clone()
        .map_err(HostError::io("cannot duplicate a socket"))
}

/// Starts QEMU; its init is to speak within `limit`.
fn boot(launch: &Launch, limit: Duration) -> Result<Booting> {
    let logs = Logs {
        console: memory_file("console", &[])?,
        qemu: memory_file("qemu", &[])?,
    };
    let (port, inner) = UnixStream::pair().map_err(HostError::io("cannot create a socket"))?;
    let clone = |file: &File| {
        file.try_clone()
            .map_err(HostError::io("cannot duplicate a file descriptor"))
    };
    let fds = Fds {
        initramfs: clone(&launch.initramfs)?,
        console: clone(&logs.console)?,
        port: inner.as_raw_fd(),
    };

    let mut command = Command::new(&launch.qemu);
    command
        .args((launch.arguments)(&fds))
        .stdin(Stdio::null())
        .process_group(0);
    command
        .stdout(clone(&logs.qemu)?)
        .stderr(clone(&logs.qemu)?);
    let inherited = [fds.initramfs.as_raw_fd(), fds.console.as_raw_fd(), fds.port];
    // SAFETY: prepare_child makes only system calls and touches no memory of the parent's threads.
    unsafe { command.pre_exec(move || prepare_child(&inherited)) };

    let (process, ended) = spawn_on_keeper(command, (fds, inner)).map_err(HostError::io(
        format!("cannot start {}", launch.qemu.display()),
    ))?;
    port.set_read_timeout(Some(limit))
        .map_err(HostError::io("cannot set a time limit"))?;
    Ok(Booting {
        port,
        process,
        ended,
        logs,
    })
}

/// Runs in the child between fork and exec: it dies with its parent and keeps `inherited` open.
fn prepare_child(inherited: &[RawFd]) -> std::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    for &fd in inherited {
        // SAFETY: F_SETFD on an open descriptor number changes this process's table and no memory.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Spawns `command` on a thread that lives as long as the child and reaps it: the parent death
/// signal goes by the parent *thread*, and the caller's may end before the machine does.
/// `keep` stays open until the child has its own copies. Returns the child's pidfd, and where its
/// end is told.
fn spawn_on_keeper(
    mut command: Command,
    keep: impl Send + 'static,
) -> std::io::Result<(OwnedFd, mpsc::Receiver<ExitStatus>)> {
    let (sender, receiver) = mpsc::channel();
    let (teller, ended) = mpsc::channel();
    thread::Builder::new()
        .name("qemu-keeper".into())
        .spawn(move || {
            let spawned = command.spawn().and_then(|child| {
                let pid = Pid::from_raw(child.id() as i32).ok_or(std::io::ErrorKind::NotFound)?;
                let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
                Ok((child, process))
            });
            // The command holds its own copies of our log files; QEMU's end must be the last of the socket.
            drop((command, keep));
            match spawned {
                Ok((mut child, process)) => {
                    let _ = sender.send(Ok(process));
                    if let Ok(status) = child.wait() {
                        let _ = teller.send(status);
                    }
                }
                Err(e) => {
                    let _ = sender.send(Err(e));
                }
            }
        })?;
    let process = receiver
        .recv()
        .unwrap_or_else(|_| Err(std::io::ErrorKind::BrokenPipe.into()))?;
    Ok((process, ended))
}

/// A file in memory with these contents: nothing to remove, whatever becomes of us.
pub(super) fn memory_file(name: &str, contents: &[u8]) -> Result<File> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC);
    let file = fd.map_err(std::io::Error::from).and_then(|fd| {
        let mut file = File::from(fd);
        file.write_all(contents)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(file)
    });
    file.map_err(HostError::io(format!(
        "cannot create the file {name} in memory"
    )))
}

impl RunningHost {
    /// A handle to steer it from another thread (a signal handler's, say).
    pub fn controller(&self) -> Controller {
        self.control.clone()
    }

    /// Waits for the next event. Call it until [`Event::Exited`]: the job starts only when this is
    /// called, and blocks when what it writes is not taken.
    ///
    /// # Errors
    /// QEMU or the emulated host ended early; the message holds the last lines of its console.
    pub fn next_event(&mut self) -> Result<Event> {
        let frame = wire::read_frame(&mut self.port);
        let (kind, payload) = match frame {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err(self.broken("the emulated host ended before its job did")),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                let limit = self.launch.limits[self.boots - 1].as_secs();
                if self.boot_again()? {
                    return self.next_event();
                }
                return Err(self.broken(&format!(
                    "the emulated host did not come up within {limit} s"
                )));
            }
            Err(e) => return Err(self.broken(&format!("the emulated host broke off: {e}"))),
        };
        match kind {
            Kind::Started => {
                self.begin()
                    .map_err(HostError::io("cannot speak to the emulated host"))?;
                Ok(Event::Started)
            }
            Kind::Stdout => Ok(Event::Stdout(payload)),
            Kind::Stderr => Ok(Event::Stderr(payload)),
            Kind::Channel => Ok(Event::Channel(payload)),
            Kind::Exited => {
                let status = serde_json::from_slice(&payload).map_err(|e| {
                    HostError::new(format!("the emulated host sent a bad exit status: {e}"))
                })?;
                self.control.kill(); // all is written and the shares are unmounted: init waits for this
                Ok(Event::Exited(status))
            }
            Kind::Failed => Err(self.broken(&format!(
                "the emulated host could not be set up: {}",
                String::from_utf8_lossy(&payload)
            ))),
            Kind::Stop | Kind::Clock => {
                Err(self.broken("the emulated host sent what only the host sends"))
            }
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

    /// The last lines of the emulated host's console (the kernel's warnings and errors).
    pub fn console_tail(&self) -> String {
        tail(&self.logs.console)
    }

    /// Ends a QEMU that hangs and starts another; false if that was done before, or an end is wanted.
    fn boot_again(&mut self) -> Result<bool> {
        let mut process = lock(&self.control.process);
        let Some(limit) = self.launch.limits.get(self.boots) else {
            return Ok(false);
        };
        if process.stopping {
            return Ok(false);
        }
        // It must be gone before the next one: a forwarded port is for one of them.
        process.kill();
        let _ = self.ended.recv_timeout(END);
        let booting = boot(&self.launch, *limit)?;
        self.boots += 1;
        *lock(&self.control.port) = duplicate(&booting.port)?;
        process.pidfd = booting.process;
        drop(process);
        self.port = booting.port;
        self.ended = booting.ended;
        self.logs = booting.logs;
        Ok(true)
    }

    /// Init is up: set its clock, which makes it start the job.
    fn begin(&self) -> std::io::Result<()> {
        self.port.set_read_timeout(None)?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos() as u64;
        self.control.write(Kind::Clock, &now.to_le_bytes())
    }

    /// The error for an end before the job's: with what QEMU said and the end of the console.
    fn broken(&self, what: &str) -> HostError {
        let ended = self.ended.recv_timeout(END);
        self.control.kill();
        let mut message = what.to_owned();
        if let Ok(status) = ended {
            message += &format!("; QEMU: {status}");
        }
        for (name, log) in [
            ("QEMU", &self.logs.qemu),
            ("its console", &self.logs.console),
        ] {
            let text = tail(log);
            if !text.is_empty() {
                message += &format!("\n{name}:\n{text}");
            }
        }
        HostError::new(message)
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
        let _ = self.write(Kind::Stop, &[]);
    }

    /// Ends the whole emulated host at once.
    pub fn kill(&self) {
        let mut process = lock(&self.process);
        process.stopping = true;
        process.kill();
    }

    /// Writes to the job's channel (see [`super::job_channel`]).
    pub fn send(&self, bytes: &[u8]) -> std::io::Result<()> {
        bytes
            .chunks(wire::MAX_PAYLOAD)
            .try_for_each(|chunk| self.write(Kind::Channel, chunk))
    }

    /// From now on passes the user's wish to stop on: asks the job to end, and ends the whole
    /// emulated host if that takes longer than `grace`. Runs on a thread that ends with the host.
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

    fn write(&self, kind: Kind, payload: &[u8]) -> std::io::Result<()> {
        wire::write_frame(&mut *lock(&self.port), kind, payload)
    }
}

impl Process {
    fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last lines of a log, without what a terminal would not show.
fn tail(log: &File) -> String {
    let mut text = Vec::new();
    // Our own offset: QEMU writes through a description of its own or appends to the shared one.
    let read = File::open(format!("/proc/self/fd/{}", log.as_raw_fd()))
        .and_then(|mut log| log.read_to_end(&mut text));
    if read.is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&text);
    let clean = |line: &str| line.chars().filter(|c| !c.is_control()).collect::<String>();
    let lines: Vec<String> = text
        .lines()
        .map(clean)
        .filter(|line| !line.trim().is_empty())
        .collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines[from..]
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell in QEMU's place, which runs this script with the port at hand as `$PORT`.
    fn shell(script: &str) -> Launch {
        let script = script.to_owned();
        Launch {
            qemu: "/bin/bash".into(),
            initramfs: memory_file("initramfs", &[]).unwrap(),
            arguments: Box::new(move |fds| {
                vec!["-c".into(), format!("PORT={}; {script}", fds.port)]
            }),
            limits: [Duration::from_millis(500), Duration::from_secs(20)],
        }
    }

    /// The script's words for init's first frame.
    fn speak() -> String {
        let mut frame = Vec::new();
        wire::write_frame(&mut frame, Kind::Started, &[]).unwrap();
        let octal: String = frame.iter().map(|byte| format!("\\{byte:03o}")).collect();
        format!("printf '{octal}' >&$PORT; sleep 20")
    }

    #[test]
    fn a_boot_that_hangs_is_done_again_once() {
        let folder = tempfile::tempdir().unwrap();
        let flag = folder.path().join("flag");
        let script = format!(
            "if mkdir {} 2>/dev/null; then sleep 20; fi; {}",
            flag.display(),
            speak()
        );
        let mut host = start(shell(&script)).unwrap();
        let early = host.controller();
        assert_eq!(host.next_event().unwrap(), Event::Started);
        assert_eq!(host.boots, 2);
        assert!(!early.ended_within(Duration::ZERO));
        early.kill();
        assert!(early.ended_within(Duration::from_secs(10)));

        let mut hangs = shell("sleep 20");
        hangs.limits[1] = hangs.limits[0];
        let mut host = start(hangs).unwrap();
        let error = host.next_event().unwrap_err();
        assert!(error.message.contains("did not come up"), "{error}");
        assert_eq!(host.boots, 2);
    }

    #[test]
    fn a_boot_that_hangs_is_not_done_again_for_somebody_who_wants_an_end() {
        let mut host = start(shell("sleep 20")).unwrap();
        host.controller().stop();
        assert!(host.next_event().is_err());
        assert_eq!(host.boots, 1);
    }

    #[test]
    fn the_tail_of_a_log_is_its_last_lines_without_control_characters() {
        let text: String = (0..100).map(|n| format!("\x1b[1mline {n}\r\n\n")).collect();
        let tail = tail(&memory_file("log", text.as_bytes()).unwrap());
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line 99"), "{tail}");
        assert!(!tail.contains('\x1b'));
    }
}
