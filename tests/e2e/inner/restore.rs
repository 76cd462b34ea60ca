//! Two machines of one bundle, side by side: the same past, and futures of their own.

use std::path::Path;

use crate::inner::InnerHost;
use smol_tests::suite::Suite;
use smol_tests::support::{
    LIMIT, ask, eventually, exchange, http_get, names, page, postgres, redis, tls_session,
    try_exchange, unix_time, value,
};
use smol_tests::tools::RunningMachine;

/// How far a restored machine's clock may be from the host's, beside the time that a question takes, s.
const DATE_ERROR: f64 = 0.5;

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a InnerHost) {
    suite.group("restore");
    suite.test(
        "two restored hello machines share their past and nothing else",
        || hello(host),
    );
    suite.test(
        "a restored child of hello serves its parent's files and its own",
        || child(host),
    );
    suite.test(
        "two restored redis machines hold the key from before the snapshot, and write apart",
        || redis_pair(host),
    );
    suite.test(
        "two restored python machines have a warm cache and random bytes of their own",
        || python(host),
    );
    suite.test(
        "two restored postgresql machines hold the same rows, and draw uuids of their own",
        || postgresql(host),
    );
    suite.test(
        "two restored web machines go on counting, and draw uuids and tls sessions of their own",
        || web(host),
    );
    suite.test(
        "restored ssh machines have made their host keys, and serve",
        || ssh(host),
    );
    suite.test(
        "two restored services share what they remember, and differ in randomness and machine id",
        || service(host),
    );
    suite.test(
        "a restored machine brings its second cpu online, and both work at once",
        || second_cpu(host),
    );
    suite.test("a kernel patches code that its other cpu runs", || {
        patched(host)
    });
    suite.test(
        "no thread of a machine may run on the first cpu of an emulated host",
        || first_cpu(host),
    );
    suite.test(
        "a machine that never runs stays in an emulated host, so that kvm patches none of its code",
        last_machine,
    );
    suite.test(
        "a cold boot of the same bundle runs its warm commands before it serves",
        || cold(host),
    );
    suite.test(
        "the kernel and the service lie where the build put them, and elsewhere at each cold boot",
        || addresses(host),
    );
}

/// Runs `check` with two machines of a bundle: the ports that lead to port `guest` of them, and when they
/// were started.
fn pair(host: &InnerHost, bundle: &str, guest: u16, check: impl FnOnce([u16; 2], Start)) {
    let path = host.bundle(bundle);
    let start = Start::now();
    let machines: [RunningMachine; 2] =
        ["one", "two"].map(|name| host.tools.start(&path, name, &[guest]));
    check(
        machines.each_ref().map(|machine| machine.port(guest)),
        start,
    );
}

/// When machines were started, in seconds since the Unix epoch.
#[derive(Clone, Copy)]
struct Start(f64);

impl Start {
    fn now() -> Self {
        Self(unix_time())
    }

    /// A date that a machine tells, maybe without a fraction, lies between its start and now.
    #[track_caller]
    fn assert_date(self, told: &str) {
        let told: f64 = told.parse().expect("a date in seconds");
        let (begin, now) = (self.0.floor() - DATE_ERROR, unix_time() + DATE_ERROR);
        assert!(
            (begin..=now).contains(&told),
            "the machine's clock says {told}, ours said {begin} before and says {now}"
        );
    }
}

#[track_caller]
fn assert_differ(what: &str, [one, two]: [&str; 2]) {
    assert!(!one.is_empty());
    assert_ne!(one, two, "{what} of two restored machines");
}

fn hello(host: &InnerHost) {
    pair(host, "hello", 8080, |ports, start| {
        let [one, two] = ports.map(|port| page(port, "/frozen.txt"));
        assert!(one.starts_with("frozen on boot "), "{one}");
        assert_eq!(one, two);
        let now = ports.map(|port| page(port, "/cgi-bin/now"));
        for key in ["random", "machine-id"] {
            assert_differ(key, now.each_ref().map(|text| value(text, key)));
        }
        for text in &now {
            start.assert_date(value(text, "time"));
        }
    });
}

fn child(host: &InnerHost) {
    let machine = host.tools.start(&host.bundle("child"), "child", &[8080]);
    let port = machine.port(8080);
    assert_eq!(page(port, "/added.txt"), "of the child\n");
    assert!(page(port, "/cgi-bin/now").contains("machine-id "));
    // Written by the parent's machine: that is not in its root file system.
    assert_eq!(http_get(port, "/frozen.txt").0, 404);
}

