//! What the documents say of the sources, and their links.

use std::collections::BTreeSet;

use crate::tree::*;

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
fn every_promise_of_security_is_held_by_tests_that_exist() {
    let document = read("docs/security.md");
    let table = document.split("## Promises").nth(1);
    let table = table.and_then(|rest| rest.split("\n## ").next());
    let rows = table.expect("a section").lines();
    let rows: Vec<_> = rows.filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 10, "the table was misread");
    for row in rows {
        let tests: Vec<_> = row.split("](").collect();
        assert!(tests.len() > 1, "a promise without a test: {row}");
        for pair in tests.windows(2) {
            let name = pair[0]
                .rsplit('[')
                .next()
                .expect("never empty")
                .trim_matches('`');
            let path = pair[1].split(')').next().expect("never empty");
            let source = read(path.trim_start_matches("../"));
            assert!(source.contains(name), "there is no test {name:?} in {path}");
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
        "crates/smol-net",
        "crates/smol-registry",
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
