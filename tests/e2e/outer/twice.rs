//! Recipes built a second time, on another host: the same bytes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use smol_host::emulated::FAULTS;

use super::bundles::image;
use smol_tests::host::Host;
use smol_tests::suite::{Suite, Verdict};
use smol_tests::support::{names, run};

/// The emulated CPU of the second builds; that of the first ones is QEMU's `max`.
const OTHER_CPU: &str = "EPYC-Rome";
/// The smallest recipe, the one whose machine does the most at once, and the one that runs the most programs.
const RECIPES: [&str; 3] = ["hello", "postgresql", "systemd"];

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a Host) {
    suite.group("twice");
    for recipe in RECIPES {
        suite.test(
            &format!("{recipe} built again elsewhere gives the same bundle, byte for byte"),
            || again(host, recipe),
        );
    }
    suite.test(
        "an image out of another kind of archive gives the same bundle, byte for byte",
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

/// Out of an archive that skopeo has made, whose layers are plain.
fn other_form(host: &Host) -> Verdict {
    let folder = image(host, "docker-archive:image.tar:image:v1");
    let mut skopeo = Command::new("skopeo");
    skopeo
        .current_dir(&folder)
        .args(["copy", "--quiet", "oci:layout:v1"]);
    if skopeo
        .arg("docker-archive:image.tar:image:v1")
        .status()
        .is_err()
    {
        return Verdict::Skipped("skopeo is not installed".to_owned());
    }
    fs::remove_dir_all(folder.join("layout")).unwrap();
    build_elsewhere(host, &folder, &folder, &host.bundle("image"));
    fs::remove_dir_all(&folder).unwrap();
    Verdict::Passed
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

/// Copies a folder to a place where there is none.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}