/// Redis shows nothing of its machine's randomness and identity; the service below does.
fn redis_pair(host: &InnerHost) {
    pair(host, "redis", 6379, |ports, start| {
        for port in ports {
            assert_eq!(
                redis(port, "GET greeting"),
                "$30\r\nhello from before the snapshot\r\n"
            );
            let time = redis(port, "TIME");
            start.assert_date(time.lines().nth(2).expect("seconds"));
        }
        assert_eq!(redis(ports[0], "SET mine 1"), "+OK\r\n");
        assert_eq!(redis(ports[1], "GET mine"), "$-1\r\n");
    });
}

fn python(host: &InnerHost) {
    pair(host, "python", 8000, |ports, start| {
        for port in ports {
            assert_eq!(page(port, "/primes"), "2262 primes\n");
        }
        let now = ports.map(|port| page(port, "/now"));
        for key in ["random", "uuid"] {
            assert_differ(key, now.each_ref().map(|text| value(text, key)));
        }
        for text in &now {
            start.assert_date(value(text, "time"));
        }
    });
}

/// Its processes were forked by one that was frozen, after the restore.
fn postgresql(host: &InnerHost) {
    pair(host, "postgresql", 5432, |ports, start| {
        let one = |port, statement: &str| postgres(port, statement).join(" ");
        for port in ports {
            assert_eq!(
                one(port, "SELECT text, sum FROM greeting"),
                "hello from before the snapshot 200"
            );
            let time = one(port, "SELECT extract(epoch FROM now())");
            start.assert_date(&time);
        }
        let uuids = ports.map(|port| one(port, "SELECT gen_random_uuid()"));
        assert_differ("uuids", uuids.each_ref().map(String::as_str));
        one(ports[0], "UPDATE greeting SET text = 'mine'");
        let texts = ports.map(|port| one(port, "SELECT text FROM greeting"));
        assert_eq!(texts, ["mine", "hello from before the snapshot"]);
    });
}

/// The workers of nginx have drawn from OpenSSL's generator before the snapshot, each from its own.
fn web(host: &InnerHost) {
    let bundle = host.bundle("web");
    let start = |name| host.tools.start(&bundle, name, &[8080, 8443]);
    let machines = ["one", "two"].map(start);
    let ports = machines.each_ref().map(|machine| machine.port(8080));
    for port in ports {
        assert_eq!(page(port, "/count"), "visit 5\n");
    }
    let identities = ports.map(|port| page(port, "/identity"));
    for key in ["random", "uuid"] {
        assert_differ(key, identities.each_ref().map(|text| value(text, key)));
    }
    let mut drawn = Vec::new();
    for machine in &machines {
        for _ in 0..4 {
            let (random, id) = tls_session(machine.port(8443));
            assert_eq!(id.len(), 32, "the id of a session");
            drawn.extend([random, id]);
        }
    }
    let count = drawn.len();
    drawn.sort();
    drawn.dedup();
    assert_eq!(drawn.len(), count, "TLS sessions had something in common");
}

/// The server reads its new key when it runs on: it starts anew, and drops who has come meanwhile.
fn ssh(host: &InnerHost) {
    pair(host, "ssh", 22, |ports, _| {
        for port in ports {
            eventually("an SSH server", LIMIT, || {
                let said = try_exchange(port, b"no client\r\n").ok()?;
                said.starts_with(b"SSH-2.0-OpenSSH").then_some(())
            });
        }
    });
}

fn service(host: &InnerHost) {
    pair(host, "service", 7777, |ports, start| {
        for port in ports {
            assert_eq!(ask(port, "recall"), "the past");
            let clock = ask(port, "clock");
            let nanoseconds: f64 = clock.split(' ').next().unwrap().parse().unwrap();
            start.assert_date(&(nanoseconds / 1e9).to_string());
        }
        for question in [
            "random",
            "read /etc/machine-id",
            "read /proc/sys/kernel/random/uuid",
            // What a [[restore]] command has made.
            "read /run/own",
        ] {
            let answers = ports.map(|port| ask(port, question));
            assert_differ(question, answers.each_ref().map(String::as_str));
        }
    });
}

