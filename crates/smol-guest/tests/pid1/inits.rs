//! A service that is an init: PID 1 of namespaces of its own, next to which probes and commands run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};
use smol_protocol::*;

use super::host::{Guest, config};

/// What the init starts: it shows what it sees, on stdout and on the console.
const BOOT: &str = "#!/bin/sh
echo started by $PPID in $container with $COLOUR
echo on the console > /dev/console
readlink /proc/1/exe
grep ^0: /proc/self/cgroup
grep -c ' /sys sysfs ro,' /proc/mounts
test -e /dev/pmem0 || test -e /dev/smol || test -e /dev/kmsg || echo only devices of containers
test -c /dev/null && test -c /dev/pts/ptmx && mkdir /sys/fs/cgroup/unit && mkdir /run/booted
";
const INITTAB: &str = "::sysinit:/bin/boot
::respawn:/bin/sleep 1000
::shutdown:/bin/down
";

/// Puts an init into an initramfs, with what it starts.
fn busybox_init(root: &Path) {
    fs::create_dir_all(root.join("sbin")).unwrap();
    fs::create_dir_all(root.join("etc")).unwrap();
    symlink("/bin/busybox", root.join("sbin/init")).unwrap();
    for applet in ["readlink", "test", "poweroff", "umount", "kill", "ls"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/inittab"), INITTAB).unwrap();
    for (name, script) in [("boot", BOOT), ("down", "#!/bin/sh\necho going down\n")] {
        let path = root.join("bin").join(name);
        fs::write(&path, script).unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn init(probe: &Value) -> Value {
    let mut config = config("", probe);
    config["service"] = json!({"cmd": ["/sbin/init"], "env": {"COLOUR": "blue"}});
    config
}

pub fn lives() {
    // It runs in the namespaces of the init.
    let probe =
        "test -d /run/booted && test $(readlink /proc/1/exe) = /bin/busybox && test $$ -gt 1";
    let mut config = init(&json!({"exec": {"cmd": ["sh", "-c", probe]}}));
    let command = |script: &str| json!([{"cmd": ["sh", "-c", script], "timeout_ms": 600_000}]);
    config["warm"] = command("grep ^0: /proc/self/cgroup; echo $COLOUR; ls -d /sys/fs/cgroup/unit");
    config["restore"] =
        command("readlink /proc/1/exe > /run/restored; cat /etc/machine-id >> /run/restored");
    let mut guest = Guest::boot(&config, busybox_init);
    guest.until_ready();
    guest.expect(&Event::WarmStarted { number: 1 });
    guest.expect(&Event::WarmFinished {
        number: 1,
        status: ExitStatus::Exited(0),
        output_tail: "0::/smol-commands\nblue\n/sys/fs/cgroup/unit".into(),
    });
    guest.expect(&Event::Quiesced);
    guest.expect(&Event::Snapshot);
    let (out, _) = guest.output();
    for line in [
        "started by 1 in smol with blue",
        "on the console",
        "/bin/busybox",
        "0::/",
        "only devices of containers",
    ] {
        assert!(out.lines().any(|l| l == line), "{line:?} is not in: {out}");
    }
    let id = guest.read("/etc/machine-id");
    assert!(id.len() == 33 && id != "uninitialized\n", "{id}");
    let events = guest.read("/sys/fs/cgroup/service/cgroup.events");
    assert!(events.contains("frozen 1"), "{events}");

    guest.break_stream();
    guest.give_identity(false);
    assert_eq!(
        guest.read("/run/restored"),
        "/bin/busybox\n09090909090949098909090909090909\n",
        "while the init stands still"
    );
    guest.request(&Request::Shutdown { grace_ms: 600_000 });
    guest.expect(&Event::Stopping);
    guest.expect(&Event::ServiceExited {
        status: ExitStatus::Exited(0),
    });
    let (out, _) = guest.output();
    assert!(out.contains("going down\n"), "{out}");
    guest.ends();
}

pub fn ends_early() {
    let mut config = init(&json!({"file": {"path": "/run/never"}}));
    config["service"]["stop_signal"] = json!(15);
    let mut guest = Guest::boot(&config, |root| {
        busybox_init(root);
        let text = "::sysinit:/bin/boot\n::once:/bin/poweroff\n::shutdown:/bin/down\n";
        fs::write(root.join("etc/inittab"), text).unwrap();
    });
    let failure = guest.failure();
    assert_eq!(failure.status, Some(ExitStatus::Exited(0)));
    assert_eq!(
        failure.reason,
        "the service ended before it was ready, with exit code 0"
    );
    let (out, _) = guest.output();
    assert!(out.contains("going down\n"), "{out}");
    guest.ends();
}

pub fn is_an_ordinary_program() {
    let mut config = init(&json!({"file": {"path": "/run/up"}}));
    config["service"]["init"] = json!(false);
    let mut guest = Guest::boot(&config, |root| {
        fs::create_dir_all(root.join("sbin")).unwrap();
        let script = "#!/bin/sh\ntest $$ -gt 1 && touch /run/up\nsleep 1000\n";
        fs::write(root.join("sbin/init"), script).unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(root.join("sbin/init"), mode).unwrap();
    });
    guest.until_ready();
    assert_eq!(guest.read("/etc/machine-id"), "uninitialized\n");
}
