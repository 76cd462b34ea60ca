//! The native guest on this host's own KVM. Both programs are timed as a whole, from before exec:
//! to the first byte that the guest prints, and to the end of its first round over 16 MiB.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::Times;
use crate::host::Host;
use crate::support::run;

/// Measurements of each.
const RUNS: usize = 30;

/// Measures, prints, and gives the figures; null where there is no KVM.
pub fn measure(host: &Host) -> Value {
    if let Err(e) = fs::File::options().read(true).write(true).open("/dev/kvm") {
        println!("\nnative guest: not measured, /dev/kvm: {e}");
        return Value::Null;
    }
    let bundle = host.bundles.join("native.smolmachine");
    run(host.build(&host.native, &bundle).args(["--accel", "kvm"])).succeed();
    let images = images(host, &bundle);
    let registers = host.folder("floor").join("registers");
    fs::write(&registers, self::registers(&images.join("state.json")))
        .expect("the build folder can be written");

    // Where it usually is: in memory.
    let runtime = tempfile::tempdir_in("/dev/shm").expect("there is shared memory");
    let floor = || {
        let mut command = Command::new(host.native.with_file_name("floor"));
        command.arg(images.join("memory")).arg(&registers);
        command
    };
    let smolrun = || {
        let mut command = host.tools.run(&bundle, "native");
        command.args(["--accel", "kvm"]);
        command.env("SMOL_RUNTIME_DIR", runtime.path().join("smol"));
        command
    };
    let (mut ours, mut floors) = (Vec::new(), Vec::new());
    time(smolrun());
    time(floor());
    for _ in 0..RUNS {
        ours.push(time(smolrun()));
        floors.push(time(floor()));
    }
    let split =
        |times: Vec<[f64; 2]>| [0, 1].map(|at| Times::of(times.iter().map(|t| t[at]).collect()));
    report(split(ours), split(floors))
}

fn report(ours: [Times; 2], floors: [Times; 2]) -> Value {
    println!(
        "\nrestoring the native guest (256 MiB, 64 MiB in use) on this host's KVM, median of {RUNS}"
    );
    let mut figures = json!({ "runs": RUNS });
    for (at, what, key) in [
        (0, "first byte", "firstByte"),
        (1, "after 16 MiB", "afterWorkingSet"),
    ] {
        let ratio = ours[at].median / floors[at].median;
        let goal = if at == 0 { "  (goal: at most 2.5)" } else { "" };
        println!("  {what:<14} smolrun {}", ours[at].show());
        println!(
            "  {:<14} floor   {}   ratio {ratio:.2}{goal}",
            "",
            floors[at].show()
        );
        figures[key] = json!({ "smolrun": ours[at], "floor": floors[at], "ratio": ratio });
    }
    figures
}

/// Unpacks the bundle by a first run, and finds its images in the cache.
fn images(host: &Host, bundle: &Path) -> std::path::PathBuf {
    let digest = host.inspect(bundle)["digest"]
        .as_str()
        .expect("a digest")
        .to_owned();
    let mut command = host.tools.run(bundle, "native");
    time({
        command.args(["--accel", "kvm"]);
        command
    });
    let hex = digest.strip_prefix("sha256:").expect("a sha256 digest");
    host.cache().join("bundles").join(hex)
}

/// The registers of the only vCPU, as the floor program reads them.
fn registers(state: &Path) -> String {
    let state = fs::read(state).expect("smolrun has unpacked it");
    let state: Value = serde_json::from_slice(&state).expect("a machine state");
    let vcpu = &state["vcpus"][0];
    let mut text = String::new();
    let all = [&vcpu["regs"], &vcpu["system"]];
    for (name, value) in all
        .into_iter()
        .flat_map(|part| part.as_object().expect("registers"))
    {
        let number = |key: &str| value[key].as_u64().unwrap_or_default();
        let _ = match (value.as_u64(), value.get("selector")) {
            (Some(value), _) => writeln!(text, "{name} {value:x}"),
            (None, Some(_)) => {
                let [selector, base, limit, attributes] =
                    ["selector", "base", "limit", "attributes"].map(number);
                writeln!(
                    text,
                    "{name} {selector:x} {base:x} {limit:x} {attributes:x}"
                )
            }
            (None, None) => writeln!(text, "{name} {:x} {:x}", number("base"), number("limit")),
        };
    }
    text
}

/// From before the start of the program: ms to the first byte, and to the end of the first round.
fn time(mut command: Command) -> [f64; 2] {
    let begin = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it was built");
    let mut out = child.stdout.take().expect("piped");
    let mut seen = Vec::new();
    let mut block = [0; 256];
    let mut first = None;
    let ms = || begin.elapsed().as_secs_f64() * 1e3;
    while !seen.windows(8).any(|window| window == b"round 1\n") {
        let n = out.read(&mut block).expect("a pipe");
        assert_ne!(
            n,
            0,
            "{command:?} ended after {:?}",
            String::from_utf8_lossy(&seen)
        );
        first.get_or_insert_with(ms);
        seen.extend(&block[..n]);
    }
    let round = ms();
    // Not by force: what that leaves behind, the next start would have to remove.
    kill_process(Pid::from_child(&child), Signal::INT).expect("it is ours");
    let _ = child.wait();
    [first.expect("something was read"), round]
}
