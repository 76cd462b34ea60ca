//! What `smolbuild reproduce` refuses before it builds anything. Nothing here needs a network or
//! boots a machine; the rebuild itself is among the end-to-end tests.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use common::{bundle_spec, write_bundle};
use smol_bundle::{BundleSpec, Reproducible};

const NATIVE: &str = "name = \"native\"\n[kernel]\npath = \"guest.elf\"\n[ready]\nlog = \"^up$\"\n";
const FOLDER: &str = "name = \"native\"\n[kernel]\npath = \"guest.elf\"\n[rootfs]\ndir = \"root\"\n\
                      [service]\ncmd = [\"/x\"]\n[ready]\ntcp = 1\n";

const BASE: &str = "name = \"native\"\n[kernel]\npath = \"guest.elf\"\n[base]\n\
                    bundle = \"base.smolmachine\"\n[service]\ncmd = [\"/x\"]\n[ready]\ntcp = 1\n";

fn claim(why_not: Option<&str>) -> Option<Reproducible> {
    Some(Reproducible {
        claimed: why_not.is_none(),
        reason: why_not.map(str::to_owned),
    })
}

/// A folder with a Smolfile, what it names, and its lock.
fn project(smolfile: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("Smolfile"), smolfile).unwrap();
    fs::write(path("guest.elf"), "ELF").unwrap();
    fs::create_dir(path("root")).unwrap();
    fs::write(path("root/x"), "#!").unwrap();
    base(folder.path(), "a root file system");
    said(smolbuild(folder.path()).args(["lock", "."]), 0);
    folder
}

/// The bundle that `[base]` names; nobody looks into its image here.
fn base(folder: &Path, rootfs: &str) {
    fs::write(folder.join("rootfs"), rootfs).unwrap();
    let spec = BundleSpec {
        rootfs: Some(folder.join("rootfs")),
        ..bundle_spec("base", folder.join("guest.elf"))
    };
    write_bundle(&spec, &folder.join("base.smolmachine"));
}

/// The bundle of such a project, as far as it matters here.
fn bundle(folder: &Path, claim: Option<Reproducible>, lock: Option<Vec<u8>>) -> PathBuf {
    let out = folder.join("x.smolmachine");
    let mut spec = BundleSpec {
        smolfile: Some(fs::read(folder.join("Smolfile")).unwrap()),
        lock,
        ..bundle_spec("native", folder.join("guest.elf"))
    };
    spec.config.reproducible = claim;
    write_bundle(&spec, &out);
    out
}

fn lock_of(folder: &Path) -> String {
    fs::read_to_string(folder.join("Smolfile.lock")).unwrap()
}

fn smolbuild(folder: &Path) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("smolbuild"));
    command
        .current_dir(folder)
        .env("SMOL_CACHE_DIR", folder.join("cache"))
        .env_remove("SOURCE_DATE_EPOCH")
        .env("SMOL_OFFLINE", "1");
    command
}

fn said(command: &mut Command, code: i32) -> String {
    let output = command.assert().code(code).get_output().clone();
    assert!(code == 0 || output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

fn reproduce(folder: &Path, bundle: &Path, more: &[&str], code: i32) -> String {
    said(
        smolbuild(folder).arg("reproduce").arg(bundle).args(more),
        code,
    )
}

#[test]
fn a_bundle_that_makes_no_claim_is_told_with_its_reason() {
    let folder = project(NATIVE);
    let lock = || Some(lock_of(folder.path()).into_bytes());
    for (claim, why) in [
        (
            claim(Some("watchdog tick at 1.000 s")),
            "watchdog tick at 1.000 s",
        ),
        (None, "it says nothing about it"),
    ] {
        let told = reproduce(folder.path(), &bundle(folder.path(), claim, lock()), &[], 1);
        assert_eq!(
            told,
            format!("error: native does not claim to be reproducible: {why}\n")
        );
    }
}

#[test]
fn a_bundle_without_a_lock_cannot_be_built_again() {
    let folder = project(NATIVE);
    let told = reproduce(
        folder.path(),
        &bundle(folder.path(), claim(None), None),
        &[],
        1,
    );
    assert!(told.contains("the bundle holds no lock"), "{told}");
}

#[test]
fn a_lock_that_is_none_is_a_bundle_that_does_not_verify() {
    let folder = project(NATIVE);
    let path = bundle(folder.path(), claim(None), Some(b"version = 9\n".to_vec()));
    let told = reproduce(folder.path(), &path, &[], 4);
    assert!(told.contains("the lock in the bundle"), "{told}");
}

#[test]
fn another_smolbuild_than_the_locks_says_so_with_exit_code_3() {
    let folder = project(NATIVE);
    let lock = lock_of(folder.path());
    let old = lock
        .lines()
        .find(|line| line.starts_with("guest-sha256"))
        .unwrap();
    let lock = lock.replace(old, &format!("guest-sha256 = \"{}\"", "0".repeat(64)));
    let path = bundle(folder.path(), claim(None), Some(lock.into_bytes()));
    let told = reproduce(folder.path(), &path, &[], 3);
    assert!(told.contains("smol-guest: 000000000000 -> "), "{told}");
}

#[test]
fn files_that_a_bundle_does_not_hold_are_asked_for_and_checked() {
    let folder = project(FOLDER);
    let lock = lock_of(folder.path()).into_bytes();
    let path = bundle(folder.path(), claim(None), Some(lock));
    let told = reproduce(folder.path(), &path, &[], 2);
    assert!(
        told.contains("as it was: root") && told.contains("--context DIR"),
        "{told}"
    );
    fs::write(folder.path().join("root/x"), "#!other").unwrap();
    let told = reproduce(folder.path(), &path, &["--context", "."], 3);
    assert!(told.contains("[rootfs] dir \"root\" changed"), "{told}");
}

#[test]
fn the_base_of_a_bundle_is_asked_for_and_checked_by_its_digest() {
    let folder = project(BASE);
    let lock = lock_of(folder.path()).into_bytes();
    let path = bundle(folder.path(), claim(None), Some(lock));
    let told = reproduce(folder.path(), &path, &[], 2);
    assert!(
        told.contains("as it was: base.smolmachine") && told.contains("--context DIR"),
        "{told}"
    );
    base(folder.path(), "another root file system");
    let told = reproduce(folder.path(), &path, &["--context", "."], 3);
    assert!(
        told.contains("[base] bundle \"base.smolmachine\" changed"),
        "{told}"
    );
}
