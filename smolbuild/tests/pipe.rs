//! Results whose reader has closed the pipe, as `head` does: no error.

mod common;

use std::fs;
use std::process::{Command, Stdio};

use common::{bundle_spec, write_bundle};

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("kernel"), "a kernel").unwrap();
    write_bundle(&bundle_spec("a", path("kernel")), &path("a.smolmachine"));
    write_bundle(&bundle_spec("b", path("kernel")), &path("b.smolmachine"));
    let smolfile = "name = \"x\"\nkernel.path = \"kernel\"\nready.log = \"x\"\n";
    fs::write(path("Smolfile"), smolfile).unwrap();
    for (line, code) in [
        ("--help", 0),
        ("--version", 0),
        ("completions bash", 0),
        ("inspect a.smolmachine", 0),
        ("inspect a.smolmachine --json", 0),
        ("verify a.smolmachine --insecure-unsigned", 0),
        ("diff a.smolmachine b.smolmachine", 1),
        ("diff a.smolmachine b.smolmachine --json", 1),
        ("lock", 0),
        ("keygen -o me.key", 0),
        ("sign a.smolmachine --key me.key", 0),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = Command::new(env!("CARGO_BIN_EXE_smolbuild"))
            .args(line.split(' '))
            .current_dir(&folder)
            .env("SMOL_CACHE_DIR", path("cache"))
            .env("SMOL_CONFIG_DIR", path("config"))
            .stdin(Stdio::null())
            .stdout(writer)
            .output()
            .unwrap();
        let told = String::from_utf8(child.stderr).unwrap();
        assert_eq!(child.status.code(), Some(code), "{line}: {told}");
        assert_eq!(told, "", "{line}");
    }
}
