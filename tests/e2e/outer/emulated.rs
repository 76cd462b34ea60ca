//! `smolrun` where there is no KVM: the machine runs in an emulated host of its own.

use std::net::{Ipv4Addr, TcpStream};

use rustix::process::{Pid, Signal, kill_process};

use smol_host::emulated::SELF;
use smol_testing::backdoor;
use smol_tests::host::{Host, built_program, smolfile};
use smol_tests::suite::{Suite, Verdict};
use smol_tests::support::{
    LIMIT, Running, ask, await_gone, descendants, eventually, free_port, run, try_exchange,
};

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a Host) {
    suite.group("emulated");
    suite.test(
        "in an emulated host a machine serves, and its exit code comes out",
        || foreground(host),
    );
    suite.test(
        "an emulated host is asked for by the name of a CPU model, or refused",
        || cpu_model(host),
    );
    suite.test(
        "a host whose cpu lacks something says what, and boots the machine cold",
        || older_cpu(host),
    );
    suite.test(
        "--accel kvm is refused where kvm runs no ordinary kernel, with what doctor says of it",
        || software_kvm(host),
    );
    suite.test(
        "in an emulated host ctrl-c asks the service to stop",
        || ctrl_c(host),
    );
    suite.test(
        "a guest that has taken over the smolrun in the emulated host gets nothing of it",
        || backdoor(host),
    );
    suite.test("ctrl-c ends an emulated host that still boots", || {
        early_ctrl_c(host)
    });
    suite.test(
        "in an emulated host a machine in the background leaves no process when it is killed",
        || killed(host),
    );
}

fn foreground(host: &Host) {
    let port = free_port();
    let mut command = host.tools.run(&host.bundle("service"), "emulated");
    let running =
        Running::start(command.args(["--accel", "emulated", "-p", &format!("{port}:7777")]));
    running.await_stderr("service: restored in ");
    assert_eq!(ask(port, "recall"), "the past");
    ask(port, "say so");
    let below = descendants(running.pid());
    assert!(
        below.iter().any(|process| process.name.starts_with("qemu")),
        "{below:?}"
    );
    ask(port, "exit 6");
    let outcome = running.finish(LIMIT);
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(6), "so\n"),
        "{}",
        outcome.stderr
    );
    await_gone(&below, LIMIT);
    host.tools.assert_left(&[]);
}

fn cpu_model(host: &Host) {
    let mut command = host.tools.run(&host.bundle("service"), "model");
    command.args(["--accel", "emulated"]);
    let told = run(command.env("SMOL_EMULATED_CPU", "max,svm=off")).fail(5);
    assert!(
        told.contains("SMOL_EMULATED_CPU") && told.contains("-cpu help"),
        "{told}"
    );
    let mut command = host.tools.run(&host.bundle("service"), "model");
    command.args(["--accel", "emulated"]);
    let running = Running::start(command.env("SMOL_EMULATED_CPU", "EPYC-Rome"));
    eventually("QEMU with that model", LIMIT, || {
        let below = descendants(running.pid());
        below
            .iter()
            .any(|process| process.arguments().contains("-cpu\0EPYC-Rome\0"))
            .then_some(())
    });
    running.signal(Signal::INT);
    assert_eq!(running.finish(LIMIT).code, Some(130));
}

/// Its CPU is as it was before AVX2.
fn older_cpu(host: &Host) {
    let port = free_port();
    let mut command = host.tools.run(&host.bundle("service"), "older");
    command.args(["--accel", "emulated", "-p", &format!("{port}:7777")]);
    let running = Running::start(command.env("SMOL_EMULATED_CPU", "max,-avx2"));
    running.await_stderr(
        "smolrun: booting cold (the snapshot is incompatible with this CPU: \
         this host's CPU lacks avx2); running 1 warm command\n",
    );
    running.await_stderr("service: booted in ");
    assert_eq!(ask(port, "recall"), "the past");
    let info = ask(port, "read /proc/cpuinfo");
    assert!(
        info.contains(" sse4_2 ") && !info.contains(" avx "),
        "{info}"
    );
    running.signal(Signal::INT);
    let outcome = running.finish(LIMIT);
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(130), "serving\nok\nstopping\n"),
        "{}",
        outcome.stderr
    );
}

fn ctrl_c(host: &Host) {
    let mut command = host.tools.run(&host.bundle("service"), "emulated");
    let running = Running::start(command.args(["--accel", "emulated"]));
    running.await_stderr("service: restored in ");
    running.await_stderr("service listens on 7777: add -p 17777:7777 to reach it\n");
    host.tools.ctrl_c_stops(running);
}

