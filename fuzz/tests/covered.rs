//! Which modules decode bytes, and that each of them has a target.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use smol_fuzz::targets::TARGETS;

/// Calls by which bytes become numbers and values.
const DECODING: &[&str] = &[
    "from_le_bytes",
    "from_str_radix",
    "read_obj",
    "serde_json::from_",
    "toml::from_",
    "DeTable::parse",
];

/// Modules that decode and have no fuzz target of their own, and why.
const DECODES_NOTHING_HOSTILE: &[(&str, &str)] = &[
    (
        "crates/smol-guest/src/init/probes/tcp.rs",
        "what the guest's own kernel says",
    ),
    (
        "crates/smol-host/src/emulated/init.rs",
        "the host's own job, inside of the emulated host",
    ),
    (
        "crates/smol-host/src/emulated/kernel.rs",
        "what this program has put into its cache",
    ),
    (
        "crates/smol-host/src/emulated/qemu.rs",
        "the headers of this very program",
    ),
    (
        "crates/smol-host/src/emulated/running.rs",
        "the payload of a frame; target `wire`",
    ),
    (
        "crates/smol-machine/src/arch/x86_64/boot/linux64.rs",
        "a constant",
    ),
    ("crates/smol-machine/src/arch/x86_64/cpu.rs", "constants"),
    (
        "smolbuild/src/bundle_cache/mod.rs",
        "what this program has put into its cache",
    ),
    (
        "smolbuild/src/commands/inspect.rs",
        "a manifest that was parsed before; target `documents`",
    ),
    (
        "smolbuild/src/diff/state.rs",
        "JSON of any form, to be compared",
    ),
    (
        "smolbuild/src/input/debian/runtime.rs",
        "modes in packages that Debian has signed",
    ),
    (
        "smolbuild/src/kernel/cache.rs",
        "what this program has put into its cache",
    ),
    ("smolbuild/src/kernel/prebuilt.rs", "a file of the release"),
    (
        "smolbuild/src/kernel/recipe.rs",
        "recipes that are in this program",
    ),
    (
        "smolbuild/src/pack.rs",
        "what this program's own boot has written",
    ),
    (
        "crates/smol-protocol/src/step.rs",
        "what the builder has put into the initramfs of its own machine",
    ),
    (
        "smolbuild/src/steps/cache.rs",
        "what this program has put into its cache",
    ),
    (
        "smolrun/src/host/background.rs",
        "another process of this program",
    ),
    (
        "smolrun/src/host/emulated.rs",
        "another process of this program; target `control`",
    ),
    (
        "smolrun/src/host/fetcher.rs",
        "another process of this program",
    ),
    ("smolrun/src/images/cache.rs", "an image that was verified"),
    (
        "crates/smol-sandbox/src/backdoor.rs",
        "a hole on purpose, in tests",
    ),
];

/// The folders of the crates that programs are made of.
const PROGRAMS: [&str; 3] = ["crates", "smolbuild/src", "smolrun/src"];

fn root() -> &'static Path {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR"));
    fuzz.parent().expect("a member of the workspace")
}

/// Source files that are no tests, by their path from the top of the checkout.
fn sources() -> Vec<String> {
    const NOT: [&str; 6] = [
        "tests",
        "examples",
        "tests.rs",
        "testing.rs",
        "hostile.rs",
        "fuzz.rs",
    ];
    let mut folders: Vec<PathBuf> = PROGRAMS.iter().map(|folder| root().join(folder)).collect();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the checkout") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if NOT.contains(&&*name) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") {
                let path = path.strip_prefix(root()).expect("below it");
                found.push(path.display().to_string());
            }
        }
    }
    assert!(found.len() > 150, "only {} source files found", found.len());
    found
}

fn covered() -> BTreeSet<&'static str> {
    TARGETS
        .iter()
        .flat_map(|target| target.covers)
        .copied()
        .collect()
}

#[test]
fn modules_that_targets_cover_exist() {
    for path in covered() {
        assert!(root().join(path).exists(), "there is no {path}");
    }
}

#[test]
fn every_module_that_decodes_bytes_has_a_target_or_a_reason_for_none() {
    let covered = covered();
    let mut excused: BTreeMap<&str, &str> = DECODES_NOTHING_HOSTILE.iter().copied().collect();
    for path in sources() {
        let text = fs::read_to_string(root().join(&path)).expect("a source file");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let decodes = DECODING.iter().any(|call| code.contains(call));
        let reason = excused.remove(path.as_str());
        match (covered.contains(path.as_str()), decodes) {
            (true, _) => assert!(
                reason.is_none(),
                "{path} has a target, and a reason for none"
            ),
            (_, true) => assert!(
                reason.is_some(),
                "{path} decodes bytes; no target covers it"
            ),
            _ => assert!(reason.is_none(), "{path} decodes nothing any more"),
        }
    }
    assert!(excused.is_empty(), "no longer there: {excused:?}");
}
