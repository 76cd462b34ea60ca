//! Real machines without Linux: a kernel of forty bytes, which even a software KVM runs, booted,
//! restored, stopped and detached by the real program. Without /dev/kvm there is nothing to test.

mod backdoor;
mod confinement;
mod ended;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use smol_bundle::{
    Bundle, BundleSpec, ClockMode, Config, CpuContract, ImageKind, Run, SnapshotSpec, Tsc,
    TscNeeds, WorkingSet,
};
use smol_machine::config::{Clock, MachineConfig};
use smol_machine::cpu::Level;
use smol_machine::machine::{Hooks, Machine, Time};
use smol_machine::memory::lazy::LazyMemory;
use smol_machine::{MachineState, Stop, StopHandle};
use smol_testing::kernel::{FAR, far_kernel, kernel};
use smol_testing::{LIMIT, left_out};
use tempfile::TempDir;

const MEMORY: u64 = 32 << 20;
/// Stops the machine for a snapshot when it has printed a line.
struct Console {
    seen: Vec<u8>,
    handle: Arc<Mutex<Option<StopHandle>>>,
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.seen.extend(bytes);
        if self.seen.ends_with(b"\n")
            && let Some(handle) = &*self.handle.lock().unwrap()
        {
            handle.request(Stop::Snapshot);
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Boots the kernel and freezes it after its first line.
fn freeze(kernel: &Path, dir: &Path) -> SnapshotSpec {
    let config = MachineConfig {
        vcpus: 1,
        cpu: Level::V2,
        memory: MEMORY,
        kernel: kernel.to_owned(),
        initramfs: None,
        cmdline: String::new(),
        rootfs: None,
        clock: Clock::Host,
        seed: [0; 32],
        kernel_seed: [0; 32],
    };
    let handle = Arc::<Mutex<Option<StopHandle>>>::default();
    let console = || {
        Box::new(Console {
            seen: Vec::new(),
            handle: handle.clone(),
        })
    };
    let hooks = Hooks {
        console: console(),
        serial: console(),
        vsock: None,
    };
    let mut machine = Machine::boot(&config, hooks).unwrap();
    *handle.lock().unwrap() = Some(machine.stop_handle());
    assert_eq!(machine.run().unwrap(), Stop::Snapshot);
    let memory = dir.join("memory");
    let image = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&memory)
        .unwrap();
    let state = machine.capture().unwrap().to_json();
    smol_machine::memory::write_image(machine.ram(), &image).unwrap();
    SnapshotSpec {
        state,
        memory,
        // All that is needed up to a far page.
        working_set: WorkingSet {
            memory: vec![Run {
                first: 0,
                pages: FAR / 4096,
                written: true,
            }],
            rootfs: Vec::new(),
        },
    }
}

/// A bundle, and folders of its own for everything that smolrun keeps.
struct Scene {
    dir: TempDir,
    bundle: PathBuf,
}

impl Scene {
    /// `None` where there is no KVM at all.
    fn new(kernel: &[u8], snapshot: bool, change: impl FnOnce(&mut Config)) -> Option<Self> {
        if let Err(e) = smol_machine::probe::open(Path::new(smol_machine::probe::DEVICE)) {
            left_out(e);
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("native.smolmachine");
        let path = dir.path().join("kernel");
        fs::write(&path, kernel).unwrap();
        let mut config = Config {
            name: "native".into(),
            version: None,
            arch: "x86_64".into(),
            cpus: 1,
            memory: MEMORY,
            cmdline: String::new(),
            ports: Vec::new(),
            warm: None,
            clock: ClockMode::Host,
            reproducible: None,
            cpu: CpuContract {
                arch: "x86_64".into(),
                features: vec!["sse2".into()],
                physical_address_bits: 36,
                xcr0: 0,
                tsc: Tsc {
                    needs: TscNeeds::None,
                    khz: None,
                },
            },
        };
        change(&mut config);
        let spec = BundleSpec {
            config,
            snapshot: snapshot.then(|| freeze(&path, dir.path())),
            kernel: path,
            initramfs: None,
            rootfs: None,
            smolfile: None,
            lock: None,
            parent: None,
        };
        smol_bundle::write(&spec, &bundle, &mut |_, _| {}).unwrap();
        Some(Self { dir, bundle })
    }

    fn smolrun(&self) -> Command {
        self.command(Path::new(env!("CARGO_BIN_EXE_smolrun")))
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, folder) in [("CACHE", "cache"), ("RUNTIME", "run"), ("CONFIG", "config")] {
            command.env(format!("SMOL_{name}_DIR"), self.dir.path().join(folder));
        }
        command
    }

