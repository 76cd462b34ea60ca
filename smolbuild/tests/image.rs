//! Container images by the command line, as far as nothing is booted: the lock, and what is refused.
//! skopeo puts an image into each form.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Program;

use assert_cmd::Command;
use serde_json::json;
use smol_testing::docker::{DockerRegistry, Setup};
use smol_testing::left_out;
use smol_testing::oci::{Layer, Packed, write_layout};
use smol_testing::registry::{Answer, Contents, Registry};

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

/// A project with the image of a web server as `oci:layout:v1`.
fn project(packed: Packed) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("guest.elf"), "ELF").unwrap();
    let config =
        json!({"Entrypoint": ["/bin/web"], "Cmd": ["-p", "80"], "ExposedPorts": {"80/tcp": {}}});
    let below = Layer::default()
        .file("bin/web", 0o755, b"ELF")
        .folder("srv")
        .file("srv/old", 0o644, b"old");
    let above = Layer::default()
        .file("srv/.wh.old", 0o644, b"")
        .file("srv/new", 0o600, b"new");
    write_layout(
        &folder.path().join("layout"),
        "v1",
        &config,
        vec![below, above],
        packed,
    );
    folder
}

fn smolfile(folder: &Path, image: &str, rest: &str) {
    let text = format!(
        "name = \"web\"\n{rest}\n[kernel]\npath = \"guest.elf\"\n[rootfs]\nimage = {image:?}\n"
    );
    fs::write(folder.join("Smolfile"), text).unwrap();
}

fn lock(folder: &Path, image: &str) -> String {
    smolfile(folder, image, "");
    let _ = fs::remove_file(folder.join("Smolfile.lock"));
    said(smolbuild(folder).arg("lock"), 0);
    fs::read_to_string(folder.join("Smolfile.lock")).unwrap()
}

#[test]
fn the_lock_of_an_image_is_the_same_in_every_form() {
    if Program::new("skopeo").arg("--version").output().is_err() {
        return left_out("skopeo is not installed");
    }
    let project = project(Packed::Gzip);
    let folder = project.path();
    let expected = lock(folder, "oci:layout:v1");
    // What is ignored is not copied; a layout is not either.
    fs::write(folder.join(".smolignore"), "layout\n").unwrap();
    assert_eq!(lock(folder, "oci:layout:v1"), expected);
    for (form, image) in [
        ("oci-archive:web.oci.tar:v1", "oci-archive:web.oci.tar"),
        (
            "docker-archive:web.tar:web:v1",
            "docker-archive:web.tar:web:v1",
        ),
        ("oci:zstd:v1", "oci:zstd"),
    ] {
        let mut skopeo = Program::new("skopeo");
        skopeo
            .current_dir(folder)
            .args(["copy", "--quiet", "--dest-compress-format=zstd"]);
        let status = skopeo.args(["oci:layout:v1", form]).status().unwrap();
        assert!(status.success(), "{form}");
        assert_eq!(lock(folder, image), expected, "{image}");
    }
    let archive = fs::read(folder.join("web.tar")).unwrap();
    fs::write(
        folder.join("web.tar.zst"),
        zstd::encode_all(&archive[..], 1).unwrap(),
    )
    .unwrap();
    assert_eq!(lock(folder, "docker-archive:web.tar.zst"), expected);
    fs::remove_file(folder.join("Smolfile.lock")).unwrap();
    smolfile(folder, "-", "");
    said(smolbuild(folder).arg("lock").write_stdin(archive), 0);
    assert_eq!(
        fs::read_to_string(folder.join("Smolfile.lock")).unwrap(),
        expected
    );
}

