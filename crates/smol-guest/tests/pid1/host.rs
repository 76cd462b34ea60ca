//! The host, played: a guest with its cgroup, its initramfs and the other ends of its streams.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smol_protocol::log::{Decoder, Stream};
use smol_protocol::*;
use smol_testing::LIMIT;

use super::{ROOT, itself};

/// A cgroup that a guest sees as the root, so that guests and tests do not meet.
struct GuestCgroup(PathBuf);

impl GuestCgroup {
    fn of(root: &Path) -> GuestCgroup {
        let hierarchy = root.join("hierarchy");
        fs::create_dir(&hierarchy).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", &hierarchy, "cgroup2", flags, None).unwrap();
        let path = hierarchy.join(format!("smol-pid1-{}", root.file_name().unwrap().display()));
        fs::create_dir(&path).unwrap();
        GuestCgroup(path)
    }
}

impl Drop for GuestCgroup {
    fn drop(&mut self) {
        remove_cgroup(&self.0);
        let _ = rustix::mount::unmount(
            self.0.parent().unwrap(),
            rustix::mount::UnmountFlags::DETACH,
        );
    }
}

/// Removes a cgroup with those that are in it.
fn remove_cgroup(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    // What has just been killed is in it for another moment.
    for _ in 0..100 {
        match fs::remove_dir(cgroup) {
            Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(10));
            }
            _ => break,
        }
    }
}

/// A guest and its host's ends of the streams. The fields are dropped in this order.
pub struct Guest {
    _cgroup: GuestCgroup,
    pub dir: tempfile::TempDir,
    child: Child,
    control: UnixListener,
    logs: UnixListener,
    events: BufReader<UnixStream>,
    log: UnixStream,
}

