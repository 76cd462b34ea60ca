//! Container images for the machines of [`bundles`](super::bundles): some of a few files, and one in the way of the
//! official image of PostgreSQL, which comes from a registry. And the images that the inner half builds machines of.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::json;
use smol_bundle::{Bundle, ImageKind};
use smol_rootfs::{Inode, InodeId, Node, Tree, erofs};
use smol_testing::docker::{DockerRegistry, Setup};
use smol_testing::oci::{Layer, Packed, write_layout};
use smol_tests::host::{Host, smolfile};
use smol_tests::support::copy_folder;
use tar::{Builder, EntryType, Header};

/// What a machine is built from.
pub struct Source {
    /// The Smolfile, or its folder.
    pub smolfile: PathBuf,
    /// Where its image comes from, unless that is in a file.
    mirror: Option<Mirror>,
}

/// A mirror of Docker Hub on this host, which has one image and runs until this is dropped.
struct Mirror {
    _registry: DockerRegistry,
    /// The registries.conf that names it.
    config: PathBuf,
}

impl From<PathBuf> for Source {
    fn from(smolfile: PathBuf) -> Self {
        let mirror = None;
        Self { smolfile, mirror }
    }
}

impl Source {
    /// `smolbuild SMOLFILE`, as [`Host::build`].
    pub fn build(&self, host: &Host, bundle: &Path) -> Command {
        let mut command = host.build(&self.smolfile, bundle);
        if let Some(mirror) = &self.mirror {
            command.env("CONTAINERS_REGISTRIES_CONF", &mirror.config);
        }
        command
    }
}

// ---- In the way of official images -------------------------------------------------------------

/// The recipe of PostgreSQL's image, which is in a registry that stands for Docker Hub. The image is also in
/// [`postgres_folder`], as `oci:layout:15`.
///
/// # Panics
/// If docker-registry or skopeo is missing.
pub fn postgres(host: &Host) -> Source {
    let folder = host.folder(POSTGRES);
    let system = system(host, "postgresql");
    postgres_image(&system, &folder.join("layout"));
    client(&system, &host.machines.join("client"));
    let registry = DockerRegistry::start(Setup::default());
    let registry = registry.expect("docker-registry is installed");
    let layout = format!("oci:{}:15", folder.join("layout").display());
    registry.push(&layout, "library/postgres:15");
    let text = format!(
        "[[registry]]\nprefix = \"docker.io/library\"\nlocation = \"docker.io/library\"\n\
         [[registry.mirror]]\nlocation = \"{}/library\"\n",
        registry.host()
    );
    let config = folder.join("registries.conf");
    fs::write(&config, text).unwrap();
    // Beside the recipe itself the lock would name an image that nobody else has.
    let smolfile = folder.join("recipe");
    copy_folder(&host.workspace.join("recipes/postgres-image"), &smolfile);
    let mirror = Some(Mirror {
        _registry: registry,
        config,
    });
    Source { smolfile, mirror }
}

const POSTGRES: &str = "postgres-image";

/// Where [`postgres`] has left its files.
#[track_caller]
pub fn postgres_folder(host: &Host) -> PathBuf {
    let folder = host.scratch.join(POSTGRES);
    assert!(folder.exists(), "its image was not made");
    folder
}

/// The root file system of a bundle that an earlier test has built. Its image is gone when the tree is.
fn system(host: &Host, name: &str) -> Tree {
    let image = host.scratch.join(name).with_extension("erofs");
    let bundle = Bundle::open(&host.bundle(name)).unwrap();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let file = File::create(&image).unwrap();
    bundle
        .extract(ImageKind::Rootfs, &file, threads, &mut |_, _| {})
        .unwrap();
    let tree = erofs::read(&image).unwrap();
    fs::remove_file(image).unwrap();
    tree
}

