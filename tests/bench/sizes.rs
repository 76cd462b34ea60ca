//! What a bundle holds of a machine's memory, and where the time of its build went.

use std::fs;

use serde_json::{Value, json};

use crate::host::Host;
use crate::support::run;

const MACHINES: [&str; 3] = ["hello", "redis", "python"];
const MIB: f64 = 1024.0 * 1024.0;

/// Builds the bundles of the recipes.
pub fn build(host: &Host) {
    for name in MACHINES {
        let bundle = host.bundles.join(name).with_extension("smolmachine");
        if !(crate::host::keeps_bundles() && bundle.exists()) {
            println!("building {name}");
            run(&mut host.build(&host.workspace.join("recipes").join(name), &bundle)).succeed();
        }
    }
}

/// Prints the table and the waterfall of redis, and gives the figures.
pub fn measure(host: &Host) -> Value {
    println!("\nbundles, MiB");
    println!(
        "  {:<8} {:>8} {:>8} {:>8} {:>12} {:>8} {:>12}",
        "", "RAM", "in use", "stored", "compressed", "bundle", "of in use"
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
    println!(
        "  {name:<8} {:8.1} {:8.1} {:8.1} {:12.1} {:8.1} {:11.0}%",
        size / MIB,
        used / MIB,
        raw / MIB,
        compressed / MIB,
        file / MIB,
        compressed / used * 100.0
    );
    json!({
        "memory": size, "used": used, "storedRaw": raw, "storedCompressed": compressed, "bundle": file,
        "digest": inspected["digest"], "stages": facts["stages"], "frozen": facts["frozen"],
    })
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
