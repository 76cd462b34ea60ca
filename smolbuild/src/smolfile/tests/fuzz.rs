//! Nothing that can be written makes the parser or the drawing of its mistakes panic, and what it
//! accepts is something the guest accepts.

use proptest::prelude::*;

use super::*;
use crate::plan::Plan;

const SEED: &str = r#"name = "web"
version = "1"
cpus = 2
memory = "256MiB"
ports = [80, 443]
[kernel]
recipe = "smol-6.1"
cmdline = "quiet"
[rootfs]
debian = { suite = "bookworm", packages = ["redis"] }
[[copy]]
src = "a/b"
dest = "/etc/b"
mode = 0o644
owner = "root:root"
[service]
cmd = ["app", "-v"]
env = { A = "b" }
user = "app"
workdir = "/srv"
[ready]
http = { port = 80, path = "/", status = [200], body = "ok" }
timeout = "5s"
interval = "10ms"
successes = 2
[[warm]]
cmd = "true"
timeout = "1s"
[[warm_restore]]
http = { port = 80, path = "/", status = [200], body = "ok" }
timeout = "1s"
[[warm_restore]]
exec = "true"
[snapshot]
drop_caches = true
"#;

fn survives(source: &str) {
    match parse(source) {
        Ok(smolfile) => {
            let lock = crate::lock::Lock::of_epoch(0);
            let plan =
                Plan::resolve(&smolfile, &crate::source_dir::SourceDir::bare("."), lock).unwrap();
            assert_eq!(plan.guest.is_some(), plan.rootfs.is_some());
        }
        Err(diagnostics) => {
            assert!(!diagnostics.is_empty());
            assert!(render(&diagnostics, "Smolfile", source, true).contains("error"));
        }
    }
}

/// Pieces that mean something in a Smolfile, to be put where they do not belong.
const PIECES: &[&str] = &[
    "",
    "=",
    "\"",
    "'''",
    "[",
    "]",
    "[[",
    "{",
    "}",
    ",",
    ".",
    "\n",
    "#",
    "0",
    "-1",
    "1e9",
    "0o7",
    "nan",
    "true",
    "1979-05-27",
    "\\u0000",
    "\u{0}",
    "ä",
    "\u{2028}",
    "\r",
    "name",
    "[ready]",
    "[[copy]]",
    "ready.http",
    "warm_restore.http",
    "[[warm_restore]]",
    "\"/..\"",
    "18446744073709551616",
    "(?i",
    "tcp = 1\n",
    "tar = \"x\"\n",
    "99999999999999999999GiB",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(source in "\\PC{0,200}") {
        survives(&source);
    }

    #[test]
    fn any_lines_of_keys_and_values_are_read_or_refused(
        lines in prop::collection::vec((prop::sample::select(keys::KEYS.iter().map(|k| k.name).collect::<Vec<_>>()), prop::sample::select(PIECES)), 0..12)
    ) {
        let source: String = lines.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        survives(&source);
    }

    #[test]
    fn a_good_smolfile_with_pieces_put_in_or_cut_out_is_read_or_refused(
        edits in prop::collection::vec((0..SEED.len(), 0..6usize, prop::sample::select(PIECES)), 1..4)
    ) {
        let mut source = SEED.to_owned();
        for (at, cut, piece) in edits {
            let floor = |mut at: usize| { at = at.min(source.len()); while !source.is_char_boundary(at) { at -= 1; } at };
            let (from, to) = (floor(at), floor(at.saturating_add(cut)));
            source.replace_range(from..to.max(from), piece);
        }
        survives(&source);
    }
}

#[test]
fn the_seed_of_the_mutations_is_a_good_smolfile() {
    assert!(parse(SEED).is_ok());
}

#[test]
fn deep_nesting_is_refused() {
    for source in [
        "a = ".to_owned() + &"[".repeat(100_000),
        "[a".to_owned() + &".a".repeat(60_000) + "]",
        "a".to_owned() + &"{a=".repeat(50_000),
    ] {
        survives(&source);
    }
}
