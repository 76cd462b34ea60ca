//! The heart of the init: one thread, one poll(2). It reaps processes, carries the service's
//! output to the log stream, hears notifications and requests, and meanwhile waits for
//! whatever a stage of the boot waits for. One thread, because the same build must do the
//! same things in the same order.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use regex_lite::Regex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};
use rustix::time::Timespec;

use super::container::Lines;
use super::notify::NotifySocket;
use super::output::{LineMatcher, Tail};
use super::platform::{HostLink, HostPorts};
use super::process::{Output, Spawned, World};
use super::requests::Requests;
use super::signals::Signals;
use super::streams::{Control, LogStream};
use smol_protocol::ExitStatus;
use smol_protocol::log::Stream;

/// Grace time of a stop that was asked for by a signal.
const SIGNAL_GRACE: Duration = Duration::from_secs(10);
const READ_SIZE: usize = 64 * 1024;

/// Why a stage of the boot cannot go on as planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// The service ended.
    ServiceExited(ExitStatus),
    /// Someone asked for a stop, with this grace time.
    Stop(Duration),
}

/// Everything that happens outside the current stage.
pub(super) struct Supervisor {
    /// Events to the host.
    pub(super) control: Control,
    /// Output to the host.
    pub(super) log: LogStream,
    /// The ports that the host connects to, until they are served.
    pub(super) ports: Option<io::Result<HostPorts>>,
    /// Requests from the host, once it may send any.
    pub(super) requests: Option<Requests>,
    /// Where the service says that it is ready, if its probe listens.
    pub(super) notify: Option<NotifySocket>,
    /// The pattern that the service's output is searched for, if its probe does.
    pub(super) matcher: Option<LineMatcher>,
    signals: Option<Signals>,
    service: Option<Pid>,
    /// Whether the service is an init.
    is_init: bool,
    processes: Vec<Process>,
    pipes: Vec<Pipe>,
    stop: Option<Duration>,
    /// Where pipes are read into.
    buffer: Box<[u8]>,
}

/// A process that somebody waits for. (All others are orphans: reaped and forgotten.)
struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
    tail: Tail,
}

/// Output of a process.
struct Pipe {
    /// `None` once the other end is closed.
    fd: Option<OwnedFd>,
    of: Pid,
    stream: Stream,
    logged: bool,
    /// It is the console of an init.
    console: Option<Lines>,
}

/// What a poll entry was about.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Log,
    Notify,
    Requests,
    Process,
    Pipe(usize),
    Awaited,
}

impl Supervisor {
    /// A supervisor without streams: they are opened by whoever may.
    pub(super) fn new(link: HostLink, signals: Option<Signals>) -> Self {
        Supervisor {
            control: Control::new(link.clone()),
            log: LogStream::new(link),
            ports: None,
            requests: None,
            notify: None,
            matcher: None,
            signals,
            service: None,
            is_init: false,
            processes: Vec::new(),
            pipes: Vec::new(),
            stop: None,
            buffer: vec![0; READ_SIZE].into_boxed_slice(),
        }
    }

    /// Starts a process and takes care of its output. What is `logged` goes to the host.
    pub(super) fn start(
        &mut self,
        world: &World,
        cmd: &[String],
        output: Output,
        logged: bool,
    ) -> Result<Pid, String> {
        self.watch(world.spawn(cmd, output)?, logged)
    }

    fn watch(&mut self, started: Spawned, logged: bool) -> Result<Pid, String> {
        let pidfd = rustix::process::pidfd_open(started.pid, PidfdFlags::empty())
            .map_err(|e| format!("cannot watch process {}: {e}", started.pid.as_raw_nonzero()))?;
        self.processes.push(Process {
            pid: started.pid,
            pidfd,
            status: None,
            tail: Tail::default(),
        });
        let pipe = |fd, stream| Pipe {
            fd: Some(fd),
            of: started.pid,
            stream,
            logged,
            console: None,
        };
        self.pipes.push(pipe(started.stdout, Stream::Stdout));
        self.pipes
            .extend(started.stderr.map(|fd| pipe(fd, Stream::Stderr)));
        self.pipes.extend(started.console.map(|console| Pipe {
            console: Some(console.lines),
            ..pipe(console.master.into(), Stream::Stdout)
        }));
        Ok(started.pid)
    }

    /// Starts the service: from now on its end interrupts.
    pub(super) fn start_service(&mut self, world: &World, cmd: &[String]) -> Result<Pid, String> {
        let started = world.spawn_service(cmd, Output::Separate)?;
        self.is_init = started.console.is_some();
        let pid = self.watch(started, true)?;
        self.service = Some(pid);
        Ok(pid)
    }

