//! Machines that have ended, in the background and in the foreground.

use super::*;

/// A machine that prints a line and halts for ever, if this host can run one.
fn halting() -> Option<Scene> {
    Scene::new(&kernel(&["booted\n"], false), false, |_| {})
}

/// A machine that prints a line and ends.
fn ending() -> Option<Scene> {
    Scene::new(&kernel(&["booted\n"], true), false, |_| {})
}

impl Scene {
    /// Starts a machine in the background.
    fn start(&self, name: &str) {
        let mut run = self.run();
        let output = run.args(["-d", "--name", name]).output().unwrap();
        assert_eq!(succeed(&output), format!("{name}\n"));
    }

    /// The stdout of a command that succeeds.
    fn ask(&self, args: &[&str]) -> String {
        succeed(&self.smolrun().args(args).output().unwrap())
    }

    /// Exit code and stderr of a command.
    fn refused(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.smolrun().args(args).env("NO_COLOR", "1").output();
        let output = output.unwrap();
        (output.status.code(), text(&output.stderr))
    }

    fn pid(&self, name: &str) -> i32 {
        let machines: serde_json::Value =
            serde_json::from_str(&self.ask(&["ps", "--json"])).unwrap();
        let machines = machines.as_array().unwrap();
        let machine = machines.iter().find(|m| m["name"] == name).unwrap();
        machine["pid"].as_i64().unwrap() as i32
    }
}

#[test]
fn a_machine_that_ended_by_itself_is_listed_with_its_log_until_it_is_removed() {
    let Some(scene) = ending() else { return };
    scene.start("e");
    assert_eq!(scene.ask(&["wait", "e"]), "0\n");
    let machine = &scene.ended(1)[0];
    assert_eq!(machine["exit_code"], 0);
    assert!(machine["ended"].as_u64() >= machine["started"].as_u64());
    assert_eq!(scene.ask(&["ps", "-q"]), "");
    assert_eq!(scene.ask(&["ps", "-aq"]), "e\n");
    let row = scene.ask(&["ps", "--all"]);
    assert!(
        row.lines()
            .nth(1)
            .unwrap()
            .starts_with("e     native   ended  kvm    -")
    );
    assert!(row.ends_with(" ago  exit code 0\n"), "{row}");
    for args in [&["logs", "e"][..], &["logs", "-f", "e"]] {
        assert_eq!(scene.ask(args), "booted\n");
    }
    assert_eq!(scene.ask(&["wait", "e", "e"]), "0\n0\n");
    assert_eq!(scene.ask(&["rm", "e"]), "e\n");
    assert_eq!(scene.instances(), 0);
}

