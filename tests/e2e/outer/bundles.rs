//! Building the bundles, with all that a user sees of it.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use smol_bundle::{Bundle, ImageKind};

use smol_testing::oci::{Layer, Packed, write_layout};
use smol_tests::host::{Host, smolfile, text};
use smol_tests::suite::Suite;
use smol_tests::support::run;

/// The machines whose bundles other tests stand on: all of recipes/, and our own.
const MACHINES: [&str; 11] = [
    "hello",
    "redis",
    "python",
    "postgresql",
    "web",
    "ssh",
    "systemd",
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
        run(&mut host.build(&source(host, name), &bundle)).succeed();
    }
}

/// The Smolfile, or its folder.
fn source(host: &Host, name: &str) -> PathBuf {
    match name {
        "service" => smolfile(host, name),
        "child" => child(host),
        "image" => image(host, "oci:layout:v1"),
        "init" => init(host),
        recipe => host.workspace.join("recipes").join(recipe),
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
    fs::copy(base, folder.join("hello.smolmachine")).unwrap();
    folder
}

/// The folder of a machine whose Smolfile has nothing but its name and this image: a web server of a
/// user of its own, whose pages are in two layers. It is in the folder as `oci:layout:v1`.
pub fn image(host: &Host, reference: &str) -> PathBuf {
    let folder = host.folder("image");
    let text = format!("name = \"image\"\nrootfs.image = {reference:?}\n");
    fs::write(folder.join("Smolfile"), text).unwrap();
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
    let programs = ["sh", "httpd", "cat"].into_iter();
    let system = Layer::default()
        .file("bin/busybox", 0o755, &busybox)
        .file(
            "etc/passwd",
            0o644,
            b"root:x:0:0::/:/bin/sh\nweb:x:1000:1000::/srv:/bin/sh\n",
        )
        .file("etc/group", 0o644, b"root:x:0:\nweb:x:1000:\n")
        .file("srv/old", 0o644, b"to be removed\n")
        .file("srv/index.html", 0o644, b"not this\n");
    let system = programs.fold(system, |layer, name| {
        layer.symlink(&format!("bin/{name}"), "busybox")
    });
    let serve = "#!/bin/sh\ntrap 'echo stopped by SIGINT; exit 0' INT\nhttpd -f \"$@\" &\nwait\n";
    // What it finds in its environment, who it is and where shows in its pages.
    let script = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\n\
                  echo $GREETING by $(/bin/busybox whoami) in $(/bin/busybox readlink /proc/$PPID/cwd)\n";
    let pages = Layer::default()
        .file("srv/.wh.old", 0o644, b"")
        .file("srv/index.html", 0o644, b"hello from an image\n")
        .file("bin/serve", 0o755, serve.as_bytes())
        .file("srv/cgi-bin/who", 0o755, script.as_bytes());
    let config = json!({
        "Entrypoint": ["serve"], "Cmd": ["-p", "8080"], "User": "web", "WorkingDir": "/srv",
        "Env": ["PATH=/bin", "GREETING=hello"], "ExposedPorts": {"8080/tcp": {}}, "StopSignal": "SIGINT",
        "Volumes": {"/data": {}},
    });
    write_layout(
        &folder.join("layout"),
        "v1",
        &config,
        vec![system, pages],
        Packed::Gzip,
    );
    folder
}

/// The folder of a machine of an image whose entrypoint is an init, that of busybox, which starts a web
/// server.
fn init(host: &Host) -> PathBuf {
    let folder = host.folder("init");
    let text = "name = \"init\"\nrootfs.image = \"oci:layout:v1\"\n";
    fs::write(folder.join("Smolfile"), text).unwrap();
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
    let inittab = "::respawn:/bin/httpd -f -p 8080 -h /srv\n::shutdown:/bin/down\n";
    let who = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\n\
               echo 1 is $(/bin/busybox readlink /proc/1/exe) in $(cat /run/host/container-manager)\n";
    let layer = Layer::default()
        .file("bin/busybox", 0o755, &busybox)
        .file("etc/inittab", 0o644, inittab.as_bytes())
        .file("bin/down", 0o755, b"#!/bin/sh\necho going down\n")
        .file("srv/cgi-bin/who", 0o755, who.as_bytes())
        .symlink("sbin/init", "../bin/busybox");
    let layer = ["sh", "httpd", "cat"].iter().fold(layer, |layer, name| {
        layer.symlink(&format!("bin/{name}"), "busybox")
    });
    let config = json!({"Entrypoint": ["/sbin/init"], "ExposedPorts": {"8080/tcp": {}}});
    let packed = Packed::Gzip;
    write_layout(&folder.join("layout"), "v1", &config, vec![layer], packed);
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
    let mut command = host.build(&source(host, name), &bundle);
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
