//! Redis in one emulated host: from before the start of smolrun to the first answer, restored from
//! its snapshot and booted cold, in turns; then many of them side by side.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smol_host::emulated::{EmulatedHost, Event, SELF};

use crate::Times;
use crate::crowd;
use crate::host::Host;
use crate::support::{free_port, try_exchange};
use crate::tools::Tools;

/// Measurements of each.
const RUNS: usize = 10;
/// How many machines are put side by side. QEMU's processor tells apart 15 guests (ASIDs); with more
/// of them at a time its Linux was seen to die of a stack overflow, each time.
const CROWDS: [usize; 2] = [1, 10];
/// Memory of the emulated host for its tmpfs and the guest, MiB.
const MEMORY: u32 = 2048;
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
        "  first start    {:9.1} ms  (unpacks the bundle)",
        measured.first_start
    );
    println!("\nmachines of redis that have answered once, side by side, proportional set size");
    let density = crowd::report(&CROWDS, &measured.crowds);
    json!({
        "runs": RUNS, "restored": restored, "booted": booted, "ratio": ratio,
        "firstStart": measured.first_start, "density": density,
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
    let redis = |name: &str, options: &[&str]| {
        let port = free_port();
        let mut command = tools.run(&bundle, name);
        command.args(["-p", &format!("{port}:6379")]).args(options);
        first_answer(command, port)
    };
    let start = |options: &[&str]| {
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
            machines.push(redis(&format!("redis-{}", machines.len()), &[]).0);
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
/// runs, and wait.
fn first_answer(mut command: Command, port: u16) -> (Child, f64) {
    const LIMIT: Duration = Duration::from_secs(120);
    let begin = Instant::now();
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it was built");
    let answer = loop {
        match try_exchange(port, b"PING\r\nQUIT\r\n") {
            Ok(answer) if !answer.is_empty() => break answer,
            _ => thread::sleep(Duration::from_millis(2)),
        }
        assert!(begin.elapsed() < LIMIT, "{command:?} brings no answer");
        assert!(
            matches!(child.try_wait(), Ok(None)),
            "{command:?} has ended"
        );
    };
    let took = begin.elapsed().as_secs_f64() * 1e3;
    assert!(
        answer.starts_with(b"+PONG"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    (child, took)
}
