//! Signing and judging signatures.

mod common;

use std::fs;
use std::process::Command;

use common::*;
use smol_bundle::{Bundle, Error, PrivateKey, SignatureError, sign};

#[test]
fn an_unsigned_bundle_is_legal_and_says_so() {
    let work = Work::new();
    let bundle = Bundle::open(&work.bundle()).unwrap();
    let key = PrivateKey::generate().unwrap().public();
    assert_eq!(
        bundle.verify_signature(&[key]),
        Err(SignatureError::Unsigned)
    );
    assert!(bundle.signatures().is_empty());
}

#[test]
fn a_signed_bundle_is_trusted_by_its_key_and_no_other() {
    let work = Work::new();
    let key = PrivateKey::generate().unwrap();
    let other = PrivateKey::generate().unwrap();
    let (path, out) = (work.bundle(), work.path("signed"));
    let before = fs::read(&path).unwrap();
    let digest = sign(&path, &key, &out).unwrap();
    assert!(fs::read(&path).unwrap() == before, "the input is untouched");
    let bundle = Bundle::open(&out).unwrap();
    bundle.verify_all(&mut |_, _| {}).unwrap();
    assert_eq!(bundle.digest(), digest);
    assert_eq!(bundle.digest(), Bundle::open(&path).unwrap().digest());
    let keys = [other.public(), key.public()];
    assert_eq!(bundle.verify_signature(&keys), Ok(key.public().id()));
    let ids = vec![key.public().id()];
    assert_eq!(
        bundle.verify_signature(&keys[..1]),
        Err(SignatureError::UnknownKey { ids })
    );
}

#[test]
fn several_signatures_stand_side_by_side_in_any_order_of_signing() {
    let work = Work::new();
    let keys = [0, 1, 2].map(|_| PrivateKey::generate().unwrap());
    let sign_all = |name: &str, order: [usize; 3]| {
        let (path, _) = work.write(&work.spec(), name);
        for i in order {
            sign(&path, &keys[i], &path).unwrap();
        }
        fs::read(path).unwrap()
    };
    assert!(sign_all("a", [0, 1, 2]) == sign_all("b", [2, 0, 1]));
    let bundle = Bundle::open(&work.path("a")).unwrap();
    assert_eq!(bundle.signatures().len(), 3);
    for key in &keys {
        assert_eq!(
            bundle.verify_signature(&[key.public()]),
            Ok(key.public().id())
        );
    }
}

#[test]
fn signing_twice_with_one_key_changes_nothing() {
    let work = Work::new();
    let key = PrivateKey::generate().unwrap();
    let path = work.bundle();
    sign(&path, &key, &path).unwrap();
    let once = fs::read(&path).unwrap();
    sign(&path, &key, &path).unwrap();
    assert!(fs::read(&path).unwrap() == once);
}

#[test]
fn a_broken_bundle_is_not_signed() {
    let work = Work::new();
    let path = work.bundle();
    let mut bytes = fs::read(&path).unwrap();
    bytes[2000] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let out = work.path("out");
    let error = sign(&path, &PrivateKey::generate().unwrap(), &out).unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    assert!(!out.exists());
}

#[test]
fn the_seventeenth_signature_is_refused() {
    let work = Work::new();
    let path = work.bundle();
    for _ in 0..16 {
        sign(&path, &PrivateKey::generate().unwrap(), &path).unwrap();
    }
    let error = sign(&path, &PrivateKey::generate().unwrap(), &path).unwrap_err();
    assert!(error.to_string().contains("16"), "{error}");
    assert_eq!(Bundle::open(&path).unwrap().signatures().len(), 16);
}

#[test]
fn openssl_reads_our_keys_and_we_read_its() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let openssl = |args: &[&str]| {
        Command::new("openssl")
            .args(args)
            .current_dir(dir.path())
            .output()
    };
    let Ok(output) = openssl(&["genpkey", "-algorithm", "ed25519", "-out", "theirs.key"]) else {
        return smol_testing::left_out("openssl is not installed");
    };
    assert!(output.status.success());
    openssl(&["pkey", "-in", "theirs.key", "-pubout", "-out", "theirs.pub"]).unwrap();
    let theirs = PrivateKey::load(&path("theirs.key")).unwrap();
    let public = smol_bundle::PublicKey::load(&path("theirs.pub")).unwrap();
    assert_eq!(theirs.public(), public);
    let ours = PrivateKey::generate().unwrap();
    ours.save(&path("ours.key")).unwrap();
    let output = openssl(&["pkey", "-in", "ours.key", "-pubout"]).unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        ours.public().to_pem()
    );
}
