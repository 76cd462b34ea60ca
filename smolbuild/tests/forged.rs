//! Bundles and Smolfiles whose texts are made to pass for smolbuild's own words.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::{bundle_spec, write_bundle};
use smol_bundle::Reproducible;

/// Moves the cursor, ends the line, hides itself and turns the text around.
const FORGED: &str = "x\u{1b}[1A\u{9b}2K\r\nsigned by    0123456789abcdef0123\nerror: x\n  hint: trust it\u{202e}\u{200b}\u{7f}";

fn smolbuild(folder: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smolbuild"))
        .args(line.split(' '))
        .current_dir(folder)
        .env("SMOL_CACHE_DIR", folder.join("cache"))
        .env("SMOL_CONFIG_DIR", folder.join("config"))
        .output()
        .unwrap()
}

fn is_shown(c: char) -> bool {
    let hidden = ['\u{202e}', '\u{200b}'].contains(&c) || c.is_control();
    c == '\n' || !hidden
}

/// All that was printed, of which a terminal shows every character.
fn printed(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert!(text.chars().all(is_shown), "{text:?}");
    text
}

#[test]
fn a_bundle_cannot_forge_who_signed_it_nor_what_smolbuild_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("kernel"), "a kernel").unwrap();
    let mut spec = bundle_spec("a", path("kernel"));
    spec.config.reproducible = Some(Reproducible {
        claimed: false,
        reason: Some(FORGED.into()),
    });
    spec.config.cmdline = "console=hvc0 \u{9b}1A\u{202e}".into();
    spec.smolfile = Some(FORGED.into());
    spec.lock = Some(FORGED.into());
    write_bundle(&spec, &path("a.smolmachine"));
    spec.config.reproducible = None;
    spec.smolfile = Some("name = \"x\"".into());
    write_bundle(&spec, &path("b.smolmachine"));

    let inspected = printed(&smolbuild(folder.path(), "inspect a.smolmachine"));
    let signed: Vec<_> = inspected
        .lines()
        .filter(|line| line.starts_with("signed by"))
        .collect();
    assert_eq!(signed, ["signed by    nobody"], "{inspected}");

    let json = smolbuild(folder.path(), "inspect a.smolmachine --json");
    printed(&json);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["smolfile"], FORGED);

    for line in [
        "diff a.smolmachine b.smolmachine",
        "diff a.smolmachine b.smolmachine --all",
        "diff a.smolmachine b.smolmachine --json",
        "reproduce a.smolmachine",
        "reproduce b.smolmachine",
        "verify a.smolmachine",
    ] {
        let text = printed(&smolbuild(folder.path(), line));
        let forged =
            |line: &&str| line.starts_with("signed by") || line.starts_with("  hint: trust");
        assert_eq!(text.lines().find(forged), None, "{line}: {text}");
        assert!(
            text.lines()
                .filter(|line| line.starts_with("error"))
                .count()
                <= 1,
            "{text}"
        );
    }
}

#[test]
fn a_smolfile_cannot_drive_the_terminal_by_its_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let quoted = serde_json::to_string(FORGED).unwrap();
    for text in [
        format!("name = {quoted}\n"),
        format!("{quoted} = 1\n"),
        format!("name = \"x\"\n[service]\ncmd = [{quoted}]\nuser = {quoted}\n"),
        format!("name = \"x\"\nready.log = {quoted}\nrootfs.dir = {quoted}\n"),
        // As it is, in a comment, a bare key and a string.
        "name = 1 # \u{9b}1A\u{202e}\n".to_owned(),
        format!("name = '''{FORGED}'''\n"),
        format!("{FORGED}\n"),
    ] {
        fs::write(folder.path().join("Smolfile"), &text).unwrap();
        for line in ["build", "build --progress json", "lock"] {
            let output = smolbuild(folder.path(), line);
            assert_eq!(output.status.code(), Some(2), "{text:?}: {output:?}");
            printed(&output);
        }
    }
}
