//! The recipes whose packages npm and pip install, from a registry of the test's own: real package managers
//! in build steps, and no server of others.
//!
//! A recipe is built as it is, but for what it installs, where from, and the application that uses it.

use std::fs;
use std::io::{Cursor, Write as _};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use smol_testing::oci::Layer;
use smol_testing::registry::{Answer, Registry, Request};
use smol_tests::host::Host;
use smol_tests::suite::Suite;
use smol_tests::support::{copy_folder, page, run};

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a Host) {
    suite.group("packages");
    suite.test(
        "pip installs a wheel and what it needs into recipes/flask, twice the same, and it is restored",
        || pip(host),
    );
    suite.test(
        "npm installs a package and what it needs into recipes/node, and it is restored",
        || npm(host),
    );
}

/// Where a guest finds the host's loopback interface (docs/network.md).
const GATEWAY: &str = "192.0.0.1";

/// A file that a registry serves.
#[derive(Clone)]
struct Served {
    path: &'static str,
    bytes: Vec<u8>,
}

impl Served {
    fn sha256(&self) -> String {
        let digest = Sha256::digest(&self.bytes);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// As npm has it (Subresource Integrity).
    fn integrity(&self) -> String {
        format!("sha512-{}", STANDARD.encode(Sha512::digest(&self.bytes)))
    }
}

/// A recipe whose registry is ours.
struct Machine<'a> {
    host: &'a Host,
    registry: Registry,
    folder: PathBuf,
}

impl<'a> Machine<'a> {
    /// Copies the recipe, and puts these variables before those of its `[[run]]`, which begin with `first`.
    /// In their values REGISTRY is where the guest finds the registry.
    fn new(
        host: &'a Host,
        recipe: &str,
        first: &str,
        variables: &[(&str, &str)],
        behaviour: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let folder = host.folder("packages").join(recipe);
        let registry = Registry::start(behaviour);
        let from = host.workspace.join("recipes").join(recipe);
        copy_folder(&from, &folder);
        // Of somebody who has tried the recipe.
        let _ = fs::remove_file(folder.join("Smolfile.lock"));
        let at = registry.host();
        let inside = at.replace("127.0.0.1", GATEWAY);
        let variables = variables.iter().map(|(name, value)| {
            let value = value.replace("REGISTRY", &inside);
            format!("{name} = {value:?}, ")
        });
        let variables: String = variables.collect();
        let edits = [
            ("network = true".to_owned(), format!("network = [{at:?}]")),
            (
                format!("env = {{ {first}"),
                format!("env = {{ {variables}{first}"),
            ),
        ];
        let file = folder.join("Smolfile");
        let mut smolfile = fs::read_to_string(&file).unwrap();
        for (from, to) in edits {
            assert_eq!(smolfile.matches(&from).count(), 1, "{from}: {smolfile}");
            smolfile = smolfile.replace(&from, &to);
        }
        fs::write(file, smolfile).unwrap();
        Self {
            host,
            registry,
            folder,
        }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.join(name), text).unwrap();
    }

    /// Builds it; returns its bundle, and what was said.
    fn build(&self, bundle: &str, options: &[&str]) -> (PathBuf, String) {
        let bundle = self.folder.join(bundle).with_extension("smolmachine");
        let mut command = self.host.build(&self.folder, &bundle);
        let outcome = run(command.args(options));
        let told = outcome.stderr.clone();
        outcome.succeed();
        (bundle, told)
    }

    /// How often this was asked for.
    fn asked(&self, path: &str) -> usize {
        let requests = self.registry.requests();
        requests.iter().filter(|ask| ask.path() == path).count()
    }
}

// ---- pip ---------------------------------------------------------------------------------------

const SALUTATION_WHEEL: &str = "/files/salutation-1.0-py3-none-any.whl";
const GREETER_WHEEL: &str = "/files/greeter-1.2-py3-none-any.whl";

/// Says what was there before the snapshot, and what the package of the registry says.
const APP: &str = r#"
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import greeter

notes = []


class Handler(BaseHTTPRequestHandler):
    def answer(self, status, text):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        ok = self.path == "/healthz"
        self.answer(200, "ok" if ok else f"{len(notes)} notes: {notes}, {greeter.greet('pip')}")

    def do_POST(self):
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        notes.extend(form["text"])
        self.answer(201, "taken")


ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"#;

