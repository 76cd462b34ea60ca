//! What differs between two bundles, asked of two machines that differ on purpose.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use smol_tests::host::{Host, smolfile};
use smol_tests::suite::Suite;
use smol_tests::support::run;

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a Host) {
    suite.group("diff");
    suite.test(
        "diff names what was made different, down to the process",
        || differ(host),
    );
    suite.test("diff knows the same, the damaged and the missing", || {
        same_damaged_missing(host)
    });
}

/// The machine "service" with another file and another variable in its environment.
fn variant(host: &Host) -> PathBuf {
    let text = fs::read_to_string(smolfile(host, "service")).unwrap();
    let text = text.replace("[service]\n", "[service]\nenv = { COLOUR = \"green\" }\n");
    let copy = "[[copy]]\nsrc = \"note\"\ndest = \"/etc/note\"\n";
    fs::write(host.machines.join("note"), "green").unwrap();
    let path = smolfile(host, "variant");
    fs::write(&path, text + copy).unwrap();
    path
}

fn differ(host: &Host) {
    let (a, b) = (
        host.bundle("service"),
        host.bundles.join("variant.smolmachine"),
    );
    run(&mut host.build(&variant(host), &b)).succeed();

    let outcome = run(host.tools.smolbuild().arg("diff").args([&a, &b]));
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    let said = outcome.stdout;
    for words in [
        "COLOUR",
        "+ /etc/note",
        "~ /smol/config.json",
        "\nmemory: ",
        " of process service (",
        "\n  (which pages, and where: --all)\n",
    ] {
        assert!(said.contains(words), "{words:?} is not in: {said}");
    }
    let mut json = host.tools.smolbuild();
    let json = run(json.args(["diff", "--json"]).args([&a, &b]));
    assert_eq!(json.code, Some(1), "{}", json.stderr);
    let report: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(report["same"], false);
    assert_eq!(report["kernel"], Value::Null);
    assert_eq!(report["rootfs"]["files"][0]["path"], "/etc/note");
    assert_eq!(report["rootfs"]["files"][0]["kind"], "added");
    // Our kernel tells where things are, and the environment is on the service's stack.
    assert_eq!(report["memory"]["notes"], Value::Array(Vec::new()));
    let owners = report["memory"]["owners"].as_array().unwrap();
    let owners: Vec<&str> = owners.iter().filter_map(|o| o["owner"].as_str()).collect();
    for begin in ["process service (", "page tables of process service ("] {
        assert!(
            owners.iter().any(|o| o.starts_with(begin)),
            "{begin}: {owners:#?}"
        );
    }
}

fn same_damaged_missing(host: &Host) {
    let a = host.bundle("service");
    let copy = host.folder("diff").join("copy.smolmachine");
    let mut bytes = fs::read(&a).unwrap();
    fs::write(&copy, &bytes).unwrap();
    let said = run(host.tools.smolbuild().arg("diff").args([&a, &copy])).succeed();
    assert!(said.starts_with("the same: sha256:"), "{said}");
    assert_eq!(said.lines().count(), 1);

    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&copy, &bytes).unwrap();
    run(host.tools.smolbuild().arg("diff").args([&a, &copy])).fail(4);
    let missing = Path::new("no-such.smolmachine");
    run(host.tools.smolbuild().arg("diff").args([&a, missing])).fail(2);
}