/// A service with two CPUs online, and the port that leads to it.
fn start_smp<'a>(host: &'a InnerHost, name: &str) -> (RunningMachine<'a>, u16) {
    let machine = host.tools.start(&host.service(), name, &[7777]);
    let port = machine.port(7777);
    // The service does not wait for the second one.
    eventually("the second cpu", LIMIT, || {
        (ask(port, "read /sys/devices/system/cpu/online") == "0-1").then_some(())
    });
    (machine, port)
}

fn second_cpu(host: &InnerHost) {
    let (_machine, port) = start_smp(host, "smp");
    // Each of two threads, on a CPU of its own, waits for the other one without letting go of its CPU,
    // again and again.
    assert_eq!(ask(port, "pass 200"), "200");
}

/// An ordinary kernel dies of that in QEMU; ours has a patch against it (0012).
fn patched(host: &InnerHost) {
    let (_machine, port) = start_smp(host, "patched");
    assert_eq!(ask(port, "patch 500"), "500 1");
}

/// What guests there, QEMU damages.
fn first_cpu(host: &InnerHost) {
    let machine = host.tools.start(&host.service(), "cpus", &[7777]);
    assert_eq!(exchange(machine.port(7777), b"ping\n"), b"pong\n");
    let tasks = format!("/proc/{}/task", machine.pid());
    let allowed: Vec<String> = names(Path::new(&tasks))
        .iter()
        // One that has served the connection may be gone.
        .filter_map(|task| std::fs::read_to_string(format!("{tasks}/{task}/status")).ok())
        .map(|status| {
            let line = status.lines().find(|l| l.starts_with("Cpus_allowed_list:"));
            line.expect("Linux says so").to_owned()
        })
        .collect();
    assert!(allowed.len() > 2, "two vCPUs and more: {allowed:?}");
    assert!(
        allowed.iter().all(|line| line == "Cpus_allowed_list:\t1-2"),
        "{allowed:?}"
    );
}

/// Else KVM would patch its code when machines come and go, which QEMU cannot bear either.
fn last_machine() {
    let files = std::fs::read_dir("/proc/1/fd").expect("we are root");
    let links = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    let vcpus = links.filter(|link| link.to_string_lossy().starts_with("anon_inode:kvm-vcpu"));
    assert_eq!(vcpus.count(), 1);
}

fn cold(host: &InnerHost) {
    let start = Start::now();
    let machine = host
        .tools
        .start_with(&host.bundle("hello"), "cold", &[8080], &["--cold"]);
    let port = machine.port(8080);
    assert!(page(port, "/").contains("hello"));
    let warm = page(port, "/frozen.txt");
    assert!(
        warm.starts_with("frozen on boot "),
        "a cold boot runs the warm commands: {warm}"
    );
    start.assert_date(value(&page(port, "/cgi-bin/now"), "time"));
    let machine = host
        .tools
        .start_with(&host.service(), "cold-service", &[7777], &["--cold"]);
    assert_eq!(ask(machine.port(7777), "recall"), "the past");
    assert_eq!(ask(machine.port(7777), "read /run/own").len(), 16);
    assert_eq!(exchange(machine.port(7777), b"ping\n"), b"pong\n");
}

/// Two cold boots, because two kernels out of some hundred may lie at the same place.
fn addresses(host: &InnerHost) {
    let machines = [
        ("here", &[][..]),
        ("there", &[]),
        ("elsewhere", &["--cold"]),
        ("anywhere", &["--cold"]),
    ];
    let [here, there, elsewhere, anywhere] = machines.map(|(name, options)| {
        let machine = host
            .tools
            .start_with(&host.service(), name, &[7777], options);
        let symbols = ask(machine.port(7777), "read /proc/kallsyms");
        let kernel = symbols.lines().find(|line| line.ends_with(" _stext"));
        let kernel = kernel.expect("the kernel's first symbol").to_owned();
        let maps = ask(machine.port(7777), "read /proc/self/maps");
        let stack = maps.lines().find(|line| line.ends_with("[stack]"));
        (kernel, stack.expect("the service has a stack").to_owned())
    });
    assert_eq!(here, there);
    assert!(here.0 != elsewhere.0 || here.0 != anywhere.0, "{here:?}");
    assert!(here.1 != elsewhere.1 && elsewhere.1 != anywhere.1);
    assert!(!here.0.starts_with("0000000000000000"), "{here:?}");
}
