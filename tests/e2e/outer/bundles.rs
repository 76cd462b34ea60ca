//! Building the bundles, with all that a user sees of it.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use smol_bundle::{Bundle, ImageKind};

use super::images::{self, Source};
use smol_tests::host::{Host, smolfile, text};
use smol_tests::suite::Suite;
use smol_tests::support::run;

/// The machines whose bundles other tests stand on: all of recipes/, and our own.
const MACHINES: [&str; 12] = [
    "hello",
    "redis",
    "python",
    "postgresql",
    "web",
    "ssh",
    "systemd",
    "postgres-image",
    "service",
    "child",
    "image",
    "init",
];

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a Host) {
    suite.group("bundles");
    for name in MACHINES {
        suite.test(
            &format!("{name} is built, signed, verified and inspected"),
            move || build(host, name),
        );
    }
    suite.test(
        "the child of hello names its parent and shares its files",
        || parent(host),
    );
}

/// Has the bundles there, those from the cache that need not be built again.
pub fn provide(host: &Host) {
    for name in MACHINES {
        let bundle = host.bundles.join(name).with_extension("smolmachine");
        run(&mut source(host, name).build(host, &bundle)).succeed();
    }
}

/// What the machine is built from.
fn source(host: &Host, name: &str) -> Source {
    let smolfile = match name {
        "postgres-image" => return images::postgres(host),
        "service" => smolfile(host, name),
        "child" => child(host),
        "image" => images::image(host),
        "init" => images::init(host),
        recipe => host.workspace.join("recipes").join(recipe),
    };
    smolfile.into()
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
    fs::copy(base, folder.join("hello.smolmachine")).unwrap();
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

fn build(host: &Host, name: &str) {
    let bundle = host.bundles.join(name).with_extension("smolmachine");
    // What is tested is a build, not the cache of an earlier one.
    let source = source(host, name);
    let mut command = source.build(host, &bundle);
    let page = bundle.with_extension("html");
    let said = run(command.arg("--rebuild").arg("--timings").arg(&page)).succeed();
    let facts = fs::read(bundle.with_extension("json")).unwrap();
    let facts: Value = serde_json::from_slice(&facts).unwrap();
    let digest = facts["digest"].as_str().unwrap();
    assert!(said.contains(digest) && said.contains("smolrun"), "{said}");
    let page = fs::read_to_string(page).unwrap();
    for shown in [digest, "<td>boot<", "<td>rootfs<", "<td>memory<"] {
        assert!(page.contains(shown), "{shown}: {page}");
    }

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
