//! The whole init, as PID 1 of a namespace of its own: real mounts, a real cgroup, a real
//! service, a host that is played by this program over Unix sockets.
//!
//! The program runs itself three times over: as the test; in a network namespace, where the
//! scenarios are; and as PID 1. What would hurt the machine (setting its clock) goes to the
//! test's own [`Platform`]; a reset of a PID namespace only ends the namespace.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smol_guest::init::platform::{HostLink, Platform};
use smol_guest::log::{Decoder, Stream};
use smol_guest::protocol::*;

const ROLE: &str = "SMOL_TEST_ROLE";
const ROOT: &str = "SMOL_TEST_ROOT";
const LIMIT: Duration = Duration::from_secs(30);

fn main() {
    match std::env::var(ROLE).as_deref() {
        Ok("pid1") => be_pid1(&PathBuf::from(std::env::var_os(ROOT).unwrap())),
        Ok("scenarios") => scenarios(),
        _ => {
            if let Some(why) = cannot_run() {
                println!("pid1: skipped: {why}");
                return;
            }
            let status = itself("scenarios", &["--net", "--mount"]).status().unwrap();
            assert!(status.success(), "{status}");
        }
    }
}

fn cannot_run() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, for namespaces and mounts");
    }
    let there = |program: &str| {
        ["/bin", "/usr/bin", "/sbin", "/usr/sbin"]
            .iter()
            .any(|dir| Path::new(dir).join(program).exists())
    };
    if !there("unshare") || !there("busybox") {
        return Some("needs unshare (util-linux) and busybox (busybox-static)");
    }
    None
}

/// This program in a new namespace and role.
fn itself(role: &str, namespaces: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(namespaces)
        .arg(std::env::current_exe().unwrap())
        .env(ROLE, role);
    command
}

fn scenarios() {
    let all: [(&str, fn()); 9] = [
        (
            "a build is frozen for its snapshot and resumes with a new identity",
            build_and_restore,
        ),
        (
            "a kernel with a snapshot device gets no open stream into the snapshot",
            snapshot_device,
        ),
        (
            "a cold boot runs from the root file system as its user and passes the exit code on",
            cold_boot,
        ),
        (
            "a service that ends before it is ready fails at once with its status",
            ends_early,
        ),
        ("a program that is missing is named", missing_program),
        (
            "a warm command that fails ends the build with its output",
            warm_fails,
        ),
        (
            "a restore command that fails ends the machine before its service runs on",
            restore_fails,
        ),
        (
            "a service that ignores SIGTERM is killed after the grace time",
            ignores_sigterm,
        ),
        (
            "without restore parameters the service never runs on",
            no_identity,
        ),
    ];
    for (name, scenario) in all {
        print!("pid1: {name} ... ");
        std::io::stdout().flush().unwrap();
        scenario();
        println!("ok");
    }
}

// ---------------------------------------------------------------- PID 1

fn be_pid1(root: &Path) -> ! {
    // A mistake here would reset the machine.
    assert!(rustix::process::getpid().is_init() && std::env::var_os(ROOT).is_some());
    let prefix = format!("smol-pid1-{}", root.display());
    rustix::process::chroot(root).unwrap();
    std::env::set_current_dir("/").unwrap();
    smol_guest::init::run(&Platform {
        host: HostLink::Local(prefix),
        console: "/proc/self/fd/2".into(),
        snapshot_device: "/smol/device".into(),
        set_clock: |time| fs::write("/run/clock", time.as_nanos().to_string()),
    })
}

// ---------------------------------------------------------------- the host

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
        for cgroup in [self.0.join("service"), self.0.clone()] {
            // What has just been killed is in it for another moment.
            for _ in 0..100 {
                match fs::remove_dir(&cgroup) {
                    Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    _ => break,
                }
            }
        }
        let _ = rustix::mount::unmount(
            self.0.parent().unwrap(),
            rustix::mount::UnmountFlags::DETACH,
        );
    }
}

