//! The emulated host for real: QEMU, Debian's kernel, this very program as its init and as the job.
//!
//! It has a `main` of its own (`harness = false`) because the emulated host runs the program that
//! starts it. Where there is no QEMU, or no kernel to be had, it says so and passes.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::exit;
use std::time::{Duration, Instant, SystemTime};

use smol_cli::Interrupt;
use smol_host::emulated::{self, EmulatedHost, Event, JobStatus, RunningHost, SELF};
use smol_host::{Accel, Backend, HostError, apt};

/// A name that reads as a sentence, and the test, given the cache.
type Test = (&'static str, fn(&Path));

fn main() {
    emulated::init::main_if_requested();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(job) = arguments.first().filter(|_| emulated::is_inside()) {
        exit(run_job(job, &arguments[1..]));
    }
    if arguments.iter().any(|argument| argument == "--list") {
        return;
    }
    if apt::find_program("qemu-system-x86_64").is_none() {
        println!("skipped: there is no qemu-system-x86_64");
        return;
    }
    let cache = tests_cache();
    if let Err(e) = emulated::kernel::Kernel::obtain(&cache) {
        println!("skipped: there is no kernel for the emulated host: {e}");
        return;
    }
    let tests: [Test; 8] = [
        (
            "a job reads and writes shared folders and its exit code comes back",
            files_and_exit_code,
        ),
        ("the probe of KVM passes inside", probe_passes),
        (
            "a forwarded port reaches the job and its channel carries bytes both ways",
            port_and_channel,
        ),
        (
            "output that is taken late is not lost when the job ends",
            late_reader,
        ),
        (
            "an interrupt reaches the job as SIGTERM",
            interrupt_is_sigterm,
        ),
        (
            "a job that ignores SIGTERM is ended after the grace",
            stubborn_job,
        ),
        (
            "a job that cannot be run is an error that names it",
            job_not_found,
        ),
        (
            "a port that is taken is an error with QEMU's words",
            port_taken,
        ),
    ];
    for (name, test) in tests {
        let start = Instant::now();
        test(&cache);
        println!("ok: {name} ({:.1} s)", start.elapsed().as_secs_f64());
    }
}

/// Bytes of output: more than a pipe and a frame hold, less than all buffers on the way.
const FLOOD: usize = 600 << 10;

/// Below the build folder: kept from run to run, like the product's own cache.
fn tests_cache() -> std::path::PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache")
}

// ---- Inside ------------------------------------------------------------------------------------

/// What this program does inside, by name; its result is the exit code.
fn run_job(name: &str, arguments: &[String]) -> i32 {
    match (name, arguments) {
        ("files", [input, output]) => {
            let text = fs::read_to_string(Path::new(input).join("in"))
                .expect("the shared file can be read");
            let read_only = fs::write(Path::new(input).join("x"), "").is_err();
            let big = vec![b'z'; 3 << 20];
            fs::write(Path::new(output).join("big"), big).expect("a result can be written");
            println!(
                "{} {read_only} {}",
                text.trim(),
                std::env::var("GREETING").unwrap_or_default()
            );
            println!(
                "{}",
                SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap()
                    .as_secs()
            );
            eprintln!("to stderr");
            7
        }
        ("probe", []) => match smol_machine::probe::probe() {
            Ok(()) => i32::from(smol_host::select(Accel::Auto).unwrap().accel != Backend::Kvm),
            Err(e) => {
                println!("{e}");
                1
            }
        },
        ("serve", []) => {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap();
            let mut channel = emulated::job_channel()
                .expect("there is a channel")
                .unwrap();
            channel.write_all(b"listening").unwrap();
            let mut word = [0; 4];
            channel.read_exact(&mut word).unwrap();
            let (mut connection, _) = listener.accept().unwrap();
            connection.write_all(&word).unwrap();
            0
        }
        ("flood", []) => {
            std::io::stdout().write_all(&vec![b'f'; FLOOD]).unwrap();
            0
        }
        ("stubborn", []) => {
            // SAFETY: ignoring a signal runs no code of ours.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
            run_job("sleep", &[])
        }
        ("sleep", []) => loop {
            println!("asleep");
            std::thread::sleep(Duration::from_secs(60));
        },
        _ => 99,
    }
}

// ---- Outside -----------------------------------------------------------------------------------

fn host(cache: &Path, job: &[&str]) -> EmulatedHost {
    EmulatedHost::new(cache).job(std::iter::once(SELF).chain(job.iter().copied()))
}