/// An archive of the layout's only image, as `docker save` writes it since version 25: a layout in a tar.
fn archived(folder: &Path) -> Vec<u8> {
    let mut tar = Program::new("tar");
    tar.arg("-C").arg(folder.join("layout")).args(["-c", "."]);
    let output = tar.output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn an_image_that_was_piped_in_is_taken_from_the_cache_where_nothing_comes() {
    let project = project(Packed::Gzip);
    let folder = project.path();
    smolfile(folder, "-", "");
    let build = || {
        let mut command = smolbuild(folder);
        command.args(BUILD);
        command
    };
    let error = said(build().write_stdin(""), 2).1;
    assert!(
        error.contains("because: nothing came on standard input\n")
            && error.contains("hint: write `docker save IMAGE | smolbuild`, or name a file"),
        "{error}"
    );
    let archive = archived(folder);
    said(
        smolbuild(folder).arg("lock").write_stdin(archive.clone()),
        0,
    );
    let locked = fs::read_to_string(folder.join("Smolfile.lock")).unwrap();
    // The lock alone does not do.
    let error = said(build().write_stdin(""), 3).1;
    for part in [
        "nothing came on standard input, and 2 of the 2 layers of the image sha256:",
        "hint: give it the image that the lock names once more: `docker save IMAGE | smolbuild`",
    ] {
        assert!(error.contains(part), "{error}");
    }
    // It makes the root file system, and then finds out that the kernel is none.
    let kernel = |command: &mut Command| {
        let error = said(command, 1).1;
        assert!(!error.contains("standard input"), "{error}");
    };
    kernel(build().write_stdin(archive));
    assert_eq!(layers(folder), 2);
    kernel(build().write_stdin(""));
    kernel(build().arg("--locked").write_stdin(""));
    said(smolbuild(folder).arg("lock").write_stdin(""), 0);
    assert_eq!(
        fs::read_to_string(folder.join("Smolfile.lock")).unwrap(),
        locked
    );
    // Another one that comes is another one.
    let above = Layer::default().file("srv/new", 0o600, b"newer");
    let config = json!({"Cmd": ["/bin/web"], "ExposedPorts": {"80/tcp": {}}});
    write_layout(
        &folder.join("layout"),
        "v1",
        &config,
        vec![above],
        Packed::Gzip,
    );
    let error = said(build().arg("--locked").write_stdin(archived(folder)), 3).1;
    assert!(error.contains("image: "), "{error}");
}

#[test]
fn an_image_that_changed_makes_the_lock_stale() {
    let project = project(Packed::Plain);
    let folder = project.path();
    lock(folder, "oci:layout");
    said(smolbuild(folder).args(["check", "--locked"]), 0);
    let layers = || vec![Layer::default().file("srv/new", 0o600, b"newer")];
    write_layout(
        &folder.join("layout"),
        "v1",
        &json!({}),
        layers(),
        Packed::Plain,
    );
    let error = said(smolbuild(folder).args(["check", "--locked"]), 3).1;
    assert!(
        error.contains("image: ") && error.contains("smolbuild lock --only image"),
        "{error}"
    );
    said(smolbuild(folder).args(["lock", "--only", "image"]), 0);
    said(smolbuild(folder).args(["check", "--locked"]), 0);
}

#[test]
fn what_cannot_be_an_image_is_refused_with_what_to_do() {
    let project = project(Packed::Plain);
    let folder = project.path();
    let root = Layer::default()
        .folder("etc")
        .file("etc/passwd", 0o644, b"");
    fs::write(folder.join("root.tar"), root.finish()).unwrap();
    for (image, told) in [
        ("oci:layout:v2", "it has no image \"v2\"; it has v1"),
        ("oci:gone", "No such file or directory"),
        ("oci-archive:root.tar", "write [rootfs] tar"),
        ("docker-archive:guest.elf", "not a tar archive"),
        ("docker-daemon:web:1", "docker save web:1 -o image.tar"),
        ("oci:../layout", "leads out of the folder"),
    ] {
        smolfile(folder, image, "");
        let error = said(smolbuild(folder).arg("lock"), 2).1;
        assert!(error.contains(told), "{image}: {error}");
        assert!(!folder.join("Smolfile.lock").exists());
    }
}

#[test]
fn what_neither_the_image_nor_the_smolfile_says_is_asked_for() {
    let project = project(Packed::Plain);
    let folder = project.path();
    smolfile(folder, "oci:layout", "");
    let build = |config: serde_json::Value| {
        write_layout(
            &folder.join("layout"),
            "v1",
            &config,
            vec![Layer::default()],
            Packed::Plain,
        );
        said(smolbuild(folder).args(["-o", "x.smolmachine"]), 2).1
    };
    for (config, told) in [
        (json!({"ExposedPorts": {"80/tcp": {}}}), "[service] cmd ="),
        (json!({"Cmd": ["web"]}), "no health check, and no port"),
        (
            json!({"Cmd": ["web"], "ExposedPorts": {"80/tcp": {}, "81/tcp": {}}}),
            "write [ready], for example tcp = 80,",
        ),
        (
            json!({"Cmd": ["web"], "StopSignal": "SIGNONE", "ExposedPorts": {"80/tcp": {}}}),
            "\"SIGNONE\", which is no signal",
        ),
    ] {
        let error = build(config);
        assert!(error.contains(told), "{error}");
    }
    assert!(!folder.join("x.smolmachine").exists());
}

#[test]
fn a_layer_that_is_not_what_the_image_says_ends_the_build_and_is_not_kept() {
    let project = project(Packed::Plain);
    let folder = project.path();
    smolfile(folder, "oci:layout", "");
    let blobs = folder.join("layout/blobs/sha256");
    let layer = fs::read_dir(&blobs)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut layer = layer.filter(|path| fs::read(path).unwrap().starts_with(b"srv/.wh.old"));
    let layer = layer.next().unwrap();
    let mut bytes = fs::read(&layer).unwrap();
    let at = bytes.windows(3).position(|three| three == b"new").unwrap();
    bytes[at] = b'N';
    fs::write(&layer, bytes).unwrap();
    let error = said(smolbuild(folder).args(["-o", "x.smolmachine"]), 4).1;
    let digest = layer.file_name().unwrap().to_str().unwrap();
    assert!(
        error.contains(digest) && error.contains("the image is damaged"),
        "{error}"
    );
    assert_eq!(
        fs::read_dir(folder.join("cache/layers")).unwrap().count(),
        0
    );
}

#[test]
fn hostile_layers_are_refused_by_name_and_nothing_is_written_outside() {
    let evil = || Layer::default();
    let outer = project(Packed::Plain);
    let folder = outer.path().join("a/b");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("guest.elf"), "ELF").unwrap();
    smolfile(&folder, "oci:layout", "");
    let config = json!({"Cmd": ["/x"], "ExposedPorts": {"80/tcp": {}}});
    let cases = [
        (
            evil().file("../../evil", 0o644, b""),
            "'../../evil' has a '..' in its path",
        ),
        (
            evil().file("x/../../evil", 0o644, b""),
            "has a '..' in its path",
        ),
        (
            evil()
                .symlink("out", "../../..")
                .file("out/evil", 0o644, b""),
            "member 'out/evil'\n  because: a symbolic link in the path leads out of the tree",
        ),
        (
            evil().hard_link("evil", "../guest.elf"),
            "has a '..' in its path",
        ),
        (
            evil().block_device("dev/evil", 4096, 0),
            "member 'dev/evil'\n  because: device number 4096:0 is out of range",
        ),
        (
            evil().file("../.wh.evil", 0o644, b""),
            "has a '..' in its path",
        ),
    ];
    for (layer, told) in cases {
        let _ = fs::remove_dir_all(folder.join("layout"));
        let _ = fs::remove_file(folder.join("Smolfile.lock"));
        let layers = vec![Layer::default().file("x", 0o755, b""), layer];
        write_layout(&folder.join("layout"), "v1", &config, layers, Packed::Gzip);
        let mut build = smolbuild(&folder);
        let error = build.args(BUILD).assert().failure().get_output().clone();
        let error = String::from_utf8(error.stderr).unwrap();
        assert!(error.contains(told), "{told}: {error}");
        let mut written = Vec::new();
        find(outer.path(), "evil", &mut written);
        assert!(written.is_empty(), "{told}: {written:?}");
    }
}

