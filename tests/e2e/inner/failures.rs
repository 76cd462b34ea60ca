//! Builds that fail, word for word: each with code 1, an error that helps, and nothing left behind.
//!
//! To add a case, add its machine to `MACHINES` in tests/src/host.rs and a line here, run it (the words
//! of its title select it), and take over what it printed.

use std::path::Path;

use crate::inner::{InnerHost, MACHINES};
use smol_tests::suite::Suite;
use smol_tests::support::{self, names, run};

/// A machine, what is wrong with it, and the error of its build.
const CASES: [(&str, &str, &str); 10] = [
    (
        "step",
        "a [[run]] that fails",
        r#"error: [[run]] command 1 (/service --exit 9) ended with exit code 9
  in /machines/step.toml:13:7
"#,
    ),
    (
        "never",
        "a service that never gets ready",
        r#"error: not ready within 3 s (guest time)
  stage: ready
  probe: tcp 7777
  it last saw: connection refused: nothing listens on any port
  last lines of the service:
    not going to listen
"#,
    ),
    (
        "elsewhere",
        "a service that listens on another port",
        r#"error: not ready within 3 s (guest time)
  stage: ready
  probe: tcp 7777
  it last saw: connection refused: nothing listens on 7777, but on 8080
  last lines of the service:
    serving
"#,
    ),
    (
        "crash",
        "a service that ends at once",
        r#"error: the service ended before it was ready, with exit code 3
  stage: ready
  probe: tcp 7777
  last lines of the service:
    service: there is no configuration
"#,
    ),
    (
        "daemon",
        "a service that goes into the background",
        r#"error: the service ended before it was ready, with exit code 0
  stage: ready
  probe: tcp 7777
  hint: the service must stay in the foreground: the machine ends with the command that starts it; look for its option (--foreground, --no-daemon, -D, -F, -f, -n)
"#,
    ),
    (
        "warm",
        "a warm command that fails",
        r#"error: [[warm]] command 1 (/service --exit 9) ended with exit code 9
  stage: warm
  its last output: service: there is no configuration
  last lines of the service:
    serving
    service: there is no configuration
"#,
    ),
    (
        "unanswered",
        "a [[warm_restore]] request that is not answered",
        r#"error: the test restore failed: request 2 of [[warm_restore]] was not answered as it must be
  stage: test restore
  probe: exec /service --exit 9
  it last saw: exit code 9: service: there is no configuration
"#,
    ),
    (
        "asks-frozen",
        "a [[restore]] command that asks the frozen service",
        r#"error: the test restore failed: [[restore]] command 1 (/service ask ping) did not end within 1 h (guest time)
  stage: restore
  hint: the service stands still while [[restore]] commands run: one that asks it something waits for ever. Ask it in [[warm]]; in [[restore]], write what each machine must have for itself into a file, and send the service a signal if it must notice
"#,
    ),
    (
        "absent",
        "a program that is not there",
        r#"error: cannot run /run/no/such/program: No such file or directory (os error 2)
  stage: service
"#,
    ),
    (
        "old-cpu",
        "a program that needs another cpu",
        r#"error: the service ended before it was ready, with signal 4 (SIGILL)
  stage: ready
  probe: tcp 7777
  hint: SIGILL: a program used an instruction that the machine's CPU (x86-64-v2) does not have; write `cpu = "x86-64-v3"` in the Smolfile
"#,
    ),
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