/// Runs to the end; stdout, stderr and how it ended.
fn collect(mut host: RunningHost) -> Result<(String, String, JobStatus), HostError> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match host.next_event()? {
            Event::Stdout(bytes) => out.extend(bytes),
            Event::Stderr(bytes) => err.extend(bytes),
            Event::Started | Event::Channel(_) => {}
            Event::Exited(status) => {
                let text = |bytes| String::from_utf8(bytes).expect("the job writes text");
                return Ok((text(out), text(err), status));
            }
        }
    }
}

fn files_and_exit_code(cache: &Path) {
    let (input, output) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(input.path().join("in"), "hello\n").unwrap();
    let host = host(cache, &["files", "/a/in", "/a/out"])
        .share(input.path(), "/a/in", true)
        .share(output.path(), "/a/out", false)
        .env("GREETING", "from, outside");
    let (out, err, status) = collect(host.spawn().unwrap()).unwrap();
    let (first, clock) = out.trim().split_once('\n').expect("two lines");
    assert_eq!(first, "hello true from, outside");
    assert_eq!(err, "to stderr\n");
    assert_eq!(
        status,
        JobStatus {
            code: Some(7),
            signal: None
        }
    );
    assert_eq!(
        fs::read(output.path().join("big")).unwrap(),
        vec![b'z'; 3 << 20]
    );
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let clock: u64 = clock.parse().unwrap();
    assert!(
        now.abs_diff(clock) < 10,
        "the clock inside is {clock}, ours is {now}"
    );
}

fn probe_passes(cache: &Path) {
    let (out, _, status) = collect(host(cache, &["probe"]).spawn().unwrap()).unwrap();
    assert_eq!(status.code, Some(0), "{out}");
}

fn port_and_channel(cache: &Path) {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut running = host(cache, &["serve"])
        .forward(Ipv4Addr::LOCALHOST, port, 80)
        .spawn()
        .unwrap();
    let control = running.controller();
    let client = loop {
        match running.next_event().unwrap() {
            Event::Channel(bytes) => {
                assert_eq!(bytes, b"listening");
                control.send(b"word").unwrap();
                break std::thread::spawn(move || {
                    let mut text = String::new();
                    TcpStream::connect((Ipv4Addr::LOCALHOST, port))
                        .unwrap()
                        .read_to_string(&mut text)
                        .unwrap();
                    text
                });
            }
            Event::Started => {}
            other => panic!("{other:?}"),
        }
    };
    let (_, err, status) = collect(running).unwrap();
    assert_eq!(status.code, Some(0), "{err}");
    assert_eq!(client.join().unwrap(), "word");
}

/// The job ends while its last output waits in pipes, rings and sockets.
fn late_reader(cache: &Path) {
    let mut running = host(cache, &["flood"]).spawn().unwrap();
    assert_eq!(running.next_event().unwrap(), Event::Started);
    std::thread::sleep(Duration::from_secs(2));
    let (out, _, status) = collect(running).unwrap();
    assert_eq!(status.code, Some(0));
    assert_eq!(out.len(), FLOOD);
}

/// Interrupts the job when it first writes; how it ended.
fn interrupt_job(cache: &Path, job: &str) -> Result<JobStatus, HostError> {
    let mut running = host(cache, &[job]).spawn()?;
    let interrupt = Interrupt::detached().unwrap();
    running
        .controller()
        .stop_on(interrupt.clone(), Duration::from_secs(3));
    loop {
        match running.next_event()? {
            Event::Stdout(_) => interrupt.trigger(),
            Event::Exited(status) => return Ok(status),
            _ => {}
        }
    }
}

fn interrupt_is_sigterm(cache: &Path) {
    let status = interrupt_job(cache, "sleep").unwrap();
    assert_eq!(
        status,
        JobStatus {
            code: None,
            signal: Some(15)
        }
    );
}

fn stubborn_job(cache: &Path) {
    let error = interrupt_job(cache, "stubborn").unwrap_err();
    assert!(
        error.message.contains("ended before its job did"),
        "{error}"
    );
}

fn job_not_found(cache: &Path) {
    let error = EmulatedHost::new(cache)
        .job(["/no/such/program"])
        .spawn()
        .unwrap()
        .wait()
        .unwrap_err();
    assert!(error.message.contains("/no/such/program"), "{error}");
}

fn port_taken(cache: &Path) {
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = holder.local_addr().unwrap().port();
    let host = host(cache, &["serve"]).forward(Ipv4Addr::LOCALHOST, port, 80);
    let error = host.spawn().unwrap().wait().unwrap_err();
    for words in ["QEMU: exit status: 1", "host forwarding"] {
        assert!(
            error.message.contains(words),
            "{words:?} is not in: {error}"
        );
    }
}