fn early_ctrl_c(host: &Host) {
    let mut command = host.tools.run(&host.bundle("service"), "early");
    let running = Running::start(command.args(["--accel", "emulated"]));
    let below = eventually("QEMU", LIMIT, || {
        let below = descendants(running.pid());
        let runs = below.iter().any(|p| p.name.starts_with("qemu"));
        runs.then_some(below)
    });
    running.signal(Signal::INT);
    let outcome = running.finish(LIMIT);
    assert_eq!(outcome.code, Some(130), "{}", outcome.stderr);
    await_gone(&below, LIMIT);
    host.tools.assert_left(&[]);
}

fn killed(host: &Host) {
    let machine = host.tools.start_with(
        &host.bundle("service"),
        "doomed",
        &[7777],
        &["--accel", "emulated"],
    );
    let (pid, port) = (machine.pid(), machine.port(7777));
    assert_eq!(machine.record()["accel"], "emulated");
    assert_eq!(ask(port, "ping"), "pong");
    let below = descendants(pid);
    assert!(
        below.iter().any(|process| process.name.starts_with("qemu")),
        "{below:?}"
    );
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    await_gone(&below, LIMIT);
    eventually("the port", LIMIT, || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .is_err()
            .then_some(())
    });
    assert_eq!(host.tools.ps(), Vec::<serde_json::Value>::new());
    assert_eq!(machine.ended()["reason"], "killed");
    host.tools.assert_left(&["doomed"]);
}

/// What a guest attempts that has taken over the program inside: that is confined as on any host.
fn backdoor(host: &Host) -> Verdict {
    if let Some(missing) = smol_sandbox::missing() {
        return Verdict::Skipped(missing);
    }
    let program = backdoor::program("smolrun", &built_program("smolrun"));
    let start = |sandbox| {
        let port = free_port();
        let mut command = host
            .tools
            .run_by(&program, &host.bundle("service"), "taken");
        command.args(["--accel", "emulated", "-p", &format!("{port}:7777")]);
        let running = Running::start(command.env("SMOL_SANDBOX", sandbox));
        running.await_stderr("service: restored in ");
        (running, port)
    };
    let denied = [
        format!("read {SELF}"),
        "write /proc/sys/kernel/hostname".into(),
        "trace 1".into(),
    ];
    let killed = ["execute /smol", "listen 127.0.0.1:9", "signal 1"];
    let command = |attempt: &str| format!("console backdoor {attempt}");
    let await_end = |running: &Running, attempt: &str, end: &str| {
        let what = format!("{}: ", attempt.split(' ').next().unwrap_or_default());
        let said = eventually(&what, LIMIT, || {
            let said = running.stdout();
            let mut lines = said
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'));
            let line = lines.find_map(|line| line.strip_prefix(&what));
            line.map(str::to_owned)
        });
        assert!(said.starts_with(end), "{attempt}: {said}");
    };
    let (running, port) = start("off");
    for attempt in denied.iter().map(String::as_str).chain(killed) {
        ask(port, &command(attempt));
        await_end(&running, attempt, "done");
    }
    running.signal(Signal::INT);
    assert_eq!(running.finish(LIMIT).code, Some(130));
    for fatal in killed {
        let (running, port) = start("on");
        for attempt in &denied {
            ask(port, &command(attempt));
            await_end(&running, attempt, "Permission denied");
        }
        // The answer may be lost.
        let _ = try_exchange(port, format!("{}\n", command(fatal)).as_bytes());
        let outcome = running.finish(LIMIT);
        let end = "error: the smolrun in the emulated host died (signal 31)\n";
        assert!(outcome.stderr.ends_with(end), "{fatal}: {outcome:?}");
        assert_eq!(outcome.code, Some(1));
    }
    host.tools.assert_left(&[]);
    Verdict::Passed
}

fn software_kvm(host: &Host) -> Verdict {
    let Err(why) = smol_machine::probe::probe() else {
        return Verdict::Skipped("this host's KVM runs ordinary kernels".into());
    };
    let bundle = host.folder("software-kvm").join("x.smolmachine");
    let mut build = host.tools.smolbuild();
    build.arg(smolfile(host, "service")).arg("-o").arg(&bundle);
    build.arg("--rebuild");
    let mut start = host.tools.run(&host.bundle("service"), "kvm");
    for command in [&mut build, &mut start] {
        let told = run(command.args(["--accel", "kvm"])).fail(5);
        assert_eq!(
            told,
            format!("error: {why}\n  hint: use --accel emulated, which needs QEMU and is slow\n")
        );
    }
    let doctor = run(host.tools.smolrun().arg("doctor")).succeed();
    assert!(doctor.contains(&why.to_string()), "{doctor}");
    Verdict::Passed
}
