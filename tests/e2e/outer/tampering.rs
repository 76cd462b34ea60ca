//! Bundles that are not what was signed, through the command line.

use std::fs;
use std::process::Command;

use serde_json::Value;

use smol_tests::host::{Host, text};
use smol_tests::suite::Suite;
use smol_tests::support::{Outcome, run};

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a Host) {
    suite.group("tampering");
    suite.test("a truncated bundle fails verification", || truncated(host));
    suite.test(
        "a bundle with one changed bit fails verification, wherever the bit is",
        || flipped(host),
    );
    suite.test(
        "a bundle signed by another key fails verification and does not run",
        || wrong_key(host),
    );
    suite.test("skopeo copies a bundle and its digest stays", || {
        skopeo(host)
    });
}

fn verify(host: &Host, bundle: &str, more: &[&str]) -> Outcome {
    run(host.tools.smolbuild().args(["verify", bundle]).args(more))
}

fn truncated(host: &Host) {
    let bytes = fs::read(host.bundle("service")).unwrap();
    let bundle = host.folder("truncated").join("x.smolmachine");
    for length in [
        0,
        511,
        512,
        4096,
        bytes.len() / 2,
        bytes.len() - 512,
        bytes.len() - 1,
    ] {
        fs::write(&bundle, &bytes[..length]).unwrap();
        for more in [
            &["--key", text(&host.tools.key)][..],
            &["--insecure-unsigned"],
        ] {
            verify(host, text(&bundle), more).fail(4);
        }
    }
}

/// A bit in the middle of each blob, in each blob's header, in the last byte.
fn flipped(host: &Host) {
    let good = host.bundle("service");
    let bytes = fs::read(&good).unwrap();
    let bundle = host.folder("flipped").join("x.smolmachine");
    let inspected = host.inspect(&good);
    let blobs = inspected["blobs"].as_array().unwrap();
    assert!(blobs.len() >= 6, "{blobs:?}");
    let number = |blob: &Value, key: &str| blob[key].as_u64().unwrap() as usize;
    let inside = blobs
        .iter()
        .map(|blob| number(blob, "offset") + number(blob, "size") / 2);
    let headers = blobs.iter().map(|blob| number(blob, "offset") - 512 + 100);
    for at in inside.chain(headers).chain([0, bytes.len() - 1]) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&bundle, bytes).unwrap();
        let outcome = verify(host, text(&bundle), &["--key", text(&host.tools.key)]);
        assert_eq!(
            outcome.code,
            Some(4),
            "byte {at}: {} {}",
            outcome.stdout,
            outcome.stderr
        );
    }
}

fn wrong_key(host: &Host) {
    let other = host.bundles.join("other.pub");
    let bundle = host.bundle("service");
    let told = verify(host, text(&bundle), &["--key", text(&other)]).fail(4);
    assert!(told.contains("sign"), "{told}");
    let told = run(host
        .tools
        .smolrun()
        .arg(&bundle)
        .args(["--key", text(&other)]))
    .fail(4);
    assert!(told.contains("is refused"), "{told}");
    let told = run(host.tools.smolrun().arg(&bundle)).fail(4);
    assert!(told.contains("is refused"), "{told}");
    host.tools.assert_left(&[]);
}

fn skopeo(host: &Host) {
    let bundle = host.bundle("redis");
    let inspected = host.inspect(&bundle);
    let folder = host.folder("skopeo");
    let copy = |from: String, to: String| {
        run(Command::new("skopeo").args(["--insecure-policy", "copy", "--quiet", &from, &to]))
            .succeed();
    };
    let source = format!("oci-archive:{}:latest", bundle.display());
    copy(
        source,
        format!("oci:{}:latest", folder.join("layout").display()),
    );
    let index: Value =
        serde_json::from_slice(&fs::read(folder.join("layout/index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(index["manifests"][0]["digest"], inspected["digest"]);
    for blob in inspected["manifest"]["layers"].as_array().unwrap() {
        let hex = blob["digest"]
            .as_str()
            .unwrap()
            .strip_prefix("sha256:")
            .unwrap();
        let size = fs::metadata(folder.join("layout/blobs/sha256").join(hex))
            .unwrap()
            .len();
        assert_eq!(Some(size), blob["size"].as_u64());
    }
}
