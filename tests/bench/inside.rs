//! In one emulated host: redis from before the start of smolrun to the first answer, restored from its
//! snapshot and booted cold, in turns; a machine built and booted in the ordinary way; then many of
//! redis side by side.
//!
//! The outside starts the inside once for each figure, so that one that cannot be measured leaves the others.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use smol_host::emulated::{EmulatedHost, Event, SELF};

use crate::emulated::read;
use crate::{LeftOut, Times, crowd, sizes};
use smol_tests::host::{Host, smolfile};
use smol_tests::support::{LIMIT, eventually, exchange_within, free_port, names, run};
use smol_tests::tools::Tools;

/// Measurements of each.
const RUNS: usize = 20;
/// Builds, and ordinary boots.
const BUILDS: usize = 8;
/// How many machines are put side by side.
const CROWDS: [usize; 3] = [1, 10, 50];
/// Memory of the emulated host for its tmpfs and the guests, MiB.
const MEMORY: u32 = 6144;
const PROGRAMS: &str = "/programs";
const BUNDLES: &str = "/bundles";
const MACHINES: &str = "/machines";

// ---- Outside -----------------------------------------------------------------------------------

/// Measures, prints, and returns the figures.
pub fn measure(host: &Host) -> Value {
    sizes::build(host, &["redis"]);
    let service = host.bundles.join("service.smolmachine");
    run(&mut host.build(&smolfile(host, "service"), &service)).succeed();
    let mut figures = json!({});
    let mut left_out = LeftOut::default();
    for (name, report) in [
        ("starts", starts as fn(&Value)),
        ("builds", builds),
        ("density", density),
    ] {
        figures[name] = left_out.unless_measured(name, || {
            let measured = ask(host, name);
            report(&measured);
            measured
        });
    }
    assert!(left_out.0.is_empty(), "without {}", left_out.0.join(", "));
    figures
}

/// Has the inside measure a figure, in an emulated host of its own.
fn ask(host: &Host, figure: &str) -> Value {
    let emulated = EmulatedHost::new(host.cache())
        .memory(MEMORY)
        .share(&host.tools.programs, PROGRAMS, true)
        .share(&host.bundles, BUNDLES, true)
        .share(&host.machines, MACHINES, true)
        // For the loopback interface.
        .forward(Ipv4Addr::LOCALHOST, free_port(), 1)
        .job([SELF, figure]);
    let mut running = emulated.spawn().unwrap_or_else(|e| panic!("{e}"));
    let mut out = Vec::new();
    let status = loop {
        match running.next_event().unwrap_or_else(|e| panic!("{e}")) {
            Event::Stdout(bytes) => out.extend(bytes),
            Event::Stderr(bytes) => eprint!("{}", String::from_utf8_lossy(&bytes)),
            Event::Started | Event::Channel(_) => {}
            Event::Exited(status) => break status,
        }
    };
    assert_eq!(
        status.code,
        Some(0),
        "the console of the emulated host: {}",
        running.console()
    );
    serde_json::from_slice(&out)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out)))
}

fn times(measured: &Value, key: &str) -> Times {
    serde_json::from_value(measured[key].clone()).expect("times")
}

fn starts(measured: &Value) {
    let (restored, booted) = (times(measured, "restored"), times(measured, "booted"));
    let ratio = booted.median / restored.median;
    println!("\nredis in an emulated host, to its first answer, median of {RUNS}");
    println!("  restored       {}", restored.show());
    println!(
        "  booted cold    {}   ratio {ratio:.1}  (goal: at least 10)",
        booted.show()
    );
    let first = measured["firstStart"].as_f64().expect("a number");
    println!("  first start    {first:9.1} ms  (out of the bundle)");
    tell_repeated(measured);
}

fn builds(measured: &Value) {
    let (built, booted) = (times(measured, "built"), times(measured, "booted"));
    let ratio = built.least / booted.least;
    println!("\na small machine in an emulated host, up to ready, of {BUILDS}");
    println!("  built          {}", built.show());
    println!(
        "  booted         {}   ratio of the least {ratio:.2}",
        booted.show()
    );
}

fn density(measured: &Value) {
    println!("\nmachines of redis that have answered once, side by side, proportional set size");
    let totals: Vec<f64> =
        serde_json::from_value(measured["totalsMiB"].clone()).expect("a list of numbers");
    crowd::report(&CROWDS, &totals);
    tell_repeated(measured);
}

fn tell_repeated(measured: &Value) {
    match measured["repeated"].as_u64() {
        Some(0) => {}
        repeated => println!(
            "  {} starts brought no answer and were made again",
            repeated.expect("a number")
        ),
    }
}

// ---- Inside ------------------------------------------------------------------------------------

/// Measures a figure and prints it as JSON.
pub fn main(arguments: &[String]) {
    let mut redis = Redis::new();
    let measured = match arguments.first().map(String::as_str) {
        Some("starts") => redis.starts(),
        Some("builds") => build_and_boot(),
        Some("density") => redis.density(),
        other => panic!("no figure is called {other:?}"),
    };
    println!("{measured}");
}

fn tools() -> Tools {
    let key = local(BUNDLES, "key.pub");
    let program = local(PROGRAMS, "smolrun");
    local(PROGRAMS, "smolbuild");
    Tools {
        programs: program.parent().expect("it is in a folder").to_owned(),
        home: "/tmp/home".into(),
        key,
        accel: "kvm",
    }
}

/// A file of a shared folder, copied: the shares of an emulated host keep nothing in memory.
fn local(share: &str, name: &str) -> PathBuf {
    let copy = Path::new("/tmp").join(name);
    std::fs::copy(Path::new(share).join(name), &copy).unwrap_or_else(|e| panic!("{name}: {e}"));
    copy
}

