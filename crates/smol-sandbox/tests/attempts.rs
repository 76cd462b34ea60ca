//! What a confined process tries in vain, and can do without confinement: each attempt is made by a
//! process of its own, which is this program again.

use std::fs::File;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;

use smol_sandbox::{Access, Filter, Mode, Support};

/// Tells [`attempt`] what to try, and how it is confined.
const WHAT: &str = "SANDBOX_TEST_WHAT";
const BY: &str = "SANDBOX_TEST_BY";
/// A folder with the file `mine`, which may be used, and the folder `others`, which may not.
const FOLDER: &str = "SANDBOX_TEST_FOLDER";

/// How an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It succeeds.
    Done,
    /// The call fails with EACCES or EPERM.
    Denied,
    /// The process is killed by SIGSYS.
    Killed,
}

const DENIED: i32 = 77;

fn end_of(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(0), _) => End::Done,
        (Some(DENIED), _) => End::Denied,
        (_, Some(libc::SIGSYS)) => End::Killed,
        other => panic!("{other:?}"),
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Maps a page that can be executed.
fn map_executable() -> io::Result<()> {
    let prot = libc::PROT_READ | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, which nobody uses.
    match unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn try_it(what: &str, folder: &Path) -> io::Result<()> {
    let others = folder.join("others");
    let parent = rustix::process::getppid()
        .expect("a parent")
        .as_raw_nonzero()
        .get();
    match what {
        "read ours" => std::fs::read(folder.join("mine")).map(drop),
        "thread" => thread::spawn(|| ())
            .join()
            .map_err(|_| io::Error::other("it died")),
        "read" => std::fs::read(others.join("secret")).map(drop),
        "read by a thread" => thread::spawn(move || std::fs::read(others.join("secret")).map(drop))
            .join()
            .expect("it does not panic"),
        "write" => File::create(others.join("new")).map(drop),
        "connect" => {
            let port = std::fs::read_to_string(folder.join("mine"))?;
            TcpStream::connect(("127.0.0.1", port.trim().parse().expect("a port"))).map(drop)
        }
        "listen" => TcpListener::bind("127.0.0.1:0").map(drop),
        "send a datagram" => {
            let socket = UnixDatagram::unbound()?;
            socket.send_to(b"x", others.join("socket")).map(drop)
        }
        "send a packet of one's own" => {
            // SAFETY: makes a socket, which nobody uses.
            check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_UDP) }.into())
        }
        "execute" => Command::new("/bin/true").status().map(drop),
        // SAFETY: signal 0 only asks whether it could be sent.
        "signal" => check(unsafe { libc::kill(parent, 0) }.into()),
        // SAFETY: asks to trace the parent, which the test does not mind.
        "trace" => check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, parent, 0, 0) }),
        "map executable memory" => map_executable(),
        // SAFETY: the child ends at once.
        "fork" => match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: ends the child without running anything of the parent's.
            0 => unsafe { libc::_exit(0) },
            _ => Ok(()),
        },
        other => panic!("{other}"),
    }
}

fn confine(by: &str, folder: &Path) -> io::Result<()> {
    let access = || Access::none().read(folder.join("mine")).read("/proc");
    let mode = Mode::On;
    match by {
        "nothing" => Ok(()),
        "off" => {
            access().restrict_thread(Mode::Off)?;
            Filter::Machine.restrict_process(Mode::Off)
        }
        "access" => access().restrict_thread(mode),
        "machine" => Filter::Machine.restrict_process(mode),
        "build" => Filter::Build.restrict_process(mode),
        "files" => Filter::Files.restrict_process(mode),
        "network" => Filter::Network.restrict_thread(mode),
        "local" => Filter::Local.restrict_process(mode),
        other => panic!("{other}"),
    }
}

#[test]
#[ignore = "run by another test"]
fn attempt() {
    let (what, by) = (std::env::var(WHAT).unwrap(), std::env::var(BY).unwrap());
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    // On the main thread of the harness's process nothing else may be confined than this thread,
    // whose status is that of the process.
    confine(&by, &folder).unwrap();
    let code = match try_it(&what, &folder) {
        Ok(()) => 0,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => DENIED,
        Err(e) => panic!("{what}: {e}"),
    };
    std::process::exit(code);
}

