//! Modules: what stands in them, how long they are, whom they import.

use std::collections::{BTreeMap, BTreeSet};

use crate::tree::*;

/// The modules in which `unsafe` may stand: system calls, shared memory, hypervisors. Nowhere else,
/// and so not in what reads bundles, virtqueues, archives, Smolfiles or protocols.
const UNSAFE_MODULES: &[&str] = &[
    "crates/smol-guest/src/init/",
    "crates/smol-guest/src/main.rs",
    "crates/smol-host/src/child.rs",
    "crates/smol-host/src/emulated/",
    "crates/smol-machine/src/hv/",
    "crates/smol-machine/src/machine/mod.rs",
    "crates/smol-machine/src/memory/image.rs",
    "crates/smol-machine/src/memory/lazy.rs",
    "crates/smol-machine/src/memory/prefetch.rs",
    "crates/smol-machine/src/memory/uffd.rs",
    "crates/smol-machine/src/threads.rs",
    "crates/smol-sandbox/src/support.rs",
    "fuzz/src/memory.rs",
];

/// The modules that may ask for which operating system or processor they are compiled.
const PLATFORM_MODULES: &[&str] = &[
    "crates/smol-machine/src/hv/",
    "crates/smol-machine/src/arch/mod.rs",
    "crates/smol-guest/src/lib.rs",
    "crates/smol-sandbox/src/arch.rs",
];

/// The modules that start a program which downloads, or could: `debian/bootstrap.rs` gives mmdebstrap
/// no source but a folder.
const DOWNLOAD_MODULES: &[&str] = &[
    "crates/smol-host/src/emulated/kernel.rs",
    "smolbuild/src/input/debian/archive.rs",
    "smolbuild/src/input/debian/bootstrap.rs",
    "smolbuild/src/fetch.rs",
];

/// The modules that may name KVM's own types.
const KVM_MODULES: &[&str] = &["crates/smol-machine/src/hv/kvm/"];

/// Most lines of a source file, and of a test, which is a list.
const MOST_LINES: usize = 700;
const MOST_TEST_LINES: usize = 900;

/// Most lines of a function outside of tests.
const MOST_FUNCTION_LINES: usize = 60;
/// Functions that are longer, with their lines. A function leaves the list when it has become short
/// enough; none is added, and none may grow.
const LONG_FUNCTIONS: &[(&str, usize)] = &[];

#[test]
fn unsafe_code_stays_in_its_modules_and_each_of_them_has_some() {
    let mut empty: BTreeSet<&str> = UNSAFE_MODULES.iter().copied().collect();
    for (path, line, text) in code_lines() {
        if is_test(&path) || !words(&text).any(|word| word == "unsafe") {
            continue;
        }
        let module = UNSAFE_MODULES
            .iter()
            .copied()
            .find(|module| path.starts_with(module));
        let Some(module) = module else {
            panic!("{path}:{line}: unsafe outside of its modules: {text}");
        };
        empty.remove(module);
    }
    assert!(empty.is_empty(), "modules without unsafe: {empty:?}");
}

#[test]
fn the_platform_is_asked_for_only_in_its_modules() {
    for (path, line, text) in code_lines() {
        let asks = text.contains("cfg")
            && words(&text).any(|word| word == "target_os" || word == "target_arch");
        let allowed = PLATFORM_MODULES
            .iter()
            .any(|module| path.starts_with(module));
        assert!(!asks || allowed, "{path}:{line}: {text}");
    }
}

#[test]
fn types_of_kvm_stay_in_its_back_end_and_out_of_the_wire_types() {
    for (path, line, text) in code_lines() {
        let names = words(&text).any(|word| word == "kvm_bindings" || word == "kvm_ioctls");
        let allowed = KVM_MODULES.iter().any(|module| path.starts_with(module));
        assert!(!names || allowed, "{path}:{line}: {text}");
    }
}

#[test]
fn wire_types_are_made_of_our_own_types() {
    for (path, line, text) in code_lines() {
        let of_state = [
            "crates/smol-machine/src/arch/x86_64/state.rs",
            "crates/smol-machine/src/devices/virtio/state.rs",
            "crates/smol-machine/src/machine/state.rs",
        ]
        .contains(&path.as_str());
        let Some(import) = text.trim_start().strip_prefix("use ").filter(|_| of_state) else {
            continue;
        };
        let known = ["serde::", "std::", "crate::", "super::"];
        assert!(
            known.iter().any(|root| import.starts_with(root)),
            "{path}:{line}: {text}"
        );
    }
}

#[test]
fn the_builder_opens_no_socket_of_its_own() {
    for (path, line, text) in code_lines() {
        let opens = words(&text)
            .any(|word| word == "TcpStream" || word == "UdpSocket" || word == "ToSocketAddrs");
        assert!(
            !opens || !path.starts_with("smolbuild/src/"),
            "{path}:{line}: {text}"
        );
    }
}

