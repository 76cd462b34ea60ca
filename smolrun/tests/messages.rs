//! What smolrun prints, word for word: the tables in `tests/messages` (see [`messages`]).
//!
//! Their `$ sample FILE [--sign KEY | --damaged]` writes a small bundle, which nothing can boot, into
//! the folder of the table.

// What of it is not used here, other tests use.
#[allow(dead_code)]
#[path = "../src/testing.rs"]
#[allow(dead_code)] // other tests use the rest
mod testing;

use std::path::Path;
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
