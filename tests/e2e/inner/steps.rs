//! Build steps: what they change, when they run, what they reach, and builds that are killed among them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::process::Signal;
use sha2::{Digest as _, Sha256};

use crate::inner::{InnerHost, MACHINES};
use smol_tests::suite::Suite;
use smol_tests::support::{LIMIT, Outcome, Running, names, page, run};

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a InnerHost) {
    suite.group("steps");
    suite.test(
        "build steps change the files, run again where a copied file has changed, and give the same bytes",
        || changes(host),
    );
    suite.test(
        "what a step with a network has made is locked; without one it reaches nothing",
        || networked(host),
    );
    suite.test(
        "a build with three steps that is killed again and again completes",
        || killed(host),
    );
}

/// What the server's file holds.
const SERVED: &[u8] = b"from the server\n";

/// A server on the loopback interface that answers any request with a file, and counts them.
struct Server {
    port: u16,
    requests: Arc<AtomicUsize>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::<AtomicUsize>::default();
        let count = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    SERVED.len()
                );
                // The client may have gone: then it asks no more.
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(head.as_bytes());
                let _ = stream.write_all(SERVED);
            }
        });
        Self { port, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// A project with a shell as its root file system, and these steps.
struct Project<'a> {
    host: &'a InnerHost,
    folder: PathBuf,
}