    /// How the service ended, if it did.
    pub(super) fn service_status(&self) -> Option<ExitStatus> {
        let status = self.status(self.service?)?;
        // reboot(2) in a PID namespace ends its init by one of these, which nobody else can do
        // (pid_namespaces(7)): it has shut down as it was asked to.
        let rebooted = ExitStatus::Signaled(libc::SIGHUP);
        let halted = ExitStatus::Signaled(libc::SIGINT);
        let shut_down = self.is_init && [rebooted, halted].contains(&status);
        Some(if shut_down {
            ExitStatus::Exited(0)
        } else {
            status
        })
    }

    /// How a process ended, if it did. (One that nobody watches has no status: see `finish`.)
    fn status(&self, pid: Pid) -> Option<ExitStatus> {
        self.processes.iter().find(|p| p.pid == pid)?.status
    }

    /// Whether the service was started and has not ended.
    pub(super) fn service_runs(&self) -> bool {
        self.service.is_some() && self.service_status().is_none()
    }

    /// Signals the service's process group.
    pub(super) fn signal_service(&self, signal: Signal) {
        if let Some(pid) = self.service.filter(|_| self.service_runs()) {
            // It may have gone this moment.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    /// Signals the service's process alone.
    pub(super) fn signal_process(&self, signal: Signal) {
        if let Some(pid) = self.service.filter(|_| self.service_runs()) {
            // It may have gone this moment.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Waits for a process until the deadline, then kills its group. `None` is a timeout.
    /// The process's last output comes with it.
    pub(super) fn finish(
        &mut self,
        pid: Pid,
        deadline: Instant,
    ) -> Result<(Option<ExitStatus>, String), Interrupt> {
        let mut in_time = true;
        while self.status(pid).is_none() {
            if in_time && Instant::now() >= deadline {
                in_time = false;
                let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            }
            self.step(None, in_time.then_some(deadline));
            if let Err(interrupt) = self.check() {
                let _ = rustix::process::kill_process_group(pid, Signal::KILL);
                return Err(interrupt);
            }
        }
        self.drain(Some(pid));
        // Whoever still holds the other end (a daemon it left behind) writes to the log, or to
        // nobody if nobody wanted it.
        self.pipes.retain(|pipe| pipe.of != pid || pipe.logged);
        let place = self.processes.iter().position(|p| p.pid == pid);
        let Some(process) = place.map(|place| self.processes.remove(place)) else {
            return Ok((None, String::new()));
        };
        Ok((process.status.filter(|_| in_time), process.tail.text()))
    }

    /// Waits for a descriptor until the deadline; whether it got ready.
    pub(super) fn wait(
        &mut self,
        fd: BorrowedFd<'_>,
        flags: PollFlags,
        deadline: Instant,
    ) -> Result<bool, Interrupt> {
        loop {
            let ready = self.step(Some((fd, flags)), Some(deadline));
            self.check()?;
            if ready || Instant::now() >= deadline {
                return Ok(ready);
            }
        }
    }

    /// Lets time pass.
    pub(super) fn sleep_until(&mut self, deadline: Instant) -> Result<(), Interrupt> {
        while Instant::now() < deadline {
            self.step(None, Some(deadline));
            self.check()?;
        }
        Ok(())
    }

    /// Whether the current stage may go on.
    pub(super) fn check(&self) -> Result<(), Interrupt> {
        if let Some(status) = self.service_status() {
            return Err(Interrupt::ServiceExited(status));
        }
        self.stop
            .map_or(Ok(()), |grace| Err(Interrupt::Stop(grace)))
    }

    /// One round: waits until something happens, or the deadline, and handles it. True if
    /// the awaited descriptor is ready.
    pub(super) fn step(
        &mut self,
        awaited: Option<(BorrowedFd<'_>, PollFlags)>,
        deadline: Option<Instant>,
    ) -> bool {
        let mut awaited_ready = false;
        for source in self.poll(awaited, deadline) {
            match source {
                Source::Signals => self.handle_signals(),
                Source::Log => self.log.send_some(),
                Source::Notify => self.notify.iter_mut().for_each(NotifySocket::receive),
                Source::Requests => {
                    let stop = self.requests.as_mut().and_then(Requests::handle);
                    self.stop = self.stop.or(stop);
                }
                Source::Process => self.reap(),
                Source::Pipe(number) => {
                    self.read_pipe(number);
                }
                Source::Awaited => awaited_ready = true,
            }
        }
        // Only now, so that the numbers above stay right.
        self.pipes.retain(|pipe| pipe.fd.is_some());
        awaited_ready
    }

    fn poll(
        &self,
        awaited: Option<(BorrowedFd<'_>, PollFlags)>,
        deadline: Option<Instant>,
    ) -> Vec<Source> {
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        if let Some(signals) = &self.signals {
            add(Source::Signals, signals.as_fd(), PollFlags::IN);
        }
        if let Some(log) = self.log.writer() {
            add(Source::Log, log, PollFlags::OUT);
        }
        if let Some(notify) = &self.notify {
            add(Source::Notify, notify.as_fd(), PollFlags::IN);
        }
        for process in self.processes.iter().filter(|p| p.status.is_none()) {
            add(Source::Process, process.pidfd.as_fd(), PollFlags::IN);
        }
        for (number, pipe) in self.pipes.iter().enumerate() {
            if let Some(fd) = pipe
                .fd
                .as_ref()
                .filter(|_| !(pipe.logged && self.log.is_full()))
            {
                add(Source::Pipe(number), fd.as_fd(), PollFlags::IN);
            }
        }
        for (fd, flags) in self.requests.iter().flat_map(Requests::awaited) {
            add(Source::Requests, fd, flags);
        }
        if let Some((fd, flags)) = awaited {
            add(Source::Awaited, fd, flags);
        }
        let timeout = deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
            .and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) | Err(_) => Vec::new(),
            Ok(_) => sources
                .into_iter()
                .zip(fds)
                .filter(|(_, fd)| !fd.revents().is_empty())
                .map(|(s, _)| s)
                .collect(),
        }
    }

    fn handle_signals(&mut self) {
        while let Some(signal) = self.signals.as_ref().and_then(Signals::next) {
            if signal == libc::SIGCHLD {
                self.reap();
            } else {
                self.stop = self.stop.or(Some(SIGNAL_GRACE));
            }
        }
    }

    /// Collects what has ended: the processes known here, and as PID 1 also every orphan.
    fn reap(&mut self) {
        for process in self.processes.iter_mut().filter(|p| p.status.is_none()) {
            if let Ok(Some((_, status))) =
                rustix::process::waitpid(Some(process.pid), WaitOptions::NOHANG)
            {
                process.status = Some(exit_status(status));
            }
        }
        // Only an init has signals of its own here, and only an init may collect the children
        // of others.
        if self.signals.is_some() {
            while let Ok(Some((pid, status))) = rustix::process::waitpid(None, WaitOptions::NOHANG)
            {
                if let Some(process) = self.processes.iter_mut().find(|p| p.pid == pid) {
                    process.status = Some(exit_status(status));
                }
            }
        }
    }

    /// Reads what is in the pipes now, of one process or of all.
    pub(super) fn drain(&mut self, of: Option<Pid>) {
        for number in 0..self.pipes.len() {
            // A process that never stops writing must not hold us up.
            let mut rounds = 0;
            while of.is_none_or(|pid| pid == self.pipes[number].of)
                && rounds < 64
                && self.read_pipe(number)
            {
                rounds += 1;
            }
        }
        self.pipes.retain(|pipe| pipe.fd.is_some());
    }

    /// Sends what waits for the host, for as long as it takes any.
    pub(super) fn flush_log(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while let Some(writer) = self.log.writer() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(timeout) = Timespec::try_from(left) else {
                return;
            };
            let waited = poll(
                &mut [PollFd::from_borrowed_fd(writer, PollFlags::OUT)],
                Some(&timeout),
            );
            if left.is_zero() || waited == Ok(0) {
                return;
            }
            self.log.send_some();
        }
    }

    /// Reads a pipe once; whether there was something.
    fn read_pipe(&mut self, number: usize) -> bool {
        let pipe = &mut self.pipes[number];
        let Some(fd) = &pipe.fd else { return false };
        let bytes = match rustix::io::read(fd, &mut *self.buffer) {
            Ok(n) if n > 0 => &self.buffer[..n],
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return false,
            Ok(_) | Err(_) => {
                pipe.fd = None;
                return false;
            }
        };
        let unix = pipe.console.as_mut().map(|lines| lines.unix(bytes));
        let bytes = unix.as_deref().unwrap_or(bytes);
        if let Some(process) = self.processes.iter_mut().find(|p| p.pid == pipe.of) {
            process.tail.push(bytes);
        }
        if self.service == Some(pipe.of)
            && let Some(matcher) = &mut self.matcher
        {
            matcher.push(pipe.stream, bytes);
        }
        if pipe.logged {
            self.log.push(pipe.stream, bytes);
        }
        true
    }

    /// Looks for a pattern in the service's lines from now on.
    pub(super) fn match_lines(&mut self, pattern: Regex) {
        self.matcher = Some(LineMatcher::new(pattern));
    }
}

fn exit_status(status: WaitStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Exited(code),
        (None, signal) => ExitStatus::Signaled(signal.unwrap_or(0)),
    }
}
