use std::fs;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use smol_cli::ExitKind;

use super::*;
use crate::host::control::{self, Answer};
use crate::host::instance::record::sample as record;
use crate::run::report::End;
use crate::run::request::ControlRequest;

/// A machine whose record stays at its end.
fn kept(name: &str) -> Record {
    Record {
        auto_remove: false,
        ..record(name)
    }
}

/// What a process leaves that is killed while it runs this machine.
fn kill(root: &Path, record: &Record) {
    let folder = root.join(&record.name);
    fs::create_dir(&folder).unwrap();
    record.write(&folder).unwrap();
    fs::write(folder.join(LOG), "last words\n").unwrap();
}

fn end(code: i32) -> EndRecord {
    EndRecord::new(&Ok(End::Exited(code)), false)
}

/// The names, states and reasons of the machines.
fn listed(root: &Path) -> Vec<String> {
    let text = |record: Record| {
        let reason = record.end.map(|end| end.reason).unwrap_or_default();
        format!("{} {:?} {reason}", record.name, record.state)
    };
    list(root).into_iter().map(text).collect()
}

fn log_of(root: &Path, name: &str) -> String {
    let mut text = String::new();
    let mut log = open_log(root, name).unwrap();
    log.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_name_in_use_is_refused_and_free_again_afterwards() {
    let root = tempfile::tempdir().unwrap();
    let first = Instance::claim(root.path(), record("r")).unwrap();
    for error in [
        Instance::claim(root.path(), record("r")).err().unwrap(),
        check_free(root.path(), "r").unwrap_err(),
    ] {
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
        let told = error.to_string();
        assert!(told.contains("a machine named r is running already"));
    }
    drop(first);
    check_free(root.path(), "r").unwrap();
    Instance::claim(root.path(), record("r")).unwrap();
}

#[test]
fn a_machine_stays_listed_with_its_log_when_it_has_ended() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let instance = Instance::claim(root, kept("r")).unwrap();
    instance.create_log().unwrap();
    let _socket = instance.control().unwrap();
    instance.set_running(&["1:2".parse().unwrap()]);
    let before = find(root, "r").unwrap();
    assert!(before.state == State::Running && runs(root, &before) && !is_released(root, &before));
    fs::write(root.join("r").join(LOG), "last words\n").unwrap();
    instance.end(end(3));
    assert_eq!(listed(root), ["r Ended exit code 3"]);
    let after = current(root, &before).unwrap();
    assert_eq!(after.ports, before.ports);
    assert!(after.end.unwrap().ended >= after.started);
    assert!(!runs(root, &before) && is_released(root, &before));
    assert_eq!(log_of(root, "r"), "last words\n");
    assert!(connect(root, "r").is_err() && !root.join("r").join(SOCKET).exists());
}

#[test]
fn a_machine_of_which_nothing_is_to_stay_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let instance = Instance::claim(root.path(), record("r")).unwrap();
    let before = find(root.path(), "r").unwrap();
    instance.end(end(0));
    assert!(listed(root.path()).is_empty() && is_released(root.path(), &before));
    assert!(!root.path().join("r").exists());
}

#[test]
fn of_killed_processes_those_stay_listed_whose_machines_are_to_stay() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let running = Instance::claim(root, record("running")).unwrap();
    running.set_running(&["1:2".parse().unwrap()]);
    kill(root, &record("foreground"));
    kill(root, &record("while-removed").ended(end(0)));
    kill(root, &kept("detached"));
    fs::create_dir(root.join("half-made")).unwrap();
    let ended = Record::read(&root.join("detached")).unwrap();
    assert!(ended.end.is_none());
    for _ in 0..2 {
        assert_eq!(listed(root), ["detached Ended killed", "running Running "]);
    }
    let names = fs::read_dir(root).unwrap().count();
    assert_eq!(names, 2, "the others are removed");
    assert_eq!(log_of(root, "detached"), "last words\n");
    assert!(is_released(root, &ended) && !runs(root, &ended));
}