/// Adds the paths below a folder that end with this name.
fn find(folder: &Path, name: &str, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        if path.symlink_metadata().unwrap().is_dir() {
            find(&path, name, found);
        }
        if path.ends_with(name) {
            found.push(path);
        }
    }
}

/// Layers in the cache.
fn layers(folder: &Path) -> usize {
    let layers = fs::read_dir(folder.join("cache/layers"));
    layers.map_or(0, Iterator::count)
}

/// A command that may use the network.
fn online(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = smolbuild(folder);
    command.args(arguments).env_remove("SMOL_OFFLINE");
    // Nothing of whoever runs the tests.
    for name in [
        "HOME",
        "XDG_RUNTIME_DIR",
        "XDG_CONFIG_HOME",
        "DOCKER_CONFIG",
    ] {
        command.env(name, folder);
    }
    command
}

/// It makes the root file system, and then finds out that there is no kernel.
const BUILD: [&str; 2] = ["-o", "x.smolmachine"];

#[test]
fn an_image_in_a_registry_is_pinned_pulled_and_then_there_offline() {
    let Some(registry) = DockerRegistry::start(Setup::default()) else {
        return left_out("docker-registry is not installed");
    };
    let project = project(Packed::Gzip);
    let folder = project.path();
    let expected = lock(folder, "oci:layout");
    let push = || registry.push(&format!("oci:{}/layout:v1", folder.display()), "a/web:1");
    push();
    smolfile(folder, &format!("{}/a/web:1", registry.host()), "");
    fs::remove_file(folder.join("Smolfile.lock")).unwrap();
    let error = said(smolbuild(folder).arg("lock"), 3).1;
    assert!(
        error.contains("the lock does not say which image"),
        "{error}"
    );
    said(&mut online(folder, &["lock"]), 0);
    let locked = fs::read_to_string(folder.join("Smolfile.lock")).unwrap();
    let (head, rest) = locked.split_once("\n[image.origin]\n").unwrap();
    let (origin, tail) = rest.split_once("\n\n").unwrap();
    assert_eq!(
        format!("{head}\n{tail}"),
        expected,
        "but for where it came from"
    );
    assert!(
        origin.contains("/a/web:1\"\nmanifest = \"sha256:"),
        "{origin}"
    );
    // Offline, what is missing is named; then it is there.
    let error = said(smolbuild(folder).args(BUILD).arg("--locked"), 3).1;
    assert!(
        error.contains("2 of the 2 layers") && error.contains("sha256:"),
        "{error}"
    );
    said(online(folder, &BUILD).arg("--locked"), 1);
    assert_eq!(layers(folder), 2);
    let kernel = said(smolbuild(folder).args(BUILD).arg("--locked"), 1).1;
    assert!(
        kernel.contains("kernel") && !kernel.contains("layer"),
        "{kernel}"
    );
    // Another tag is another image, which the lock does not have.
    let moved = fs::read_to_string(folder.join("Smolfile")).unwrap();
    fs::write(
        folder.join("Smolfile"),
        moved.replace("/a/web:1", "/a/web:2"),
    )
    .unwrap();
    let error = said(smolbuild(folder).args(BUILD).arg("--locked"), 3).1;
    assert!(
        error.contains("/a/web:2: the lock does not have it") && error.contains("--only image"),
        "{error}"
    );
    fs::write(folder.join("Smolfile"), moved).unwrap();
    // The tag moves, and the machine does not.
    let config = json!({"Cmd": ["/bin/web"], "ExposedPorts": {"80/tcp": {}}});
    write_layout(
        &folder.join("layout"),
        "v1",
        &config,
        vec![Layer::default().file("bin/web", 0o755, b"other")],
        Packed::Gzip,
    );
    push();
    fs::remove_dir_all(folder.join("cache")).unwrap();
    said(online(folder, &BUILD).arg("--locked"), 1);
    assert_eq!(layers(folder), 2);
    let changes = said(&mut online(folder, &["lock", "--only", "image"]), 0).0;
    assert!(
        changes.contains("manifest of the image: ") && changes.contains("image: "),
        "{changes}"
    );
    said(online(folder, &BUILD).arg("--locked"), 1);
    assert_eq!(layers(folder), 3);
}

