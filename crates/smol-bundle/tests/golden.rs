//! Pins the format's bytes. If this fails, the format has changed: bundles would get other digests
//! than before. Do that on purpose only, with an entry under "Changes" in docs/bundle-format.md.

mod common;

use common::*;
use smol_bundle::Digest;

#[test]
fn the_golden_bundle_has_the_pinned_bytes() {
    let work = Work::new();
    let (path, written) = work.write(&work.spec(), "golden.smolmachine");
    let file = std::fs::read(path).unwrap();
    let found = (written.digest.to_string(), Digest::of(&file).to_string());
    assert_eq!(found, (MANIFEST.to_string(), FILE.to_string()));
    assert_eq!(written.file_size, file.len() as u64);
}

const MANIFEST: &str = "sha256:5685dacbd30ddebc3cea34ff19ddffaa26ef4c415d7810214a8adbcdf8ad74a4";
const FILE: &str = "sha256:33f8ce09d5d922b2b6d658447831a49252fb1d1eaa71beba966da2781116d9de";
