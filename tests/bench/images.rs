//! A container image into a root file system: beside umoci and mkfs.erofs, which do the same in two steps.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smol_host::emulated::FAULTS;
use smol_testing::oci::{Layer, Packed, write_layout};

use smol_tests::host::Host;
use smol_tests::support::run;

/// What the image holds, at least, unless the folders of this host hold less.
const SIZE: usize = 1 << 30;
const MIB: f64 = 1024.0 * 1024.0;
/// Often enough to see the most memory that a process has.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Prints the figures and returns them.
///
/// # Panics
/// If umoci or mkfs.erofs is missing.
pub fn measure(host: &Host) -> Value {
    let folder = host.folder("images");
    let size = image(&folder.join("layout"));
    let theirs = theirs(&folder);
    let (ours, memory) = ours(host, &folder);
    let begin = Instant::now();
    run(&mut build(host, &folder)).succeed();
    let unchanged = begin.elapsed().as_secs_f64();
    let mib = size as f64 / MIB;
    println!("\na container image of {mib:.0} MiB in four layers, packed with gzip, into EROFS");
    println!(
        "  smolbuild                {ours:>6.2} s  {:>6.0} MiB/s, at most {memory:.0} MiB of memory",
        mib / ours
    );
    println!(
        "  umoci, then mkfs.erofs   {theirs:>6.2} s  {:>6.0} MiB/s",
        mib / theirs
    );
    println!(
        "  ratio                    {:>6.2}  goal: at least 3",
        theirs / ours
    );
    println!("  a build without changes  {unchanged:>6.2} s  goal: 0.1, with the bundle");
    json!({
        "bytes": size, "smolbuild": ours, "umociAndMkfs": theirs, "memoryMiB": memory, "unchanged": unchanged,
    })
}

/// Writes the image, of files of this host; returns the size of its content.
fn image(layout: &Path) -> usize {
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
    let base = Layer::default()
        .file("bin/busybox", 0o755, &busybox)
        .symlink("bin/httpd", "busybox");
    let (mut layers, mut size) = (vec![base], 0);
    let mut todo: Vec<PathBuf> = ["/usr/share", "/usr/bin", "/usr/lib"]
        .map(PathBuf::from)
        .to_vec();
    let mut layer = Layer::default();
    let mut in_layer = 0;
    while size < SIZE
        && let Some(path) = todo.pop()
    {
        let Ok(metadata) = path.symlink_metadata() else {
            continue;
        };
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            todo.extend(entries.map(|entry| entry.path()));
        }
        let name = path.to_str().map(|name| name.trim_start_matches('/'));
        let Some(name) = name.filter(|name| metadata.is_file() && name.len() < 100) else {
            continue;
        };
        let Ok(content) = fs::read(&path) else {
            continue;
        };
        layer = layer.file(name, 0o644, &content);
        (size, in_layer) = (size + content.len(), in_layer + content.len());
        if in_layer > SIZE / 3 {
            layers.push(std::mem::take(&mut layer));
            in_layer = 0;
        }
    }
    layers.push(layer);
    let config =
        json!({"Cmd": ["/bin/httpd", "-f", "-p", "8080"], "ExposedPorts": {"8080/tcp": {}}});
    write_layout(layout, "v1", &config, layers, Packed::Gzip);
    size
}

/// The seconds that umoci and mkfs.erofs take.
fn theirs(folder: &Path) -> f64 {
    let begin = Instant::now();
    let mut umoci = Command::new("umoci");
    umoci
        .current_dir(folder)
        .args(["unpack", "--image", "layout:v1", "unpacked"]);
    run(&mut umoci).succeed();
    let mut mkfs = Command::new("mkfs.erofs");
    mkfs.current_dir(folder)
        .args(["-T0", "--all-root", "image.erofs", "unpacked/rootfs"]);
    run(&mut mkfs).succeed();
    let took = begin.elapsed().as_secs_f64();
    fs::remove_dir_all(folder.join("unpacked")).expect("it was just made");
    took
}

/// The seconds that smolbuild takes for its root file system, with no layer in its cache; and the most memory
/// that it had in all of the build, MiB.
fn ours(host: &Host, folder: &Path) -> (f64, f64) {
    let text = "name = \"image\"\nrootfs.image = \"oci:layout:v1\"\n";
    fs::write(folder.join("Smolfile"), text).expect("a folder of ours");
    let cache = folder.join("cache");
    fs::create_dir(&cache).expect("a folder of ours");
    for name in ["kernels", "emulated-host", FAULTS] {
        symlink(host.cache().join(name), cache.join(name)).expect("a folder of ours");
    }
    let child = build(host, folder).spawn().expect("smolbuild runs");
    let memory = most_memory(child);
    let facts = fs::read(folder.join("image.json")).expect("the build has written it");
    let facts: Value = serde_json::from_slice(&facts).expect("JSON");
    let mut stages = facts["stages"].as_array().expect("a list").iter();
    let rootfs = stages
        .find(|stage| stage["name"] == "rootfs")
        .expect("a stage");
    (rootfs["duration"].as_f64().expect("a number"), memory)
}

fn build(host: &Host, folder: &Path) -> Command {
    let mut build = host.build(folder, &folder.join("image.smolmachine"));
    build
        .args(["--accel", "emulated"])
        .env("SMOL_CACHE_DIR", folder.join("cache"));
    build
}

/// Waits for a process; returns the most memory that it had, MiB (proc_pid_status(5), VmHWM).
fn most_memory(mut child: Child) -> f64 {
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    loop {
        let ended = child.try_wait().expect("it is ours");
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        most = most.max(kib.unwrap_or(0));
        if let Some(ended) = ended {
            assert!(ended.success(), "the build failed");
            return f64::from(most) / 1024.0;
        }
        thread::sleep(POLL_INTERVAL);
    }
}
