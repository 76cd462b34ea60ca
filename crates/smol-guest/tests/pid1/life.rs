//! Lives that go as planned: builds and their restores, cold boots, ends that were asked for.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use smol_protocol::*;

use super::host::{Guest, config, initramfs, touch_and_sleep};

pub fn ports_are_taken() {
    let mut guest = Guest::boot(&touch_and_sleep(), |_| {});
    guest.expect(&Event::Booted);
    assert!(guest.has_port(REQUEST_PORT) && guest.has_port(FORWARD_PORT));
    while guest.next() != Some(Event::Snapshot) {}
    guest.break_stream();
    guest.give_identity(false);
    assert_eq!(guest.request(&Request::Ping), Reply::Pong);
}

pub fn build_and_restore() {
    let script = "echo hello $COLOUR; echo oops >&2; exec httpd -f -p 8080 -h /www";
    let mut config = config(
        script,
        &json!({"http": {"port": 8080, "path": "/", "body": "^from before"}}),
    );
    config["warm"] =
        json!([{"cmd": ["sh", "-c", "echo warming; hostname > /www/warm"], "timeout_ms": 600_000}]);
    let look = "cat /etc/machine-id /sys/fs/cgroup/service/cgroup.events > /run/rekeyed";
    config["restore"] = json!([{"cmd": ["sh", "-c", look], "timeout_ms": 600_000}]);
    let visit = json!({"exec": {"cmd": ["touch", "/run/visited"]}});
    config["warm_restore"] = json!([{"probe": visit, "timeout_ms": 600_000}]);
    let mut guest = Guest::boot(&config, |_| {});
    guest.until_ready();
    guest.expect(&Event::WarmStarted { number: 1 });
    let status = ExitStatus::Exited(0);
    guest.expect(&Event::WarmFinished {
        number: 1,
        status,
        output_tail: "warming".into(),
    });
    guest.expect(&Event::Quiesced);
    guest.expect(&Event::Snapshot);
    // The log stream ended with the build, complete.
    assert_eq!(
        guest.output(),
        ("hello blue\nwarming\n".into(), "oops\n".into())
    );
    assert!(
        guest
            .read("/sys/fs/cgroup/service/cgroup.events")
            .contains("frozen 1")
    );
    assert_eq!(guest.read("/etc/machine-id"), "uninitialized\n");
    assert_eq!(guest.read("/etc/hostname"), "built\n");
    assert_eq!(
        guest.read("/proc/sys/net/ipv4/ip_unprivileged_port_start"),
        "0\n",
        "a user may listen on any port"
    );

    guest.break_stream();
    guest.give_identity(false);
    assert_eq!(guest.read("/run/clock"), "1800000000123456789");
    assert_eq!(
        guest.read("/etc/machine-id"),
        "09090909090949098909090909090909\n"
    );
    let rekeyed = guest.read("/run/rekeyed");
    assert!(
        rekeyed.contains("0909090909094909") && rekeyed.contains("frozen 1"),
        "with the new identity, while the service stands still: {rekeyed}"
    );
    assert_eq!(guest.read("/etc/hostname"), "clone\n");
    assert!(
        guest
            .read("/etc/hosts")
            .contains("127.0.0.1 localhost clone\n")
    );
    assert_eq!(guest.request(&Request::Ping), Reply::Pong);
    assert!(
        guest.get(8080, "/warm").ends_with("built\n"),
        "{}",
        guest.get(8080, "/warm")
    );
    assert!(guest.get(8081, "/").contains("refused"));
    assert!(
        !guest.path("/run/visited").exists(),
        "requests are made in a test restore alone"
    );

    assert_eq!(
        guest.request(&Request::Shutdown { grace_ms: 600_000 }),
        Reply::Ok
    );
    guest.expect(&Event::Stopping);
    guest.expect(&Event::ServiceExited {
        status: ExitStatus::Signaled(15),
    });
    guest.ends();
}

pub fn snapshot_device() {
    let mut guest = Guest::boot(&touch_and_sleep(), |root| {
        // A FIFO stands for the device: its write returns when it is read.
        assert!(
            Command::new("mkfifo")
                .arg(root.join("smol/device"))
                .status()
                .unwrap()
                .success()
        );
    });
    let device = guest.dir.path().join("smol/device");
    let reader = std::thread::spawn(move || fs::read_to_string(device).unwrap());
    guest.until_ready();
    guest.expect(&Event::Quiesced);
    assert_eq!(guest.next(), None);
    assert_eq!(guest.output().0, "up\n");
    assert_eq!(reader.join().unwrap(), "1");
    guest.give_identity(false);
    assert!(
        guest
            .read("/sys/fs/cgroup/service/cgroup.events")
            .contains("frozen 0")
    );
    guest.request(&Request::Shutdown { grace_ms: 600_000 });
    guest.expect(&Event::Stopping);
    guest.expect(&Event::ServiceExited {
        status: ExitStatus::Signaled(15),
    });
    guest.ends();
}