#[test]
fn programs_that_download_are_started_in_their_modules_and_each_of_them_starts_one() {
    let mut idle: BTreeSet<&str> = DOWNLOAD_MODULES.iter().copied().collect();
    // The whole lines: what is started stands in a string.
    // xtask is no program of ours that users run.
    let sources = rust_files()
        .into_iter()
        .filter(|path| !is_test(path) && !path.starts_with("xtask/"));
    for path in sources {
        let starts = [
            "ommand(\"apt-get\")",
            "ommand::new(\"apt-get\")",
            "mmdebstrap::command(",
            "ommand::new(\"curl\")",
            "ommand::new(\"wget\")",
        ];
        let text = read(&path);
        if !starts.iter().any(|start| text.contains(start)) {
            continue;
        }
        assert!(
            DOWNLOAD_MODULES.contains(&path.as_str()),
            "{path} starts a program that downloads"
        );
        idle.remove(path.as_str());
    }
    assert!(idle.is_empty(), "modules that download nothing: {idle:?}");
}

#[test]
fn no_file_is_longer_than_a_reader_can_bear() {
    for path in rust_files() {
        let most = if is_test(&path) {
            MOST_TEST_LINES
        } else {
            MOST_LINES
        };
        let lines = read(&path).lines().count();
        assert!(
            lines <= most,
            "{path} has {lines} lines, the most is {most}"
        );
    }
}

#[test]
fn no_function_is_longer_than_a_screen_but_for_those_that_always_were() {
    let mut excused: BTreeMap<&str, usize> = LONG_FUNCTIONS.iter().copied().collect();
    for path in rust_files().into_iter().filter(|path| !is_test(path)) {
        for (name, line, lines) in functions(&read(&path)) {
            if lines <= MOST_FUNCTION_LINES {
                continue;
            }
            let krate = path.trim_start_matches("crates/").split('/').next();
            let key = format!("{} {name}", krate.expect("a path has a beginning"));
            let most = excused.remove(key.as_str()).unwrap_or(MOST_FUNCTION_LINES);
            assert!(
                lines <= most,
                "{path}:{line}: {name} has {lines} lines, the most is {most}"
            );
        }
    }
    assert!(excused.is_empty(), "no longer so long: {excused:?}");
}

#[test]
fn functions_are_measured_from_their_name_to_their_closing_brace() {
    let source = "fn a() {}\nimpl X {\n    pub const fn b(\n        self,\n    ) -> u8 {\n        1\n    }\n}\n\
                  trait T {\n    fn c(&self);\n    fn d(\n        &self,\n    );\n}\n\
                  unsafe fn e() {\n    if x {\n    }\n}\n#[cfg(test)]\nmod tests {\n    fn f() {\n    }\n}\n";
    let found: Vec<(String, usize)> = functions(source)
        .into_iter()
        .map(|(name, _, lines)| (name, lines))
        .collect();
    let wanted = [("a", 1), ("b", 5), ("c", 1), ("d", 3), ("e", 4)];
    assert_eq!(found, wanted.map(|(name, lines)| (name.to_owned(), lines)));
}

/// Modules that all others of their crate may import and that may import them.
const SHARED_MODULES: &[(&str, &str)] = &[
    // What depends on the processor, of each of the others.
    ("crates/smol-machine", "arch"),
];

#[test]
fn the_modules_of_a_crate_import_each_other_in_one_direction() {
    let mut crates: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for path in rust_files().into_iter().filter(|path| !is_test(path)) {
        let Some((krate, file)) = path.split_once("/src/") else {
            continue;
        };
        let module = file.split(['/', '.']).next().expect("never empty");
        let shared = |name: &str| SHARED_MODULES.contains(&(krate, name));
        if ["lib", "main"].contains(&module) || shared(module) {
            continue;
        }
        let uses = crates.entry(krate.to_owned()).or_default();
        let imports = imports(&read(&path))
            .into_iter()
            .filter(|name| name != module && !shared(name));
        uses.entry(module.to_owned()).or_default().extend(imports);
    }
    assert!(crates.len() > 8, "only {} crates found", crates.len());
    for (krate, uses) in crates {
        for module in uses.keys() {
            let mut reached: BTreeSet<&str> = BTreeSet::new();
            let mut open = vec![module.as_str()];
            while let Some(next) = open.pop() {
                let imports = uses.get(next).into_iter().flatten();
                open.extend(imports.map(String::as_str).filter(|i| reached.insert(i)));
            }
            assert!(
                !reached.contains(module.as_str()),
                "{krate}: {module} imports what imports it, among {reached:?}"
            );
        }
    }
}

#[test]
fn imports_are_read_from_paths_and_from_groups() {
    let source = "use crate::a::B;\nuse crate::{\n    c::{D, E},\n    f,\n};\nfn x() { crate::g() }\n\
                  // crate::h\n#[cfg(test)]\nmod tests { use crate::i; }\n";
    let found: Vec<String> = imports(source).into_iter().collect();
    assert_eq!(found, ["a", "c", "f", "g"]);
}