/// Machines of redis.
struct Redis {
    tools: Tools,
    bundle: PathBuf,
    /// None of those from which connections are made: one to a port that is not open yet might be
    /// answered by itself.
    port: u16,
    /// Starts without an answer, which were made again.
    repeated: usize,
}

impl Redis {
    fn new() -> Self {
        Self {
            tools: tools(),
            bundle: local(BUNDLES, "redis.smolmachine"),
            port: 7000,
            repeated: 0,
        }
    }

    /// A machine that has answered, and milliseconds to its answer.
    fn answer(&mut self, name: &str, options: &[&str]) -> (Child, f64) {
        for _ in 0..3 {
            self.port += 1;
            let mut command = self.tools.run(&self.bundle, name);
            command.args(["-p", &format!("{}:6379", self.port)]);
            if let Some(answered) = first_answer(command.args(options), self.port) {
                return answered;
            }
            self.repeated += 1;
        }
        panic!("three starts without an answer");
    }

    fn start(&mut self, options: &[&str]) -> f64 {
        let (mut child, took) = self.answer("redis", options);
        let _ = child.kill();
        let _ = child.wait();
        // It was killed: what it left behind is not for the next start to remove.
        self.tools.ps();
        took
    }

    /// Has the bundle in the cache, where its first start brings it while the machine runs.
    fn unpack(&mut self) {
        let (mut child, _) = self.answer("redis", &[]);
        let bundles = self.tools.home.join("cache/bundles");
        let done = |name: &String| name.bytes().all(|byte| byte.is_ascii_hexdigit());
        eventually("the bundle in the cache", LIMIT, || {
            names(&bundles).iter().any(done).then_some(())
        });
        let _ = child.kill();
        let _ = child.wait();
        self.tools.ps();
    }

    fn starts(&mut self) -> Value {
        let first_start = self.start(&[]);
        self.unpack();
        let (mut restored, mut booted) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            restored.push(self.start(&[]));
            booted.push(self.start(&["--cold"]));
        }
        json!({
            "restored": Times::of(restored), "booted": Times::of(booted),
            "firstStart": first_start, "repeated": self.repeated,
        })
    }

    fn density(&mut self) -> Value {
        self.unpack();
        let mut machines = Vec::new();
        let totals = CROWDS.map(|crowd| -> f64 {
            while machines.len() < crowd {
                let machine = self.answer(&format!("redis-{}", machines.len()), &[]).0;
                // It keeps its memory, but not the emulated CPUs busy: the next one wants to start.
                let pid = Pid::from_child(&machine);
                kill_process(pid, Signal::STOP).expect("it has just answered");
                machines.push(machine);
            }
            machines.iter().map(crowd::pss_mib).sum()
        });
        for machine in &mut machines {
            let _ = machine.kill();
        }
        json!({ "totalsMiB": totals, "repeated": self.repeated })
    }
}

/// The machine, and milliseconds to its answer to PING. Connections are taken before the service
/// runs, and wait. `None`, with its last words, if there is no answer in time, or it has ended.
fn first_answer(command: &mut Command, port: u16) -> Option<(Child, f64)> {
    const LIMIT: Duration = Duration::from_secs(120);
    const SAID: &str = "/tmp/said";
    let begin = Instant::now();
    let said = File::create(SAID).expect("there is room");
    let mut child = command
        .stdout(Stdio::null())
        .stderr(said)
        .spawn()
        .expect("it was built");
    let give_up = |why: String| {
        let said = std::fs::read_to_string(SAID).unwrap_or_default();
        eprintln!("{command:?} {why}; its last words: {said}");
        None
    };
    loop {
        match exchange_within(port, b"PING\r\nQUIT\r\n", LIMIT / 2) {
            Ok(answer) if answer.starts_with(b"+PONG") => {
                return Some((child, begin.elapsed().as_secs_f64() * 1e3));
            }
            _ => thread::sleep(Duration::from_millis(2)),
        }
        if let Ok(Some(status)) = child.try_wait() {
            return give_up(format!("has ended ({status})"));
        }
        if begin.elapsed() >= LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            return give_up("brought no answer".into());
        }
    }
}

/// The same machine, both times up to its readiness, in turns.
fn build_and_boot() -> Value {
    let tools = tools();
    let out = Path::new("/tmp/out");
    std::fs::create_dir_all(out).expect("there is room");
    let (metadata, metrics) = (out.join("metadata.json"), out.join("metrics.json"));
    let (mut built, mut booted) = (Vec::new(), Vec::new());
    for _ in 0..BUILDS {
        let mut build = tools.smolbuild();
        build
            .arg(Path::new(MACHINES).join("service.toml"))
            .arg("--rebuild");
        build.arg("-o").arg(out.join("service.smolmachine"));
        run(build.arg("--metadata-file").arg(&metadata)).succeed();
        let frozen = &read(&metadata)["frozen"];
        built.push(frozen["bootMs"].as_f64().expect("it was booted"));

        let bundle = Path::new(BUNDLES).join("service.smolmachine");
        let mut boot = tools.run(&bundle, "ordinary");
        boot.args(["-d", "--cold", "--metrics-file"]).arg(&metrics);
        run(&mut boot).succeed();
        run(tools.smolrun().args(["stop", "ordinary", "--time", "0"])).succeed();
        booted.push(read(&metrics)["up_ms"].as_f64().expect("it ran"));
    }
    json!({ "built": Times::of(built), "booted": Times::of(booted) })
}
