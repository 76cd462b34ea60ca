//! The native guest on this host's own KVM. All programs are timed as a whole, from before exec:
//! to the first byte that the guest prints, and to the end of its first round over 16 MiB.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::Times;
use crate::crowd;
use smol_tests::host::Host;
use smol_tests::support::run;

/// Measurements of each.
const RUNS: usize = 30;
/// Measurements of what takes long.
const SLOW_RUNS: usize = 20;
/// Where the guest's working set is, bytes: see tests/guests/native/main.c.
const WORKING_SET: [u64; 2] = [64 << 20, 16 << 20];

/// How many idle machines are put side by side.
const CROWDS: [usize; 3] = [1, 10, 50];

/// To the first byte, and to the end of the first round.
type Pair = [Times; 2];

/// Measures, prints, and returns the figures; null where there is no KVM.
pub fn measure(host: &Host) -> Value {
    if let Err(e) = fs::File::options().read(true).write(true).open("/dev/kvm") {
        println!("\nnative guest: not measured, /dev/kvm: {e}");
        return Value::Null;
    }
    let scene = Scene::new(host);
    let figures = json!({
        "runs": RUNS,
        "slowRuns": SLOW_RUNS,
        "warm": scene.warm(),
        "density": scene.density(),
    });
    fs::remove_dir_all(&scene.runtime).expect("it is ours");
    figures
}

struct Scene<'h> {
    host: &'h Host,
    bundle: PathBuf,
    images: PathBuf,
    registers: PathBuf,
    /// Where it usually is: in memory.
    runtime: PathBuf,
}

impl<'h> Scene<'h> {
    fn new(host: &'h Host) -> Self {
        let bundle = host.bundles.join("native.smolmachine");
        run(host.build(&host.native, &bundle).args(["--accel", "kvm"])).succeed();
        let registers = host.folder("floor").join("registers");
        let runtime = tempfile::tempdir_in("/dev/shm").expect("there is shared memory");
        let scene = Self {
            images: images(host, &bundle),
            host,
            bundle,
            registers,
            runtime: runtime.keep(),
        };
        scene.unpack(&scene.bundle, &scene.images);
        let state = self::registers(&scene.images.join("state.json"));
        fs::write(&scene.registers, state).expect("the build folder can be written");
        scene
    }

    /// `smolrun` with this bundle.
    fn smolrun(&self, bundle: &Path) -> Command {
        let mut command = self.host.tools.smolrun();
        command.arg(bundle).arg("--key").arg(&self.host.tools.key);
        command.args(["--accel", "kvm"]);
        command.env("SMOL_RUNTIME_DIR", self.runtime.join("smol"));
        command
    }

    fn floor(&self, huge: bool) -> Command {
        let mut command = Command::new(self.host.native.with_file_name("floor"));
        command.arg(self.images.join("memory")).arg(&self.registers);
        if huge {
            command.args(WORKING_SET.map(|number| number.to_string()));
        }
        command
    }

