//! The invariants of ARCHITECTURE.md that can be read off the sources, and the facts that the
//! documents repeat: a change that breaks one must change the document too.
//!
//! They use the standard library only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which of our crates each crate may depend on, directly. What is not here depends on none.
const OUR_CRATES: &[(&str, &[&str])] = &[
    ("smol-bundle", &[]),
    ("smol-cli", &[]),
    ("smol-guest", &["smol-protocol"]),
    ("smol-machine", &[]),
    ("smol-protocol", &[]),
    ("smol-rootfs", &[]),
    // What tests share. No other may depend on it but for its tests.
    ("smol-testing", &[]),
    ("smol-trust", &["smol-bundle", "smol-cli"]),
    ("smol-sandbox", &["smol-cli"]),
    ("smol-host", &["smol-cli", "smol-machine", "smol-sandbox"]),
    (
        "smolbuild",
        &[
            "smol-bundle",
            "smol-cli",
            "smol-host",
            "smol-machine",
            "smol-protocol",
            "smol-rootfs",
            "smol-sandbox",
            "smol-trust",
        ],
    ),
    (
        "smolrun",
        &[
            "smol-bundle",
            "smol-cli",
            "smol-host",
            "smol-machine",
            "smol-protocol",
            "smol-sandbox",
            "smol-trust",
        ],
    ),
];

/// Crates that talk to hypervisors or are parts of machines: not for smol-bundle.
const HYPERVISOR_CRATES: &[&str] = &[
    "applevisor",
    "kvm-bindings",
    "kvm-ioctls",
    "linux-loader",
    "virtio-bindings",
    "virtio-queue",
    "virtio-vsock",
    "vm-memory",
    "vmm-sys-util",
];

/// Crates that speak network protocols: no program of ours opens a connection to a server.
const NETWORK_CRATES: &[&str] = &[
    "curl",
    "h2",
    "hyper",
    "native-tls",
    "oci-client",
    "openssl",
    "reqwest",
    "rustls",
    "tokio",
    "ureq",
];

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

/// Crates that neither a guest nor a machine is linked with, nor what reads bundles and speaks to
/// guests, at any depth.
const CRATES_WITHOUT_NETWORK: &[&str] =
    &["smol-bundle", "smol-guest", "smol-machine", "smol-protocol"];

// ---- Dependencies --------------------------------------------------------------------------------

#[test]
fn each_crate_depends_on_those_of_ours_that_it_may_know() {
    for (name, allowed) in OUR_CRATES {
        let ours: BTreeSet<String> = direct_dependencies(name)
            .into_iter()
            .filter(|d| d.starts_with("smol"))
            .collect();
        let allowed: BTreeSet<String> = allowed.iter().map(|d| (*d).to_owned()).collect();
        assert_eq!(ours, allowed, "dependencies of {name}");
    }
}

#[test]
fn every_crate_of_the_workspace_is_judged_here() {
    let manifest = read("Cargo.toml");
    let members = manifest
        .split("members = [")
        .nth(1)
        .and_then(|rest| rest.split(']').next())
        .expect("a list of members");
    let members: BTreeSet<&str> = members
        .split('"')
        .skip(1)
        .step_by(2)
        .map(|path| path.rsplit('/').next().expect("never empty"))
        .collect();
    let judged: BTreeSet<&str> = OUR_CRATES
        .iter()
        .map(|(name, _)| *name)
        .chain(["fuzz", "tests", "xtask"])
        .collect();
    assert_eq!(members, judged);
}

#[test]
fn the_runner_does_not_contain_the_builder() {
    let all = all_dependencies("smolrun");
    assert!(!all.contains("smolbuild"), "smolrun depends on smolbuild");
    assert!(all.contains("smol-bundle"), "the lock file was misread");
}

#[test]
fn the_bundle_format_knows_no_hypervisor() {
    let all = all_dependencies("smol-bundle");
    assert!(all.contains("zstd"), "the lock file was misread");
    for foreign in HYPERVISOR_CRATES {
        assert!(!all.contains(*foreign), "smol-bundle depends on {foreign}");
    }
}

#[test]
fn the_machine_knows_no_smolfile_and_no_bundle() {
    let all = all_dependencies("smol-machine");
    assert!(all.contains("kvm-ioctls"), "the lock file was misread");
    for foreign in ["ed25519-dalek", "tar", "toml", "zstd"] {
        assert!(!all.contains(foreign), "smol-machine depends on {foreign}");
    }
}

#[test]
fn nothing_that_speaks_a_network_protocol_is_linked() {
    let lock = lock_file();
    assert!(lock.contains_key("clap"), "the lock file was misread");
    for foreign in NETWORK_CRATES {
        assert!(!lock.contains_key(*foreign), "{foreign} is in Cargo.lock");
    }
}

