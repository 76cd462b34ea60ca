//! docs/smolfile.md says what the parser does.

use super::keys::{KEYS, Key};
use super::*;

const DOC: &str = include_str!("../../../../docs/smolfile.md");

/// The text of each block that is marked as TOML.
fn examples() -> impl Iterator<Item = &'static str> {
    DOC.split("```toml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap_or_default())
}

fn row(key: &Key) -> String {
    format!(
        "| `{}` | {} | {} | {} |\n",
        key.name, key.kind, key.default, key.meaning
    )
}

/// One table for each table of keys, as they stand in the document.
fn key_tables() -> String {
    let mut text = String::new();
    let mut last = None;
    for key in KEYS {
        if last != Some(key.table) {
            let heading = match key.table {
                "" => "Top of the file".to_owned(),
                "rootfs.debian" => "`debian` of `[rootfs]`".to_owned(),
                "ready.http" => "`http` of `[ready]`".to_owned(),
                "warm_restore.http" => "`http` of `[[warm_restore]]`".to_owned(),
                table => format!("`{}`", keys::heading(table)),
            };
            text.push_str(&format!(
                "\n### {heading}\n\n| key | value | default | meaning |\n|---|---|---|---|\n"
            ));
            last = Some(key.table);
        }
        text.push_str(&row(key));
    }
    text
}

#[test]
fn the_tables_of_keys_are_those_of_the_parser() {
    let (begin, end) = ("<!-- keys: begin -->\n", "\n<!-- keys: end -->");
    let documented = DOC
        .split(begin)
        .nth(1)
        .and_then(|rest| rest.split(end).next())
        .unwrap();
    let expected = key_tables();
    assert!(
        documented.trim() == expected.trim(),
        "put this between the markers of docs/smolfile.md:\n{expected}"
    );
}

#[test]
fn every_example_is_a_good_smolfile() {
    let mut count = 0;
    for source in examples() {
        if let Err(diagnostics) = parse(source) {
            panic!(
                "{}\n{source}",
                render(&diagnostics, "docs/smolfile.md", source, false)
            );
        }
        count += 1;
    }
    assert!(count >= 4, "{count} examples");
}

/// Keys that are not taken by the parser are refused as unknown: so, together with the test above,
/// every documented key is one that the parser takes.
#[test]
fn every_key_stands_in_an_example() {
    let examples: Vec<toml::Table> = examples().map(|source| source.parse().unwrap()).collect();
    for key in KEYS {
        let path: Vec<&str> = key
            .table
            .split('.')
            .filter(|part| !part.is_empty())
            .chain([key.name])
            .collect();
        assert!(
            examples.iter().any(|example| holds(example, &path)),
            "no example uses `{}` {}",
            key.table,
            key.name
        );
    }
}

fn holds(table: &toml::Table, path: &[&str]) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return true;
    };
    match table.get(*first) {
        Some(toml::Value::Table(inner)) => holds(inner, rest),
        Some(toml::Value::Array(items)) if !rest.is_empty() => items
            .iter()
            .any(|item| item.as_table().is_some_and(|table| holds(table, rest))),
        Some(_) => rest.is_empty(),
        None => false,
    }
}
