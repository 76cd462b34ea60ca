//! Hostile input for everything of smol that reads some.
//!
//! | module | purpose |
//! |---|---|
//! | [`targets`] | the table of targets, and one function for each |
//! | [`input`] | how targets take their input apart: numbers, parts, repeated blocks |
//! | [`memory`] | counts what a target has on the heap |
//! | [`mutate`] | deterministic mutations, for the tests that run without a fuzzer |
//! | [`files`] | files in memory, for readers that want a path |
//!
//! A target is a function that takes any bytes. It repairs what would end the work at the first check
//! (checksums, digests, sizes), has the real reader read the rest, and asserts what must hold beyond
//! "no panic". `tests/corpus.rs` runs each of them over its corpus, and over some thousand mutations
//! of it, in every `cargo test`; `cargo xtask fuzz` runs libFuzzer. README.md says how.

pub mod files;
pub mod input;
pub mod memory;
pub mod mutate;
pub mod targets;

use std::path::{Path, PathBuf};

use targets::Target;

/// Counts for [`memory::peak`].
#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// Runs a target on one input. Returns whether the reader has accepted anything, and the most bytes
/// that were on the heap at a time.
///
/// # Panics
/// If the target does, or if it took more than its limit.
pub fn run(target: &Target, input: &[u8]) -> (bool, usize) {
    let input = &input[..input.len().min(target.max_len)];
    let (accepted, peak) = memory::peak(|| (target.run)(input));
    assert!(
        peak <= target.heap,
        "{} took {} MiB of heap for {} bytes of input, its limit is {} MiB",
        target.name,
        peak >> 20,
        input.len(),
        target.heap >> 20
    );
    (accepted, peak)
}

/// Returns the folder `fuzz/KIND/TARGET` of the checkout: `corpus` or `regressions`.
pub fn folder(kind: &str, target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(kind)
        .join(target.name)
}