#[test]
fn no_network_client_is_in_what_machines_bundles_and_guests_are_made_of() {
    for name in CRATES_WITHOUT_NETWORK {
        let all = all_dependencies(name);
        assert!(!all.is_empty(), "the lock file was misread");
        for foreign in NETWORK_CRATES.iter().chain(&["smol-net", "smol-registry"]) {
            assert!(!all.contains(*foreign), "{name} depends on {foreign}");
        }
    }
}

// ---- Sources -------------------------------------------------------------------------------------

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

// ---- Documents -----------------------------------------------------------------------------------

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

#[test]
fn links_between_documents_lead_somewhere() {
    let documents = files(".md");
    assert!(
        documents.iter().any(|path| path == "README.md"),
        "no documents found"
    );
    for path in documents {
        let folder = root()
            .join(&path)
            .parent()
            .expect("a file has a folder")
            .to_owned();
        for target in links(&read(&path)) {
            let file = target.split('#').next().unwrap_or_default();
            assert!(
                file.is_empty() || folder.join(file).exists(),
                "{path}: the link to {target} leads nowhere"
            );
        }
    }
}

#[test]
fn source_files_that_documents_name_exist() {
    let mut found = 0;
    for path in files(".md") {
        let text = read(&path);
        // Every other piece is code, and a placeholder is no path.
        let code = text.split('`').skip(1).step_by(2);
        for name in code.filter(|name| name.contains("/src/") && !name.contains(['*', '<', ' '])) {
            let exists = ["", "crates/"].map(|folder| root().join(folder).join(name).exists());
            assert!(exists.contains(&true), "{path}: there is no {name}");
            found += 1;
        }
    }
    assert!(found > 20, "only {found} found");
}

#[test]
fn every_option_is_in_the_manual() {
    let manual = read("docs/cli.md");
    let mut seen = 0;
    for cli in [
        "smolbuild/src/cli.rs",
        "smolrun/src/cli.rs",
        "crates/smol-cli/src/args.rs",
        "crates/smol-host/src/select.rs",
    ] {
        for option in long_options(&read(cli)) {
            seen += 1;
            assert!(
                manual.contains(&format!("--{option}")),
                "docs/cli.md does not tell of --{option} of {cli}"
            );
        }
    }
    assert!(
        seen > 20,
        "only {seen} options were found: the command lines were misread"
    );
}

#[test]
fn every_command_is_in_the_manual() {
    let manual = read("docs/cli.md");
    for program in ["smolbuild", "smolrun"] {
        let commands = commands(&read(&format!("{program}/src/cli.rs")));
        assert!(commands.len() > 3, "{program}: {commands:?}");
        for command in commands {
            let line = format!("\n{program} {command}");
            assert!(
                manual.contains(&line) || command == "build",
                "docs/cli.md does not tell of {program} {command}"
            );
        }
    }
}

#[test]
fn every_environment_variable_is_in_the_manual_and_every_one_there_exists() {
    let manual = variables(&read("docs/cli.md"));
    let mut sources = BTreeSet::new();
    for path in rust_files()
        .into_iter()
        .filter(|path| !is_test(path) && path.contains("/src/"))
    {
        sources.extend(variables(&read(&path)));
    }
    // Set by the build script for the compiler.
    sources.remove("SMOL_GUEST_BINARY");
    assert_eq!(manual, sources);
}

#[test]
fn every_exit_code_is_in_the_manual() {
    let manual = read("docs/cli.md");
    let source = read("crates/smol-cli/src/error.rs");
    let kinds = source
        .split("pub enum ExitKind {")
        .nth(1)
        .and_then(|rest| rest.split("\n}").next())
        .expect("ExitKind");
    let codes: Vec<&str> = kinds
        .lines()
        .filter_map(|line| {
            line.trim()
                .strip_suffix(',')?
                .split_once(" = ")
                .map(|(_, code)| code)
        })
        .collect();
    assert!(codes.len() >= 8, "{codes:?}");
    let table: Vec<&str> = manual
        .lines()
        .filter(|line| line.starts_with("| "))
        .collect();
    for code in codes {
        let told = table.iter().any(|row| {
            let first = row.split('|').nth(1).unwrap_or_default();
            first.split(',').any(|cell| cell.trim() == code)
        });
        assert!(told, "exit code {code} is not in the table of docs/cli.md");
    }
}

