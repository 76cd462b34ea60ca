//! Prepares what this program carries in itself: the kernel recipes, and the guest's PID 1, one
//! small static binary, the same bytes from the same source wherever the checkout lies.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const GUEST: &str = "smol-guest";

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let workspace = manifest
        .parent()
        .expect("a member of the workspace")
        .to_owned();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let target = format!(
        "{}-unknown-linux-gnu",
        env::var("CARGO_CFG_TARGET_ARCH").expect("set by cargo")
    );
    for input in [
        "crates/smol-guest/src",
        "crates/smol-guest/Cargo.toml",
        "crates/smol-protocol/src",
        "crates/smol-protocol/Cargo.toml",
        "Cargo.lock",
        "Cargo.toml",
    ] {
        println!("cargo:rerun-if-changed={}", workspace.join(input).display());
    }

    embed_kernels(&workspace.join("kernels"), &out.join("kernels.rs"));

    // One for all builds of this profile, whatever their features: the program is the same.
    let folder = out.ancestors().nth(3).unwrap_or(&out).join("guest");
    let status = Command::new(env::var_os("CARGO").expect("set by cargo"))
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            GUEST,
            "--bin",
            GUEST,
            "--profile",
            "guest",
            "--target",
            &target,
        ])
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
    let home = home
        .or_else(|| env::home_dir().map(|h| h.join(".cargo")))
        .unwrap_or_default();
    let mut flags = vec![
        "-Ctarget-feature=+crt-static".into(),
        "-Crelocation-model=static".into(),
        format!("--remap-path-prefix={}=/smol", workspace.display()),
    ];
    // Dependencies by their own names: the folders above them are named after where they came from.
    let indexes = fs::read_dir(home.join("registry/src"))
        .into_iter()
        .flatten()
        .flatten();
    flags.extend(
        indexes.map(|index| format!("--remap-path-prefix={}=/deps", index.path().display())),
    );
    flags
}

/// Writes the table of kernel recipes: every folder of `kernels` with its configuration, metadata
/// and patches, sorted. What else is there is for people.
fn embed_kernels(kernels: &Path, table: &Path) {
    println!("cargo:rerun-if-changed={}", kernels.display());
    let mut text = String::from("static EMBEDDED: &[(&str, &[RecipeFile])] = &[\n");
    for recipe in list(kernels).into_iter().filter(|path| path.is_dir()) {
        let mut files: Vec<PathBuf> = ["kernel.config", "kernel.toml"]
            .map(|name| recipe.join(name))
            .into();
        files.retain(|file| file.exists());
        files.extend(
            list(&recipe.join("patches"))
                .into_iter()
                .filter(|file| file.extension().is_some_and(|e| e == "patch")),
        );
        text += &format!("    ({:?}, &[\n", name(&recipe, kernels));
        for file in files {
            text += &format!(
                "        ({:?}, include_bytes!({:?})),\n",
                name(&file, &recipe),
                file
            );
        }
        text += "    ]),\n";
    }
    fs::write(table, text + "];\n").expect("OUT_DIR can be written");
}

/// The contents of a folder by name; nothing if there is none.
fn list(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

/// The path of a file relative to a folder.
fn name(file: &Path, folder: &Path) -> String {
    file.strip_prefix(folder)
        .expect("in the folder")
        .to_str()
        .expect("UTF-8")
        .to_owned()
}
