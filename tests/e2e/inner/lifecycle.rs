//! From `smolrun` to the machine's end, whatever ends it.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::inner::InnerHost;
use smol_tests::suite::Suite;
use smol_tests::support::{self, LIMIT, Running, ask, eventually, exchange, free_port, run};

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a InnerHost) {
    suite.group("lifecycle");
    suite.test(
        "a machine in the background is listed, has a log, is stopped and stays listed as that",
        || background(host),
    );
    suite.test(
        "a service in the background that ends leaves its exit code and its log",
        || own_end(host),
    );
    suite.test(
        "the service's exit code is that of smolrun in the foreground",
        || exit_code(host),
    );
    suite.test("a service cannot speak for smol-guest", || forged(host));
    suite.test("a service gives no verdict of smolrun's own", || {
        no_verdict(host)
    });
    suite.test("ctrl-c asks the service to stop", || ctrl_c(host));
    suite.test(
        "a service that ignores SIGTERM is stopped within the time",
        || stubborn(host),
    );
    suite.test(
        "a killed smolrun leaves no process, frees its port and its name, and is listed as that",
        || killed(host),
    );
    suite.test(
        "a port that is in use is told before a machine is made",
        || port_in_use(host),
    );
    suite.test("connections side by side bring every byte", || {
        many_bytes(host)
    });
}

/// Runs a machine in the foreground until its service runs; returns its port.
fn foreground(host: &InnerHost, name: &str) -> (Running, u16) {
    let port = free_port();
    let mut command = host.tools.run(&host.service(), name);
    let running = Running::start(command.args(["-p", &format!("{port}:7777")]));
    running.await_stderr("service: restored in ");
    (running, port)
}

fn background(host: &InnerHost) {
    let machine = host.tools.start(&host.service(), "life", &[7777]);
    let (port, record) = (machine.port(7777), machine.record());
    assert_eq!(
        (&record["machine"], &record["state"], &record["accel"]),
        (&"service".into(), &"running".into(), &"kvm".into())
    );
    ask(port, "say here I am");
    eventually("the line in the log", LIMIT, || {
        machine.log().contains("here I am\n").then_some(())
    });
    assert_eq!(machine.stop(10).succeed(), "life\n");
    assert!(
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(),
        "its port is still open"
    );
    assert_eq!(host.tools.ps(), Vec::<serde_json::Value>::new());
    assert_eq!(machine.ended()["reason"], "stopped");
    assert!(machine.log().ends_with("here I am\nstopping\n"));
    host.tools.assert_left(&["life"]);
}

fn own_end(host: &InnerHost) {
    let machine = host.tools.start(&host.service(), "own-end", &[7777]);
    let port = machine.port(7777);
    ask(port, "say a last word");
    ask(port, "exit 7");
    let mut wait = host.tools.smolrun();
    assert_eq!(run(wait.args(["wait", "own-end"])).succeed(), "7\n");
    let record = machine.ended();
    assert_eq!(
        (&record["exit_code"], &record["reason"]),
        (&7.into(), &"exit code 7".into())
    );
    assert!(machine.log().ends_with("a last word\n"));
    host.tools.assert_left(&["own-end"]);
}

fn exit_code(host: &InnerHost) {
    let (running, port) = foreground(host, "seven");
    ask(port, "say a last word");
    ask(port, "exit 7");
    let outcome = running.finish(LIMIT);
    assert_eq!(outcome.code, Some(7), "{outcome:?}");
    assert_eq!(outcome.stdout, "a last word\n");
    host.tools.assert_left(&[]);
}

fn forged(host: &InnerHost) {
    for cold in [false, true] {
        let port = free_port();
        let mut command = host.tools.run(&host.service(), "forger");
        command.args(["-p", &format!("{port}:7777")]);
        if cold {
            command.arg("--cold");
        }
        let running = Running::start(&mut command);
        running.await_stderr(if cold {
            "service: booted in "
        } else {
            "service: restored in "
        });
        let (reset, in_use) = (Errno::CONNRESET, Errno::ADDRINUSE);
        let errors = [reset, reset, in_use, in_use].map(|errno| errno.raw_os_error().to_string());
        assert_eq!(ask(port, "forge"), errors.join(" "), "cold: {cold}");
        assert_eq!(ask(port, "ping"), "pong");
        ask(port, "exit 7");
        let outcome = running.finish(LIMIT);
        assert_eq!(outcome.code, Some(7), "{outcome:?}");
    }
}

fn no_verdict(host: &InnerHost) {
    let (running, port) = foreground(host, "verdict");
    ask(port, "exit 4");
    let outcome = running.finish(LIMIT);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(
        outcome
            .stderr
            .contains("the service ended with exit code 4"),
        "{outcome:?}"
    );
}

fn ctrl_c(host: &InnerHost) {
    let (running, port) = foreground(host, "interrupted");
    assert_eq!(ask(port, "ping"), "pong");
    host.tools.ctrl_c_stops(running);
}

fn stubborn(host: &InnerHost) {
    let machine = host.tools.start(&host.service(), "stubborn", &[7777]);
    ask(machine.port(7777), "ignore-term");
    let begin = Instant::now();
    machine.stop(2).succeed();
    let took = begin.elapsed().as_secs_f64();
    assert!(took >= 2.0, "it was given {took} s");
    assert_eq!(host.tools.ps(), Vec::<serde_json::Value>::new());
}

fn killed(host: &InnerHost) {
    let machine = host.tools.start(&host.service(), "victim", &[7777]);
    let (pid, port) = (machine.pid(), machine.port(7777));
    let below = support::descendants(pid);
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    support::await_gone(&below, LIMIT);
    eventually("the end of every smolrun", LIMIT, || {
        support::processes()
            .iter()
            .all(|(process, _)| process.name != "smolrun")
            .then_some(())
    });
    eventually("the port", LIMIT, || {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()
    });
    assert_eq!(host.tools.ps(), Vec::<serde_json::Value>::new());
    assert_eq!(machine.ended()["reason"], "killed");
    let again = host.tools.start(&host.service(), "victim", &[7777]);
    assert_eq!(ask(again.port(7777), "recall"), "the past");
}

fn port_in_use(host: &InnerHost) {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    for more in [&[][..], &["-d"]] {
        let mut command = host.tools.run(&host.service(), "late");
        let told = run(command.args(["-p", &format!("{port}:7777")]).args(more)).fail(1);
        assert!(
            told.contains(&format!("port {port} on 127.0.0.1 is already in use")),
            "{told}"
        );
        assert_eq!(host.tools.ps(), Vec::<serde_json::Value>::new());
    }
    host.tools.assert_left(&[]);
}

fn many_bytes(host: &InnerHost) {
    const COUNT: usize = 1 << 20;
    let machine = host.tools.start(&host.service(), "bytes", &[7777]);
    let port = machine.port(7777);
    let wanted: Vec<u8> = (0..COUNT).map(|i| (i * 31 + (i >> 8)) as u8).collect();
    let readers: Vec<_> = (0..4)
        .map(|_| thread::spawn(move || exchange(port, format!("bytes {COUNT}\n").as_bytes())))
        .collect();
    for reader in readers {
        let got = reader.join().expect("the exchange goes well");
        assert!(
            got == wanted,
            "{} bytes came, not those that were sent",
            got.len()
        );
    }
}