impl Guest {
    /// Boots a configuration, once `prepare` has put more into the initramfs.
    pub fn boot(config: &Value, prepare: impl FnOnce(&Path)) -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        initramfs(root);
        fs::create_dir(root.join("smol")).unwrap();
        fs::write(root.join("smol/config.json"), config.to_string()).unwrap();
        fs::write(root.join("init"), "").unwrap();
        prepare(root);
        let control = listen(root, CONTROL_PORT);
        let logs = listen(root, LOG_PORT);
        let console = fs::File::create(root.join("console")).unwrap();
        let cgroup = GuestCgroup::of(root);
        let procs = cgroup.0.join("cgroup.procs");
        let mut command = itself(
            "pid1",
            &["--pid", "--fork", "--mount", "--uts", "--ipc", "--cgroup"],
        );
        command.env(ROOT, root).stdin(Stdio::null()).stderr(console);
        // The namespace's root is the cgroup it is made in.
        let join = move || fs::write(&procs, "0");
        // SAFETY: the test has one thread here, so the child may do what any process may.
        let child = unsafe { command.pre_exec(join) }.spawn().unwrap();
        let events = accept(&control);
        // Absent when the guest fails before it comes to it: then nobody reads it either.
        let log = accept_before_end(&logs, &events);
        let log = log.unwrap_or_else(|| UnixStream::pair().unwrap().0);
        Guest {
            _cgroup: cgroup,
            dir,
            child,
            control,
            logs,
            events: BufReader::new(events),
            log,
        }
    }

    /// The next event; `None` at the end of the stream.
    pub fn next(&mut self) -> Option<Event> {
        let mut line = Vec::new();
        self.events.read_until(b'\n', &mut line).unwrap();
        (!line.is_empty()).then(|| decode_line(&line).unwrap())
    }

    pub fn expect(&mut self, wanted: &Event) {
        let event = self.next();
        assert_eq!(event.as_ref(), Some(wanted), "{}", self.console());
    }

    /// Skips to the first event that is not about waiting.
    pub fn until_ready(&mut self) {
        self.expect(&Event::Booted);
        loop {
            match self.next() {
                Some(Event::Ready { .. }) => return,
                Some(
                    Event::ProbeFailed { .. }
                    | Event::ServiceStarted { .. }
                    | Event::Warning { .. },
                ) => {}
                other => panic!("{other:?}: {}", self.console()),
            }
        }
    }

    /// Returns the next event that is a failure.
    pub fn failure(&mut self) -> GuestFailure {
        loop {
            match self.next() {
                Some(Event::Failed(failure)) => return failure,
                Some(_) => {}
                None => panic!("the stream ended without a failure: {}", self.console()),
            }
        }
    }

    /// All output of the service until its stream ends.
    pub fn output(&mut self) -> (String, String) {
        let mut decoder = Decoder::default();
        let mut bytes = Vec::new();
        self.log.read_to_end(&mut bytes).unwrap();
        decoder.push(&bytes);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some(frame) = decoder.next_frame().unwrap() {
            match frame.stream {
                Stream::Stdout => out.extend(frame.bytes),
                Stream::Stderr => err.extend(frame.bytes),
            }
        }
        assert!(decoder.is_empty());
        (
            String::from_utf8(out).unwrap(),
            String::from_utf8(err).unwrap(),
        )
    }

    /// The "restore": the stream breaks, and the guest comes back on a new one.
    pub fn break_stream(&mut self) {
        let (other, _) = UnixStream::pair().unwrap();
        self.events = BufReader::new(other);
    }

    /// The guest's new stream, on which it says that it was restored.
    pub fn meet_again(&mut self) {
        self.events = BufReader::new(accept(&self.control));
        self.expect(&Event::Restored);
    }

    /// Answers Restored with an identity.
    pub fn give_identity(&mut self, test_restore: bool) {
        self.give_parameters(test_restore);
        let event = self.next();
        let Some(Event::Resumed { sample }) = event else {
            panic!("{event:?} {}", self.console());
        };
        assert_eq!(sample.len(), 32);
        assert_ne!(sample, "0".repeat(32));
    }

    pub fn give_parameters(&mut self, test_restore: bool) {
        self.meet_again();
        let params = RestoreParams {
            entropy: Entropy::new(vec![7; 64]).unwrap(),
            wall_clock_ns: 1_800_000_000_123_456_789,
            machine_id: MachineId::from_random([9; 16]),
            hostname: Some("clone".into()),
            online_cpus: 1,
            test_restore,
        };
        self.send(&encode_line(&params).unwrap());
        self.log = accept(&self.logs);
    }

    /// Sends bytes on the control stream.
    pub fn send(&mut self, bytes: &[u8]) {
        self.events.get_mut().write_all(bytes).unwrap();
    }

    pub fn request(&self, request: &Request) -> Reply {
        let mut stream = self.connect(REQUEST_PORT);
        stream.write_all(&encode_line(request).unwrap()).unwrap();
        let mut line = Vec::new();
        BufReader::new(stream).read_until(b'\n', &mut line).unwrap();
        decode_line(&line).unwrap()
    }

    /// An HTTP answer through a forward.
    pub fn get(&self, port: u16, path: &str) -> String {
        let mut stream = self.connect(FORWARD_PORT);
        write!(stream, "{{\"port\":{port}}}\nGET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn connect(&self, port: u32) -> UnixStream {
        let stream = UnixStream::connect_addr(&address(self.dir.path(), port)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// Whether somebody in the guest has this port already.
    pub fn has_port(&self, port: u32) -> bool {
        UnixListener::bind_addr(&address(self.dir.path(), port)).is_err()
    }

    /// A path as the guest sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let pid1 = fs::read_to_string(children).unwrap();
        PathBuf::from(format!("/proc/{}/root{path}", pid1.trim()))
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    pub fn console(&self) -> String {
        fs::read_to_string(self.dir.path().join("console")).unwrap_or_default()
    }

    /// The guest has said everything and resets itself; so its namespace ends.
    pub fn ends(mut self) {
        assert_eq!(self.next(), None, "{}", self.console());
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
                None => panic!("the guest does not end: {}", self.console()),
            }
        };
        // reboot(2): a restart ends a PID namespace with SIGHUP; unshare passes it on.
        assert!(
            status.signal() == Some(1) || status.code() == Some(129),
            "{status}: {}",
            self.console()
        );
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Killing PID 1 ends everything in its namespace; it may have ended already.
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let pid1 = fs::read_to_string(children)
            .ok()
            .and_then(|pid| pid.trim().parse().ok());
        if let Some(pid) = pid1.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

fn address(root: &Path, port: u32) -> SocketAddr {
    SocketAddr::from_abstract_name(format!("smol-pid1-{}-{port}", root.display())).unwrap()
}

fn listen(root: &Path, port: u32) -> UnixListener {
    UnixListener::bind_addr(&address(root, port)).unwrap()
}

fn accept(listener: &UnixListener) -> UnixStream {
    accept_within(listener, LIMIT).expect("the guest does not connect")
}

/// The guest's next connection; `None` if it ends `events` before.
fn accept_before_end(listener: &UnixListener, events: &UnixStream) -> Option<UnixStream> {
    use rustix::net::{RecvFlags, recv};
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let ended = matches!(recv(events, &mut byte, flags), Ok((0, _)));
        let found = accept_within(listener, Duration::from_millis(20));
        if found.is_some() || ended {
            return found;
        }
    }
    panic!("the guest neither connects nor ends");
}

fn accept_within(listener: &UnixListener, limit: Duration) -> Option<UnixStream> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec::try_from(limit).unwrap();
    poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&limit))
        .ok()
        .filter(|n| *n > 0)?;
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    Some(stream)
}

/// A small world: busybox and its links, a web folder.
pub fn initramfs(root: &Path) {
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("www")).unwrap();
    fs::write(root.join("www/index.html"), "from before the snapshot\n").unwrap();
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap();
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "httpd", "sleep", "cat", "id", "touch", "false", "wget", "stat", "hostname", "mkdir",
        "head", "grep",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

pub fn config(script: &str, probe: &Value) -> Value {
    json!({
        "hostname": "built",
        "service": {"cmd": ["sh", "-c", script], "env": {"COLOUR": "blue"}},
        "ready": {"probe": probe, "timeout_ms": 600_000, "interval_ms": 50},
        "snapshot": {"drop_caches": false},
    })
}

pub fn touch_and_sleep() -> Value {
    config(
        "echo up; touch /run/up; sleep 1000",
        &json!({"file": {"path": "/run/up"}}),
    )
}
