//! Machines whose service is an init: what it has started is frozen, restored and shut down with it.

use crate::inner::InnerHost;
use smol_tests::suite::Suite;
use smol_tests::support::{LIMIT, page, redis};

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a InnerHost) {
    suite.group("inits");
    suite.test(
        "a restored systemd has its units as they were frozen, and stops them when it is stopped",
        || systemd(host),
    );
    suite.test(
        "the init of an image is restored, and shuts down when it is stopped",
        || image(host, &[]),
    );
    suite.test("the init of an image boots cold", || {
        image(host, &["--cold"])
    });
}

fn systemd(host: &InnerHost) {
    let bundle = host.bundle("systemd");
    let machines = ["one", "two"].map(|name| host.tools.start(&bundle, name, &[6379]));
    let ports = machines.each_ref().map(|machine| machine.port(6379));
    for port in ports {
        assert_eq!(
            redis(port, "GET greeting"),
            "$30\r\nhello from before the snapshot\r\n"
        );
    }
    assert_eq!(redis(ports[0], "SET mine 1"), "+OK\r\n");
    assert_eq!(redis(ports[1], "GET mine"), "$-1\r\n");
    for machine in &machines {
        machine.stop(LIMIT.as_secs() as u32).succeed();
        let log = machine.log();
        for line in [
            "systemd[1]: Received SIGRTMIN+3.",
            "systemd[1]: Stopped redis-server.service",
        ] {
            assert!(log.contains(line), "{line:?} is not in: {log}");
        }
        assert_eq!(machine.ended()["reason"], "stopped");
    }
}

/// Its init is that of busybox, which starts a web server.
fn image(host: &InnerHost, options: &[&str]) {
    let bundle = host.bundle("init");
    let machine = host.tools.start_with(&bundle, "init", &[8080], options);
    let shown = page(machine.port(8080), "/cgi-bin/who");
    assert_eq!(shown, "1 is /bin/busybox in smol\n");
    machine.stop(LIMIT.as_secs() as u32).succeed();
    let log = machine.log();
    assert!(log.contains("going down\n"), "{log}");
}
