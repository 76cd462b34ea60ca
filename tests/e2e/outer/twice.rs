//! Recipes built a second time, on another host: the same bytes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use smol_host::emulated::FAULTS;

use super::images::postgres_folder;
use smol_tests::host::Host;
use smol_tests::suite::Suite;
use smol_tests::support::{copy_folder, names, run};

/// The emulated CPU of the second builds; that of the first ones is QEMU's `max`.
const OTHER_CPU: &str = "EPYC-Rome";
/// The smallest recipe, and the one that runs the most programs.
const RECIPES: [&str; 2] = ["hello", "systemd"];

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a Host) {
    suite.group("twice");
    for recipe in RECIPES {
        suite.test(
            &format!("{recipe} built again elsewhere gives the same bundle, byte for byte"),
            || again(host, recipe),
        );
    }
    suite.test(
        "the image of a registry out of an archive gives the same lock and bundle, byte for byte",
        || other_form(host),
    );
    // Before the next one, whose build leaves other times in the cache.
    suite.test(
        "python is taken from the cache when it is built once more, signed, with all that is known of it",
        || cached(host),
    );
    suite.test(
        "python is reproduced from its bundle alone, on another emulated CPU",
        || reproduced(host),
    );
}

/// The recipe whose machine does the most at once. Its image is out of an archive that skopeo has made, with plain
/// layers; that of the first build was out of a registry.
fn other_form(host: &Host) {
    let made = postgres_folder(host);
    let folder = host.folder("other-form");
    let recipe = folder.join("recipe");
    copy_folder(&host.workspace.join("recipes/postgres-image"), &recipe);
    let source = format!("oci:{}:15", made.join("layout").display());
    let smolfile = recipe.join("Smolfile");
    let text = fs::read_to_string(&smolfile).unwrap();
    let lock = || fs::read_to_string(recipe.join("Smolfile.lock")).unwrap();
    let first = fs::read_to_string(made.join("recipe/Smolfile.lock")).unwrap();
    let first = without_origin(&first);
    for (form, image) in [
        ("oci:layout:15", "oci:layout"),
        ("oci-archive:oci.tar:15", "oci-archive:oci.tar"),
        (
            "docker-archive:docker.tar:x:15",
            "docker-archive:docker.tar",
        ),
    ] {
        let mut skopeo = Command::new("skopeo");
        skopeo.current_dir(&recipe);
        run(skopeo.args(["copy", "--quiet", &source, form])).succeed();
        let other = text.replace("docker.io/library/postgres:15", image);
        assert_ne!(other, text);
        fs::write(&smolfile, other).unwrap();
        let _ = fs::remove_file(recipe.join("Smolfile.lock"));
        run(host.tools.smolbuild().arg("lock").arg(&recipe)).succeed();
        assert_eq!(lock(), first, "{form}");
    }
    build_elsewhere(host, &folder, &recipe, &host.bundle("postgres-image"));
    fs::remove_dir_all(&folder).unwrap();
}

/// A lock without what it says of the registry that its image came from.
fn without_origin(lock: &str) -> String {
    let (head, rest) = lock
        .split_once("\n[image.origin]\n")
        .expect("it is of a registry");
    let (_, tail) = rest.split_once("\n\n").expect("something follows");
    format!("{head}\n{tail}")
}

/// From another folder, its packages installed anew, on another emulated CPU. Each build boots an
/// emulated host for itself.
fn again(host: &Host, recipe: &str) {
    let folder = host.folder("again");
    let copy = folder.join("elsewhere");
    copy_folder(&host.workspace.join("recipes").join(recipe), &copy);
    build_elsewhere(host, &folder, &copy, &host.bundle(recipe));
    fs::remove_dir_all(&folder).unwrap();
}

/// Builds a machine with a cache of its own and compares its bundle with the first one. What is made is in
/// `folder`.
fn build_elsewhere(host: &Host, folder: &Path, smolfile: &Path, first: &Path) {
    let cache = folder.join("cache");
    fs::create_dir(&cache).unwrap();
    // The kernel is compiled once, for that takes minutes.
    for name in ["kernels", "sources", "emulated-host", FAULTS] {
        symlink(host.cache().join(name), cache.join(name)).unwrap();
    }
    let second = folder.join("second.smolmachine");
    let mut build = host.build(smolfile, &second);
    build
        .args(["--accel", "emulated"])
        .env("SMOL_CACHE_DIR", &cache)
        .env("SMOL_EMULATED_CPU", OTHER_CPU);
    run(&mut build).succeed();
    assert_same(host, first, &second);
}

/// Without its Smolfile, lock and application: they are in the bundle.
fn reproduced(host: &Host) {
    let folder = host.folder("reproduced");
    let bundle = folder.join("python.smolmachine");
    fs::copy(host.bundle("python"), &bundle).unwrap();
    let mut reproduce = host.tools.smolbuild();
    reproduce
        .current_dir(&folder)
        .arg("reproduce")
        .arg(&bundle)
        .args(["--accel", "emulated", "--progress", "plain"])
        .env("SMOL_EMULATED_CPU", OTHER_CPU);
    let outcome = run(&mut reproduce);
    // The bundle that it is compared with is in the cache, too.
    assert!(
        outcome.stderr.contains("booting the machine"),
        "{}",
        outcome.stderr
    );
    let told = outcome.succeed();
    let digest = host.inspect(&bundle)["digest"].clone();
    assert_eq!(
        told,
        format!("python  reproduced  {}\n", digest.as_str().unwrap())
    );
    assert_eq!(names(&folder), ["python.smolmachine"]);
}

/// By the same programs, whose first build kept its bundle.
fn cached(host: &Host) {
    let folder = host.folder("cached");
    let second = folder.join("python.smolmachine");
    let facts = folder.join("python.json");
    let mut build = host.tools.smolbuild();
    build.arg(host.workspace.join("recipes/python"));
    build.arg("--sign").arg(host.bundles.join("key.key"));
    build.arg("-o").arg(&second);
    build.arg("--metadata-file").arg(&facts);
    run(&mut build).succeed();
    assert_same(host, &host.bundle("python"), &second);
    let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let (first, mut now) = (
        read(&host.bundle("python").with_extension("json")),
        read(&facts),
    );
    let stages: Vec<&str> = now["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| stage["name"].as_str().unwrap())
        .collect();
    assert_eq!(stages, ["build", "sign"]);
    now["stages"] = first["stages"].clone();
    assert_eq!(now, first);
    fs::remove_dir_all(&folder).unwrap();
}

/// Fails with what differs.
#[track_caller]
fn assert_same(host: &Host, one: &Path, two: &Path) {
    if fs::read(one).unwrap() != fs::read(two).unwrap() {
        let (one_is, two_is) = (one.display(), two.display());
        let told = run(host.tools.smolbuild().arg("diff").arg(one).arg(two));
        panic!(
            "{one_is} and {two_is} differ: {}{}",
            told.stdout, told.stderr
        );
    }
}