/// Writes an image with the layers, the configuration and the entrypoint that the official one has, but with
/// Debian's packages of this system, as `15` in the layout.
fn postgres_image(system: &Tree, layout: &Path) {
    // Compiling queries (LLVM) takes more space than all the rest.
    let left_out = |path: &str| {
        ["llvm", "libLLVM", "libz3"]
            .iter()
            .any(|part| path.contains(part))
            || path.starts_with("srv")
    };
    let is_server = |path: &str| {
        path.starts_with("usr/lib/postgresql") || path.starts_with("usr/share/postgresql")
    };
    let base = layer(system, &|path| {
        !left_out(path) && !is_server(path) && !is_for_people(path)
    });
    let server = layer(system, &|path| !left_out(path) && is_server(path));
    let gosu = fs::read("/usr/sbin/gosu").expect("gosu is installed");
    let gosu = Layer::default().file("usr/local/bin/gosu", 0o755, &gosu);
    // What it is told by its own configuration goes into the one that all databases begin with.
    let sample = "usr/share/postgresql/15/postgresql.conf.sample";
    let mut text = system
        .read(sample, 1 << 20)
        .unwrap()
        .expect("the package has it");
    text.extend(b"listen_addresses = '*'\n");
    let postgres = user(system, "postgres");
    let folders = Layer::default()
        .file(sample, 0o644, &text)
        .file("etc/.wh.postgresql", 0, b"")
        .folder("docker-entrypoint-initdb.d")
        .folder_of("var/lib/postgresql/data", 0o1777, postgres);
    let script = include_bytes!("../../guests/images/postgres-entrypoint.sh");
    let entrypoint = Layer::default().file("usr/local/bin/docker-entrypoint.sh", 0o755, script);
    let config = json!({
        "Entrypoint": ["docker-entrypoint.sh"], "Cmd": ["postgres"], "WorkingDir": "/",
        "Env": [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/15/bin",
            "LANG=C.UTF-8", "PG_MAJOR=15", "PGDATA=/var/lib/postgresql/data",
        ],
        "ExposedPorts": {"5432/tcp": {}}, "Volumes": {"/var/lib/postgresql/data": {}}, "StopSignal": "SIGINT",
    });
    let layers = vec![base, server, gosu, folders, entrypoint];
    write_layout(layout, "15", &config, layers, Packed::Gzip);
}

/// Documents, which official images leave out, too.
fn is_for_people(path: &str) -> bool {
    [
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/share/info",
    ]
    .iter()
    .any(|folder| path.starts_with(folder))
}

/// User and group of this name.
fn user(system: &Tree, name: &str) -> (u32, u32) {
    let accounts = system.read("etc/passwd", 1 << 20).unwrap().unwrap();
    let accounts = String::from_utf8(accounts).unwrap();
    let line = accounts
        .lines()
        .find(|line| line.starts_with(&format!("{name}:")));
    let fields: Vec<&str> = line.expect("the package has made it").split(':').collect();
    (fields[2].parse().unwrap(), fields[3].parse().unwrap())
}

/// Puts the client of PostgreSQL into a folder, with the libraries and the loader that it needs, so that any
/// host can run it: `ld-linux-x86-64.so.2 --library-path FOLDER FOLDER/psql`.
fn client(system: &Tree, folder: &Path) {
    /// None that it needs is larger.
    const LARGEST: u64 = 8 << 20;
    let _ = fs::remove_dir_all(folder);
    fs::create_dir(folder).unwrap();
    let psql = "usr/lib/postgresql/15/bin/psql";
    for (path, _, inode) in system.walk() {
        let path = String::from_utf8(path).unwrap();
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let is_library = parent == "usr/lib/x86_64-linux-gnu" && name.contains(".so");
        let to = folder.join(name);
        match &inode.node {
            Node::File(data) if path == psql || (is_library && data.len() < LARGEST) => {
                let mut file = File::create(&to).unwrap();
                data.copy_to(&mut file).unwrap();
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
                fs::set_permissions(&to, mode).unwrap();
            }
            Node::Symlink(target) if is_library && !target.contains(&b'/') => {
                let target = str::from_utf8(target).unwrap();
                std::os::unix::fs::symlink(target, &to).unwrap();
            }
            _ => {}
        }
    }
}

