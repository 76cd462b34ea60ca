//! What smolrun prints, word for word: the tables in `tests/messages` (see [`messages`]).
//!
//! Their `$ sample FILE [--sign KEY]` writes a small bundle, which nothing can boot, into the folder
//! of the table.

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

/// Writes the bundle; with `--sign`, signed by a new key, whose public half goes to that file.
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
    ExitCode::SUCCESS
}
