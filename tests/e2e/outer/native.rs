//! The native guest, which runs on any KVM: built and restored on this machine's own.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use smol_tests::host::Host;
use smol_tests::suite::{Suite, Verdict};
use smol_tests::support::{LIMIT, Running, eventually, names, run};

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a Host) {
    suite.group("native");
    suite.test(
        "the native guest is built on this host's own KVM and goes on where it was frozen",
        || with_kvm(|| native(host)),
    );
    suite.test(
        "a build onto a full disk says so and leaves nothing but the facts",
        || with_kvm(|| full_disk(host)),
    );
}

/// Runs a test that needs KVM of some sort.
pub fn with_kvm<V: Into<Verdict>>(test: impl FnOnce() -> V) -> Verdict {
    match fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => test().into(),
        Err(e) => Verdict::Skipped(format!("/dev/kvm: {e}")),
    }
}

fn build(host: &Host, out: &Path) -> Command {
    let mut command = host.build(&host.native, out);
    command.args(["--accel", "kvm"]);
    command
}

fn native(host: &Host) {
    let bundle = host.bundles.join("native.smolmachine");
    run(&mut build(host, &bundle)).succeed();
    for _ in 0..2 {
        let mut command = host.tools.run(&bundle, "native");
        let running = Running::start(command.args(["--accel", "kvm"]));
        running.await_stderr("native: restored in ");
        eventually("two rounds", LIMIT, || {
            running.stdout().contains("round 2\n").then_some(())
        });
        running.signal(Signal::INT);
        let outcome = running.finish(LIMIT);
        assert_eq!(outcome.code, Some(130), "{}", outcome.stderr);
        let printed = outcome.stdout.trim_start();
        assert!(printed.starts_with("round 1\nround 2\n"), "{printed}");
    }
    host.tools.assert_left(&[]);
}

/// A file system that is smaller than the bundle.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(at)
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(at))
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

fn full_disk(host: &Host) -> Verdict {
    let folder = host.folder("full");
    let Some(_small) = Small::mount(&folder) else {
        return Verdict::Skipped("a small file system cannot be mounted: not root".into());
    };
    let told = run(&mut build(host, &folder.join("x.smolmachine"))).fail(1);
    assert!(told.contains("No space left on device"), "{told}");
    // Nothing but the facts, for which there is space again.
    assert_eq!(names(&folder), ["x.json"]);
    let facts = fs::read(folder.join("x.json")).unwrap();
    let facts: Value = serde_json::from_slice(&facts).unwrap();
    assert_eq!(facts["failed"]["stage"], "sign", "{facts}");
    assert_eq!(facts["failed"]["code"], 1, "{facts}");
    Verdict::Passed
}