/// A layer of the names of a tree that are `wanted`.
fn layer(tree: &Tree, wanted: &dyn Fn(&str) -> bool) -> Layer {
    let mut tar = Builder::new(Vec::new());
    let mut names: HashMap<InodeId, String> = HashMap::new();
    for (path, id, inode) in tree.walk().skip(1) {
        let path = String::from_utf8(path).expect("packages have plain names");
        if !wanted(&path) {
            continue;
        }
        let first = names.get(&id).map(String::as_str);
        member(&mut tar, &path, inode, first);
        names.entry(id).or_insert(path);
    }
    Layer::from_archive(tar.into_inner().unwrap())
}

/// Adds a file of a tree to an archive, which may have it under another name already.
fn member(tar: &mut Builder<Vec<u8>>, path: &str, inode: &Inode, first: Option<&str>) {
    let meta = &inode.meta;
    assert!(meta.xattrs.is_empty(), "{path} has attributes");
    let mut header = Header::new_gnu();
    header.set_mode(meta.mode);
    header.set_uid(meta.uid.into());
    header.set_gid(meta.gid.into());
    header.set_mtime(1000);
    header.set_size(0);
    let kind = match &inode.node {
        Node::Directory(_) => EntryType::Directory,
        Node::File(_) if first.is_some() => EntryType::Link,
        Node::File(_) => EntryType::Regular,
        Node::Symlink(_) => EntryType::Symlink,
        other => panic!("{path} is {other:?}"),
    };
    header.set_entry_type(kind);
    let added = match (&inode.node, first) {
        (Node::File(_), Some(first)) => tar.append_link(&mut header, path, first),
        (Node::Symlink(target), _) => {
            tar.append_link(&mut header, path, str::from_utf8(target).unwrap())
        }
        (Node::File(data), None) => {
            header.set_size(data.len());
            tar.append_data(&mut header, path, data.open().unwrap())
        }
        _ => tar.append_data(&mut header, format!("{path}/"), io::empty()),
    };
    added.unwrap();
}

/// Puts the machines that the inner half builds of images beside the others.
pub fn inner(host: &Host) {
    let layouts = host.machines.join("layouts");
    let _ = fs::remove_dir_all(&layouts);
    program_image(
        &host.machines.join("root/service"),
        &layouts.join("program"),
    );
    // Without it, the test says that there is no image.
    if host.bundles.join("web.smolmachine").exists() {
        nginx_image(&system(host, "web"), &layouts.join("nginx"));
    }
    for name in ["program", "nginx"] {
        // Two lines, and the kernel that the tests have made.
        let text = format!(
            "name = {name:?}\nrootfs.image = \"oci:layouts/{name}:1\"\nkernel.path = \"vmlinux\"\n"
        );
        fs::write(smolfile(host, name), text).unwrap();
    }
}

/// Writes an image of one static program and nothing else: no shell, no accounts, a user by number.
fn program_image(program: &Path, layout: &Path) {
    let program = fs::read(program).expect("make has built it");
    let layer = Layer::default().file("service", 0o555, &program);
    let config = json!({
        "Entrypoint": ["/service"], "User": "65532:65532", "WorkingDir": "/home/nonroot",
        "ExposedPorts": {"7777/tcp": {}},
    });
    write_layout(layout, "1", &config, vec![layer], Packed::Gzip);
}