    fn run(&self) -> Command {
        self.run_by(Path::new(env!("CARGO_BIN_EXE_smolrun")))
    }

    fn run_by(&self, program: &Path) -> Command {
        let mut command = self.command(program);
        command
            .arg(&self.bundle)
            .args(["--insecure-unsigned", "--accel", "kvm"]);
        command
    }

    /// Waits until this many machines have ended, and returns what `ps` says of them.
    fn ended(&self, count: usize) -> Vec<serde_json::Value> {
        let until = Instant::now() + LIMIT;
        loop {
            let output = self.smolrun().args(["ps", "-a", "--json"]).output();
            let listed = succeed(&output.unwrap());
            let machines: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
            if machines.len() == count && machines.iter().all(|m| m["state"] == "ended") {
                return machines;
            }
            assert!(Instant::now() < until, "it does not end: {listed}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// How many instances have left something.
    fn instances(&self) -> usize {
        fs::read_dir(self.dir.path().join("run/instances"))
            .unwrap()
            .count()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}

/// Waits for a line of the child's stdout.
fn await_line(child: &mut Child, line: &str) -> BufReader<std::process::ChildStdout> {
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut seen = String::new();
    while !seen.contains(line) {
        assert_ne!(reader.read_line(&mut seen).unwrap(), 0, "only saw {seen:?}");
    }
    reader
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: it touches no memory; the child is not reaped yet, so the id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

fn await_end(child: &mut Child) -> std::process::ExitStatus {
    let until = Instant::now() + LIMIT;
    while Instant::now() < until {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("it does not end");
}

#[test]
fn a_kernel_is_booted_and_prints_to_stdout() {
    let Some(scene) = Scene::new(&kernel(&["booted\n", "done\n"], true), false, |_| {}) else {
        return;
    };
    let output = scene.run().output().unwrap();
    assert_eq!(succeed(&output), "booted\ndone\n");
    let told = text(&output.stderr);
    assert!(
        told.contains("booting cold (the bundle holds no snapshot)"),
        "{told}"
    );
    assert!(told.contains("native: booted in "), "{told}");
    assert_eq!(scene.instances(), 0);
}

#[test]
fn a_snapshot_goes_on_where_it_was_taken_and_as_often_as_wanted() {
    let Some(scene) = Scene::new(&kernel(&["booted\n", "restored\n"], true), true, |_| {}) else {
        return;
    };
    for _ in 0..3 {
        let output = scene.run().output().unwrap();
        assert_eq!(succeed(&output), "restored\n");
        assert!(
            text(&output.stderr).contains("native: restored in "),
            "{output:?}"
        );
    }
    assert_eq!(
        succeed(&scene.run().arg("--cold").output().unwrap()),
        "booted\nrestored\n"
    );
}

/// The bundle is in the cache, whole.
fn is_unpacked(scene: &Scene) -> bool {
    let names = fs::read_dir(scene.dir.path().join("cache/bundles")).unwrap();
    let names: Vec<_> = names.map(|name| name.unwrap().file_name()).collect();
    names.len() == 1 && !names[0].to_str().unwrap().ends_with("tmp")
}

#[test]
fn the_first_start_runs_out_of_the_bundle_and_leaves_it_unpacked() {
    let Some(scene) = Scene::new(&far_kernel(["booted\n", "far: ", "\n"]), true, |_| {}) else {
        return;
    };
    for start in 0..3 {
        assert_eq!(
            succeed(&scene.run().output().unwrap()),
            "far: !\n",
            "{start}"
        );
        assert!(is_unpacked(&scene));
    }
    fs::remove_dir_all(scene.dir.path().join("cache")).unwrap();
    let both = [scene.run(), scene.run()].map(|mut run| {
        run.stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    });
    for child in both {
        assert_eq!(succeed(&child.wait_with_output().unwrap()), "far: !\n");
    }
    assert!(is_unpacked(&scene));
}

/// Flips a bit in a frame of the memory image, chosen by its place.
fn flip(scene: &Scene, frame: impl Fn(usize) -> usize) {
    let bundle = Bundle::open(&scene.bundle).unwrap();
    let blob = bundle.layout().into_iter();
    let mut blob = blob.filter(|blob| blob.media_type == ImageKind::Memory.media_type());
    let frames = bundle.index().image(ImageKind::Memory).unwrap().frames();
    assert!(frames.len() > 1, "the far page has a frame of its own");
    let frame = &frames[frame(frames.len())];
    let at = blob.next().unwrap().offset + frame.offset + 9;
    let file = File::options()
        .read(true)
        .write(true)
        .open(&scene.bundle)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// How many folders are in the cache, whole ones and others.
fn cached(scene: &Scene) -> usize {
    let left = fs::read_dir(scene.dir.path().join("cache/bundles"));
    left.map_or(0, Iterator::count)
}

/// Runs a bundle with a damaged frame; returns what the machine has printed.
fn run_damaged(scene: &Scene) -> String {
    let output = scene.run().output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(
        told.contains("of the memory image") && told.contains("blake3"),
        "{told}"
    );
    assert_eq!((cached(scene), scene.instances()), (0, 0));
    text(&output.stdout)
}

#[test]
fn a_flipped_bit_in_a_late_frame_stops_the_machine_when_the_frame_is_needed() {
    let Some(scene) = Scene::new(&far_kernel(["booted\n", "far: ", "\n"]), true, |_| {}) else {
        return;
    };
    flip(&scene, |frames| frames - 1);
    // Where pages come on demand, the machine ran until it needed that one.
    let on_demand = LazyMemory::new(16 << 20, 0).is_ok();
    assert_eq!(run_damaged(&scene), if on_demand { "far: " } else { "" });
}

#[test]
fn a_flipped_bit_in_the_working_set_stops_the_machine_before_it_says_anything() {
    let Some(scene) = Scene::new(&far_kernel(["booted\n", "far: ", "\n"]), true, |_| {}) else {
        return;
    };
    flip(&scene, |_| 0);
    assert_eq!(run_damaged(&scene), "");
}

#[test]
fn a_flipped_bit_stops_a_machine_in_the_background_and_leaves_the_reason() {
    let Some(scene) = Scene::new(&far_kernel(["booted\n", "far: ", "\n"]), true, |_| {}) else {
        return;
    };
    flip(&scene, |frames| frames - 1);
    let output = scene.run().arg("-d").output().unwrap();
    // It may be up before it needs the page.
    assert!(matches!(output.status.code(), Some(0 | 4)), "{output:?}");
    let told = text(&output.stderr);
    let [machine] = scene.ended(1).try_into().unwrap();
    assert_eq!(machine["exit_code"], 4);
    let reason = machine["reason"].as_str().unwrap();
    assert!(reason.starts_with("failed: "), "{machine}");
    // The log has the error, whoever else was told.
    let name = machine["name"].as_str().unwrap();
    let log = succeed(&scene.smolrun().args(["logs", name]).output().unwrap());
    assert!(log.contains("blake3"), "{log}");
    if output.status.code() == Some(4) {
        assert!(told.contains("blake3"), "{told}");
    }
    assert_eq!(cached(&scene), 0);
}

#[test]
fn a_file_that_is_altered_after_it_was_unpacked_runs_from_the_cache_unless_it_is_to_be_verified() {
    let Some(scene) = Scene::new(&far_kernel(["booted\n", "far: ", "\n"]), true, |_| {}) else {
        return;
    };
    let verified = || scene.run().arg("--verify").output().unwrap();
    assert_eq!(succeed(&verified()), "far: !\n");
    assert!(is_unpacked(&scene));
    flip(&scene, |frames| frames - 1);
    assert_eq!(succeed(&scene.run().output().unwrap()), "far: !\n");
    for more in [&[][..], &["-d"]] {
        let output = scene.run().arg("--verify").args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        assert_eq!(text(&output.stdout), "");
        let told = text(&output.stderr);
        assert!(told.contains("was altered or damaged"), "{told}");
    }
    assert_eq!((cached(&scene), scene.instances()), (1, 0));
}

/// Keeps what is printed.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the failure of a lazy restore relies on.
#[test]
fn a_machine_that_is_stopped_while_it_waits_for_a_page_does_not_run_on_with_zeros() {
    let kernel = far_kernel(["booted\n", "far: ", "\n"]);
    let Some(scene) = Scene::new(&kernel, false, |_| {}) else {
        return;
    };
    let demand = match LazyMemory::new(MEMORY, 0) {
        Ok(demand) => demand,
        Err(error) => return left_out(error),
    };
    let snapshot = freeze(&scene.dir.path().join("kernel"), scene.dir.path());
    let memory = fs::read(snapshot.memory).unwrap();
    let state = MachineState::from_json(&snapshot.state).unwrap();
    let handle = OnceLock::<StopHandle>::new();
    let serve = || {
        while let Some((area, page)) = demand.next().unwrap() {
            let at = page as usize * 4096;
            if page == FAR / 4096 {
                let machine = handle.get().unwrap();
                machine.request(Stop::Requested);
                machine.wait(Duration::from_millis(500));
                let pages = u32::try_from(MEMORY / 4096).unwrap();
                return demand.release(area, 0, pages).unwrap();
            }
            demand.fill(area, page, &memory[at..at + 4096]).unwrap();
        }
    };
    let printed = Printed::default();
    let hooks = Hooks {
        console: Box::new(printed.clone()),
        serial: Box::new(printed.clone()),
        vsock: None,
    };
    std::thread::scope(|scope| {
        scope.spawn(serve);
        let machine = Machine::restore_lazy(&demand, &state, hooks, Time::Live);
        let mut machine = machine.unwrap();
        handle.set(machine.stop_handle()).ok().unwrap();
        assert_eq!(machine.run().unwrap(), Stop::Requested);
    });
    assert_eq!(text(&printed.0.lock().unwrap()), "far: ");
}

#[test]
fn the_first_start_in_the_background_runs_out_of_the_bundle_and_leaves_it_unpacked() {
    let Some(mut scene) = Scene::new(&far_kernel(["booted\n", "far: ", "\n"]), true, |_| {}) else {
        return;
    };
    // Named as one does it: the process in the background works elsewhere.
    let here = scene.dir.path().to_owned();
    let bundle = scene.bundle.file_name().unwrap().to_owned();
    scene.bundle = bundle.into();
    let on_demand = LazyMemory::new(16 << 20, 0).is_ok();
    for (start, name) in ["first", "second"].into_iter().enumerate() {
        let metrics = here.join(name);
        let mut run = scene.run();
        run.current_dir(&here).env("SMOL_CACHE_DIR", "cache");
        run.args(["-d", "--name", name, "--metrics-file"]);
        let output = run.arg(&metrics).output().unwrap();
        // It resets itself at once, which may be before it is known to be up.
        assert!(
            succeed(&output).trim() == name,
            "the machine of a moment: {output:?}"
        );
        eventually_unpacked(&scene);
        let told: serde_json::Value = serde_json::from_slice(&fs::read(metrics).unwrap()).unwrap();
        let meanwhile = told["on_demand"].as_bool().unwrap_or_default();
        assert_eq!(meanwhile, on_demand && start == 0, "{told}");
    }
    for machine in scene.ended(2) {
        assert_eq!(machine["reason"], "exit code 0");
    }
}

fn eventually_unpacked(scene: &Scene) {
    let until = Instant::now() + LIMIT;
    while !is_unpacked(scene) {
        assert!(Instant::now() < until, "it is not unpacked");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_snapshot_that_needs_another_cpu_is_booted_cold_with_the_reason() {
    let needs = |config: &mut Config| config.cpu.features = vec!["avx9000".into()];
    let Some(scene) = Scene::new(&kernel(&["booted\n", "restored\n"], true), true, needs) else {
        return;
    };
    let output = scene.run().arg("--no-cold").output().unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(5), String::new())
    );
    let told = text(&output.stderr);
    assert!(
        told.ends_with(
            "error: cannot restore native: the snapshot is incompatible with this CPU: \
             this host's CPU lacks avx9000\n  \
             hint: without --no-cold it is booted from its images, and runs its warm commands\n"
        ),
        "{told}"
    );
    let output = scene.run().output().unwrap();
    assert_eq!(succeed(&output), "booted\nrestored\n");
    let told = text(&output.stderr);
    assert!(
        told.contains(
            "booting cold (the snapshot is incompatible with this CPU: this host's CPU lacks avx9000)"
        ),
        "{told}"
    );
}

#[test]
fn a_signal_stops_it_and_leaves_nothing() {
    let Some(scene) = Scene::new(&kernel(&["booted\n"], false), false, |_| {}) else {
        return;
    };
    for (number, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let mut child = scene
            .run()
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let _rest = await_line(&mut child, "booted");
        signal(&child, number);
        assert_eq!(await_end(&mut child).code(), Some(code));
        assert_eq!(scene.instances(), 0);
    }
}

#[test]
fn a_killed_smolrun_leaves_a_name_that_can_be_used_again() {
    let Some(scene) = Scene::new(&kernel(&["booted\n"], false), false, |_| {}) else {
        return;
    };
    let mut child = scene
        .run()
        .args(["--name", "n"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let _rest = await_line(&mut child, "booted");
    let taken = scene.run().args(["--name", "n"]).output().unwrap();
    assert_eq!(taken.status.code(), Some(2));
    assert!(
        text(&taken.stderr).contains("a machine named n is running already"),
        "{taken:?}"
    );
    signal(&child, libc::SIGKILL);
    await_end(&mut child);
    assert_eq!(
        succeed(&scene.smolrun().args(["ps", "--json"]).output().unwrap()).trim(),
        "[]"
    );
    assert_eq!(scene.instances(), 0);
}

#[test]
fn a_detached_machine_is_listed_has_a_log_and_is_stopped() {
    let Some(scene) = Scene::new(&kernel(&["booted\n"], false), false, |_| {}) else {
        return;
    };
    let metrics = scene.dir.path().join("metrics.json");
    let output = scene
        .run()
        .args(["-d", "--name", "d", "--metrics-file"])
        .arg(&metrics)
        .output()
        .unwrap();
    assert_eq!(succeed(&output), "d\n");
    assert!(
        text(&output.stderr).contains("native: booted in "),
        "{output:?}"
    );
    let listed = succeed(&scene.smolrun().arg("ps").output().unwrap());
    assert!(
        listed
            .lines()
            .nth(1)
            .unwrap()
            .starts_with("d     native   running  kvm"),
        "{listed}"
    );

    let mut follower = scene
        .smolrun()
        .args(["logs", "-f", "d"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut rest = await_line(&mut follower, "booted");
    assert_eq!(
        succeed(&scene.smolrun().args(["logs", "d"]).output().unwrap()),
        "booted\n"
    );

    assert_eq!(
        succeed(&scene.smolrun().args(["stop", "d"]).output().unwrap()),
        "d\n"
    );
    assert_eq!(await_end(&mut follower).code(), Some(0));
    rest.read_to_string(&mut String::new()).unwrap();
    assert_eq!(scene.ended(1)[0]["reason"], "stopped");
    let metrics: serde_json::Value = serde_json::from_slice(&fs::read(metrics).unwrap()).unwrap();
    for key in [
        "open_ms",
        "materialise_ms",
        "machine_ms",
        "first_output_ms",
        "up_ms",
        "total_ms",
    ] {
        assert!(
            metrics[key].as_f64().is_some_and(|ms| ms > 0.0),
            "{key}: {metrics}"
        );
    }
    assert_eq!(
        succeed(&scene.smolrun().args(["stop", "d"]).output().unwrap()),
        "d\n"
    );
}

#[test]
fn a_detached_machine_that_cannot_run_is_reported_by_the_one_who_started_it() {
    let Some(scene) = Scene::new(b"no kernel", false, |_| {}) else {
        return;
    };
    let output = scene.run().arg("-d").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    assert!(
        text(&output.stderr).contains("cannot boot the machine"),
        "{output:?}"
    );
    let reason = &scene.ended(1)[0]["reason"];
    assert_eq!(reason, "failed: cannot boot the machine");
}

#[test]
fn machines_of_one_bundle_run_side_by_side() {
    let Some(scene) = Scene::new(&kernel(&["booted\n", "restored\n"], false), true, |_| {}) else {
        return;
    };
    let mut children: Vec<Child> = (0..3)
        .map(|_| {
            scene
                .run()
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let _rests: Vec<_> = children
        .iter_mut()
        .map(|child| await_line(child, "restored"))
        .collect();
    let listed = succeed(&scene.smolrun().args(["ps", "--json"]).output().unwrap());
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&listed)
            .unwrap()
            .as_array()
            .unwrap()
            .len(),
        3
    );
    for child in &mut children {
        signal(child, libc::SIGTERM);
        await_end(child);
    }
    assert_eq!(scene.instances(), 0);
}