/// A guest and its host's ends of the streams. The fields are dropped in this order.
struct Guest {
    _cgroup: GuestCgroup,
    dir: tempfile::TempDir,
    child: Child,
    control: UnixListener,
    logs: UnixListener,
    events: BufReader<UnixStream>,
    log: UnixStream,
}

impl Guest {
    /// Boots a configuration, once `prepare` has put more into the initramfs.
    fn boot(config: &Value, prepare: impl FnOnce(&Path)) -> Guest {
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
        let log = accept_soon(&logs).unwrap_or_else(|| UnixStream::pair().unwrap().0);
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
    fn next(&mut self) -> Option<Event> {
        let mut line = Vec::new();
        self.events.read_until(b'\n', &mut line).unwrap();
        (!line.is_empty()).then(|| decode_line(&line).unwrap())
    }

    fn expect(&mut self, wanted: &Event) {
        let event = self.next();
        assert_eq!(event.as_ref(), Some(wanted), "{}", self.console());
    }

    /// Skips to the first event that is not about waiting.
    fn until_ready(&mut self) {
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

    /// What was failing, after the events before it.
    fn failure(&mut self) -> Event {
        loop {
            match self.next() {
                Some(failed @ Event::Failed { .. }) => return failed,
                Some(_) => {}
                None => panic!("the stream ended without a failure: {}", self.console()),
            }
        }
    }

    /// All output of the service until its stream ends.
    fn output(&mut self) -> (String, String) {
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

    /// Answers Restored with an identity.
    fn give_identity(&mut self) {
        self.give_parameters();
        let event = self.next();
        let Some(Event::Resumed { sample }) = event else {
            panic!("{event:?} {}", self.console());
        };
        assert_eq!(sample.len(), 32);
        assert_ne!(sample, "0".repeat(32));
    }

    fn give_parameters(&mut self) {
        self.events = BufReader::new(accept(&self.control));
        self.expect(&Event::Restored);
        let params = RestoreParams {
            entropy: Entropy::new(vec![7; 64]).unwrap(),
            wall_clock_ns: 1_800_000_000_123_456_789,
            machine_id: MachineId::from_random([9; 16]),
            hostname: Some("clone".into()),
            online_cpus: 1,
            rehearsal: false,
        };
        self.events
            .get_mut()
            .write_all(&encode_line(&params).unwrap())
            .unwrap();
        self.log = accept(&self.logs);
    }

    fn request(&self, request: &Request) -> Reply {
        let mut stream = self.connect(REQUEST_PORT);
        stream.write_all(&encode_line(request).unwrap()).unwrap();
        let mut line = Vec::new();
        BufReader::new(stream).read_until(b'\n', &mut line).unwrap();
        decode_line(&line).unwrap()
    }

    /// An HTTP answer through a forward.
    fn get(&self, port: u16, path: &str) -> String {
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

    /// A path as the guest sees it.
    fn path(&self, path: &str) -> PathBuf {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let pid1 = fs::read_to_string(children).unwrap();
        PathBuf::from(format!("/proc/{}/root{path}", pid1.trim()))
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn console(&self) -> String {
        fs::read_to_string(self.dir.path().join("console")).unwrap_or_default()
    }

    /// The guest has said everything and resets itself; so its namespace ends.
    fn ends(mut self) {
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

fn accept_soon(listener: &UnixListener) -> Option<UnixStream> {
    accept_within(listener, Duration::from_secs(5))
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
fn initramfs(root: &Path) {
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
        "grep",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

fn config(script: &str, probe: &Value) -> Value {
    json!({
        "hostname": "built",
        "service": {"cmd": ["sh", "-c", script], "env": {"COLOUR": "blue"}},
        "ready": {"probe": probe, "timeout_ms": 20000, "interval_ms": 50},
        "snapshot": {"drop_caches": false},
    })
}

fn touch_and_sleep() -> Value {
    config(
        "echo up; touch /run/up; sleep 1000",
        &json!({"file": {"path": "/run/up"}}),
    )
}

// ---------------------------------------------------------------- scenarios

fn build_and_restore() {
    let script = "echo hello $COLOUR; echo oops >&2; exec httpd -f -p 8080 -h /www";
    let mut config = config(
        script,
        &json!({"http": {"port": 8080, "path": "/", "body": "^from before"}}),
    );
    config["warm"] =
        json!([{"cmd": ["sh", "-c", "echo warming; hostname > /www/warm"], "timeout_ms": 10000}]);
    let look = "cat /etc/machine-id /sys/fs/cgroup/service/cgroup.events > /run/rekeyed";
    config["restore"] = json!([{"cmd": ["sh", "-c", look], "timeout_ms": 10000}]);
    let mut guest = Guest::boot(&config, |_| {});
    guest.until_ready();
    guest.expect(&Event::WarmStarted { index: 0 });
    let status = ExitStatus::Exited(0);
    guest.expect(&Event::WarmFinished {
        index: 0,
        status,
        output_tail: "warming".into(),
    });
    guest.expect(&Event::Quiesced);
    guest.expect(&Event::Snapshot);
    // The log stream ended with the build, complete.
    assert_eq!(
        guest.output(),
        ("hello blue\nwarming\n".into(), "oops\n".into())
    );
    assert!(
        guest
            .read("/sys/fs/cgroup/service/cgroup.events")
            .contains("frozen 1")
    );
    assert_eq!(guest.read("/etc/machine-id"), "uninitialized\n");
    assert_eq!(guest.read("/etc/hostname"), "built\n");

    // The "restore": the stream breaks, and the guest comes back on a new one.
    let (other, _) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut guest.events, BufReader::new(other)));
    guest.give_identity();
    assert_eq!(guest.read("/run/clock"), "1800000000123456789");
    assert_eq!(
        guest.read("/etc/machine-id"),
        "09090909090949098909090909090909\n"
    );
    let rekeyed = guest.read("/run/rekeyed");
    assert!(
        rekeyed.contains("0909090909094909") && rekeyed.contains("frozen 1"),
        "with the new identity, while the service stands still: {rekeyed}"
    );
    assert_eq!(guest.read("/etc/hostname"), "clone\n");
    assert!(
        guest
            .read("/etc/hosts")
            .contains("127.0.0.1 localhost clone\n")
    );
    assert_eq!(guest.request(&Request::Ping), Reply::Pong);
    assert!(
        guest.get(8080, "/warm").ends_with("built\n"),
        "{}",
        guest.get(8080, "/warm")
    );
    assert!(guest.get(8081, "/").contains("refused"));

    assert_eq!(
        guest.request(&Request::Shutdown { grace_ms: 10_000 }),
        Reply::Ok
    );
    guest.expect(&Event::Stopping);
    guest.expect(&Event::ServiceExited {
        status: ExitStatus::Signaled(15),
    });
    guest.ends();
}

fn snapshot_device() {
    let mut guest = Guest::boot(&touch_and_sleep(), |root| {
        // A FIFO stands for the device: its write returns when it is read.
        assert!(
            Command::new("mkfifo")
                .arg(root.join("smol/device"))
                .status()
                .unwrap()
                .success()
        );
    });
    let device = guest.dir.path().join("smol/device");
    let reader = std::thread::spawn(move || fs::read_to_string(device).unwrap());
    guest.until_ready();
    guest.expect(&Event::Quiesced);
    assert_eq!(guest.next(), None);
    assert_eq!(guest.output().0, "up\n");
    assert_eq!(reader.join().unwrap(), "1");
    guest.give_identity();
    assert!(
        guest
            .read("/sys/fs/cgroup/service/cgroup.events")
            .contains("frozen 0")
    );
    guest.request(&Request::Shutdown { grace_ms: 1000 });
    guest.expect(&Event::Stopping);
    guest.expect(&Event::ServiceExited {
        status: ExitStatus::Signaled(15),
    });
    guest.ends();
}

/// An EROFS image on a loop device, and what made it.
struct LoopDevice {
    path: String,
    _dir: tempfile::TempDir,
}

impl LoopDevice {
    fn with(fill: impl FnOnce(&Path)) -> Option<LoopDevice> {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        initramfs(&tree);
        fill(&tree);
        let image = dir.path().join("image");
        let made = Command::new("mkfs.erofs")
            .arg(&image)
            .arg(&tree)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !made.is_ok_and(|status| status.success()) {
            return None;
        }
        let output = Command::new("losetup")
            .args(["--find", "--show", "--read-only"])
            .arg(&image)
            .output()
            .ok()?;
        let path = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        output
            .status
            .success()
            .then_some(LoopDevice { path, _dir: dir })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
    }
}

fn cold_boot() {
    let device = LoopDevice::with(|tree| {
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::write(
            tree.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nsvc:x:101:102::/srv:/bin/sh\n",
        )
        .unwrap();
        fs::write(tree.join("etc/group"), "svc:x:102:\nextra:x:200:svc\n").unwrap();
        fs::write(
            tree.join("etc/machine-id"),
            "00000000000000000000000000000bad\n",
        )
        .unwrap();
        fs::create_dir_all(tree.join("run/svc")).unwrap();
        std::os::unix::fs::chown(tree.join("run/svc"), Some(101), Some(102)).unwrap();
        fs::set_permissions(tree.join("run/svc"), fs::Permissions::from_mode(0o750)).unwrap();
        fs::create_dir_all(tree.join("srv")).unwrap();
        fs::set_permissions(tree.join("srv"), fs::Permissions::from_mode(0o777)).unwrap();
    });
    let Some(device) = device else {
        print!("skipped (needs mkfs.erofs and loop devices) ... ");
        return;
    };
    let script = "id; pwd; echo $HOME $USER; stat -c %a-%u-%g /run/svc; grep -c '^overlay / ' /proc/mounts; \
                  touch new; mkdir /run/svc/ready; grep ^0: /proc/self/cgroup; cat; while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 3";
    let mut config = config(
        script,
        &json!({"exec": {"cmd": ["stat", "/run/svc/ready"]}}),
    );
    config["service"]["user"] = json!("svc");
    config["service"]["workdir"] = json!("/srv");
    config["rootfs"] = json!({"device": device.path});
    config["mode"] = json!("run");
    config["warm"] = json!([{"cmd": ["false"], "timeout_ms": 1}]);
    let mut guest = Guest::boot(&config, |_| {});
    guest.expect(&Event::Booted);
    match guest.next() {
        Some(Event::Warning {
            stage: Stage::Boot,
            reason,
        }) => assert!(reason.contains("without DAX"), "{reason}"),
        other => panic!("a loop device has no DAX, but no warning came: {other:?}"),
    }
    let id = guest.read("/etc/machine-id");
    assert!(
        id.len() == 33 && !id.ends_with("00000bad\n") && &id[12..13] == "4",
        "{id}"
    );
    loop {
        match guest.next() {
            Some(Event::ServiceStarted { .. } | Event::ProbeFailed { .. }) => {}
            Some(Event::Ready { .. }) => break,
            other => panic!("{other:?}: {}", guest.console()),
        }
    }
    fs::write(guest.path("/tmp/go"), "").unwrap();
    guest.expect(&Event::ServiceExited {
        status: ExitStatus::Exited(3),
    });
    let (out, err) = guest.output();
    assert_eq!(
        out.lines().collect::<Vec<_>>(),
        [
            "uid=101(svc) gid=102(svc) groups=102(svc),200(extra)",
            "/srv",
            "/srv svc",
            "750-101-102",
            "1",
            "0::/service",
        ],
        "{err}"
    );
    guest.ends();
}

fn ends_early() {
    let config = config("echo no luck; exit 7", &json!({"tcp": {"port": 8080}}));
    let mut guest = Guest::boot(&config, |_| {});
    let Event::Failed {
        stage,
        reason,
        probe,
        service_status,
        ..
    } = guest.failure()
    else {
        unreachable!()
    };
    assert_eq!(
        (stage, service_status),
        (Stage::Ready, Some(ExitStatus::Exited(7)))
    );
    assert_eq!(probe, Some(Probe::Tcp { port: 8080 }));
    assert!(reason.contains("exit code 7"), "{reason}");
    assert_eq!(guest.output().0, "no luck\n");
    guest.ends();
}

fn missing_program() {
    let mut config = touch_and_sleep();
    config["service"]["cmd"] = json!(["/usr/bin/redis-server"]);
    let mut guest = Guest::boot(&config, |_| {});
    let Event::Failed { stage, reason, .. } = guest.failure() else {
        unreachable!()
    };
    assert_eq!(stage, Stage::Service);
    assert!(
        reason.contains("cannot run /usr/bin/redis-server: No such file"),
        "{reason}"
    );
    guest.ends();
}

fn warm_fails() {
    let mut config = touch_and_sleep();
    config["warm"] =
        json!([{"cmd": ["sh", "-c", "echo table is missing >&2; exit 5"], "timeout_ms": 10000}]);
    let mut guest = Guest::boot(&config, |_| {});
    let Event::Failed {
        stage,
        reason,
        last_saw,
        service_status,
        ..
    } = guest.failure()
    else {
        unreachable!()
    };
    assert_eq!(
        (stage, service_status),
        (Stage::Warm, Some(ExitStatus::Exited(5)))
    );
    assert_eq!(last_saw.as_deref(), Some("table is missing"));
    assert!(reason.starts_with("warm command 0 (sh -c "), "{reason}");
    guest.ends();
}

fn restore_fails() {
    let mut config = touch_and_sleep();
    config["restore"] =
        json!([{"cmd": ["sh", "-c", "echo no entropy >&2; exit 6"], "timeout_ms": 10000}]);
    let mut guest = Guest::boot(&config, |_| {});
    guest.until_ready();
    guest.expect(&Event::Quiesced);
    guest.expect(&Event::Snapshot);
    let (other, _) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut guest.events, BufReader::new(other)));
    guest.give_parameters();
    let Event::Failed {
        stage,
        reason,
        last_saw,
        ..
    } = guest.failure()
    else {
        unreachable!()
    };
    assert_eq!(stage, Stage::Restore);
    assert_eq!(last_saw.as_deref(), Some("no entropy"));
    assert!(reason.starts_with("restore command 0 (sh -c "), "{reason}");
    guest.ends();
}

fn ignores_sigterm() {
    // A child in a session of its own is beyond the process group, but not the cgroup.
    let script = "trap '' TERM; (sleep 1000 &); touch /run/up; while true; do sleep 1; done";
    let mut config = config(script, &json!({"file": {"path": "/run/up"}}));
    config["mode"] = json!("run");
    let mut guest = Guest::boot(&config, |_| {});
    guest.until_ready();
    let begin = Instant::now();
    assert_eq!(
        guest.request(&Request::Shutdown { grace_ms: 500 }),
        Reply::Ok
    );
    guest.expect(&Event::Stopping);
    guest.expect(&Event::ServiceExited {
        status: ExitStatus::Signaled(9),
    });
    assert!(begin.elapsed() >= Duration::from_millis(500));
    guest.ends();
}

fn no_identity() {
    let mut guest = Guest::boot(&touch_and_sleep(), |_| {});
    guest.until_ready();
    guest.expect(&Event::Quiesced);
    guest.expect(&Event::Snapshot);
    let (other, _) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut guest.events, BufReader::new(other)));
    guest.events = BufReader::new(accept(&guest.control));
    guest.expect(&Event::Restored);
    guest
        .events
        .get_mut()
        .write_all(b"{\"entropy\":\"00\"}\n")
        .unwrap();
    let Event::Failed { stage, reason, .. } = guest.failure() else {
        unreachable!()
    };
    assert_eq!(stage, Stage::Restore);
    assert!(reason.starts_with("restore parameters: "), "{reason}");
    guest.ends();
}
