//! Builds that fail, word for word: each with code 1, an error that helps, and nothing left behind.
//!
//! To add a case, add its machine to `MACHINES` in tests/src/host.rs and a line here, run it (the words
//! of its title select it), and take over what it printed.

use std::path::Path;

use crate::inner::{InnerHost, MACHINES};
use smol_tests::suite::Suite;
use smol_tests::support::{self, names, run};

/// A machine, what is wrong with it, and the error of its build.
const CASES: [(&str, &str, &str); 7] = [
    ("never", "a service that never gets ready", ""),
    ("crash", "a service that ends at once", ""),
    ("warm", "a warm command that fails", ""),
    (
        "unanswered",
        "a [[warm_restore]] request that is not answered",
        "",
    ),
    (
        "asks-frozen",
        "a [[restore]] command that asks the frozen service",
        "",
    ),
    ("absent", "a program that is not there", ""),
    ("old-cpu", "a program that needs another cpu", ""),
];

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a InnerHost) {
    suite.group("failures");
    for (machine, what, error) in CASES {
        let title = format!("{what} fails the build, with an error that helps");
        suite.test(&title, move || assert_eq!(fail(host, machine), error));
    }
}

/// Builds the machine, which must fail and leave nothing; returns its error.
#[track_caller]
fn fail(host: &InnerHost, machine: &str) -> String {
    let folder = Path::new("/tmp/out").join(machine);
    std::fs::create_dir_all(&folder).unwrap();
    let smolfile = Path::new(MACHINES).join(machine).with_extension("toml");
    let mut command = host.tools.smolbuild();
    let told = run(command
        .arg(smolfile)
        .arg("-o")
        .arg(folder.join("x.smolmachine")))
    .fail(1);
    assert_eq!(names(&folder), Vec::<String>::new());
    assert_eq!(
        names(&host.tools.home.join("cache/work")),
        Vec::<String>::new()
    );
    assert!(
        support::processes()
            .iter()
            .all(|(process, _)| process.name != "smolbuild")
    );
    let error = told.find("error: ").expect("it says why");
    told[error..].to_owned()
}
