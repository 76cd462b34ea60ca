//! Building the bundles, with all that a user sees of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;
use smol_bundle::{Bundle, ImageKind};

use crate::host::{Host, keeps_bundles, smolfile, text};
use crate::suite::Suite;
use crate::support::run;

/// All of recipes/.
const RECIPES: [&str; 6] = ["hello", "redis", "python", "postgresql", "web", "ssh"];

pub fn tests(suite: &mut Suite, host: &Host) {
    // What later tests stand on is done whatever the words are.
    kernel(host);
    let recipes = RECIPES.map(|name| (name, host.workspace.join("recipes").join(name)));
    let ours = [
        ("service", smolfile(host, "service")),
        ("child", child(host)),
    ];
    for (name, path) in recipes.into_iter().chain(ours) {
        let there = keeps_bundles()
            && host
                .bundles
                .join(name)
                .with_extension("smolmachine")
                .exists();
        if there {
            continue;
        }
        suite.always(
            &format!("{name} is built, signed, verified and inspected"),
            || build(host, name, &path),
        );
    }
    suite.test(
        "the child of hello names its parent and shares its files",
        || parent(host),
    );
}

/// The kernel that our own Smolfiles name by path.
fn kernel(host: &Host) {
    let vmlinux = host.machines.join("vmlinux");
    if !vmlinux.exists() {
        run(host
            .tools
            .smolbuild()
            .args(["kernel", "smol-6.1", "-o", text(&vmlinux)]))
        .succeed();
    }
}

/// A machine on hello, with one file more; hello itself is built before it.
const CHILD: &str = r#"
name = "child"
memory = "128MiB"
ports = [8080]
[base]
bundle = "hello.smolmachine"
[[copy]]
src = "added.txt"
dest = "/srv/www/"
[service]
cmd = ["busybox", "httpd", "-f", "-p", "8080", "-h", "/srv/www"]
[ready]
http = { port = 8080, path = "/added.txt", body = "^of the child" }
"#;

/// Its folder.
fn child(host: &Host) -> PathBuf {
    let folder = host.folder("child");
    fs::write(folder.join("Smolfile"), CHILD).unwrap();
    fs::write(folder.join("added.txt"), "of the child\n").unwrap();
    let base = host.bundles.join("hello.smolmachine");
    symlink(base, folder.join("hello.smolmachine")).unwrap();
    folder
}

fn parent(host: &Host) {
    let [base, child] = ["hello", "child"].map(|name| Bundle::open(&host.bundle(name)).unwrap());
    assert_eq!(child.parent(), Some(base.digest()));
    let inspected = host.inspect(child.path());
    assert_eq!(inspected["parent"], base.digest().to_string());
    let shared = child.index().shared_with(base.index());
    let rootfs = shared.iter().find(|s| s.kind == ImageKind::Rootfs).unwrap();
    assert!(rootfs.shared_bytes * 100 > rootfs.bytes * 90, "{rootfs:?}");
}

fn build(host: &Host, name: &str, smolfile: &Path) {
    let bundle = host.bundles.join(name).with_extension("smolmachine");
    let said = run(&mut host.build(smolfile, &bundle)).succeed();
    let facts = fs::read(bundle.with_extension("json")).unwrap();
    let facts: Value = serde_json::from_slice(&facts).unwrap();
    let digest = facts["digest"].as_str().unwrap();
    assert!(said.contains(digest) && said.contains("smolrun"), "{said}");

    let verified =
        run(host
            .tools
            .smolbuild()
            .args(["verify", text(&bundle), "--key", text(&host.tools.key)]))
        .succeed();
    assert!(verified.contains(digest), "{verified}");
    let inspected = host.inspect(&bundle);
    assert_eq!(inspected["digest"].as_str(), Some(digest));
    assert_eq!(
        inspected["fileSize"].as_u64(),
        Some(fs::metadata(&bundle).unwrap().len())
    );
    assert_eq!(inspected["config"]["name"].as_str(), Some(name));
    assert_eq!(inspected["config"]["reproducible"]["claimed"], true);
    let memory = inspected["images"]
        .as_array()
        .unwrap()
        .iter()
        .find(|image| image["kind"] == "memory");
    assert!(
        memory.expect("a snapshot")["stored"].as_u64() > Some(100),
        "{inspected}"
    );
}
