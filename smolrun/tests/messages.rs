//! What smolrun prints, word for word: the tables in `tests/messages` (see [`messages`]).
//!
//! Their `$ sample FILE [--sign KEY | --damaged]` writes a small bundle, which nothing can boot, into
//! the folder of the table. `$ sample --ended NAME REASON CODE` leaves what a machine in the background
//! leaves that has ended so.

#[path = "../src/testing.rs"]
#[allow(dead_code)] // other tests use the rest
mod testing;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use smol_bundle::PrivateKey;
use smol_testing::messages;
use testing::Sample;

fn main() -> ExitCode {
    let programs = [("smolrun", env!("CARGO_BIN_EXE_smolrun"))];
    messages::main(&programs, "sample", sample)
}

/// Writes the bundle; with `--sign`, signed by a new key, whose public half goes to that file; with
/// `--damaged`, with a wrong bit in its memory image.
fn sample(arguments: &[String]) -> ExitCode {
    if let [option, name, reason, code] = arguments
        && option == "--ended"
    {
        return ended(name, reason, code.parse().unwrap());
    }
    let sample = Sample::new();
    let [file, rest @ ..] = arguments else {
        return ExitCode::FAILURE;
    };
    std::fs::copy(&sample.bundle, file).unwrap();
    if let [option, public] = rest
        && option == "--sign"
    {
        let key = PrivateKey::generate().unwrap();
        key.public().save(Path::new(public)).unwrap();
        smol_bundle::sign(Path::new(file), &key, Path::new(file)).unwrap();
    }
    if rest == ["--damaged"] {
        let blob = sample.open().layout()[3].clone();
        assert!(blob.media_type.contains("memory"), "{}", blob.media_type);
        let mut bytes = std::fs::read(file).unwrap();
        bytes[(blob.offset + blob.size / 2) as usize] ^= 1;
        std::fs::write(file, bytes).unwrap();
    }
    ExitCode::SUCCESS
}

fn ended(name: &str, reason: &str, code: u8) -> ExitCode {
    let runtime = PathBuf::from(std::env::var_os("SMOL_RUNTIME_DIR").unwrap());
    let folder = runtime.join("instances").join(name);
    let mut private = std::fs::DirBuilder::new();
    private.recursive(true).mode(0o700).create(&folder).unwrap();
    let record = serde_json::json!({
        "name": name, "machine": "web", "bundle": "/web.smolmachine", "digest": "sha256:00",
        "pid": 4321, "pid_started": 0, "started": 1000, "state": "ended", "accel": "kvm",
        "ports": [{ "host": "127.0.0.1:8080", "guest": 80 }], "auto_remove": false,
        "ended": 1092, "exit_code": code, "reason": reason,
    });
    std::fs::write(folder.join("instance.json"), record.to_string()).unwrap();
    std::fs::write(folder.join("log"), "serving\nlast words\n").unwrap();
    ExitCode::SUCCESS
}
