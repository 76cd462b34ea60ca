//! Builds that fail: each with a message that helps, code 1, and nothing left behind. And one that
//! succeeds but cannot be repeated, which it says.

use std::path::Path;

use crate::inner::{Host, MACHINES};
use crate::suite::Suite;
use crate::support::{self, names, run};

pub fn tests(suite: &mut Suite, host: &Host) {
    suite.test(
        "a service that never gets ready fails the build, with what the probe last saw",
        || {
            let told = fail(host, "never");
            contains(
                &told,
                &["tcp", "7777", "last saw", "efused", "not going to listen"],
            );
        },
    );
    suite.test(
        "a service that ends at once fails the build, with its exit code and its words",
        || {
            let told = fail(host, "crash");
            contains(
                &told,
                &["exit code 3", "service: there is no configuration"],
            );
        },
    );
    suite.test(
        "a warm command that fails fails the build, with its exit code",
        || {
            let told = fail(host, "warm");
            contains(
                &told,
                &["warm", "exit code 9", "service: there is no configuration"],
            );
        },
    );
    suite.test(
        "a program that is not there fails the build, by its name",
        || {
            let told = fail(host, "absent");
            contains(&told, &["/no/such/program"]);
        },
    );
    suite.test(
        "a service that computes without pause is built by the host's time, which the bundle says",
        || spinning(host),
    );
}

fn spinning(host: &Host) {
    let bundle = Path::new("/tmp/out/spin.smolmachine");
    std::fs::create_dir_all("/tmp/out").unwrap();
    let smolfile = Path::new(MACHINES).join("spin.toml");
    let mut command = host.tools.smolbuild();
    command.arg(smolfile).arg("-o").arg(bundle);
    let outcome = run(command.args(["--watchdog", "3"]));
    contains(
        &outcome.stderr,
        &["warning: not reproducible: watchdog tick at "],
    );
    outcome.succeed();
    let shown = run(host
        .tools
        .smolbuild()
        .args(["inspect", "--json"])
        .arg(bundle))
    .succeed();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let claim = &shown["config"]["reproducible"];
    assert_eq!(claim["claimed"], false);
    contains(claim["reason"].as_str().unwrap(), &["watchdog tick at "]);
}

#[track_caller]
fn contains(told: &str, wanted: &[&str]) {
    for words in wanted {
        assert!(told.contains(words), "{words:?} is not in: {told}");
    }
}

/// Builds the machine, which must fail; gives what was said on stderr.
#[track_caller]
fn fail(host: &Host, machine: &str) -> String {
    let folder = Path::new("/tmp/out").join(machine);
    std::fs::create_dir_all(&folder).unwrap();
    let smolfile = Path::new(MACHINES).join(machine).with_extension("toml");
    let mut command = host.tools.smolbuild();
    let told = run(command
        .arg(smolfile)
        .arg("-o")
        .arg(folder.join("x.smolmachine")))
    .fail(1);
    assert_eq!(
        names(&folder),
        Vec::<String>::new(),
        "of a failed build nothing is written"
    );
    assert_eq!(
        names(&host.tools.home.join("cache/work")),
        Vec::<String>::new()
    );
    assert!(
        support::processes()
            .iter()
            .all(|(process, _)| process.name != "smolbuild")
    );
    told
}