#[test]
fn the_next_machine_of_a_name_replaces_an_ended_one() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    kill(root, &kept("r"));
    let before = find(root, "r").unwrap();
    check_free(root, "r").unwrap();
    let next = Record {
        pid_started: 1,
        ..kept("r")
    };
    let instance = Instance::claim(root, next).unwrap();
    instance.create_log().unwrap();
    assert_eq!(log_of(root, "r"), "");
    assert_eq!(listed(root), ["r Starting "]);
    assert!(current(root, &before).is_none() && is_released(root, &before));
    // Who has the old one in mind does not remove the new one.
    assert!(remove(root, &before).unwrap());
    assert!(!remove(root, &find(root, "r").unwrap()).unwrap());
    assert_eq!(listed(root), ["r Starting "]);
}

#[test]
fn an_ended_machine_is_removed_and_a_running_one_is_not() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let instance = Instance::claim(root, kept("r")).unwrap();
    let running = find(root, "r").unwrap();
    assert!(!remove(root, &running).unwrap());
    instance.end(end(0));
    for _ in 0..2 {
        assert!(remove(root, &running).unwrap());
        assert!(!root.join("r").exists());
    }
}

#[test]
fn an_ended_machine_is_removed_while_others_look_at_it() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    for _ in 0..50 {
        kill(root, &kept("r").ended(end(0)));
        let record = find(root, "r").unwrap();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| is_released(root, &record));
            }
            assert!(remove(root, &record).unwrap());
        });
    }
}

#[test]
fn of_many_ended_machines_the_oldest_are_removed() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    for n in 0..20 {
        let ended = EndRecord {
            ended: 1000 - n,
            ..EndRecord::killed()
        };
        kill(root, &kept(&format!("r{n:02}")).ended(ended));
    }
    kill(root, &kept("killed"));
    let _running = Instance::claim(root, kept("running")).unwrap();
    sweep(root);
    let names: Vec<_> = list(root).into_iter().map(|record| record.name).collect();
    let latest = (0..15).map(|n| format!("r{n:02}"));
    let wanted = ["killed".to_owned()].into_iter().chain(latest);
    assert_eq!(names, wanted.chain(["running".into()]).collect::<Vec<_>>());
}

#[test]
fn an_unknown_name_is_reported_with_those_that_exist() {
    let root = tempfile::tempdir().unwrap();
    let told = || smol_cli::error::render(&find(root.path(), "x").unwrap_err(), false);
    assert_eq!(
        told(),
        "error: there is no machine named x\n  \
         hint: no machine is running, and none has ended\n"
    );
    kill(root.path(), &kept("old"));
    assert!(told().ends_with("hint: ended: old\n"), "{}", told());
    let _one = Instance::claim(root.path(), record("one")).unwrap();
    let _two = Instance::claim(root.path(), record("two")).unwrap();
    assert!(told().ends_with("hint: running: one, two; ended: old\n"));
}

#[test]
fn of_those_who_want_a_name_at_once_one_gets_it() {
    let root = tempfile::tempdir().unwrap();
    for round in 0..50 {
        let root = root.path();
        let winners: Vec<_> = thread::scope(|scope| {
            let lister = scope.spawn(|| list(root));
            let starts: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| Instance::claim(root, kept("r")).ok()))
                .collect();
            lister.join().unwrap();
            starts
                .into_iter()
                .filter_map(|s| s.join().unwrap())
                .collect()
        });
        assert_eq!(winners.len(), 1, "round {round}");
        for instance in winners {
            instance.end(end(round));
        }
        assert_eq!(listed(root), [format!("r Ended exit code {round}")]);
    }
}

#[test]
fn requests_arrive_through_the_control_socket_however_long_the_path_is() {
    let base = tempfile::tempdir().unwrap();
    let root = base.path().join("x".repeat(120));
    fs::create_dir(&root).unwrap();
    let instance = Instance::claim(&root, record("r")).unwrap();
    let (give, given) = std::sync::mpsc::channel();
    let control = instance.control().unwrap();
    control.serve(move |request| give.send(request).unwrap());
    let request = ControlRequest::stop(Duration::from_secs(3));
    let stream = connect(&root, "r").unwrap();
    assert_eq!(control::send(&stream, request).unwrap(), Answer::Accepted);
    assert_eq!(given.recv(), Ok(request));
    let mut bad = connect(&root, "r").unwrap();
    bad.write_all(b"nonsense\n").unwrap();
    let mut answer = String::new();
    bad.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("not a control request"), "{answer}");
    drop(instance);
    assert!(connect(&root, "r").is_err());
}
