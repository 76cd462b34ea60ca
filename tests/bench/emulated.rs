//! First starts of recipes in emulated hosts, each in one of its own, against warm ones: from before the
//! start of smolrun until the service runs.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::Times;
use crate::sizes;
use smol_tests::host::Host;
use smol_tests::support::{LIMIT, Running};

/// Measurements of each.
const RUNS: usize = 5;
const MACHINES: [&str; 3] = ["hello", "redis", "python"];

/// Measures, prints, and returns the figures.
pub fn measure(host: &Host) -> Value {
    sizes::build(host, &MACHINES);
    println!("\nmachines in emulated hosts of their own, until the service runs, median of {RUNS}");
    println!("  {:<10} {:>12} {:>12}", "", "first start", "warm start");
    let mut figures = json!({});
    for name in MACHINES {
        let (mut first, mut warm) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let _ = fs::remove_dir_all(host.cache().join("bundles"));
            first.push(start(host, name));
            warm.push(start(host, name));
        }
        let (first, warm) = (Times::of(first), Times::of(warm));
        let ratio = first.median / warm.median;
        println!(
            "  {name:<10} {:9.0} ms {:9.0} ms   ratio {ratio:.2}",
            first.median, warm.median
        );
        figures[name] = json!({ "first": first, "warm": warm, "ratio": ratio });
    }
    figures
}

/// Milliseconds that smolrun needed, by its own account.
fn start(host: &Host, name: &str) -> f64 {
    let metrics = host.folder("metrics").join("metrics.json");
    let mut command = host.tools.run(&host.bundle(name), name);
    command.args(["--accel", "emulated", "--metrics-file"]);
    let running = Running::start(command.arg(&metrics));
    running.await_stderr(": restored in ");
    running.signal(Signal::INT);
    running.finish(LIMIT);
    let told: Value = read(&metrics);
    told["total_ms"].as_f64().expect("it ran")
}

/// A JSON document.
pub fn read(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