/// Writes an image with the layers, the configuration and the entrypoint that the official one of nginx has, but with
/// Debian's packages of this system.
fn nginx_image(system: &Tree, layout: &Path) {
    const PROGRAMS: [&str; 7] = ["dash", "sh", "find", "sort", "xargs", "nginx", "cat"];
    const LIBRARIES: [&str; 10] = [
        "ld-linux",
        "libc.so",
        "libm.so",
        "libcrypt",
        "libpcre2-8",
        "libssl",
        "libz.so",
        "libselinux",
        "libacl",
        "libattr",
    ];
    let is_base = |path: &str| {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        match parent {
            "" => matches!(
                name,
                "bin" | "sbin" | "lib" | "lib64" | "etc" | "usr" | "var" | "tmp"
            ),
            "usr/bin" | "usr/sbin" => PROGRAMS.contains(&name) && name != "nginx",
            "usr/lib/x86_64-linux-gnu" => LIBRARIES.iter().any(|library| name.starts_with(library)),
            "usr/lib64" => true,
            "etc" => matches!(name, "passwd" | "group"),
            _ => false,
        }
    };
    let is_server = |path: &str| {
        path == "usr/sbin/nginx"
            || path.starts_with("etc/nginx")
            || path.starts_with("var/lib/nginx")
    };
    let configuration = "user www-data;\nworker_processes 2;\nerror_log /var/log/nginx/error.log notice;\n\
        pid /run/nginx.pid;\nevents { worker_connections 64; }\n\
        http {\n  access_log /var/log/nginx/access.log;\n  include /etc/nginx/conf.d/*.conf;\n}\n";
    let site =
        "server { listen 80; location / { root /usr/share/nginx/html; index index.html; } }\n";
    let script = "#!/bin/sh\necho \"$0: for the tests\" > /usr/share/nginx/html/script\n";
    let own = Layer::default()
        .file("etc/nginx/nginx.conf", 0o644, configuration.as_bytes())
        .file("etc/nginx/.wh.modules-enabled", 0, b"")
        .file("etc/nginx/conf.d/default.conf", 0o644, site.as_bytes())
        .file("usr/share/nginx/html/index.html", 0o644, b"welcome to nginx\n")
        // Where people look for them, so that the engine's log has them.
        .symlink("var/log/nginx/access.log", "/dev/stdout")
        .symlink("var/log/nginx/error.log", "/dev/stderr")
        .file("docker-entrypoint.d/10-test.sh", 0o755, script.as_bytes());
    let script = include_bytes!("../../guests/images/nginx-entrypoint.sh");
    let entrypoint = Layer::default().file("docker-entrypoint.sh", 0o755, script);
    let config = json!({
        "Entrypoint": ["/docker-entrypoint.sh"], "Cmd": ["nginx", "-g", "daemon off;"], "StopSignal": "SIGQUIT",
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "NGINX_VERSION=1.22"],
        "ExposedPorts": {"80/tcp": {}},
    });
    let layers = vec![
        layer(system, &is_base),
        layer(system, &is_server),
        own,
        entrypoint,
    ];
    write_layout(layout, "1", &config, layers, Packed::Gzip);
}

// ---- Of a few files ----------------------------------------------------------------------------

/// The folder of a machine whose Smolfile has nothing but its name and this image: a web server of a
/// user of its own, with sixty layers.
pub fn image(host: &Host) -> PathBuf {
    let folder = host.folder("image");
    let text = "name = \"image\"\nrootfs.image = \"oci:layout:v1\"\n";
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
                  echo $GREETING by $(/bin/busybox whoami) in $(/bin/busybox readlink /proc/$PPID/cwd)\n\
                  cd /srv/layers; echo *\n";
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
    let layers = std::iter::once(system).chain(many()).chain([pages]);
    let layout = folder.join("layout");
    write_layout(&layout, "v1", &config, layers.collect(), Packed::Gzip);
    folder
}

/// Fifty-eight layers, numbered from 10, each with a file of its number in one folder. An odd one removes the file
/// of the layer below it, and each twentieth all of the layers below it.
fn many() -> impl Iterator<Item = Layer> {
    (10..68).map(|number: u32| {
        let layer = Layer::default().file(&format!("srv/layers/{number}"), 0o644, b"");
        let layer = match number % 2 {
            1 => layer.file(&format!("srv/layers/.wh.{}", number - 1), 0o644, b""),
            _ => layer,
        };
        match number % 20 {
            9 => layer.file("srv/layers/.wh..wh..opq", 0o644, b""),
            _ => layer,
        }
    })
}

/// The folder of a machine of an image whose entrypoint is an init, that of busybox, which starts a web
/// server.
pub fn init(host: &Host) -> PathBuf {
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