#[test]
fn every_module_of_a_crate_is_on_the_map_at_its_front_door() {
    let crates = [
        "crates/smol-bundle",
        "crates/smol-cli",
        "crates/smol-host",
        "crates/smol-machine",
        "crates/smol-rootfs",
        "smolbuild",
    ];
    for folder in crates {
        let text = read(&format!("{folder}/src/lib.rs"));
        let (map, code) = split_front(&text);
        for line in code.lines().filter(|line| !line.contains("hostile")) {
            let Some(module) = line
                .trim_start_matches("pub ")
                .strip_prefix("mod ")
                .and_then(|m| m.strip_suffix(';'))
            else {
                continue;
            };
            // Errors and the command line speak for themselves.
            let known = ["error", "cli", "subprocess", "work", "human"].contains(&module);
            assert!(
                known || words(map).any(|word| word == module),
                "{folder}: {module} is not on the map"
            );
        }
    }
}

// ---- Reading the tree ----------------------------------------------------------------------------

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a member of the workspace")
        .to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Files of ours by the end of their names, relative to the root and sorted.
fn files(ending: &str) -> Vec<String> {
    const NOT_OURS: &[&str] = &["target", ".git"];
    let (mut found, mut folders) = (Vec::new(), vec![root()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("a readable folder").path();
            let name = path
                .file_name()
                .expect("an entry has a name")
                .to_string_lossy()
                .into_owned();
            if path.is_dir() && !NOT_OURS.contains(&name.as_str()) {
                folders.push(path);
            } else if name.ends_with(ending) {
                let relative = path.strip_prefix(root()).expect("below the root");
                found.push(relative.to_str().expect("UTF-8").to_owned());
            }
        }
    }
    found.sort();
    found
}

fn rust_files() -> Vec<String> {
    let files = files(".rs");
    assert!(files.len() > 100, "only {} source files found", files.len());
    files
}

/// Whether it only runs in tests, examples or benchmarks.
fn is_test(path: &str) -> bool {
    let folders: Vec<&str> = path.split('/').collect();
    folders
        .iter()
        .any(|folder| ["tests", "examples", "benches"].contains(folder))
        || path.ends_with("/tests.rs")
        || path.ends_with("/testing.rs")
}

/// Lines of code with path and number: no comments, no texts.
fn code_lines() -> Vec<(String, usize, String)> {
    let mut lines = Vec::new();
    for path in rust_files()
        .into_iter()
        .filter(|path| path != "tests/architecture.rs")
    {
        for (number, line) in (1..).zip(read(&path).lines()) {
            lines.push((path.clone(), number, code_of(line)));
        }
    }
    lines
}

/// A line without its comment and without what is between quotes. Texts over several lines stay:
/// none of the words that are looked for is common in prose.
fn code_of(line: &str) -> String {
    let (mut code, mut quoted, mut escaped) = (String::new(), false, false);
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '/' if !quoted && characters.peek() == Some(&'/') => return code,
            _ if !quoted => code.push(c),
            _ => {}
        }
    }
    code
}

/// Functions of a source file as rustfmt leaves it, but for those of its tests: name, first line and
/// number of lines.
fn functions(source: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = source.lines().collect();
    let tests = lines
        .windows(2)
        .position(|two| two[0] == "#[cfg(test)]" && two[1].ends_with('{'));
    let lines = &lines[..tests.unwrap_or(lines.len())];
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        let indentation = &line[..line.len() - line.trim_start().len()];
        // The first line after its arguments with the same indentation that ends something.
        let ends = |line: &&str| {
            let own = line.strip_prefix(indentation).unwrap_or_default();
            own == "}" || own.starts_with(')') && own.ends_with(';')
        };
        let more = match line.ends_with([';', '}']) {
            true => 0,
            false => {
                1 + lines[at + 1..]
                    .iter()
                    .take_while(|line| !ends(line))
                    .count()
            }
        };
        found.push((name, at + 1, more + 1));
    }
    found
}

/// The name of the function that begins in this line.
fn function_name(line: &str) -> Option<String> {
    let (before, after) = line.split_once("fn ")?;
    let known = [
        "pub", "const", "async", "unsafe", "extern", "C", "crate", "super", "in",
    ];
    let name = words(after).next().filter(|name| after.starts_with(name))?;
    let declares = !before.contains("//") && words(before).all(|word| known.contains(&word));
    declares.then(|| name.to_owned())
}

/// First names after `crate::` in a source file, but for those of its tests.
fn imports(source: &str) -> BTreeSet<String> {
    let source = source
        .split("#[cfg(test)]\nmod ")
        .next()
        .unwrap_or_default();
    let code: Vec<String> = source.lines().map(code_of).collect();
    let code = code.join(" ");
    let mut names = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => names.extend(items(group).filter_map(|item| words(item).next())),
            None => names.extend(words(rest).next()),
        }
    }
    names.into_iter().map(str::to_owned).collect()
}

