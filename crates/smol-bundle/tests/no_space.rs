//! A full disk: a clear error and nothing left behind. The disk is a small tmpfs in a mount
//! namespace of its own, so the test runs itself again in there.

mod common;

use std::path::Path;
use std::process::Command;

use common::*;
use smol_bundle::{Error, write};

const FULL_DISK: &str = "SMOL_TEST_FULL_DISK";

#[test]
fn a_full_disk_gives_a_clear_error_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let script =
        "mount -t tmpfs -o size=16k tmpfs \"$SMOL_TEST_FULL_DISK\" || exit 77; exec \"$0\" \"$@\"";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "on_the_full_disk"])
        .env(FULL_DISK, dir.path())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("1 passed"), "{text}");
        }
        Ok(output) if output.status.code() == Some(101) => {
            panic!("{}", String::from_utf8_lossy(&output.stdout));
        }
        other => smol_testing::left_out(format!("no mount namespace for this user: {other:?}")),
    }
}

#[test]
#[ignore = "run by another test"] // the one above, in a namespace of its own
fn on_the_full_disk() {
    let disk = std::env::var_os(FULL_DISK).expect("run by the test above");
    let disk = Path::new(&disk);
    let work = Work::new();
    let out = disk.join("x.smolmachine");
    let error = write(&work.spec(), &out, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error:?}");
    assert!(error.to_string().contains("no space left"), "{error}");
    assert!(!error.is_verification_failure());
    assert_eq!(std::fs::read_dir(disk).unwrap().count(), 0);
}
