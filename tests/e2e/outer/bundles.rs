//! Building the bundles, with all that a user sees of it.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::host::{Host, keeps_bundles, smolfile, text};
use crate::suite::Suite;
use crate::support::run;

/// All of recipes/.
const RECIPES: [&str; 6] = ["hello", "redis", "python", "postgresql", "web", "ssh"];

pub fn tests(suite: &mut Suite, host: &Host) {
    // What later tests stand on is done whatever the words are.
    kernel(host);
    let recipes = RECIPES.map(|name| (name, host.workspace.join("recipes").join(name)));
    for (name, path) in recipes
        .into_iter()
        .chain([("service", smolfile(host, "service"))])
    {
        let there = keeps_bundles()
            && host
                .bundles
                .join(name)
                .with_extension("smolmachine")
                .exists();
        if there {
            continue;
        }
        suite.always(
            &format!("{name} is built, signed, verified and inspected"),
            || build(host, name, &path),
        );
    }
}

/// The kernel that our own Smolfiles name by path.
fn kernel(host: &Host) {
    let vmlinux = host.machines.join("vmlinux");
    if !vmlinux.exists() {
        run(host
            .tools
            .smolbuild()
            .args(["kernel", "smol-6.1", "-o", text(&vmlinux)]))
        .succeed();
    }
}

fn build(host: &Host, name: &str, smolfile: &Path) {
    let bundle = host.bundles.join(name).with_extension("smolmachine");
    let said = run(&mut host.build(smolfile, &bundle)).succeed();
    let facts = fs::read(bundle.with_extension("json")).unwrap();
    let facts: Value = serde_json::from_slice(&facts).unwrap();
    let digest = facts["digest"].as_str().unwrap();
    assert!(said.contains(digest) && said.contains("smolrun"), "{said}");

    let verified =
        run(host
            .tools
            .smolbuild()
            .args(["verify", text(&bundle), "--key", text(&host.tools.key)]))
        .succeed();
    assert!(verified.contains(digest), "{verified}");
    let inspected = host.inspect(&bundle);
    assert_eq!(inspected["digest"].as_str(), Some(digest));
    assert_eq!(
        inspected["fileSize"].as_u64(),
        Some(fs::metadata(&bundle).unwrap().len())
    );
    assert_eq!(inspected["config"]["name"].as_str(), Some(name));
    assert_eq!(inspected["config"]["reproducible"]["claimed"], true);
    let memory = inspected["images"]
        .as_array()
        .unwrap()
        .iter()
        .find(|image| image["kind"] == "memory");
    assert!(
        memory.expect("a snapshot")["stored"].as_u64() > Some(100),
        "{inspected}"
    );
}
