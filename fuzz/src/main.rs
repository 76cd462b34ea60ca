//! libFuzzer over the target that `FUZZ_TARGET` names; without it, the table as JSON. Built and
//! started by `cargo xtask fuzz`.

#![no_main]
#![allow(clippy::print_stdout, reason = "the table, for xtask")]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use smol_fuzz::targets::{self, Target};

static TARGET: OnceLock<&'static Target> = OnceLock::new();

/// Finds the target, or tells which there are.
fn choose() {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let Some(target) = targets::find(&name) else {
        println!("{}", targets::to_json());
        std::process::exit(0);
    };
    let _ = TARGET.set(target);
}

fuzz_target!(init: choose(), |data: &[u8]| {
    let target = TARGET.get().expect("chosen at the start");
    smol_fuzz::run(target, data);
});