#[test]
fn a_killed_machine_is_listed_as_that_and_its_name_can_be_used_again() {
    let Some(scene) = halting() else { return };
    scene.start("k");
    let waiter = scene
        .smolrun()
        .args(["wait", "k"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // SAFETY: it touches no memory.
    assert_eq!(unsafe { libc::kill(scene.pid("k"), libc::SIGKILL) }, 0);
    assert_eq!(succeed(&waiter.wait_with_output().unwrap()), "137\n");
    let machine = &scene.ended(1)[0];
    assert_eq!(
        (&machine["exit_code"], &machine["reason"]),
        (&137.into(), &"killed".into())
    );
    assert_eq!(scene.ask(&["logs", "k"]), "booted\n");
    scene.start("k");
    assert_eq!(scene.ask(&["ps", "-aq"]), "k\n");
    assert_eq!(scene.ask(&["stop", "k"]), "k\n");
    assert_eq!(scene.ended(1)[0]["reason"], "stopped");
}

#[test]
fn several_machines_are_stopped_and_removed_at_once() {
    let Some(scene) = halting() else { return };
    for name in ["a", "b", "c", "d"] {
        scene.start(name);
    }
    let (code, told) = scene.refused(&["rm", "a"]);
    assert_eq!(code, Some(2));
    assert_eq!(
        told,
        "error: a is running\n  \
         hint: stop it first: smolrun stop a; or both at once: smolrun rm --force a\n"
    );
    let output = scene.smolrun().args(["stop", "a", "x", "b"]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "a\nb\n");
    assert!(text(&output.stderr).contains("there is no machine named x"));
    assert_eq!(scene.ask(&["rm", "--all"]), "a\nb\n");
    assert_eq!(scene.ask(&["rm", "--force", "c"]), "c\n");
    assert_eq!(scene.ask(&["stop", "--all"]), "d\n");
    assert_eq!(scene.ask(&["stop", "--all"]), "");
    assert_eq!(scene.ask(&["rm", "--all", "--force"]), "d\n");
    assert_eq!(scene.instances(), 0);
}

#[test]
fn with_rm_and_in_the_foreground_nothing_stays() {
    let Some(scene) = halting() else { return };
    let mut run = scene.run();
    let output = run.args(["-d", "--rm", "--name", "r"]).output().unwrap();
    assert_eq!(succeed(&output), "r\n");
    assert_eq!(scene.ask(&["stop", "r"]), "r\n");
    assert_eq!(scene.instances(), 0);
    let mut child = scene
        .run()
        .args(["--rm", "--name", "f"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _rest = await_line(&mut child, "booted");
    assert_eq!(scene.ask(&["ps", "-q"]), "f\n");
    assert_eq!(scene.ask(&["stop", "f"]), "f\n");
    // It was not a signal to smolrun that has stopped it.
    assert_eq!(await_end(&mut child).code(), Some(0));
    assert_eq!(scene.instances(), 0);
}

/// Waits until somebody waits for the end of this machine.
fn await_waiter(scene: &Scene, name: &str) {
    let log = scene
        .dir
        .path()
        .join("run/instances")
        .join(name)
        .join("log");
    let log = File::open(log).unwrap();
    let until = Instant::now() + LIMIT;
    while log.try_lock().is_ok() {
        log.unlock().unwrap();
        assert!(Instant::now() < until, "nobody waits");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn who_waits_gets_the_exit_code_of_a_machine_of_which_nothing_stays() {
    let Some(scene) = halting() else { return };
    for (name, killed, code) in [("s", false, "0\n"), ("k", true, "137\n")] {
        let mut run = scene.run();
        succeed(&run.args(["-d", "--rm", "--name", name]).output().unwrap());
        let mut wait = scene.smolrun();
        let waiter = wait.args(["wait", name]).stdout(Stdio::piped()).spawn();
        await_waiter(&scene, name);
        if killed {
            // SAFETY: it touches no memory.
            assert_eq!(unsafe { libc::kill(scene.pid(name), libc::SIGKILL) }, 0);
        } else {
            assert_eq!(scene.ask(&["stop", name]), format!("{name}\n"));
        }
        assert_eq!(succeed(&waiter.unwrap().wait_with_output().unwrap()), code);
        assert_eq!(scene.instances(), 0);
    }
}

/// A command whose reader is gone before it writes.
fn unread(command: &mut Command) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = command
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_reader_that_is_gone_is_no_error() {
    let Some(scene) = ending() else { return };
    scene.start("e");
    scene.ended(1);
    for args in [
        &["logs", "e"][..],
        &["logs", "-f", "e"],
        &["ps", "-a"],
        &["ps", "-a", "--json"],
        &["wait", "e"],
        &["stop", "e"],
        &["rm", "e"],
    ] {
        let output = unread(scene.smolrun().args(args));
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        assert_eq!(text(&output.stderr), "", "{args:?}");
    }
    // The machine runs on to its end, also when nobody reads what it prints.
    for more in [&[][..], &["-d", "--name", "d"]] {
        let output = unread(scene.run().args(more));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(!text(&output.stderr).contains("error"), "{output:?}");
    }
}