/// A wheel of one module ("Binary distribution format", packaging.python.org).
fn wheel(path: &'static str, module: &str, more: &str, commands: &str) -> Served {
    let name = path.rsplit('/').next().unwrap();
    let [name, version, ..] = name.split('-').collect::<Vec<_>>()[..] else {
        panic!("{path} is no name of a wheel");
    };
    let info = format!("{name}-{version}.dist-info");
    let metadata = format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}");
    let kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    let mut files = vec![
        (format!("{name}.py"), module.to_owned()),
        (format!("{info}/METADATA"), metadata),
        (format!("{info}/WHEEL"), kind.to_owned()),
        (format!("{info}/entry_points.txt"), commands.to_owned()),
    ];
    let listed: String = files
        .iter()
        .map(|(name, _)| format!("{name},,\n"))
        .collect();
    files.push((
        format!("{info}/RECORD"),
        format!("{listed}{info}/RECORD,,\n"),
    ));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, text) in files {
        archive.start_file(name, options).unwrap();
        archive.write_all(text.as_bytes()).unwrap();
    }
    let bytes = archive.finish().unwrap().into_inner();
    Served { path, bytes }
}

/// The page of a project ("Simple repository API", packaging.python.org).
fn simple_index(files: &[Served], request: &Request) -> Answer {
    let path = request.path();
    if let Some(file) = files.iter().find(|file| file.path == path) {
        return Answer::new(200, file.bytes.clone());
    }
    let project = path.trim_matches('/').strip_prefix("simple/");
    let of_project = |file: &&Served| {
        project.is_some_and(|name| file.path.starts_with(&format!("/files/{name}-")))
    };
    let Some(file) = files.iter().find(of_project) else {
        return Answer::new(404, "");
    };
    let name = file.path.rsplit('/').next().unwrap();
    let link = format!(
        "<a href=\"{}#sha256={}\">{name}</a>",
        file.path,
        file.sha256()
    );
    Answer::new(
        200,
        format!("<!DOCTYPE html><html><body>{link}</body></html>"),
    )
    .header("Content-Type", "text/html")
}

fn pip(host: &Host) {
    let salutation = wheel(SALUTATION_WHEEL, "WORD = 'hello'\n", "", "");
    let module =
        "import salutation\n\n\ndef greet(name):\n    return f'{salutation.WORD} {name}'\n";
    let needs = "Requires-Dist: salutation>=1\n";
    let commands = "[console_scripts]\ngreet = greeter:greet\n";
    let greeter = wheel(GREETER_WHEEL, module, needs, commands);
    let files = [salutation, greeter];
    let pinned = [("salutation==1.0", &files[0]), ("greeter==1.2", &files[1])];
    let pinned = pinned.map(|(what, file)| format!("{what} --hash=sha256:{}\n", file.sha256()));

    let variables = [
        ("PIP_INDEX_URL", "http://REGISTRY/simple/"),
        ("PIP_TRUSTED_HOST", GATEWAY),
    ];
    let machine = Machine::new(host, "flask", "PIP_", &variables, move |request, _| {
        simple_index(&files, request)
    });
    machine.write("requirements.txt", &pinned.concat());
    machine.write("app.py", APP);
    let (first, _) = machine.build("first", &[]);
    let wheels = || [SALUTATION_WHEEL, GREETER_WHEEL].map(|wheel| machine.asked(wheel));
    assert_eq!(wheels(), [1, 1]);

    // All the files that pip leaves are the same each time, and the machine is.
    let (again, told) = machine.build("again", &["--locked", "--rerun"]);
    assert!(told.contains("it has made the same files again"), "{told}");
    assert_eq!(wheels(), [2, 2]);
    assert!(fs::read(&first).unwrap() == fs::read(again).unwrap());

    let restored = host.tools.start(&first, "flask", &[8000]);
    assert_eq!(
        page(restored.port(8000), "/"),
        "1 notes: ['written before the snapshot'], hello pip"
    );
    drop(restored);
    fs::remove_dir_all(&machine.folder).unwrap();
}

// ---- npm ---------------------------------------------------------------------------------------

const SALUTATION_TARBALL: &str = "/salutation/-/salutation-1.0.0.tgz";
const GREETER_TARBALL: &str = "/greeter/-/greeter-1.2.0.tgz";

/// As the recipe's, by what is asked of it, with a greeting of the package of the registry.
const SERVER: &str = r#"
import http from "node:http";
import greeter from "greeter";

const counts = {};

function answer({ method, url }, body) {
  if (url === "/healthz") return "ok";
  if (url === "/greeting") return greeter.greet("npm");
  if (url.startsWith("/words/")) return JSON.stringify({ count: counts[url.slice(7)] });
  for (const word of body.split(" ").filter(Boolean)) counts[word] = (counts[word] ?? 0) + 1;
  return JSON.stringify(counts);
}

http.createServer((request, response) => {
  let body = "";
  request.on("data", (piece) => (body += piece));
  request.on("end", () => response.end(answer(request, body)));
}).listen(3000, "127.0.0.1");
"#;

