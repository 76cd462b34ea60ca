//! Reading sources, documents and manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a member of the workspace")
        .to_owned()
}

pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Files of ours by the end of their names, relative to the root and sorted.
pub fn files(ending: &str) -> Vec<String> {
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

pub fn rust_files() -> Vec<String> {
    let files = files(".rs");
    assert!(files.len() > 100, "only {} source files found", files.len());
    files
}

/// Whether it only runs in tests, examples or benchmarks.
pub fn is_test(path: &str) -> bool {
    let folders: Vec<&str> = path.split('/').collect();
    folders
        .iter()
        .any(|folder| ["tests", "examples", "benches"].contains(folder))
        || path.ends_with("/tests.rs")
        || path.ends_with("/testing.rs")
}

/// Lines of code with path and number: no comments, no texts.
pub fn code_lines() -> Vec<(String, usize, String)> {
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
pub fn code_of(line: &str) -> String {
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
pub fn functions(source: &str) -> Vec<(String, usize, usize)> {
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
pub fn function_name(line: &str) -> Option<String> {
    let (before, after) = line.split_once("fn ")?;
    let known = [
        "pub", "const", "async", "unsafe", "extern", "C", "crate", "super", "in",
    ];
    let name = words(after).next().filter(|name| after.starts_with(name))?;
    let declares = !before.contains("//") && words(before).all(|word| known.contains(&word));
    declares.then(|| name.to_owned())
}

/// First names after `crate::` in a source file, but for those of its tests.
pub fn imports(source: &str) -> BTreeSet<String> {
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
pub fn items(group: &str) -> impl Iterator<Item = &str> {
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

pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

/// The comment at the top of a file, and the rest.
pub fn split_front(text: &str) -> (&str, &str) {
    let end = text
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .map(|line| line.len() + 1)
        .sum();
    text.split_at(end)
}

/// Names of the dependencies in the manifest, of all kinds but for tests.
pub fn direct_dependencies(name: &str) -> BTreeSet<String> {
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
pub fn lock_file() -> BTreeMap<String, BTreeSet<String>> {
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
pub fn all_dependencies(name: &str) -> BTreeSet<String> {
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
pub fn links(text: &str) -> Vec<String> {
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
pub fn long_options(source: &str) -> Vec<String> {
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
pub fn commands(source: &str) -> Vec<String> {
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
pub fn variables(text: &str) -> BTreeSet<String> {
    let names = words(text).filter(|word| {
        word.strip_prefix("SMOL_")
            .is_some_and(|rest| !rest.is_empty())
    });
    names.map(str::to_owned).collect()
}
