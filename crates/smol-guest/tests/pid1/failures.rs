//! What goes wrong, and what the host is told of it.

use serde_json::json;
use smol_protocol::*;

use super::host::{Guest, config, touch_and_sleep};

pub fn ends_early() {
    let config = config("echo no luck; exit 7", &json!({"tcp": {"port": 8080}}));
    let mut guest = Guest::boot(&config, |_| {});
    let failure = guest.failure();
    let reason = &failure.reason;
    assert_eq!(
        (failure.stage, failure.status),
        (Stage::Ready, Some(ExitStatus::Exited(7)))
    );
    assert_eq!(failure.probe, Some(Probe::Tcp { port: 8080 }));
    assert!(reason.contains("exit code 7"), "{reason}");
    assert_eq!(guest.output().0, "no luck\n");
    guest.ends();
}

pub fn missing_program() {
    let mut config = touch_and_sleep();
    config["service"]["cmd"] = json!(["/usr/bin/redis-server"]);
    let mut guest = Guest::boot(&config, |_| {});
    let failure = guest.failure();
    let reason = &failure.reason;
    assert_eq!(failure.stage, Stage::Service);
    assert!(
        reason.contains("cannot run /usr/bin/redis-server: No such file"),
        "{reason}"
    );
    guest.ends();
}

pub fn warm_fails() {
    let mut config = touch_and_sleep();
    config["warm"] =
        json!([{"cmd": ["sh", "-c", "echo table is missing >&2; exit 5"], "timeout_ms": 600_000}]);
    let mut guest = Guest::boot(&config, |_| {});
    let failure = guest.failure();
    let reason = &failure.reason;
    assert_eq!(
        (failure.stage, failure.status),
        (Stage::Warm, Some(ExitStatus::Exited(5)))
    );
    assert_eq!(failure.last_saw.as_deref(), Some("table is missing"));
    assert_eq!(
        reason,
        "[[warm]] command 1 (sh -c echo table is missing >&2; exit 5) ended with exit code 5"
    );
    guest.ends();
}

pub fn restore_fails() {
    let mut config = touch_and_sleep();
    config["restore"] =
        json!([{"cmd": ["sh", "-c", "echo no entropy >&2; exit 6"], "timeout_ms": 600_000}]);
    let mut guest = Guest::boot(&config, |_| {});
    guest.until_ready();
    guest.expect(&Event::Quiesced);
    guest.expect(&Event::Snapshot);
    guest.break_stream();
    guest.give_parameters(false);
    let failure = guest.failure();
    let reason = &failure.reason;
    assert_eq!(failure.stage, Stage::Restore);
    assert_eq!(failure.last_saw.as_deref(), Some("no entropy"));
    assert_eq!(
        reason,
        "[[restore]] command 1 (sh -c echo no entropy >&2; exit 6) ended with exit code 6"
    );
    guest.ends();
}

pub fn no_identity() {
    let mut guest = Guest::boot(&touch_and_sleep(), |_| {});
    guest.until_ready();
    guest.expect(&Event::Quiesced);
    guest.expect(&Event::Snapshot);
    guest.break_stream();
    guest.meet_again();
    guest.send(b"{\"entropy\":\"00\"}\n");
    let failure = guest.failure();
    let reason = &failure.reason;
    assert_eq!(failure.stage, Stage::Restore);
    assert!(reason.starts_with("restore parameters: "), "{reason}");
    guest.ends();
}
