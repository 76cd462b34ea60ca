//! The clock of the host, which has jumped. What a program sees of that are times in the past or in the
//! future: those of files, and those in records. (How long something takes is measured by a clock that
//! does not jump, CLOCK_MONOTONIC.)

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libtest_mimic::{Failed, Trial};
use serde_json::Value;
use smol_tests::support::run;

use crate::operations::{ALL, BUILD, DETACHED, FIRST_START, Operation};
use crate::scene::{RESTORED, Scene};
use crate::{FIXTURE, NO_KVM, trial};

/// The first times of their kinds, and the last.
fn times() -> [SystemTime; 2] {
    [UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(4_102_444_800)]
}

/// One for each operation, and what is listed.
pub fn trials() -> Vec<Trial> {
    let of = |operation: &'static Operation| {
        let name = format!("{}: the clock has jumped", operation.name);
        let missing = || NO_KVM.clone().filter(|_| operation.machine);
        trial(name, missing, || jumped(operation))
    };
    let mut trials: Vec<Trial> = ALL.iter().map(of).collect();
    let name = "machines of another time are listed, replaced and removed".to_owned();
    trials.push(trial(name, || NO_KVM.clone(), listed));
    trials
}

/// Sets the times of everything in a scene.
fn set_times(scene: &Scene, time: SystemTime) {
    for folder in ["in", "out", "cache", "run", "tmp"] {
        for path in crate::scene::names(&scene.path(folder)) {
            let path = scene.path(folder).join(path);
            if fs::symlink_metadata(&path).is_ok_and(|found| found.is_file() || found.is_dir()) {
                let file = File::open(&path).expect("it is our own");
                file.set_modified(time).expect("it is our own");
            }
        }
    }
}

fn jumped(operation: &Operation) -> Result<(), Failed> {
    let scene = FIXTURE.scene();
    for time in times() {
        operation.set_up(&scene);
        // What one that was killed has left goes by its lock, and not by its time.
        let dead = match operation.name {
            name if name == BUILD.name => Some(("cache/work", "building-dead")),
            name if name == FIRST_START.name => Some(("cache/bundles", "dead.tmp")),
            _ => None,
        };
        if let Some((folder, name)) = dead {
            let mut builder = fs::DirBuilder::new();
            let place = scene.path(folder).join(name);
            let made = builder.recursive(true).mode(0o700).create(place);
            made.expect("the folder is our own");
        }
        set_times(&scene, time);
        let checked = operation.check_again(&scene);
        checked.map_err(|why| format!("{time:?}: {why}"))?;
    }
    Ok(())
}

/// The records of machines that have ended say when, in seconds since 1970.
fn listed() -> Result<(), Failed> {
    let scene = FIXTURE.scene();
    for seconds in [0, 4_102_444_800_u64] {
        scene.set_up();
        run(&mut scene.command("smolrun", DETACHED.arguments)).succeed();
        scene.await_ends();
        for path in crate::scene::names(&scene.path("run")) {
            let path = scene.path("run").join(path);
            let Ok(bytes) = fs::read(&path) else { continue };
            let Ok(Value::Object(mut record)) = serde_json::from_slice(&bytes) else {
                continue;
            };
            for time in ["started", "ended"] {
                record
                    .entry(time)
                    .and_modify(|value| *value = seconds.into());
            }
            fs::write(&path, serde_json::to_vec(&record)?)?;
        }
        let text = run(&mut scene.command("smolrun", &["ps", "-a"])).succeed();
        let json = run(&mut scene.command("smolrun", &["ps", "-a", "--json"])).succeed();
        let listed: Value = serde_json::from_str(&json)?;
        if !text.contains('n') || listed[0]["started"] != seconds {
            return Err(format!("{text}{json}").into());
        }
        let said = run(&mut scene.command("smolrun", &["logs", "n"])).succeed();
        assert_eq!(said.trim_start(), RESTORED);
        run(&mut scene.command("smolrun", DETACHED.arguments)).succeed();
        scene.await_ends();
        run(&mut scene.command("smolrun", &["rm", "n"])).succeed();
        assert_eq!(scene.left()?, Vec::<std::path::PathBuf>::new());
    }
    Ok(())
}
