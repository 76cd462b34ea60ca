//! Debian's docker-registry: the distribution project's own, on a free port of this host, filled by
//! skopeo.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A user and a password of [`Setup::password`], and its line in the format of htpasswd, with bcrypt:
/// `htpasswd -nbB user secret`.
pub const USER: (&str, &str) = ("user", "secret");
const HTPASSWD: &str = "user:$2y$05$0D5zaTKtkKk7fuEXcKe9ouLMZlb3KUD2WxsCJ9RPSFDmah1MMizsW";

/// What a registry is to be like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup {
    /// Whether it wants to see [`USER`].
    pub password: bool,
    /// Whether it speaks TLS, with a certificate for `localhost`, `registry.test` and 127.0.0.1 of a CA of its own.
    pub tls: bool,
}

/// A registry that runs until this is dropped.
pub struct DockerRegistry {
    process: Child,
    folder: TempDir,
    port: u16,
    setup: Setup,
}

impl DockerRegistry {
    /// Starts one; `None` if it is not installed.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(setup: Setup) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = folder.path().join("config.yml");
        fs::write(&config, configuration(folder.path(), setup)).expect("a file");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = match command.spawn() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
            process => process.expect("docker-registry runs"),
        };
        let mut log = BufReader::new(process.stderr.take().expect("a pipe")).lines();
        let listening = log.find_map(|line| {
            let line = line.expect("a line of the log");
            let (_, rest) = line.split_once("listening on 127.0.0.1:")?;
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok()
        });
        // So that it never waits for a reader of its log.
        std::thread::spawn(move || log.for_each(drop));
        Some(Self {
            port: listening.expect("it listens"),
            process,
            folder,
            setup,
        })
    }

    /// Returns `localhost:PORT`.
    #[must_use]
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Returns the port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the file of the CA's certificate, for one that speaks TLS.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// Returns the folder of what it stores.
    #[must_use]
    pub fn storage(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Puts an image there, `source` as skopeo names it, under this name and tag.
    ///
    /// # Panics
    /// If skopeo cannot do it.
    pub fn push(&self, source: &str, name: &str) {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--all", "--preserve-digests"]);
        command.arg("--dest-tls-verify=false");
        if self.setup.password {
            let (user, password) = USER;
            command.args(["--dest-creds", &format!("{user}:{password}")]);
        }
        command.args(["--insecure-policy", source]);
        command.arg(format!("docker://{}/{name}", self.host()));
        let output = command.output().expect("skopeo runs");
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn configuration(folder: &Path, setup: Setup) -> String {
    let at = folder.display();
    let mut text = format!(
        "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: true\n\
         storage:\n  filesystem:\n    rootdirectory: {at}/data\n\
         http:\n  addr: 127.0.0.1:0\n  secret: of-a-test\n"
    );
    if setup.tls {
        certificate(folder);
        text += &format!("  tls:\n    certificate: {at}/server.crt\n    key: {at}/server.key\n");
    }
    if setup.password {
        fs::write(folder.join("htpasswd"), HTPASSWD).expect("a file");
        text += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {at}/htpasswd\n");
    }
    text
}

/// Makes a CA and a certificate for this host of it: `ca.crt`, `server.crt`, `server.key`.
///
/// # Panics
/// If openssl cannot do it.
pub fn certificate(folder: &Path) {
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        command.args(arguments.split(' ')).current_dir(folder);
        let output = command.output().expect("openssl runs");
        assert!(output.status.success(), "{arguments}: {output:?}");
    };
    let extensions =
        "subjectAltName=DNS:localhost,DNS:registry.test,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
    fs::write(folder.join("extensions"), extensions).expect("a file");
    const NEW: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!(
        "req -x509 {NEW} -days 2 -subj /CN=test-ca -keyout ca.key -out ca.crt"
    ));
    openssl(&format!(
        "req {NEW} -subj /CN=server -keyout server.key -out server.csr"
    ));
    openssl(
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
         -extfile extensions -out server.crt"
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .as_str(),
    );
}
