//! What a bundle holds of a machine's memory, how large it is beside the plain images compressed,
//! and where the time of its build went.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use smol_bundle::{Bundle, ImageKind};

use smol_tests::host::Host;
use smol_tests::support::run;

/// All recipes of Debian's packages but the one that boots systemd.
const MACHINES: [&str; 6] = ["hello", "redis", "python", "web", "ssh", "postgresql"];
const MIB: f64 = 1024.0 * 1024.0;

/// Has the bundles of these recipes there, those from the cache that need not be built again.
pub fn build(host: &Host, machines: &[&str]) {
    for name in machines {
        let bundle = host.bundles.join(name).with_extension("smolmachine");
        let recipe = host.workspace.join("recipes").join(name);
        println!("building {name}");
        run(&mut host.build(&recipe, &bundle)).succeed();
    }
}

/// Prints the table and the waterfall of redis, and returns the figures.
pub fn measure(host: &Host) -> Value {
    build(host, &MACHINES);
    println!("\nbundles, MiB");
    println!(
        "  {:<10} {:>8} {:>8} {:>8} {:>12} {:>9} {:>8} {:>8} {:>10} {:>8}",
        "",
        "RAM",
        "in use",
        "stored",
        "compressed",
        "zstd -19",
        "bundle",
        "first",
        "zstd -19",
        "ratio"
    );
    println!(
        "  (first: the working set of memory and rootfs, raw; zstd -19: of memory, and of memory and rootfs, as they are)"
    );
    let mut figures = json!({});
    for name in MACHINES {
        figures[name] = bundle(host, name);
    }
    waterfall(&figures["redis"]["stages"]);
    figures
}

fn bundle(host: &Host, name: &str) -> Value {
    let path = host.bundle(name);
    let inspected = host.inspect(&path);
    let facts = fs::read(path.with_extension("json")).expect("the build has written it");
    let facts: Value = serde_json::from_slice(&facts).expect("JSON");
    let images = inspected["images"].as_array().expect("a list");
    let memory = images
        .iter()
        .find(|image| image["kind"] == "memory")
        .expect("a snapshot");
    let number = |value: &Value| value.as_f64().expect("a number");
    let size = number(&memory["size"]);
    let used = size - number(&memory["zero"]) * 4096.0;
    let (raw, compressed) = (
        number(&memory["rawBytes"]),
        number(&memory["compressedBytes"]),
    );
    let file = number(&inspected["fileSize"]);
    let touched = &facts["frozen"]["workingSet"];
    let pages = |key: &str| touched[key].as_f64().unwrap_or_default();
    let first = (pages("memoryPages") + pages("rootfsPages")) * 4096.0;
    let plain = plain_zstd(host, &path);
    let (alone, both) = (
        plain.map(|p| p[0]),
        plain.map(|[memory, rootfs]| memory + rootfs),
    );
    let shown =
        |bytes: Option<f64>| bytes.map_or("-".into(), |bytes| format!("{:.1}", bytes / MIB));
    println!(
        "  {name:<10} {:8.1} {:8.1} {:8.1} {:12.1} {:>9} {:8.1} {:8.1} {:>10} {:>8}",
        size / MIB,
        used / MIB,
        raw / MIB,
        compressed / MIB,
        shown(alone),
        file / MIB,
        first / MIB,
        shown(both),
        both.map_or("-".into(), |plain| format!("{:.2}", file / plain)),
    );
    json!({
        "memory": size, "used": used, "storedRaw": raw, "storedCompressed": compressed, "bundle": file,
        "workingSet": first, "memoryZstd19": alone, "plainZstd19": both,
        "digest": inspected["digest"], "stages": facts["stages"], "frozen": facts["frozen"],
    })
}

/// Bytes of memory image and rootfs, each compressed as it is by `zstd -19`; `None` without the tool.
fn plain_zstd(host: &Host, bundle: &Path) -> Option<[f64; 2]> {
    let bundle = Bundle::open(bundle).unwrap_or_else(|e| panic!("{e}"));
    let image = host.folder("plain").join("image");
    let compress = |kind| {
        let file = fs::File::create(&image).expect("the build folder can be written");
        let extracted = bundle.extract(kind, &file, 2, &mut |_, _| {});
        extracted.unwrap_or_else(|e| panic!("{e}"));
        let mut zstd = Command::new("zstd");
        let packed = zstd.args(["-q", "-19", "-T0", "-c"]).arg(&image).output();
        Some(packed.ok()?.stdout.len() as f64)
    };
    Some([compress(ImageKind::Memory)?, compress(ImageKind::Rootfs)?])
}

fn waterfall(stages: &Value) {
    println!("\nbuilding redis, s");
    println!("  {:<12} {:>8} {:>8}", "", "begins", "takes");
    for stage in stages.as_array().expect("a list") {
        let number = |key: &str| stage[key].as_f64().expect("a number");
        println!(
            "  {:<12} {:8.2} {:8.2}",
            stage["name"].as_str().expect("a name"),
            number("start"),
            number("duration")
        );
    }
}
