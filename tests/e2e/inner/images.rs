//! Machines of container images: what images say of themselves holds for the restored machine.

use std::path::Path;
use std::process::Command;

use crate::inner::builds::build;
use crate::inner::{InnerHost, MACHINES};
use smol_tests::suite::Suite;
use smol_tests::support::{LIMIT, Outcome, ask, exchange, http_get, page, run};
use smol_tests::tools::RunningMachine;

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a InnerHost) {
    suite.group("images");
    suite.test(
        "a restored machine of an image runs what the image says, as its user, in its environment",
        || image(host),
    );
    suite.test(
        "postgresql out of a registry answers who knows its password, and shuts down by sigint",
        || postgres(host),
    );
    suite.test(
        "nginx writes its logs to /dev/stdout and /dev/stderr, and ends its requests at sigquit",
        || nginx(host),
    );
    suite.test(
        "an image of one program runs it as its user, who has no name",
        || program(host),
    );
}

fn image(host: &InnerHost) {
    let machine = host.tools.start(&host.bundle("image"), "image", &[8080]);
    let port = machine.port(8080);
    assert_eq!(page(port, "/index.html"), "hello from an image\n");
    assert_eq!(
        page(port, "/cgi-bin/who"),
        "hello by web in /srv\n49 51 53 55 57 59 61 63 65 67\n"
    );
    // An upper layer has removed it.
    assert_eq!(http_get(port, "/old").0, 404);
    machine.stop(10).succeed();
    assert!(machine.log().ends_with("stopped by SIGINT\n"));
}

fn postgres(host: &InnerHost) {
    let bundle = host.bundle("postgres-image");
    let machine = host.tools.start(&bundle, "postgres-image", &[5432]);
    let port = machine.port(5432);
    let asked = psql(port, "frozen", "SELECT square FROM squares WHERE n = 111");
    assert_eq!(asked.succeed(), "12321\n");
    let refused = psql(port, "guessed", "TABLE squares").fail(2);
    assert!(
        refused.contains("password authentication failed"),
        "{refused}"
    );
    machine.stop(LIMIT.as_secs() as u32).succeed();
    let log = machine.log();
    for line in [
        "LOG:  received fast shutdown request\n",
        "LOG:  database system is shut down\n",
    ] {
        assert_eq!(log.matches(line).count(), 1, "{line:?} in: {log}");
    }
    assert_eq!(machine.ended()["reason"], "stopped");
}

/// Starts a machine that was just built here.
fn build_and_start<'a>(host: &'a InnerHost, name: &str, port: u16) -> RunningMachine<'a> {
    let (bundle, outcome) = build(host, name, &[]);
    outcome.succeed();
    let unsigned = &["--insecure-unsigned"];
    host.tools.start_with(&bundle, name, &[port], unsigned)
}

/// Of two lines, and without a health check.
fn nginx(host: &InnerHost) {
    let machine = build_and_start(host, "nginx", 80);
    let port = machine.port(80);
    assert_eq!(page(port, "/"), "welcome to nginx\n");
    let script = "/docker-entrypoint.d/10-test.sh: for the tests\n";
    assert_eq!(page(port, "/script"), script);
    assert_eq!(http_get(port, "/none").0, 404);
    machine.stop(LIMIT.as_secs() as u32).succeed();
    let log = machine.log();
    for words in [
        "\"GET / HTTP/1.0\" 200 17 ",
        "open() \"/usr/share/nginx/html/none\" failed",
        "signal 3 (SIGQUIT) received from 1, shutting down",
    ] {
        assert!(log.contains(words), "{words:?} is not in: {log}");
    }
}

fn program(host: &InnerHost) {
    let machine = build_and_start(host, "program", 7777);
    let port = machine.port(7777);
    assert_eq!(exchange(port, b"ping\n"), b"pong\n");
    let status = ask(port, "read /proc/self/status");
    for line in [
        "Uid:\t65532\t65532\t65532\t65532",
        "Gid:\t65532\t65532\t65532\t65532",
    ] {
        assert!(status.contains(line), "{line:?} is not in: {status}");
    }
}

/// Asks a server of PostgreSQL by its own client, which the outer half has put there.
fn psql(port: u16, password: &str, statement: &str) -> Outcome {
    let client = Path::new(MACHINES).join("client");
    let mut command = Command::new(client.join("ld-linux-x86-64.so.2"));
    command.arg("--library-path").arg(&client);
    command.arg(client.join("psql")).args([
        "--no-psqlrc",
        "--no-password",
        "--tuples-only",
        "--no-align",
        "--host=127.0.0.1",
        "--username=postgres",
    ]);
    command.arg(format!("--port={port}"));
    command.args(["--command", statement]);
    run(command.env("PGPASSWORD", password))
}
