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

const MANIFEST: &str = "sha256:cee5cfbd525ade173d2be19971db73a3d07c557bab981bb4379880458719a0ea";
const FILE: &str = "sha256:55108cfed8fd186319fcc9c470ad9ad1ed34d551d041e33cec64b53ec1112966";
