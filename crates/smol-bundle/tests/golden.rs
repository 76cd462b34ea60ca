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

const MANIFEST: &str = "sha256:e07a02d2d8cc4a1ed0a387688ad2ba75c6f676fe368662cb1f3a407aa17dce37";
const FILE: &str = "sha256:981ef5f5093d1e6ca7e1ab448d7351f166c7df21d058fb16c13df1b841707323";
