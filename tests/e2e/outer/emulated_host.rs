//! The emulated host itself: QEMU, Debian's kernel, this very program as its init and as the job.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use smol_cli::Interrupt;
use smol_host::emulated::{self, EmulatedHost, Event, JobStatus, RunningHost, SELF};
use smol_host::{Accel, Backend, GuestKind, HostError};

use rustix::thread::{CpuSet, sched_setaffinity};

use smol_tests::host::Host;
use smol_tests::suite::Suite;
use smol_tests::support::LIMIT;

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a Host) {
    suite.group("emulated_host");
    let mut test = |name: &str, run: fn(&Host)| suite.test(name, move || run(host));
    test(
        "a job reads and writes shared folders and its exit code comes back",
        files_and_exit_code,
    );
    test("the probe of KVM passes inside", probe_passes);
    test(
        "a forwarded port reaches the job and its channel carries bytes both ways",
        port_and_channel,
    );
    test(
        "output that is taken late is not lost when the job ends",
        late_reader,
    );
    test(
        "an interrupt reaches the job as SIGTERM",
        interrupt_is_sigterm,
    );
    test(
        "a job that ignores SIGTERM is ended after the grace",
        stubborn_job,
    );
    test(
        "a job that cannot be run is an error that names it",
        job_not_found,
    );
    test(
        "a port that is taken is an error with QEMU's words",
        port_taken,
    );
    test(
        "an emulated host whose kernel dies is told as a fault of its own, with its console",
        dying_kernel,
    );
    test(
        "an emulated host one of whose CPUs hangs is told as a fault of its own",
        hanging_cpu,
    );
}

/// Bytes of output: more than a pipe and a frame hold, less than all buffers on the way.
const FLOOD: usize = 600 << 10;

// ---- Inside ------------------------------------------------------------------------------------

/// What this program does inside, by name.
pub fn job(arguments: &[String]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    ExitCode::from(run_job(&words))
}

fn run_job(words: &[&str]) -> u8 {
    match *words {
        ["files", input, output] => {
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
            println!("{}", unix_seconds());
            eprintln!("to stderr");
            7
        }
        ["probe"] => match smol_machine::probe::probe() {
            Ok(()) => u8::from(
                smol_host::select(Accel::Auto, GuestKind::Linux)
                    .unwrap()
                    .accel
                    != Backend::Kvm,
            ),
            Err(e) => {
                println!("{e}");
                1
            }
        },
        ["serve"] => {
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
        ["flood"] => {
            std::io::stdout().write_all(&vec![b'f'; FLOOD]).unwrap();
            0
        }
        ["stubborn"] => {
            // SAFETY: ignoring a signal runs no code of ours.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
            run_job(&["sleep"])
        }
        ["crash"] => {
            fs::write("/proc/sysrq-trigger", "c").expect("we are root");
            0
        }
        ["hog"] => hog(),
        ["sleep"] => loop {
            println!("asleep");
            std::thread::sleep(Duration::from_secs(60));
        },
        _ => 99,
    }
}

fn unix_seconds() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

/// Has its CPU run nothing but itself.
fn hog() -> ! {
    fs::write("/proc/sys/kernel/sched_rt_runtime_us", "-1").expect("we are root");
    let mut cpus = CpuSet::new();
    cpus.set(1);
    sched_setaffinity(None, &cpus).expect("there is a second CPU");
    let first = libc::sched_param { sched_priority: 99 };
    // SAFETY: the system call reads the struct, which outlives it.
    let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &first) };
    assert_eq!(set, 0, "we are root");
    loop {
        std::hint::spin_loop();
    }
}

// ---- Outside -----------------------------------------------------------------------------------

