//! Programs with a deliberate hole (feature `backdoor`), which do what their guest prints: how they are
//! built, what is attempted, and how that ends with and without confinement.

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use rustix::process::Signal;
use tempfile::TempDir;

/// How an attempt of the guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It succeeds.
    Done,
    /// The call fails with EACCES.
    Denied,
    /// The process is killed by SIGSYS.
    Killed,
}

impl End {
    /// Returns how the attempt ended of a program with this output.
    ///
    /// # Panics
    /// If it ended otherwise.
    #[track_caller]
    pub fn of(attempt: &str, output: &Output) -> Self {
        let what = attempt.split(' ').next().unwrap_or_default();
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.signal() == Some(Signal::SYS.as_raw()) {
            Self::Killed
        } else if said.contains(&format!("{what}: done")) {
            Self::Done
        } else if said.contains(&format!("{what}: Permission denied")) {
            Self::Denied
        } else {
            panic!("{attempt}: {output:?}")
        }
    }
}

/// Builds the program of this package that has the hole, of the sources and with the profile of the
/// program as it is used, and returns its path. It is an example, and asked for in the whole workspace: so
/// cargo chooses the features of dependencies that it chooses for `cargo test --workspace`, and compiles only
/// what knows of the hole.
///
/// # Panics
/// If it cannot be built.
#[must_use]
pub fn program(package: &str, used: &Path) -> PathBuf {
    let name = format!("{package}-backdoor");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--locked", "--quiet", "--workspace"]);
    cargo.args(["--example", &name, "--features"]);
    cargo.arg(format!("{package}/backdoor"));
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = cargo.output().expect("cargo can be run");
    assert!(output.status.success(), "{output:?}");
    used.with_file_name("examples").join(name)
}

/// What a guest that has taken over its monitor would want of its user on this host.
pub struct Host {
    folder: TempDir,
    listener: TcpListener,
    bystander: Child,
}

impl Host {
    /// A file, a server and a process of the user.
    ///
    /// # Panics
    /// If this host has none to give.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("secret"), "s").expect("a file");
        Self {
            folder,
            listener: TcpListener::bind("127.0.0.1:0").expect("a port"),
            bystander: Command::new("sleep").arg("600").spawn().expect("sleep"),
        }
    }

    /// Returns what is attempted, and how it ends in a confined machine's process.
    ///
    /// # Panics
    /// If the server has no address.
    #[must_use]
    pub fn attempts(&self) -> Vec<(String, End)> {
        let secret = self.folder.path().join("secret");
        let server = self.listener.local_addr().expect("its address");
        let (secret, process) = (secret.display(), self.bystander.id());
        vec![
            (format!("read {secret}"), End::Denied),
            (format!("write {secret}"), End::Denied),
            (format!("trace {process}"), End::Denied),
            ("execute /bin/true".to_owned(), End::Killed),
            (format!("connect {server}"), End::Killed),
            ("listen 127.0.0.1:0".to_owned(), End::Killed),
            (format!("signal {process}"), End::Killed),
        ]
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.bystander.kill();
        let _ = self.bystander.wait();
    }
}