/// What a registry has of the image in the layout, as `x:1`.
fn contents(folder: &Path) -> Contents {
    let mut contents = Contents::default();
    let blobs = fs::read_dir(folder.join("layout/blobs/sha256")).unwrap();
    for blob in blobs.map(|blob| blob.unwrap().path()) {
        let (name, bytes) = (
            blob.file_name().unwrap().to_str().unwrap(),
            fs::read(&blob).unwrap(),
        );
        let digest = format!("sha256:{name}");
        if bytes.starts_with(b"{\"config\"") && bytes.ends_with(b"2}") {
            let kind = "application/vnd.oci.image.manifest.v1+json".to_owned();
            for reference in ["1", &digest] {
                let path = format!("x/manifests/{reference}");
                contents
                    .manifests
                    .insert(path, (kind.clone(), bytes.clone()));
            }
        }
        contents.blobs.insert(digest, bytes);
    }
    assert_eq!(contents.manifests.len(), 2);
    contents
}

/// A change of what a registry answers to a request for a layer.
type Fault = fn(Answer) -> Answer;

#[test]
fn a_registry_that_fails_or_lies_leaves_nothing_in_the_cache() {
    let project = project(Packed::Plain);
    let folder = project.path();
    let contents = contents(folder);
    let cases: [(Fault, i32, &str); 4] = [
        (|_| Answer::new(404, "gone"), 1, "cannot get sha256:"),
        (|_| Answer::new(403, "no"), 1, "cannot get sha256:"),
        (
            |answer| Answer {
                body: vec![0; answer.body.len()],
                ..answer
            },
            4,
            "sha256:",
        ),
        (
            |answer| Answer::new(200, [answer.body, vec![0]].concat()),
            4,
            "cannot get sha256:",
        ),
    ];
    for (fault, code, told) in cases {
        let (contents, manifests) = (contents.clone(), contents.manifests.clone());
        let registry = Registry::start(move |request, _| {
            let answer = contents.answer(request);
            let is_json = manifests.values().any(|(_, bytes)| *bytes == answer.body)
                || answer.body.starts_with(b"{");
            if is_json { answer } else { fault(answer) }
        });
        smolfile(folder, &format!("{}/x:1", registry.host()), "");
        let _ = fs::remove_file(folder.join("Smolfile.lock"));
        let error = said(&mut online(folder, &BUILD), code).1;
        assert!(
            error.contains(told) && error.contains("cannot use the image"),
            "{error}"
        );
        assert_eq!(layers(folder), 0, "{error}");
    }
}

#[test]
fn what_a_registry_does_not_have_is_named() {
    let project = project(Packed::Plain);
    let folder = project.path();
    let registry =
        Registry::start(|_, _| Answer::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#));
    smolfile(folder, &format!("{}/x:1", registry.host()), "");
    let error = said(&mut online(folder, &["lock"]), 1).1;
    assert!(
        error.contains("/x:1") && error.contains("MANIFEST_UNKNOWN"),
        "{error}"
    );
    assert!(!folder.join("Smolfile.lock").exists());
}
