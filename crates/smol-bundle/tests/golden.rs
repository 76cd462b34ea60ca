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

const MANIFEST: &str = "sha256:46a6f9440261c65e9f48fe57dc93af15051fc0808f9a7af014c2eae6a59ac193";
const FILE: &str = "sha256:3f594cb750726eec8e454aa359fd0982b3f718481f35cd348f7b2a3ad8df2713";