impl<'a> Project<'a> {
    fn new(host: &'a InnerHost, name: &str, steps: &str) -> Self {
        let folder = Path::new("/tmp/steps").join(name);
        let _ = fs::remove_dir_all(&folder);
        let bin = folder.join("root/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy(Path::new(MACHINES).join("vmlinux"), folder.join("vmlinux")).unwrap();
        let busybox = Path::new(MACHINES).join("shell/bin/busybox");
        fs::copy(busybox, bin.join("busybox")).unwrap();
        for applet in [
            "sh",
            "httpd",
            "cat",
            "rm",
            "mkdir",
            "echo",
            "nc",
            "head",
            "sha256sum",
            "sleep",
            "date",
        ] {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        fs::create_dir(folder.join("root/srv")).unwrap();
        fs::write(folder.join("root/srv/old"), "old\n").unwrap();
        let smolfile = format!(
            "name = \"{name}\"\nmemory = \"128MiB\"\nports = [8080]\nkernel.path = \"vmlinux\"\n\
             rootfs.dir = \"root\"\n{steps}\n[service]\n\
             cmd = [\"/bin/httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/srv\"]\n[ready]\ntcp = 8080\n"
        );
        fs::write(folder.join("Smolfile"), smolfile).unwrap();
        Self { host, folder }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.join(name), text).unwrap();
    }

    fn edit(&self, from: &str, to: &str) {
        let path = self.folder.join("Smolfile");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(path, text.replace(from, to)).unwrap();
    }

    fn command(&self, bundle: &str, options: &[&str]) -> Command {
        let mut command = self.host.tools.smolbuild();
        command.arg(&self.folder).args(options);
        command.arg("-o").arg(self.folder.join(bundle));
        command
    }

    fn build(&self, bundle: &str, options: &[&str]) -> Outcome {
        run(&mut self.command(bundle, options))
    }

    /// Builds it, and returns which of its steps were taken from the cache.
    #[track_caller]
    fn cached(&self, bundle: &str, options: &[&str]) -> Vec<bool> {
        let outcome = self.build(bundle, options);
        let told = outcome.stderr.clone();
        outcome.succeed();
        (1..)
            .map_while(|number| {
                let ended = |line: &&str| {
                    let end = line.split_once(&format!("run {number}: "));
                    end.is_some_and(|(_, end)| end.ends_with("s)") && end.contains(" ("))
                };
                let line = told.lines().rfind(ended)?;
                Some(line.contains("cached"))
            })
            .collect()
    }

    fn bytes(&self, bundle: &str) -> Vec<u8> {
        fs::read(self.folder.join(bundle)).unwrap()
    }

    /// The page of this path, of the machine in a bundle.
    fn page(&self, bundle: &str, path: &str) -> String {
        let bundle = self.folder.join(bundle);
        let unsigned = &["--insecure-unsigned"];
        let machine = self
            .host
            .tools
            .start_with(&bundle, "steps", &[8080], unsigned);
        page(machine.port(8080), path)
    }

    /// Digests of what steps have made.
    fn layers(&self) -> Vec<String> {
        names(&self.host.tools.home.join("cache/layers"))
    }

    /// Forgets what steps have made.
    fn forget(&self) {
        for name in ["steps", "layers"] {
            let folder = self.host.tools.home.join("cache").join(name);
            fs::remove_dir_all(folder).unwrap();
        }
    }
}

fn changes(host: &InnerHost) {
    let server = Server::start();
    let digest = Sha256::digest(SERVED);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let steps = format!(
        r#"
[[run]]
cmd = "rm /srv/old; mkdir /srv/made; echo one > /srv/made/one; cat /etc/hosts > /srv/made/hosts; head -c 32 /dev/urandom | sha256sum > /srv/made/random"
[[copy]]
src = "page"
dest = "/srv/page"
[[fetch]]
url = "http://127.0.0.1:{}/a/file"
sha256 = "{digest}"
dest = "/srv/"
[[run]]
cmd = ["sh", "-c", "cat page file > two; echo $WORD >> two; date +%Y >> two"]
workdir = "/srv"
env = {{ WORD = "word" }}
"#,
        server.port
    );
    let project = Project::new(host, "changes", &steps);
    project.write("page", "page\n");
    let offline = project.build("first", &["--offline"]).fail(3);
    assert!(
        offline.contains(&digest) && offline.contains("/a/file"),
        "{offline}"
    );
    assert_eq!(project.cached("first", &[]), [false, false]);
    assert_eq!(server.requests(), 1);
    assert_eq!(
        project.page("first", "/two"),
        "page\nfrom the server\nword\n2026\n"
    );
    assert_eq!(project.page("first", "/made/one"), "one\n");
    // Not the name that the step's machine had for itself.
    assert!(project.page("first", "/made/hosts").contains("changes"));

    // Built once more with the steps of the cache, and without: the same bytes.
    assert_eq!(
        project.cached("again", &["--rebuild", "--locked", "--offline"]),
        [true, true]
    );
    assert!(project.bytes("again") == project.bytes("first"));
    // How long a step may take has no effect on what it makes.
    let layers = project.layers();
    project.forget();
    project.edit("workdir =", "timeout = \"100min\"\nworkdir =");
    assert_eq!(project.cached("anew", &["--rebuild"]), [false, false]);
    let made = project.layers();
    assert!(
        made.len() == 2 && made.iter().all(|layer| layers.contains(layer)),
        "{made:?} {layers:?}"
    );
    project.edit("timeout = \"100min\"\n", "");

    project.write("page", "another page\n");
    assert_eq!(project.cached("second", &[]), [true, false]);
    assert_eq!(
        project.page("second", "/two"),
        "another page\nfrom the server\nword\n2026\n"
    );
    project.edit("one > /srv/made/one", "1 > /srv/made/one");
    assert_eq!(project.cached("third", &[]), [false, false]);
    project.write("page", "page\n");
    project.edit("1 > /srv/made/one", "one > /srv/made/one");
    assert_eq!(project.cached("back", &["--rebuild"]), [true, true]);
    assert!(project.bytes("back") == project.bytes("first"));
    assert_eq!(server.requests(), 1);

    project.edit("cmd = [\"sh\"", "timeout = \"5s\"\ncmd = [\"sh\"");
    project.edit("cat page file", "sleep 6; cat page file");
    let late = project.build("late", &[]).fail(1);
    assert!(
        late.contains("did not end within 5 s (guest time)"),
        "{late}"
    );
}

/// Asks the host's server on the gateway's address, and tells how that ended.
const ASK: &str = r"echo | nc -w 5 192.0.0.1 PORT > /srv/N; echo $? >> /srv/N; cat /srv/N";

fn networked(host: &InnerHost) {
    let [server, other] = [(); 2].map(|()| Server::start());
    let ask = |port: u16, name: &str| {
        let ask = ASK.replace("PORT", &port.to_string());
        ask.replace("/srv/N", &format!("/srv/{name}"))
    };
    let steps = format!(
        "[[run]]\ncmd = {:?}\nnetwork = [\"127.0.0.1:{}\"]\n[[run]]\ncmd = {:?}\n",
        format!(
            "{}; {}",
            ask(server.port, "granted"),
            ask(other.port, "other")
        ),
        server.port,
        ask(server.port, "none"),
    );
    let project = Project::new(host, "networked", &steps);
    let locked = project.build("first", &["--locked"]).fail(3);
    assert!(locked.contains("there is no lock file"), "{locked}");
    let outcome = project.build("first", &[]);
    let refused = format!("it was not allowed to reach 127.0.0.1:{}", other.port);
    assert!(outcome.stderr.contains(&refused), "{}", outcome.stderr);
    outcome.succeed();
    assert_eq!((server.requests(), other.requests()), (1, 0));
    let answer = project.page("first", "/granted");
    assert!(answer.ends_with("from the server\n0\n"), "{answer}");
    assert_eq!(project.page("first", "/other"), "1\n");
    assert_eq!(project.page("first", "/none"), "1\n");

    let lock = fs::read_to_string(project.folder.join("Smolfile.lock")).unwrap();
    assert_eq!(lock.matches("[[run]]").count(), 1, "{lock}");
    assert_eq!(
        project.cached("again", &["--rebuild", "--locked", "--offline"]),
        [true, true]
    );
    assert!(project.bytes("again") == project.bytes("first"));
    assert_eq!(server.requests(), 1);

    project.forget();
    let missing = project
        .build("again", &["--rebuild", "--locked", "--offline"])
        .fail(3);
    assert!(
        missing.contains("what [[run]] 1 has made is not in the cache: sha256:"),
        "{missing}"
    );
    // It makes the same again, so the lock need not change.
    assert_eq!(
        project.cached("again", &["--rebuild", "--locked"]),
        [false, false]
    );
    assert!(project.bytes("again") == project.bytes("first"));
    assert_eq!(server.requests(), 2);
}

/// Each time at another line of its progress.
fn killed(host: &InnerHost) {
    let steps = r#"
[[run]]
cmd = "echo one > /srv/one; sleep 100"
[[run]]
cmd = "echo two > /srv/two; cat /srv/one >> /srv/two"
[[run]]
cmd = "rm /srv/old; cat /srv/one /srv/two > /srv/three"
"#;
    let reference = Project::new(host, "killed", steps);
    reference.build("reference", &[]).succeed();
    let expected = reference.bytes("reference");
    reference.forget();
    for line in 1..=10 {
        let mut build = reference.command("out", &["--rebuild", "--verbose"]);
        let running = Running::start(&mut build);
        running.await_lines(6 * line);
        running.signal(Signal::KILL);
        let outcome = running.finish(LIMIT);
        if outcome.code == Some(0) {
            break; // it was faster
        }
        assert!(!reference.folder.join("out").exists());
    }
    reference.build("out", &["--rebuild"]).succeed();
    assert!(reference.bytes("out") == expected);
}
