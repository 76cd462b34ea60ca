//! What smolbuild prints, word for word: the tables in `tests/messages` (see [`messages`]).
//!
//! Their `$ smolfile KEY=VALUE...` runs smolbuild on a Smolfile that is complete but for these lines
//! of TOML, such as `service.cmd = ["a && b"]`, each of which replaces the usual one of its key.
//! `$ smolfile --bundle FILE` writes a small bundle, which nothing can boot. `$ sh -c '...'` is the shell, to write and to look at files.

mod common;

use std::path::Path;
use std::process::{Command, ExitCode};

use common::{bundle_spec, write_bundle};
use smol_testing::messages;

const SMOLBUILD: &str = env!("CARGO_BIN_EXE_smolbuild");

/// The lines of a Smolfile that has nothing to build.
const USUAL: [(&str, &str); 4] = [
    ("name", r#"name = "app""#),
    ("rootfs", r#"rootfs.dir = "root""#),
    ("service.cmd", r#"service.cmd = ["/bin/app"]"#),
    ("ready", "ready.tcp = 8080"),
];

fn main() -> ExitCode {
    let programs = [("smolbuild", SMOLBUILD), ("sh", "/bin/sh")];
    messages::main(&programs, "smolfile", smolfile)
}

fn smolfile(lines: &[String]) -> ExitCode {
    if let [option, file] = lines
        && option == "--bundle"
    {
        return bundle(Path::new(file));
    }
    let mut text = String::new();
    for (key, usual) in USUAL {
        let table = key.split('.').next().unwrap_or(key);
        let replaces =
            |line: &String| line.starts_with(key) || line.starts_with(&format!("{table} = {{"));
        if !lines.iter().any(replaces) {
            text += usual;
            text.push('\n');
        }
    }
    // Tables of their own end the top level, so that they come last.
    text += &lines.join("\n");
    text.push('\n');
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("root")).unwrap();
    std::fs::write(folder.path().join("Smolfile"), text).unwrap();
    let mut command = Command::new(SMOLBUILD);
    let status = command.arg(".").current_dir(&folder).status().unwrap();
    ExitCode::from(status.code().unwrap_or(1) as u8)
}

fn bundle(file: &Path) -> ExitCode {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, "a kernel").unwrap();
    write_bundle(&bundle_spec("app", kernel), file);
    ExitCode::SUCCESS
}
