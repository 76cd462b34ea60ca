//! Guests that have taken over their monitor: a smolrun with a deliberate hole does what its guest
//! prints. What the guest wants succeeds without confinement, and fails or kills with it.

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::sync::OnceLock;

use super::*;

/// Builds the smolrun with the hole, of the sources and with the profile of this test.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--locked", "--quiet", "--package", "smolrun"]);
        cargo.args(["--bin", NAME, "--features", "backdoor"]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let output = cargo
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        succeed(&output);
        Path::new(env!("CARGO_BIN_EXE_smolrun")).with_file_name(NAME)
    })
}

const NAME: &str = "smolrun-backdoor";

/// How an attempt of the guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    Denied,
    /// The process is killed by SIGSYS.
    Killed,
}

/// Runs a bundle whose guest makes this attempt after its restore.
fn attempt(attempt: &str, sandbox: &str) -> Option<End> {
    let command = format!("backdoor {attempt}\n");
    let scene = Scene::new(&kernel(&["booted\n", &command], true), true, |_| {})?;
    let mut ends = Vec::new();
    // Out of the bundle, and from the cache.
    for _ in 0..2 {
        let mut run = scene.run_by(program());
        let output = run.env("SMOL_SANDBOX", sandbox).output().unwrap();
        let what = attempt.split(' ').next().unwrap();
        let said = text(&output.stdout);
        ends.push(if output.status.signal() == Some(libc::SIGSYS) {
            End::Killed
        } else if said.contains(&format!("{what}: done\n")) {
            End::Done
        } else if said.contains(&format!("{what}: Permission denied")) {
            End::Denied
        } else {
            panic!("{attempt}: {output:?}")
        });
    }
    assert_eq!(ends[0], ends[1], "{attempt}");
    Some(ends[0])
}

#[test]
fn a_guest_that_has_taken_over_its_monitor_gets_nothing_of_the_host() {
    if let Some(missing) = smol_sandbox::missing() {
        return left_out(missing);
    }
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "s").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // A bystander, of the same user.
    let mut other = Command::new("sleep").arg("600").spawn().unwrap();
    let process = other.id();
    let secret = secret.display();
    let table = [
        (format!("read {secret}"), End::Denied),
        (format!("write {secret}"), End::Denied),
        (format!("trace {process}"), End::Denied),
        ("execute /bin/true".to_owned(), End::Killed),
        (format!("connect 127.0.0.1:{port}"), End::Killed),
        ("listen 127.0.0.1:0".to_owned(), End::Killed),
        (format!("signal {process}"), End::Killed),
    ];
    for (what, end) in table {
        let Some(confined) = attempt(&what, "on") else {
            break;
        };
        assert_eq!(confined, end, "{what}");
        assert_eq!(attempt(&what, "off"), Some(End::Done), "{what}");
    }
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn the_program_that_is_used_has_no_back_door() {
    let command = "backdoor read /etc/passwd\n";
    let Some(scene) = Scene::new(&kernel(&["booted\n", command], true), true, |_| {}) else {
        return;
    };
    assert_eq!(succeed(&scene.run().output().unwrap()), command);
}
