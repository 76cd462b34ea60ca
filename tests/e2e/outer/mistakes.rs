//! Builds that come to nothing before a machine is booted, and why.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use smol_tests::host::{Host, text};
use smol_tests::suite::{Suite, Verdict};
use smol_tests::support::{names, run};

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a Host) {
    suite.group("mistakes");
    suite.test("all mistakes of a Smolfile are shown at once", || {
        mistakes(host)
    });
    suite.test("a Smolfile that is not there is a usage error", || {
        no_smolfile(host)
    });
    suite.test(
        "a program that may not use /dev/kvm says so and how to fix it",
        || no_permission(host),
    );
}

fn mistakes(host: &Host) {
    let folder = host.folder("mistakes");
    let wrong = r#"
name = "Not a name"
memroy = "64MiB"
cpus = 99

[rootfs]
dir = "../outside"

[service]
cmd = []

[ready]
tcp = 70000
http = { port = 80 }
"#;
    fs::write(folder.join("Smolfile"), wrong).unwrap();
    let told = run(host
        .tools
        .smolbuild()
        .arg(&folder)
        .args(["-o", text(&folder.join("x"))]))
    .fail(2);
    let hints = [
        "Smolfile:2:",
        "Smolfile:3:1",
        "did you mean `memory`?",
        "Smolfile:4:",
        "../outside",
        "Smolfile:10:",
        "70000",
        "http",
    ];
    for words in hints {
        assert!(told.contains(words), "{words:?} is not in: {told}");
    }
    assert_eq!(names(&folder), ["Smolfile"]);
}

fn no_smolfile(host: &Host) {
    let folder = host.folder("empty");
    let told = run(host.tools.smolbuild().arg(&folder)).fail(2);
    assert!(told.contains("Smolfile"), "{told}");
}

/// As nobody, whose folders and programs must lie where nobody may look.
fn no_permission(host: &Host) -> Verdict {
    let Ok(device) = fs::metadata("/dev/kvm") else {
        return Verdict::Skipped("there is no /dev/kvm".into());
    };
    if !rustix::process::geteuid().is_root() {
        return Verdict::Skipped("only root can become nobody".into());
    }
    if device.permissions().mode() & 0o006 != 0 {
        return Verdict::Skipped("everybody may use /dev/kvm here".into());
    }
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    open(folder);
    for (from, name) in [
        (host.native.join("Smolfile"), "Smolfile"),
        (host.native.join("native.elf"), "native.elf"),
    ] {
        fs::copy(from, folder.join(name)).unwrap();
    }
    let program = folder.join("smolbuild");
    fs::copy(host.tools.programs.join("smolbuild"), &program).unwrap();
    open(&program);
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(&program)
        .arg(folder);
    command.args([
        "--accel",
        "kvm",
        "-o",
        text(&folder.join("out.smolmachine")),
    ]);
    command
        .env("SMOL_CACHE_DIR", folder.join("cache"))
        .env("NO_COLOR", "1");
    let told = run(&mut command).fail(5);
    assert!(told.contains("no permission to open /dev/kvm"), "{told}");
    assert!(told.contains("hint: ") && told.contains("sudo "), "{told}");
    assert!(!folder.join("out.smolmachine").exists());
    Verdict::Passed
}
