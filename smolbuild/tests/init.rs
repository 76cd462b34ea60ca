//! `smolbuild init` by the command line: what is written, what is said, and what is never overwritten.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use serde_json::json;
use smol_testing::oci::{Layer, Packed, write_layout};

fn smolbuild(folder: &Path, arguments: &[&str], code: i32) -> (String, String) {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("smolbuild"));
    command
        .current_dir(folder)
        .env("SMOL_CACHE_DIR", folder.join("cache"))
        .env_remove("SMOL_OFFLINE")
        .args(arguments);
    let output = command.assert().code(code).get_output().clone();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

fn written(folder: &Path) -> String {
    fs::read_to_string(folder.join("Smolfile")).unwrap()
}

#[test]
fn of_an_image_in_files_a_smolfile_is_written_once_and_has_no_mistakes() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let config = json!({"Entrypoint": ["/bin/web"], "Cmd": ["-p\n[kernel]"], "ExposedPorts": {"80/tcp": {}}});
    let layers = vec![Layer::default().folder("srv")];
    write_layout(&folder.join("web"), "v1", &config, layers, Packed::Plain);
    let (out, _) = smolbuild(folder, &["init", "oci:web:v1"], 0);
    assert_eq!(out, "wrote Smolfile\nbuild it:  smolbuild\n");
    let text = written(folder);
    for line in [
        "name = \"web\"",
        "image = \"oci:web:v1\"",
        "#entrypoint = [\"/bin/web\"]",
        "#cmd = [\"-p\\n[kernel]\"]",
        "#tcp = 80",
    ] {
        assert!(text.lines().any(|it| it == line), "{line}: {text}");
    }
    smolbuild(folder, &["check"], 0);
    let (_, error) = smolbuild(folder, &["init"], 2);
    assert!(
        error.contains("is there already, and is not overwritten"),
        "{error}"
    );
    assert_eq!(written(folder), text);
    fs::remove_file(folder.join("Smolfile")).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.join("Smolfile")).unwrap();
    smolbuild(folder, &["init"], 2);
    assert!(!folder.join("nowhere").exists());
    let (_, error) = smolbuild(folder, &["init", "oci:gone", "-o", "x"], 2);
    assert!(error.contains("oci:gone"), "{error}");
    let (_, error) = smolbuild(folder, &["init", "nginx", "-o", "x", "--offline"], 2);
    assert!(
        error.contains("offline, and the image nginx is in a registry"),
        "{error}"
    );
    assert!(!folder.join("x").exists());
}

#[test]
fn of_packages_and_of_nothing_a_smolfile_is_written_that_can_be_checked() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    smolbuild(folder, &["init", "--debian", "redis-server", "curl"], 0);
    let text = written(folder);
    assert!(text.contains("name = \"redis-server\"\n"), "{text}");
    assert!(
        text.contains("packages = [\"redis-server\", \"curl\"]"),
        "{text}"
    );
    smolbuild(folder, &["check"], 0);
    let arguments = ["init", "--name", "mine", "-o", "mine.smol"];
    let (out, _) = smolbuild(folder, &arguments, 0);
    assert_eq!(out, "wrote mine.smol\nbuild it:  smolbuild mine.smol\n");
    smolbuild(folder, &["check", "mine.smol"], 0);
    let arguments = ["init", "--debian", "sl", "-o", "sl.smol"];
    let (out, _) = smolbuild(folder, &arguments, 0);
    assert!(out.contains("to be written: [ready] does not say"), "{out}");
    smolbuild(folder, &["check", "sl.smol"], 2);
    let (_, error) = smolbuild(folder, &["init", "--name", "No", "-o", "y"], 2);
    assert!(error.contains("not a valid name"), "{error}");
    smolbuild(folder, &["init", "nginx", "--from", "Dockerfile"], 2);
    assert!(!folder.join("y").exists());
}

#[test]
fn of_a_dockerfile_what_is_not_taken_over_is_said_with_its_line() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("My App");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("app.conf"), "x").unwrap();
    fs::write(folder.join(".dockerignore"), "x").unwrap();
    let text = "FROM debian:12\nRUN --mount=type=secret,id=a \u{1b}[2J true\nRUN make\nCOPY app.conf /etc/\nEXPOSE 80\nCMD [\"app\"]\n";
    fs::write(folder.join("Dockerfile"), text).unwrap();
    let (_, notes) = smolbuild(&folder, &["init", "--from", "Dockerfile"], 0);
    assert!(
        notes.contains("Dockerfile:2: not taken over (secrets are not possible"),
        "{notes}"
    );
    assert!(notes.contains("\\u{1b}[2J"), "{notes}");
    assert!(
        notes.contains(".smolignore") && !notes.contains("build context"),
        "{notes}"
    );
    let text = written(&folder);
    assert!(text.contains("name = \"my-app\"\n"), "{text}");
    assert!(
        text.contains("[[run]]\ncmd = \"make\"\n\n[[copy]]"),
        "{text}"
    );
    smolbuild(&folder, &["check"], 0);
    let arguments = ["init", "--from", "My App/Dockerfile"];
    let (_, notes) = smolbuild(scratch.path(), &arguments, 0);
    assert!(notes.contains("move it to the build context"), "{notes}");
    let (_, error) = smolbuild(&folder, &["init", "--from", "gone", "-o", "x"], 2);
    assert!(error.contains("cannot read gone"), "{error}");
    let (_, error) = smolbuild(&folder, &["init", "--from", "app.conf", "-o", "x"], 2);
    assert!(error.contains("there is no FROM in it"), "{error}");
}
