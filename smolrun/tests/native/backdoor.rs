//! Guests that have taken over their monitor: a smolrun with a deliberate hole does what its guest
//! prints. What the guest wants succeeds without confinement, and fails or kills with it.

use smol_testing::backdoor::{self, End, Host};

use super::*;

/// Runs a bundle whose guest makes this attempt after its restore.
fn attempt(program: &Path, attempt: &str, sandbox: &str) -> Option<End> {
    let command = format!("backdoor {attempt}\n");
    let scene = Scene::new(&kernel(&["booted\n", &command], true), true, |_| {})?;
    // Out of the bundle, and from the cache.
    let ends = [(); 2].map(|()| {
        let mut run = scene.run_by(program);
        let output = run.env("SMOL_SANDBOX", sandbox).output().unwrap();
        End::of(attempt, &output)
    });
    assert_eq!(ends[0], ends[1], "{attempt}");
    Some(ends[0])
}

#[test]
fn a_guest_that_has_taken_over_its_monitor_gets_nothing_of_the_host() {
    if let Some(missing) = smol_sandbox::missing() {
        return left_out(missing);
    }
    let used = Path::new(env!("CARGO_BIN_EXE_smolrun"));
    let program = backdoor::program("smolrun", used);
    let host = Host::new();
    for (what, end) in host.attempts() {
        let Some(confined) = attempt(&program, &what, "on") else {
            break;
        };
        assert_eq!(confined, end, "{what}");
        assert_eq!(attempt(&program, &what, "off"), Some(End::Done), "{what}");
    }
}

#[test]
fn the_program_that_is_used_has_no_back_door() {
    let command = "backdoor read /etc/passwd\n";
    let Some(scene) = Scene::new(&kernel(&["booted\n", command], true), true, |_| {}) else {
        return;
    };
    assert_eq!(succeed(&scene.run().output().unwrap()), command);
}
