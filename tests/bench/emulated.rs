//! Redis in one emulated host: from before the start of smolrun to the first answer, restored from
//! its snapshot and booted cold, in turns; then many of them side by side.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use smol_host::emulated::{EmulatedHost, Event, SELF};

use crate::Times;
use crate::crowd;
use crate::host::Host;
use crate::support::{free_port, try_exchange};
use crate::tools::Tools;

/// Measurements of each.
const RUNS: usize = 20;
/// How many machines are put side by side.
const CROWDS: [usize; 3] = [1, 10, 50];
/// Memory of the emulated host for its tmpfs and the guests, MiB.
const MEMORY: u32 = 6144;
const PROGRAMS: &str = "/programs";
const BUNDLES: &str = "/bundles";

/// What the inside tells the outside.
#[derive(serde::Serialize, serde::Deserialize)]
struct Measured {
    first_start: f64,
    restored: Vec<f64>,
    booted: Vec<f64>,
    /// Of each of [`CROWDS`], MiB.
    crowds: Vec<f64>,
    /// Starts without an answer, which were made again.
    repeated: usize,
}

/// Measures, prints, and gives the figures.
pub fn measure(host: &Host) -> Value {
    let emulated = EmulatedHost::new(host.cache())
        .memory(MEMORY)
        .share(&host.tools.programs, PROGRAMS, true)
        .share(&host.bundles, BUNDLES, true)
        // For the loopback interface.
        .forward(Ipv4Addr::LOCALHOST, free_port(), 1)
        .job([SELF]);
    let mut running = emulated.spawn().unwrap_or_else(|e| panic!("{e}"));
    let mut out = Vec::new();
    loop {
        match running.next_event().unwrap_or_else(|e| panic!("{e}")) {
            Event::Stdout(bytes) => out.extend(bytes),
            Event::Stderr(bytes) => eprint!("{}", String::from_utf8_lossy(&bytes)),
            Event::Started | Event::Channel(_) => {}
            Event::Exited(_) => break,
        }
    }
    let measured: Measured = serde_json::from_slice(&out)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out)));
    report(measured)
}

fn report(measured: Measured) -> Value {
    let (restored, booted) = (Times::of(measured.restored), Times::of(measured.booted));
    let ratio = booted.median / restored.median;
    println!("\nredis in an emulated host, to its first answer, median of {RUNS}");
    println!("  restored       {}", restored.show());
    println!(
        "  booted cold    {}   ratio {ratio:.1}  (goal: at least 10)",
        booted.show()
    );
    println!(
        "  first start    {:9.1} ms  (out of the bundle)",
        measured.first_start
    );
    if measured.repeated > 0 {
        println!(
            "  {} starts brought no answer and were made again",
            measured.repeated
        );
    }
    println!("\nmachines of redis that have answered once, side by side, proportional set size");
    let density = crowd::report(&CROWDS, &measured.crowds);
    json!({
        "runs": RUNS, "restored": restored, "booted": booted, "ratio": ratio,
        "firstStart": measured.first_start, "density": density, "repeated": measured.repeated,
    })
}

/// The inside: measures and prints the times as JSON.
pub fn inside() {
    let key = local(BUNDLES, "key.pub");
    let bundle = local(BUNDLES, "redis.smolmachine");
    let program = local(PROGRAMS, "smolrun");
    let tools = Tools {
        programs: program.parent().expect("it is in a folder").to_owned(),
        home: "/tmp/home".into(),
        key,
        accel: "kvm",
    };
    // None of those from which connections are made: one to a port that is not open yet might be
    // answered by itself.
    let mut ports = 7000..;
    let mut repeated = 0;
    let mut redis = |name: &str, options: &[&str]| {
        for port in ports.by_ref().take(3) {
            let mut command = tools.run(&bundle, name);
            command.args(["-p", &format!("{port}:6379")]).args(options);
            if let Some(answered) = first_answer(command, port) {
                return answered;
            }
            repeated += 1;
        }
        panic!("three starts without an answer");
    };
    let mut start = |options: &[&str]| {
        let (mut child, took) = redis("redis", options);
        let _ = child.kill();
        let _ = child.wait();
        // It was killed: what it left behind is not for the next start to remove.
        tools.ps();
        took
    };
    let first_start = start(&[]);
    let (mut restored, mut booted) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        restored.push(start(&[]));
        booted.push(start(&["--cold"]));
    }
    let mut machines = Vec::new();
    let crowds = CROWDS.map(|crowd| {
        while machines.len() < crowd {
            let machine = redis(&format!("redis-{}", machines.len()), &[]).0;
            // It keeps its memory, but not the two emulated CPUs busy: the next one wants to start.
            let pid = Pid::from_child(&machine);
            kill_process(pid, Signal::STOP).expect("it has just answered");
            machines.push(machine);
        }
        machines.iter().map(crowd::pss_mib).sum()
    });
    for machine in &mut machines {
        let _ = machine.kill();
    }
    let measured = Measured {
        first_start,
        restored,
        booted,
        crowds: crowds.into(),
        repeated,
    };
    println!("{}", serde_json::to_string(&measured).expect("plain data"));
}

/// A file of a shared folder, copied: the shares of an emulated host keep nothing in memory.
fn local(share: &str, name: &str) -> PathBuf {
    let copy = Path::new("/tmp").join(name);
    std::fs::copy(Path::new(share).join(name), &copy).unwrap_or_else(|e| panic!("{name}: {e}"));
    copy
}

/// The machine, and milliseconds to its answer to PING. Connections are taken before the service
/// runs, and wait. `None`, with a word, if there is no answer in time: the clock of an emulated host has
/// been seen to jump ahead by minutes.
fn first_answer(mut command: Command, port: u16) -> Option<(Child, f64)> {
    const LIMIT: Duration = Duration::from_secs(120);
    let begin = Instant::now();
    const SAID: &str = "/tmp/said";
    let said = File::create(SAID).expect("there is room");
    let command = command.stdout(Stdio::null()).stderr(said);
    let mut child = command.spawn().expect("it was built");
    let said = || std::fs::read_to_string(SAID).unwrap_or_default();
    let answer = loop {
        match try_exchange(port, b"PING\r\nQUIT\r\n") {
            Ok(answer) if !answer.is_empty() => break answer,
            _ => thread::sleep(Duration::from_millis(2)),
        }
        if begin.elapsed() >= LIMIT {
            eprintln!("no answer of {command:?}: {}", said());
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        if !matches!(child.try_wait(), Ok(None)) {
            panic!("{command:?} has ended: {}", said());
        }
    };
    let took = begin.elapsed().as_secs_f64() * 1e3;
    assert!(
        answer.starts_with(b"+PONG"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    Some((child, took))
}