struct Scene {
    folder: tempfile::TempDir,
    _listener: TcpListener,
    _socket: UnixDatagram,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let others = folder.path().join("others");
        std::fs::create_dir(&others).unwrap();
        std::fs::write(others.join("secret"), "s").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::fs::write(folder.path().join("mine"), port.to_string()).unwrap();
        let socket = UnixDatagram::bind(others.join("socket")).unwrap();
        Self {
            folder,
            _listener: listener,
            _socket: socket,
        }
    }

    fn attempt(&self, what: &str, by: &str) -> End {
        let status = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "attempt",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(WHAT, what)
            .env(BY, by)
            .env(FOLDER, self.folder.path())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        end_of(status)
    }
}

#[test]
fn what_a_process_needs_it_can_do_confined() {
    let scene = Scene::new();
    for by in [
        "nothing", "off", "access", "machine", "build", "files", "local",
    ] {
        for what in ["read ours", "thread"] {
            assert_eq!(scene.attempt(what, by), End::Done, "{what} with {by}");
        }
    }
}

#[test]
fn what_is_forbidden_fails_or_kills_and_succeeds_without_confinement() {
    use End::{Denied, Done, Killed};
    // With Landlock; with the filters of a machine, a build and of files; with that of a program
    // that is yet to start a machine.
    let table = [
        ("read", [Denied, Done, Done]),
        ("read by a thread", [Denied, Done, Done]),
        ("write", [Denied, Done, Done]),
        ("connect", [Denied, Killed, Denied]),
        ("listen", [Denied, Killed, Done]),
        ("send a datagram", [Done, Killed, Done]),
        ("execute", [Denied, Killed, Done]),
        ("signal", [Denied, Killed, Done]),
        ("trace", [Denied, Killed, Denied]),
        ("map executable memory", [Done, Killed, Done]),
        ("fork", [Done, Killed, Done]),
    ];
    let scene = Scene::new();
    assert_eq!(
        Support::here().missing(),
        None,
        "this host can run the test"
    );
    for (what, [access, listed, local]) in table {
        for (by, end) in [
            ("nothing", Done),
            ("off", Done),
            ("access", access),
            ("machine", listed),
            ("build", listed),
            ("files", listed),
            ("local", local),
        ] {
            assert_eq!(scene.attempt(what, by), end, "{what} with {by}");
        }
    }
}

#[test]
fn a_thread_that_serves_a_network_connects_and_what_else_it_tries_fails() {
    use End::{Denied, Done};
    let scene = Scene::new();
    for (what, end) in [
        ("read ours", Done),
        ("connect", Done),
        ("write", Denied),
        ("listen", Denied),
        ("send a datagram", Denied),
        ("send a packet of one's own", Denied),
        ("execute", Denied),
        ("signal", Denied),
        ("trace", Denied),
        ("map executable memory", Denied),
        ("fork", Denied),
    ] {
        assert_eq!(scene.attempt(what, "network"), end, "{what}");
        if what != "send a packet of one's own" || rustix::process::geteuid().is_root() {
            assert_eq!(scene.attempt(what, "nothing"), Done, "{what}");
        }
    }
}

#[test]
fn a_process_goes_on_when_its_network_has_tried_what_it_may_not() {
    let scene = Scene::new();
    let new = scene.folder.path().join("others/new");
    let work = || std::fs::write(&new, "x");
    let tried = smol_sandbox::confined(&Access::none(), Filter::Network, Mode::On, work);
    let error = tried.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    std::fs::write(&new, "x").unwrap();
    thread::spawn(|| ()).join().unwrap();
}

#[test]
fn work_on_a_confined_thread_is_confined_and_the_rest_of_the_process_is_not() {
    if let Some(missing) = Support::here().missing() {
        return smol_testing::left_out(missing);
    }
    let scene = Scene::new();
    let secret = scene.folder.path().join("others/secret");
    let access = Access::none().read(scene.folder.path().join("mine"));
    let read = || std::fs::read(&secret).is_ok();
    let inside = smol_sandbox::confined(&access, Filter::Files, Mode::On, read).unwrap();
    assert!(!inside && read());
}
