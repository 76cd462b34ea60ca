//! Tests of the Smolfile. Mistakes are data: a Smolfile and the exact text that is drawn.

use super::*;

mod docs;
mod good;
mod ready_values;
mod requests;
mod sections;
mod structure;
mod unknown;
mod values;

/// The smallest machine with a service, which most mistakes are put into.
const BASE: &str = r#"name = "app"
[rootfs]
tar = "root.tar"
[service]
cmd = ["app"]
[ready]
tcp = 80
"#;

fn with(from: &str, to: &str) -> String {
    assert!(BASE.contains(from), "{from:?} is not in the base");
    BASE.replacen(from, to, 1)
}

fn top(lines: &str) -> String {
    with("name = \"app\"\n", &format!("name = \"app\"\n{lines}\n"))
}

fn rootfs(lines: &str) -> String {
    with("tar = \"root.tar\"", lines)
}

/// The same on a base.
fn base(lines: &str) -> String {
    with("[rootfs]\ntar = \"root.tar\"", &format!("[base]\n{lines}"))
}

fn service(lines: &str) -> String {
    with("[\"app\"]\n", &format!("[\"app\"]\n{lines}\n"))
}

fn ready(lines: &str) -> String {
    with("tcp = 80", lines)
}

fn at_end(lines: &str) -> String {
    format!("{BASE}{lines}\n")
}

#[track_caller]
fn draws(source: &str, expected: &str) {
    let diagnostics = parse(source).expect_err("a mistake");
    let text = render(&diagnostics, "Smolfile", source, false);
    assert_eq!(text, expected.trim_start_matches('\n'), "\n{text}");
}

/// A test with a name, a Smolfile, and all that is said about it.
macro_rules! mistake {
    ($name:ident, $source:expr, $expected:literal) => {
        #[test]
        fn $name() {
            draws(&$source, $expected);
        }
    };
}
use mistake;