fn emulated(host: &Host, job: &[&str]) -> EmulatedHost {
    EmulatedHost::new(host.cache()).job(std::iter::once(SELF).chain(job.iter().copied()))
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

fn files_and_exit_code(host: &Host) {
    let (input, output) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(input.path().join("in"), "hello\n").unwrap();
    let begin = unix_seconds();
    let emulated = emulated(host, &["files", "/a/in", "/a/out"])
        .share(input.path(), "/a/in", true)
        .share(output.path(), "/a/out", false)
        .env("GREETING", "from, outside");
    let (out, err, status) = collect(emulated.spawn().unwrap()).unwrap();
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
    let now = unix_seconds();
    let clock: u64 = clock.parse().unwrap();
    assert!(
        (begin..=now).contains(&clock),
        "the clock inside is {clock}, ours was {begin} before and {now} after"
    );
}

fn probe_passes(host: &Host) {
    let (out, _, status) = collect(emulated(host, &["probe"]).spawn().unwrap()).unwrap();
    assert_eq!(status.code, Some(0), "{out}");
}

fn port_and_channel(host: &Host) {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut running = emulated(host, &["serve"])
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
fn late_reader(host: &Host) {
    let mut running = emulated(host, &["flood"]).spawn().unwrap();
    assert_eq!(running.next_event().unwrap(), Event::Started);
    std::thread::sleep(Duration::from_secs(2));
    let (out, _, status) = collect(running).unwrap();
    assert_eq!(status.code, Some(0));
    assert_eq!(out.len(), FLOOD);
}

/// Interrupts the job when it first writes; how it ended, within this time or by force.
fn interrupt_job(host: &Host, job: &str, grace: Duration) -> Result<JobStatus, HostError> {
    let mut running = emulated(host, &[job]).spawn()?;
    let interrupt = Interrupt::detached().unwrap();
    running.controller().stop_on(interrupt.clone(), grace);
    loop {
        match running.next_event()? {
            Event::Stdout(_) => interrupt.trigger(),
            Event::Exited(status) => return Ok(status),
            _ => {}
        }
    }
}

fn interrupt_is_sigterm(host: &Host) {
    let status = interrupt_job(host, "sleep", LIMIT).unwrap();
    assert_eq!(
        status,
        JobStatus {
            code: None,
            signal: Some(15)
        }
    );
}

fn stubborn_job(host: &Host) {
    let error = interrupt_job(host, "stubborn", Duration::from_secs(3)).unwrap_err();
    assert!(
        error.message.contains("ended before its job did") && !error.fault,
        "{error}"
    );
}

fn job_not_found(host: &Host) {
    let error = EmulatedHost::new(host.cache())
        .job(["/no/such/program"])
        .spawn()
        .unwrap()
        .wait()
        .unwrap_err();
    assert!(error.message.contains("/no/such/program"), "{error}");
}

fn port_taken(host: &Host) {
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = holder.local_addr().unwrap().port();
    let host = emulated(host, &["serve"]).forward(Ipv4Addr::LOCALHOST, port, 80);
    let error = host.spawn().unwrap().wait().unwrap_err();
    for words in ["QEMU: exit status: 1", "host forwarding"] {
        assert!(
            error.message.contains(words),
            "{words:?} is not in: {error}"
        );
    }
}

/// What became of a job in an emulated host that fails by itself, and what is kept of it.
fn fault(host: &Host, emulated: EmulatedHost) -> (HostError, String) {
    host.faults();
    let error = emulated.spawn().unwrap().wait().unwrap_err();
    assert!(error.fault, "{error}");
    let mut kept = host.faults();
    // QEMU's own faults at a boot are kept, too; then it was booted again.
    kept.retain(|kept| !kept.starts_with("did not come up"));
    assert_eq!(kept.len(), 1, "{kept:?}");
    (error, kept.concat())
}

fn dying_kernel(host: &Host) {
    let (error, kept) = fault(host, emulated(host, &["crash"]));
    for text in [&error.message, &kept] {
        assert!(
            text.contains("ended before its job did") && text.contains("Kernel panic"),
            "{text}"
        );
    }
    assert!(error.fix.unwrap().contains("run it again"));
}

fn hanging_cpu(host: &Host) {
    let limit = Duration::from_secs(10);
    let (error, kept) = fault(host, emulated(host, &["hog"]).silence_timeout(limit));
    for text in [&error.message, &kept] {
        assert!(text.contains("the emulated host hangs: "), "{text}");
    }
}
