//! Builds by the clock, and what bundles say of them.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::inner::{InnerHost, MACHINES};
use smol_tests::suite::Suite;
use smol_tests::support::{LIMIT, Outcome, ask, eventually, run};

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a InnerHost) {
    suite.group("builds");
    suite.test(
        "what a [[warm_restore]] request touches is in the working set",
        || asked(host),
    );
    suite.test(
        "avx registers are kept over a snapshot, and cpuinfo shows the level and nothing random",
        || avx(host),
    );
    suite.test(
        "a service that computes without pause is built by the host's time, which the bundle says",
        || spinning(host),
    );
    suite.test("fifty minutes of sleep cost a build no time", || late(host));
}

fn spinning(host: &InnerHost) {
    let (bundle, outcome) = build(host, "spin", &["--watchdog", "3"]);
    contains(
        &outcome.stderr,
        &["warning: not reproducible: watchdog tick at "],
    );
    outcome.succeed();
    let shown = run(host
        .tools
        .smolbuild()
        .args(["inspect", "--json"])
        .arg(&bundle))
    .succeed();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let claim = &shown["config"]["reproducible"];
    assert_eq!(claim["claimed"], false);
    contains(claim["reason"].as_str().unwrap(), &["watchdog tick at "]);
    let told = run(host.tools.smolbuild().arg("reproduce").arg(&bundle)).fail(1);
    contains(
        &told,
        &["spin does not claim to be reproducible: watchdog tick at "],
    );
}

fn avx(host: &InnerHost) {
    let (bundle, outcome) = build(host, "avx", &[]);
    outcome.succeed();
    let unsigned = &["--insecure-unsigned"];
    let machine = host.tools.start_with(&bundle, "avx", &[7777], unsigned);
    let port = machine.port(7777);
    let info = ask(port, "read /proc/cpuinfo");
    for flag in ["avx2", "bmi2", "fma", "aes", "pclmulqdq", "xsave"] {
        assert!(
            info.contains(&format!(" {flag} ")),
            "{flag} is not in {info}"
        );
    }
    for flag in ["rdrand", "rdseed", "xsaveopt", "xsavec"] {
        assert!(!info.contains(&format!(" {flag} ")), "{flag} is in {info}");
    }
    let kept = || ask(port, "kept");
    let before = kept();
    let later = eventually("another round", LIMIT, || {
        let now = kept();
        (now != before).then_some(now)
    });
    assert!(later.ends_with(" 0"), "{later}");
}

/// It would not end before its limit otherwise.
fn late(host: &InnerHost) {
    let facts = built(host, "late", &[]);
    let slept = facts["virtualMs"].as_u64().unwrap();
    assert!(slept > 3_000_000, "the guest's clock went {slept} ms");
    assert_eq!(
        facts["firstTickMs"],
        Value::Null,
        "the host's clock had no part in it"
    );
    let limit = LIMIT.as_millis() as u64;
    assert!(limit < slept, "{limit} ms");
}

/// Beside the machine whose service is asked nothing.
fn asked(host: &InnerHost) {
    const TOUCHED: u64 = (16 << 20) / 4096;
    let pages = |machine| {
        let facts = built(host, machine, &[]);
        facts["workingSet"]["memoryPages"].as_u64().unwrap()
    };
    let (with, without) = (pages("asked"), pages("service"));
    assert!(
        with > without + TOUCHED / 2,
        "{with} pages with the request, {without} without"
    );
}

/// Builds a machine with these options; where its bundle goes.
pub fn build(host: &InnerHost, machine: &str, options: &[&str]) -> (PathBuf, Outcome) {
    let folder = Path::new("/tmp/out");
    std::fs::create_dir_all(folder).unwrap();
    let bundle = folder.join(machine).with_extension("smolmachine");
    let smolfile = Path::new(MACHINES).join(machine).with_extension("toml");
    let mut command = host.tools.smolbuild();
    command.arg(smolfile).arg("-o").arg(&bundle).args(options);
    (bundle, run(&mut command))
}

/// What its metadata say of a machine once it is frozen.
#[track_caller]
fn built(host: &InnerHost, machine: &str, options: &[&str]) -> Value {
    let file = "/tmp/out/metadata.json";
    let options = [options, &["--metadata-file", file]].concat();
    build(host, machine, &options).1.succeed();
    json(Path::new(file))["frozen"].take()
}

fn json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[track_caller]
fn contains(told: &str, wanted: &[&str]) {
    for words in wanted {
        assert!(told.contains(words), "{words:?} is not in: {told}");
    }
}