/// A package of two files, as `npm pack` makes it.
fn tarball(path: &'static str, manifest: &Value, module: &str, command: &str) -> Served {
    let archive = Layer::default()
        .file(
            "package/package.json",
            0o644,
            manifest.to_string().as_bytes(),
        )
        .file("package/index.js", 0o644, module.as_bytes())
        .file("package/command.js", 0o644, command.as_bytes())
        .finish();
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(&archive).unwrap();
    let bytes = packed.finish().unwrap();
    Served { path, bytes }
}

/// The packages of the registry: what they say of themselves, and their archives.
fn packages() -> [(Value, Served); 2] {
    let salutation = json!({"name": "salutation", "version": "1.0.0"});
    let greeter = json!({
        "name": "greeter", "version": "1.2.0", "bin": {"greet": "command.js"},
        "dependencies": {"salutation": "^1.0.0"},
    });
    let module =
        "const word = require('salutation');\nexports.greet = (name) => `${word} ${name}`;\n";
    let command = "#!/usr/bin/env node\nconsole.log(require('greeter').greet(process.argv[2]));\n";
    let salutation_is = tarball(
        SALUTATION_TARBALL,
        &salutation,
        "module.exports = 'hello';\n",
        "",
    );
    let greeter_is = tarball(GREETER_TARBALL, &greeter, module, command);
    [(salutation, salutation_is), (greeter, greeter_is)]
}

/// The document of a package, or its archive ("Package metadata", github.com/npm/registry).
fn npm_registry(packages: &[(Value, Served)], request: &Request) -> Answer {
    let path = request.path();
    for (manifest, file) in packages {
        if path == file.path {
            return Answer::new(200, file.bytes.clone());
        }
        let (Some(name), Some(version)) = (manifest["name"].as_str(), manifest["version"].as_str())
        else {
            continue;
        };
        if path.trim_matches('/') == name {
            let at = request.header("host").unwrap_or_default();
            let tarball = format!("http://{at}{}", file.path);
            let mut version_is = manifest.clone();
            version_is["dist"] = json!({"tarball": tarball, "integrity": file.integrity()});
            let document = json!({
                "name": name, "dist-tags": {"latest": version}, "versions": {version: version_is},
            });
            return Answer::new(200, document.to_string())
                .header("Content-Type", "application/json");
        }
    }
    Answer::new(404, "{}")
}

/// A package-lock.json of version 3, without addresses. What is for development alone nobody serves.
fn package_lock(manifest: &Value, packages: &[(Value, Served)]) -> String {
    let mut locked = json!({"": manifest});
    for (package, file) in packages {
        let mut entry = package.clone();
        let name = entry["name"].take();
        entry.as_object_mut().unwrap().remove("name");
        entry["integrity"] = file.integrity().into();
        locked[format!("node_modules/{}", name.as_str().unwrap())] = entry;
    }
    let unwanted = Sha512::digest(b"unwanted");
    locked["node_modules/unwanted"] = json!({
        "version": "1.0.0", "dev": true, "integrity": format!("sha512-{}", STANDARD.encode(unwanted)),
    });
    let lock = json!({
        "name": manifest["name"], "version": manifest["version"], "lockfileVersion": 3,
        "requires": true, "packages": locked,
    });
    lock.to_string()
}

fn npm(host: &Host) {
    let packages = packages();
    let manifest = json!({
        "name": "words", "version": "1.0.0", "type": "module",
        "dependencies": {"greeter": "^1.2.0"}, "devDependencies": {"unwanted": "^1.0.0"},
    });
    let lock = package_lock(&manifest, &packages);
    let variables = [("npm_config_registry", "http://REGISTRY/")];
    let machine = Machine::new(host, "node", "npm_", &variables, move |request, _| {
        npm_registry(&packages, request)
    });
    machine.write("package.json", &manifest.to_string());
    machine.write("package-lock.json", &lock);
    machine.write("server.js", SERVER);
    let (bundle, _) = machine.build("node", &[]);
    let tarballs = [SALUTATION_TARBALL, GREETER_TARBALL].map(|path| machine.asked(path));
    assert_eq!(tarballs, [1, 1]);
    assert_eq!(machine.asked("/unwanted"), 0);

    let restored = host.tools.start(&bundle, "node", &[3000]);
    let port = restored.port(3000);
    let counted: Value = serde_json::from_str(&page(port, "/words")).unwrap();
    assert_eq!(counted, json!({"to": 2, "be": 2, "or": 1, "not": 1}));
    assert_eq!(page(port, "/greeting"), "hello npm");
    drop(restored);
    fs::remove_dir_all(&machine.folder).unwrap();
}
