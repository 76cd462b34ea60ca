//! Test restores: what a restored machine is asked while the builder records the pages that it uses.

use serde_json::{Value, json};
use smol_protocol::*;

use super::host::{Guest, config};

/// A web server that is frozen, and brought back for a test restore with these requests.
fn test_restore(requests: &[Value]) -> Guest {
    let mut config = config(
        "exec httpd -f -p 8080 -h /www",
        &json!({"tcp": {"port": 8080}}),
    );
    config["warm_restore"] = requests.into();
    let mut guest = Guest::boot(&config, |_| {});
    guest.until_ready();
    guest.expect(&Event::Quiesced);
    guest.expect(&Event::Snapshot);
    guest.break_stream();
    guest.give_identity(true);
    guest.expect(&Event::Ready { attempts: 1 });
    guest
}

fn exec(script: &str) -> Value {
    json!({"probe": {"exec": {"cmd": ["sh", "-c", script]}}, "timeout_ms": 600_000})
}

fn http(path: &str) -> Value {
    json!({"probe": {"http": {"port": 8080, "path": path}}, "timeout_ms": 600_000})
}

pub fn all_are_made() {
    let mut guest = test_restore(&[
        exec("cat /etc/machine-id /sys/fs/cgroup/service/cgroup.events > /run/seen"),
        exec("grep -q 0909 /run/seen && hostname > /www/made"),
        http("/made"),
        json!({"probe": {"tcp": {"port": 8080}}, "timeout_ms": 600_000}),
    ]);
    guest.expect(&Event::TestRestored);
    let seen = guest.read("/run/seen");
    assert!(
        seen.contains("frozen 0"),
        "with the new identity, while the service runs: {seen}"
    );
    assert_eq!(guest.read("/www/made"), "clone\n");
    guest.request(&Request::Shutdown { grace_ms: 600_000 });
    guest.expect(&Event::Stopping);
    guest.expect(&Event::ServiceExited {
        status: ExitStatus::Signaled(15),
    });
    guest.ends();
}

/// Makes these requests, one of which fails; returns the reason, what the probe saw, and how the
/// service ended.
fn failing(requests: &[Value]) -> (String, String, Option<ExitStatus>) {
    let mut guest = test_restore(requests);
    let failure = guest.failure();
    assert_eq!(failure.stage, Stage::TestRestore);
    let probe = failure.probe.expect("what was asked").to_string();
    guest.ends();
    (
        failure.reason,
        format!("{probe}: {}", failure.last_saw.unwrap_or_default()),
        failure.status,
    )
}

pub fn one_fails() {
    let (reason, saw, _) = failing(&[http("/index.html"), http("/nothing"), exec("touch /too")]);
    assert_eq!(
        reason,
        "request 2 of [[warm_restore]] was not answered as it must be"
    );
    assert!(saw.starts_with("http :8080/nothing: HTTP 404: "), "{saw}");

    let (_, saw, _) = failing(&[exec("echo no such key; exit 4")]);
    assert!(saw.ends_with(": exit code 4: no such key"), "{saw}");

    let mut slow = exec("echo working; sleep 1000");
    slow["timeout_ms"] = json!(5000);
    let (reason, saw, _) = failing(&[slow]);
    assert_eq!(
        reason,
        "request 1 of [[warm_restore]] was not answered within 5 s (guest time)"
    );
    assert!(saw.contains(": no answer in time"), "{saw}");
}

pub fn one_ends_the_service() {
    let end = "kill -9 $(head -n 1 /sys/fs/cgroup/service/cgroup.procs); sleep 1000";
    let (reason, _, status) = failing(&[exec(end)]);
    assert_eq!(
        reason,
        "request 1 of [[warm_restore]] ended the service, with signal 9 (SIGKILL)"
    );
    assert_eq!(status, Some(ExitStatus::Signaled(9)));
}