/// An EROFS image on a loop device, and what made it.
struct LoopDevice {
    path: String,
    _dir: tempfile::TempDir,
}

impl LoopDevice {
    fn with(fill: impl FnOnce(&Path)) -> Option<LoopDevice> {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        initramfs(&tree);
        fill(&tree);
        let image = dir.path().join("image");
        let made = Command::new("mkfs.erofs")
            .arg(&image)
            .arg(&tree)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !made.is_ok_and(|status| status.success()) {
            return None;
        }
        let output = Command::new("losetup")
            .args(["--find", "--show", "--read-only"])
            .arg(&image)
            .output()
            .ok()?;
        let path = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        output
            .status
            .success()
            .then_some(LoopDevice { path, _dir: dir })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
    }
}

/// Why it cannot be tried here, if it cannot.
pub fn cold_boot() -> Option<&'static str> {
    let device = LoopDevice::with(|tree| {
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::write(
            tree.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nsvc:x:101:102::/srv:/bin/sh\n",
        )
        .unwrap();
        fs::write(tree.join("etc/group"), "svc:x:102:\nextra:x:200:svc\n").unwrap();
        fs::write(
            tree.join("etc/machine-id"),
            "00000000000000000000000000000bad\n",
        )
        .unwrap();
        fs::create_dir_all(tree.join("run/svc")).unwrap();
        std::os::unix::fs::chown(tree.join("run/svc"), Some(101), Some(102)).unwrap();
        fs::set_permissions(tree.join("run/svc"), fs::Permissions::from_mode(0o750)).unwrap();
        fs::create_dir_all(tree.join("srv")).unwrap();
        fs::set_permissions(tree.join("srv"), fs::Permissions::from_mode(0o777)).unwrap();
    });
    let Some(device) = device else {
        return Some("needs mkfs.erofs and loop devices");
    };
    let script = "id; pwd; echo $HOME $USER; stat -c %a-%u-%g /run/svc; grep -c '^overlay / ' /proc/mounts; \
                  touch new; mkdir /run/svc/ready; grep ^0: /proc/self/cgroup; cat; while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 3";
    let mut config = config(
        script,
        &json!({"exec": {"cmd": ["stat", "/run/svc/ready"]}}),
    );
    config["service"]["user"] = json!("svc");
    config["service"]["workdir"] = json!("/srv");
    config["rootfs"] = json!({"device": device.path});
    config["mode"] = json!("run");
    let migrate = "touch /srv/migrated; echo migrated";
    config["warm"] = json!([{"cmd": ["sh", "-c", migrate], "timeout_ms": 600_000}]);
    let mut guest = Guest::boot(&config, |_| {});
    guest.expect(&Event::Booted);
    match guest.next() {
        Some(Event::Warning {
            stage: Stage::Boot,
            reason,
        }) => assert!(reason.contains("without DAX"), "{reason}"),
        other => panic!("a loop device has no DAX, but no warning came: {other:?}"),
    }
    let id = guest.read("/etc/machine-id");
    assert!(
        id.len() == 33 && !id.ends_with("00000bad\n") && &id[12..13] == "4",
        "{id}"
    );
    loop {
        match guest.next() {
            Some(Event::ServiceStarted { .. } | Event::ProbeFailed { .. }) => {}
            Some(Event::Ready { .. }) => break,
            other => panic!("{other:?}: {}", guest.console()),
        }
    }
    guest.expect(&Event::WarmStarted { number: 1 });
    guest.expect(&Event::WarmFinished {
        number: 1,
        status: ExitStatus::Exited(0),
        output_tail: "migrated".into(),
    });
    assert!(guest.path("/srv/migrated").exists(), "a cold boot warms up");
    fs::write(guest.path("/tmp/go"), "").unwrap();
    guest.expect(&Event::ServiceExited {
        status: ExitStatus::Exited(3),
    });
    let (out, err) = guest.output();
    assert_eq!(
        out.lines().collect::<Vec<_>>(),
        [
            "uid=101(svc) gid=102(svc) groups=102(svc),200(extra)",
            "/srv",
            "/srv svc",
            "750-101-102",
            "1",
            "0::/service",
            "migrated",
        ],
        "{err}"
    );
    guest.ends();
    None
}

pub fn ignores_sigterm() {
    // A child in a session of its own is beyond the process group, but not the cgroup.
    let script = "trap '' TERM; (sleep 1000 &); touch /run/up; while true; do sleep 1; done";
    let mut config = config(script, &json!({"file": {"path": "/run/up"}}));
    config["mode"] = json!("run");
    let mut guest = Guest::boot(&config, |_| {});
    guest.until_ready();
    let begin = Instant::now();
    assert_eq!(
        guest.request(&Request::Shutdown { grace_ms: 500 }),
        Reply::Ok
    );
    guest.expect(&Event::Stopping);
    guest.expect(&Event::ServiceExited {
        status: ExitStatus::Signaled(9),
    });
    assert!(begin.elapsed() >= Duration::from_millis(500));
    guest.ends();
}
