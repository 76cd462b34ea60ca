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

const MANIFEST: &str = "sha256:92644576e832695add3b21f8258a742c59acd0933b4407a540206b79910d5430";
const FILE: &str = "sha256:83436afeef1af7890b7fff18c0dfc68d63d236d569f4600e40f76bbfb59f6c44";