/// What is between commas up to the closing brace of a group; groups inside of it belong to their
/// item.
fn items(group: &str) -> impl Iterator<Item = &str> {
    let (mut depth, mut begin, mut items) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                items.push(&group[begin..at]);
                begin = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    items.into_iter()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

/// The comment at the top of a file, and the rest.
fn split_front(text: &str) -> (&str, &str) {
    let end = text
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .map(|line| line.len() + 1)
        .sum();
    text.split_at(end)
}

/// Names of the dependencies in the manifest, of all kinds but for tests.
fn direct_dependencies(name: &str) -> BTreeSet<String> {
    let folder = if name.starts_with("smol-") {
        format!("crates/{name}")
    } else {
        name.to_owned()
    };
    let (mut inside, mut sections) = (false, 0);
    let mut names = BTreeSet::new();
    for line in read(&format!("{folder}/Cargo.toml")).lines() {
        if let Some(section) = line.strip_prefix('[') {
            // Also those of a target; not those of the tests.
            let section = section.trim_end_matches(']');
            inside = section.ends_with("dependencies") && section != "dev-dependencies";
            sections += 1;
        } else if let (true, Some((key, _))) = (inside, line.split_once('=')) {
            names.insert(key.trim().trim_end_matches(".workspace").to_owned());
        }
    }
    assert!(sections > 0, "{folder}/Cargo.toml was misread");
    names
}

/// Cargo.lock: packages by name, with the names of what they depend on. Versions of one package
/// are taken together.
fn lock_file() -> BTreeMap<String, BTreeSet<String>> {
    let mut packages: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut current = String::new();
    for line in read("Cargo.lock").lines() {
        if let Some(name) = line.strip_prefix("name = ") {
            current = name.trim_matches('"').to_owned();
            packages.entry(current.clone()).or_default();
        } else if let Some(dependency) = line.strip_prefix(" \"") {
            let name = dependency.split(['"', ' ']).next().expect("never empty");
            packages
                .entry(current.clone())
                .or_default()
                .insert(name.to_owned());
        }
    }
    packages
}

/// Everything that a package is linked or tested with.
fn all_dependencies(name: &str) -> BTreeSet<String> {
    let lock = lock_file();
    let (mut all, mut open) = (BTreeSet::new(), vec![name.to_owned()]);
    while let Some(name) = open.pop() {
        let dependencies = lock
            .get(&name)
            .unwrap_or_else(|| panic!("{name} is not in Cargo.lock"));
        open.extend(
            dependencies
                .iter()
                .filter(|d| all.insert((*d).clone()))
                .cloned(),
        );
    }
    all
}

/// Targets of the Markdown links in a text, but for those to other hosts.
fn links(text: &str) -> Vec<String> {
    let mut inside_code = false;
    let mut targets = Vec::new();
    for line in text.lines() {
        inside_code ^= line.trim_start().starts_with("```");
        if inside_code {
            continue;
        }
        let ends = line
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        targets.extend(
            ends.filter(|target| !target.contains("://"))
                .map(str::to_owned),
        );
    }
    targets
}

/// Names of the long options of a command line in clap's derive form: fields under an attribute
/// with the word `long`.
fn long_options(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let mut options = Vec::new();
    for attribute in source.split("#[arg(").skip(1) {
        let Some((arguments, rest)) = attribute.split_once(")]") else {
            continue;
        };
        let code: String = arguments.lines().map(code_of).collect();
        let field = rest.trim_start().trim_start_matches("pub ");
        let name: String = field
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect();
        if words(&code).any(|word| word == "long") {
            options.push(name.replace('_', "-"));
        }
    }
    options
}

/// Names of the subcommands that are shown: variants of the enum `Command`, of one word each.
fn commands(source: &str) -> Vec<String> {
    let variants = source
        .split("pub enum Command {")
        .nth(1)
        .and_then(|rest| rest.split("\n}").next())
        .expect("an enum of commands");
    let mut hidden = false;
    let mut names = Vec::new();
    for line in variants.lines() {
        hidden |= line.trim_start().starts_with("#[") && line.contains("hide = true");
        let line = line.strip_prefix("    ").unwrap_or(line);
        if line.starts_with(|c: char| c.is_ascii_uppercase()) {
            let name = words(line).next().expect("it begins with a letter");
            if !std::mem::take(&mut hidden) {
                names.push(name.to_lowercase());
            }
        }
    }
    names
}

/// Names of our environment variables in a text.
fn variables(text: &str) -> BTreeSet<String> {
    let names = words(text).filter(|word| {
        word.strip_prefix("SMOL_")
            .is_some_and(|rest| !rest.is_empty())
    });
    names.map(str::to_owned).collect()
}