    /// Has a bundle in the cache, by a start that lasts long enough.
    fn unpack(&self, bundle: &Path, images: &Path) {
        let program = spawn(&mut self.smolrun(bundle));
        let begin = Instant::now();
        while !images.exists() {
            assert!(begin.elapsed().as_secs() < 60, "the bundle is not unpacked");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        stop(program);
    }

    fn forget(&self) {
        let _ = fs::remove_dir_all(&self.images);
        let _ = fs::remove_dir_all(self.images.with_extension("tmp"));
    }

    fn warm(&self) -> Value {
        let mut times: [Vec<[f64; 2]>; 4] = Default::default();
        for round in 0..=RUNS {
            let mut unconfined = self.smolrun(&self.bundle);
            unconfined.env("SMOL_SANDBOX", "off");
            let commands = [
                self.smolrun(&self.bundle),
                unconfined,
                self.floor(false),
                self.floor(true),
            ];
            let mut pairs: Vec<_> = times.iter_mut().zip(commands).collect();
            // What ends leaves work to the kernel, which hinders what comes next.
            if round % 2 == 1 {
                pairs.reverse();
            }
            for (times, command) in pairs {
                let time = time(command);
                if round > 0 {
                    times.push(time);
                }
            }
        }
        let [ours, unconfined, floor, huge] = times.map(split);
        let mut first = Vec::new();
        for _ in 0..SLOW_RUNS {
            self.forget();
            first.push(time(self.smolrun(&self.bundle)));
        }
        let first = split(first);
        self.forget();
        self.unpack(&self.bundle, &self.images);
        let unzstd = self
            .unzstd()
            .map(|times| Times::of(times).median + ours[0].median);
        let warm = [
            ("smolrun, bundle in the cache", ours),
            ("the same without confinement", unconfined),
        ];
        self.report(warm, floor, huge, first, unzstd)
    }

    /// Decompressing the whole memory image by the tool of that name, ms.
    fn unzstd(&self) -> Option<Vec<f64>> {
        let (packed, out) = (self.runtime.join("memory.zst"), self.runtime.join("memory"));
        let pack = Command::new("zstd")
            .args(["-q", "-f", "-T0", "-3"])
            .arg(self.images.join("memory"))
            .arg("-o")
            .arg(&packed)
            .status();
        if !pack.is_ok_and(|status| status.success()) {
            println!("\nthe tool zstd is not here: nothing to compare a first start with");
            return None;
        }
        let decompress = |_| {
            let begin = Instant::now();
            let mut unzstd = Command::new("zstd");
            unzstd
                .args(["-q", "-f", "-d"])
                .arg(&packed)
                .arg("-o")
                .arg(&out);
            run(&mut unzstd).succeed();
            begin.elapsed().as_secs_f64() * 1e3
        };
        Some((0..SLOW_RUNS).map(decompress).collect())
    }

    fn report(
        &self,
        warm: [(&str, Pair); 2],
        floor: Pair,
        huge: Pair,
        first: Pair,
        unzstd: Option<f64>,
    ) -> Value {
        let [(_, ours), (_, unconfined)] = warm;
        println!(
            "\nthe native guest (256 MiB, 64 MiB in use) on this host's KVM, medians, from before exec"
        );
        println!("  {:<34} {:>12} {:>14}", "", "first byte", "after 16 MiB");
        let floors = [("floor", floor), ("floor, working set in huge pages", huge)];
        let all = floors
            .into_iter()
            .chain(warm)
            .chain([("smolrun, first start", first)]);
        for (what, [byte, round]) in all {
            let (byte, round) = (byte.median, round.median);
            println!("  {what:<34} {byte:9.2} ms {round:11.2} ms");
        }
        if let Some(unzstd) = unzstd {
            println!(
                "  {:<34} {unzstd:9.2} ms",
                "zstd -d of the memory, then smolrun"
            );
        }
        let goals = [
            (
                "warm, first byte / floor",
                ours[0].median / floor[0].median,
                Some(1.5),
            ),
            (
                "warm, 16 MiB / floor in huge pages",
                ours[1].median / huge[1].median,
                Some(1.6),
            ),
            (
                "first start, first byte / warm",
                first[0].median / ours[0].median,
                Some(4.0),
            ),
        ];
        for (what, ratio, goal) in goals {
            let goal = goal
                .map(|goal| format!("(goal: at most {goal})"))
                .unwrap_or_default();
            println!("  {what:<34} {ratio:9.2}    {goal}");
        }
        if let Some(unzstd) = unzstd {
            let ratio = unzstd / first[0].median;
            println!(
                "  {:<34} {ratio:9.2}    (goal: at least 5)",
                "zstd -d and warm / first start"
            );
        }
        json!({
            "floor": floor, "floorHuge": huge, "warm": ours, "warmUnconfined": unconfined, "firstStart": first,
            "unzstdAndWarm": unzstd,
            "ratios": goals.map(|(what, ratio, goal)| json!({ "what": what, "ratio": ratio, "goal": goal })),
        })
    }

    /// Idle machines of one bundle side by side: what does one more take?
    fn density(&self) -> Value {
        let bundle = self.host.bundles.join("idle.smolmachine");
        let smolfile = self.host.native.with_file_name("idle");
        run(self.host.build(&smolfile, &bundle).args(["--accel", "kvm"])).succeed();
        self.unpack(&bundle, &images(self.host, &bundle));
        let mut machines = Vec::new();
        println!("\nidle machines of one bundle (64 MiB in use), proportional set size");
        let crowds = CROWDS.map(|crowd| {
            while machines.len() < crowd {
                let mut machine = spawn(&mut self.smolrun(&bundle));
                await_line(&mut machine, b"idle\n");
                machines.push(machine);
            }
            machines.iter().map(|m| crowd::pss_mib(&m.0)).sum()
        });
        machines.into_iter().for_each(stop);
        crowd::report(&CROWDS, &crowds)
    }
}

fn split(times: Vec<[f64; 2]>) -> Pair {
    [0, 1].map(|at| Times::of(times.iter().map(|t| t[at]).collect()))
}

/// Where the bundle's images are once it is unpacked.
fn images(host: &Host, bundle: &Path) -> PathBuf {
    let inspected = host.inspect(bundle);
    let digest = inspected["digest"].as_str().expect("a digest");
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

/// A program that does not outlive us, whatever happens.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(command: &mut Command) -> Started {
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Started(command.spawn().expect("it was built"))
}

/// Not by force: what that leaves behind, the next start would have to remove.
fn stop(mut program: Started) {
    kill_process(Pid::from_child(&program.0), Signal::TERM).expect("it is ours");
    let _ = program.0.wait();
}

/// Reads until the guest has printed these bytes; when the first came.
fn await_line(program: &mut Started, line: &[u8]) -> Instant {
    let out = program.0.stdout.as_mut().expect("piped");
    let mut seen = Vec::new();
    let mut block = [0; 256];
    let mut first = None;
    while !seen.windows(line.len()).any(|window| window == line) {
        let n = out.read(&mut block).expect("a pipe");
        if n == 0 {
            let mut said = String::new();
            let _ = program
                .0
                .stderr
                .as_mut()
                .map(|e| e.read_to_string(&mut said));
            panic!(
                "it ended after {:?}: {said}",
                String::from_utf8_lossy(&seen)
            );
        }
        first.get_or_insert_with(Instant::now);
        seen.extend(&block[..n]);
    }
    first.expect("something was read")
}

/// From before the start of the program: ms to the first byte, and to the end of the first round.
fn time(mut command: Command) -> [f64; 2] {
    let begin = Instant::now();
    let mut program = spawn(&mut command);
    let first = await_line(&mut program, b"round 1\n");
    let ms = |moment: Instant| (moment - begin).as_secs_f64() * 1e3;
    let times = [ms(first), ms(Instant::now())];
    stop(program);
    times
}
