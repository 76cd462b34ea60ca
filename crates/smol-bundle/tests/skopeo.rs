//! Other tools can carry a bundle: skopeo copies it and the digest stays.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::*;
use smol_bundle::{Bundle, Digest};

/// Runs `skopeo copy`, without a policy file of the host.
fn copy(from: &str, to: &str) -> std::io::Result<()> {
    let output = Command::new("skopeo")
        .args(["--insecure-policy", "copy", from, to])
        .output()?;
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "skopeo copy {from} {to}: {message}"
    );
    Ok(())
}

/// The digest of the only manifest that an index.json lists.
fn listed(index_json: &[u8]) -> String {
    let index: serde_json::Value = serde_json::from_slice(index_json).unwrap();
    let manifests = index["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 1);
    manifests[0]["digest"].as_str().unwrap().to_string()
}

fn index_of_archive(path: &Path) -> Vec<u8> {
    let tar = Command::new("tar")
        .arg("-xOf")
        .arg(path)
        .arg("index.json")
        .output()
        .unwrap();
    assert!(tar.status.success());
    tar.stdout
}

#[test]
fn skopeo_copies_a_signed_bundle_and_its_digest_stays() {
    let work = Work::new();
    let path = work.bundle();
    let key = smol_bundle::PrivateKey::generate().unwrap();
    smol_bundle::sign(&path, &key, &path).unwrap();
    let digest = Bundle::open(&path).unwrap().digest().to_string();

    let at = |name: &str| work.path(name).display().to_string();
    let source = format!("oci-archive:{}:latest", path.display());
    match copy(&source, &format!("oci-archive:{}:latest", at("copy.tar"))) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return smol_testing::left_out("skopeo is not installed");
        }
        outcome => outcome.unwrap(),
    }
    assert_eq!(listed(&index_of_archive(&work.path("copy.tar"))), digest);

    copy(&source, &format!("oci:{}:latest", at("dir"))).unwrap();
    assert_eq!(
        listed(&fs::read(work.path("dir/index.json")).unwrap()),
        digest
    );
    let hex = digest.strip_prefix("sha256:").unwrap();
    let manifest = fs::read(work.path("dir/blobs/sha256").join(hex)).unwrap();
    assert_eq!(Digest::of(&manifest).to_string(), digest);

    copy(
        &format!("oci:{}:latest", at("dir")),
        &format!("oci-archive:{}:latest", at("back.tar")),
    )
    .unwrap();
    assert_eq!(listed(&index_of_archive(&work.path("back.tar"))), digest);
    // Every blob of the machine has come along.
    for blob in Bundle::open(&path).unwrap().layout() {
        if !blob.media_type.contains("signature") && !blob.media_type.contains("empty") {
            let copied = work.path("dir/blobs/sha256").join(blob.digest.hex());
            let here = copied.exists() || blob.media_type.contains("manifest");
            assert!(here, "{} is missing", blob.media_type);
        }
    }
}

#[test]
fn tar_lists_the_parts_of_a_bundle() {
    let work = Work::new();
    let output = Command::new("tar")
        .arg("-tf")
        .arg(work.bundle())
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let names = String::from_utf8(output.stdout).unwrap();
    let names: Vec<_> = names.lines().collect();
    assert_eq!(names.len(), 12);
    assert_eq!((names[0], names[11]), ("oci-layout", "index.json"));
    assert!(names[1..11].iter().all(|n| n.starts_with("blobs/sha256/")));
}
