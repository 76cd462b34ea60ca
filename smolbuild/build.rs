//! Builds the guest's PID 1, which this program carries in itself: one small static binary, the
//! same bytes from the same source wherever the checkout lies.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const GUEST: &str = "smol-guest";

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let workspace = manifest.parent().expect("a member of the workspace").to_owned();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let target = format!("{}-unknown-linux-gnu", env::var("CARGO_CFG_TARGET_ARCH").expect("set by cargo"));
    for input in ["crates/smol-guest/src", "crates/smol-guest/Cargo.toml", "Cargo.lock", "Cargo.toml"] {
        println!("cargo:rerun-if-changed={}", workspace.join(input).display());
    }

    let folder = out.join("guest");
    let status = Command::new(env::var_os("CARGO").expect("set by cargo"))
        .args(["build", "--quiet", "--locked", "--package", GUEST, "--bin", GUEST, "--profile", "guest", "--target", &target])
        .arg("--target-dir")
        .arg(&folder)
        .current_dir(&workspace)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&workspace).join("\x1f"))
        // The wrapper of `cargo clippy` would check the guest instead of building it.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "building {GUEST} failed");
    let binary = folder.join(&target).join("guest").join(GUEST);
    println!("cargo:rustc-env=SMOL_GUEST_BINARY={}", binary.display());
}

/// Static, and without a trace of where it was built.
fn flags(workspace: &Path) -> Vec<String> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|h| h.join(".cargo"))).unwrap_or_default();
    let mut flags = vec![
        "-Ctarget-feature=+crt-static".into(),
        "-Crelocation-model=static".into(),
        format!("--remap-path-prefix={}=/smol", workspace.display()),
    ];
    // Dependencies by their own names: the folders above them are named after where they came from.
    let indexes = std::fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten();
    flags.extend(indexes.map(|index| format!("--remap-path-prefix={}=/deps", index.path().display())));
    flags
}
