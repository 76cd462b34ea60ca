//! The lock file by the command line. Nothing here needs a network or boots a machine.

mod common;

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use common::{bundle_spec, write_bundle};
use smol_bundle::{BundleSpec, Digest};

const KERNEL_ONLY: &str = r#"name = "native"
[kernel]
path = "guest.elf"
[ready]
log = "^up$"
"#;

fn smolbuild(folder: &Path) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("smolbuild"));
    command
        .current_dir(folder)
        .env("SMOL_CACHE_DIR", folder.join("cache"))
        .env_remove("SOURCE_DATE_EPOCH")
        .env_remove("SMOL_LOCKED")
        .env("SMOL_OFFLINE", "1");
    command
}

/// Stdout and stderr of a command that ends with this exit code.
fn said(command: &mut Command, code: i32) -> (String, String) {
    let output = command.assert().code(code).get_output().clone();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

fn project() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("native.toml"), KERNEL_ONLY).unwrap();
    fs::write(folder.path().join("guest.elf"), "ELF").unwrap();
    folder
}

#[test]
fn a_lock_is_made_and_told_what_changed_and_that_it_is_up_to_date() {
    let folder = project();
    let lock = || said(smolbuild(folder.path()).args(["lock", "native.toml"]), 0).0;
    assert_eq!(lock(), "native.toml.lock is new\n");
    assert_eq!(lock(), "native.toml.lock is up to date\n");
    fs::write(folder.path().join("guest.elf"), "ELF2").unwrap();
    assert_eq!(lock(), "[kernel] path \"guest.elf\" changed\n");
    let text = fs::read_to_string(folder.path().join("native.toml.lock")).unwrap();
    assert!(
        text.contains("role = \"kernel\"\npath = \"guest.elf\"\n"),
        "{text}"
    );
}

#[test]
fn a_locked_build_ends_with_3_if_the_lock_is_missing_or_out_of_date_and_lists_why() {
    let folder = project();
    let build = |locked: &[&str]| {
        let mut command = smolbuild(folder.path());
        command
            .args(["native.toml", "-o", "x.smolmachine"])
            .args(locked);
        said(&mut command, 3).1
    };
    assert_eq!(
        build(&["--locked"]),
        "error: there is no lock file native.toml.lock\n  hint: make it: smolbuild lock native.toml\n"
    );
    said(smolbuild(folder.path()).args(["lock", "native.toml"]), 0);
    fs::write(folder.path().join("guest.elf"), "ELF2").unwrap();
    assert_eq!(
        build(&["--locked"]),
        "error: the lock file native.toml.lock is out of date:\n  [kernel] path \"guest.elf\" changed\n  \
         hint: renew what changed: smolbuild lock --only files native.toml\n  hint: a build without --locked does so, too\n"
    );
    let mut by_variable = smolbuild(folder.path());
    by_variable.args(["native.toml", "-o", "x.smolmachine"]);
    said(by_variable.env("SMOL_LOCKED", "yes"), 3);
    assert!(!folder.path().join("x.smolmachine").exists());
}

#[test]
fn offline_a_system_without_a_lock_is_an_error_that_names_it() {
    let folder = project();
    let smolfile = "name = \"app\"\n[kernel]\npath = \"guest.elf\"\n[rootfs]\n\
                    debian = { suite = \"bookworm\", packages = [\"jq\"] }\n\
                    [service]\ncmd = [\"jq\"]\n[ready]\ntcp = 80\n";
    fs::write(folder.path().join("Smolfile"), smolfile).unwrap();
    let error = said(smolbuild(folder.path()).arg("lock"), 1).1;
    assert!(
        error.contains("bookworm") && error.contains("jq"),
        "{error}"
    );
    assert!(!folder.path().join("Smolfile.lock").exists());
}

const ON_BASE: &str = "name = \"app\"\n[kernel]\npath = \"guest.elf\"\n[base]\n\
                       bundle = \"base.smolmachine\"\n[service]\ncmd = [\"app\"]\n[ready]\ntcp = 80\n";

/// A bundle to build on, as far as its lock looks at it.
fn base(folder: &Path, rootfs: Option<&str>) -> Digest {
    if let Some(rootfs) = rootfs {
        fs::write(folder.join("rootfs"), rootfs).unwrap();
    }
    let spec = BundleSpec {
        rootfs: rootfs.map(|_| folder.join("rootfs")),
        ..bundle_spec("base", folder.join("guest.elf"))
    };
    write_bundle(&spec, &folder.join("base.smolmachine"))
}

#[test]
fn a_base_is_pinned_by_its_digest_in_which_signatures_have_no_part() {
    let folder = project();
    fs::write(folder.path().join("Smolfile"), ON_BASE).unwrap();
    let lock = || said(smolbuild(folder.path()).arg("lock"), 0).0;
    let locked = || {
        let mut command = smolbuild(folder.path());
        said(command.args(["--locked", "-o", "x.smolmachine"]), 3).1
    };
    let digest = base(folder.path(), Some("files"));
    assert_eq!(lock(), "./Smolfile.lock is new\n");
    let text = fs::read_to_string(folder.path().join("Smolfile.lock")).unwrap();
    let pinned = format!(
        "role = \"base\"\npath = \"base.smolmachine\"\nsha256 = \"{}\"\n",
        digest.hex()
    );
    assert!(text.contains(&pinned), "{text}");

    said(smolbuild(folder.path()).args(["keygen", "-o", "k.key"]), 0);
    let sign = ["sign", "base.smolmachine", "--key", "k.key"];
    said(smolbuild(folder.path()).args(sign), 0);
    assert_eq!(lock(), "./Smolfile.lock is up to date\n");

    base(folder.path(), Some("other files"));
    let told = locked();
    assert!(
        told.contains("out of date:\n  [base] bundle \"base.smolmachine\" changed\n"),
        "{told}"
    );
    assert_eq!(lock(), "[base] bundle \"base.smolmachine\" changed\n");
}

#[test]
fn what_cannot_be_a_base_is_told_before_anything_is_built() {
    let folder = project();
    fs::write(folder.path().join("Smolfile"), ON_BASE).unwrap();
    let lock = |code| said(smolbuild(folder.path()).arg("lock"), code).1;
    assert!(lock(2).contains("Smolfile:5:10"), "no file");
    fs::write(folder.path().join("base.smolmachine"), "").unwrap();
    assert!(lock(4).contains("is not a .smolmachine bundle: it is empty"));
    base(folder.path(), None);
    let told = lock(2);
    assert!(
        told.contains("base has no root file system, it is just a kernel"),
        "{told}"
    );
}
