//! Asking the service whether it is ready. A probe either succeeds or says what it saw
//! instead; the last of these is what a failed build shows.

pub(super) mod http;
mod tcp;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use regex_lite::Regex;

use super::notify::{NOTIFY_PATH, NotifySocket};
use super::process::{Output, World};
use super::supervisor::{Interrupt, Supervisor};
use smol_protocol::{Event, Probe, Ready};

/// An attempt that hangs counts as failed after this time.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);

/// How a probe came out; the inner error is what it saw.
pub(super) type Attempt = Result<Result<(), String>, Interrupt>;

/// Why the service did not get ready.
#[derive(Debug)]
pub(super) enum NotReady {
    /// Time is up; what the probe last saw.
    Timeout(String),
    /// Something came between; what the probe had seen until then.
    Interrupted(Interrupt, Option<String>),
    /// The probe itself cannot be made.
    Unusable(String),
}

/// What must be there before the service starts: a socket or a pattern. Returns what goes
/// into the service's environment.
pub(super) fn prepare(
    probe: &Probe,
    sup: &mut Supervisor,
) -> Result<Option<(String, String)>, String> {
    match probe {
        Probe::Notify => {
            let socket = NotifySocket::bind(Path::new(NOTIFY_PATH))
                .map_err(|e| format!("{NOTIFY_PATH}: {e}"))?;
            sup.notify = Some(socket);
            Ok(Some(("NOTIFY_SOCKET".to_owned(), NOTIFY_PATH.to_owned())))
        }
        Probe::Log { pattern } => {
            sup.match_lines(Regex::new(pattern).map_err(|e| format!("probe.log.pattern: {e}"))?);
            Ok(None)
        }
        _ => Ok(None),
    }
}

/// Waits until the service is ready; how many attempts it took.
pub(super) fn wait_ready(
    ready: &Ready,
    sup: &mut Supervisor,
    world: &World,
) -> Result<u32, NotReady> {
    let deadline = Instant::now() + Duration::from_millis(ready.timeout_ms);
    match ready.probe {
        Probe::Log { .. } | Probe::Notify => wait_for_word(sup, deadline),
        _ => ask_repeatedly(ready, sup, world, deadline),
    }
}

/// The service says by itself when it is ready: every round of the supervisor may bring it.
fn wait_for_word(sup: &mut Supervisor, deadline: Instant) -> Result<u32, NotReady> {
    loop {
        let (said, saw) = match (&sup.notify, &sup.matcher) {
            (Some(notify), _) => (notify.ready(), notify.saw()),
            (_, Some(matcher)) => (matcher.found(), matcher.saw()),
            (None, None) => {
                return Err(NotReady::Unusable("the probe was not prepared".to_owned()));
            }
        };
        sup.check()
            .map_err(|interrupt| NotReady::Interrupted(interrupt, Some(saw.clone())))?;
        if said {
            return Ok(1);
        }
        if Instant::now() >= deadline {
            return Err(NotReady::Timeout(saw));
        }
        sup.step(None, Some(deadline));
    }
}

fn ask_repeatedly(
    ready: &Ready,
    sup: &mut Supervisor,
    world: &World,
    deadline: Instant,
) -> Result<u32, NotReady> {
    let mut in_a_row = 0;
    let mut last_saw: Option<String> = None;
    for attempt in 1.. {
        let limit = deadline.min(Instant::now() + ATTEMPT_LIMIT);
        let outcome = try_once(&ready.probe, sup, world, limit)
            .map_err(|interrupt| NotReady::Interrupted(interrupt, last_saw.clone()))?;
        match outcome {
            Ok(()) => {
                in_a_row += 1;
                if in_a_row >= ready.successes {
                    return Ok(attempt);
                }
            }
            Err(saw) => {
                in_a_row = 0;
                // The same answer many times over is told once.
                if last_saw.as_ref() != Some(&saw) {
                    sup.control.send(&Event::ProbeFailed {
                        attempt,
                        saw: saw.clone(),
                    });
                    last_saw = Some(saw);
                }
            }
        }
        let next = Instant::now() + Duration::from_millis(ready.interval_ms);
        if next >= deadline {
            break;
        }
        sup.sleep_until(next)
            .map_err(|interrupt| NotReady::Interrupted(interrupt, last_saw.clone()))?;
    }
    let saw = last_saw.unwrap_or_else(|| format!("only {in_a_row} successes in a row"));
    Err(NotReady::Timeout(match &ready.probe {
        Probe::Tcp { port } | Probe::Http { port, .. } => tcp::with_other_ports(saw, *port),
        Probe::Exec { cmd } => tcp::with_ports(saw, cmd),
        _ => saw,
    }))
}

/// Asks once, and waits for the answer until the deadline.
pub(super) fn try_once(
    probe: &Probe,
    sup: &mut Supervisor,
    world: &World,
    deadline: Instant,
) -> Attempt {
    match probe {
        Probe::Exec { cmd } => exec(cmd, sup, world, deadline),
        Probe::Tcp { port } => Ok(tcp::connect(*port, sup, deadline)?.map(drop)),
        Probe::Http {
            port,
            path,
            status,
            body,
        } => {
            let expect = http::Expect {
                status,
                body: body.as_deref(),
            };
            http::get(*port, path, &expect, sup, deadline)
        }
        Probe::File { path } => {
            let found = match world.namespaces() {
                Some(namespaces) => namespaces.holds(path),
                None => fs::symlink_metadata(path).map(drop),
            };
            Ok(found.map_err(|e| format!("{path}: {e}")))
        }
        Probe::Log { .. } | Probe::Notify => Ok(Err("not a probe that asks".to_owned())),
    }
}

fn exec(cmd: &[String], sup: &mut Supervisor, world: &World, deadline: Instant) -> Attempt {
    let pid = match sup.start(world, cmd, Output::Joined, false) {
        Ok(pid) => pid,
        Err(why) => return Ok(Err(why)),
    };
    let (status, output) = sup.finish(pid, deadline)?;
    let outcome = match status {
        Some(status) if status.success() => return Ok(Ok(())),
        Some(status) => status.to_string(),
        None => "no answer in time".to_owned(),
    };
    Ok(Err(if output.is_empty() {
        outcome
    } else {
        format!("{outcome}: {output}")
    }))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;
    use std::os::unix::net::UnixDatagram;

    use super::super::platform::HostLink;
    use super::super::process::tests::here;
    use super::*;
    use smol_protocol::ExitStatus;

    fn supervisor() -> Supervisor {
        Supervisor::new(HostLink::Local("no-host-here".to_owned()), None)
    }

    /// Longer than anything takes on a busy machine, ms: it ends what hangs.
    const LONG: u64 = 600_000;

    fn within(millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(millis)
    }

    fn words(cmd: &[&str]) -> Vec<String> {
        cmd.iter().map(|w| (*w).to_owned()).collect()
    }

    fn sh(script: &str) -> Vec<String> {
        words(&["sh", "-c", script])
    }

    fn ready(probe: Probe, successes: u32) -> Ready {
        Ready {
            probe,
            timeout_ms: LONG,
            interval_ms: 20,
            successes,
        }
    }

    #[test]
    fn an_exec_probe_tells_the_exit_code_and_the_last_output() {
        let mut sup = supervisor();
        let ask =
            |sup: &mut Supervisor, script| exec(&sh(script), sup, &here(), within(LONG)).unwrap();
        assert_eq!(ask(&mut sup, "exit 0"), Ok(()));
        assert_eq!(
            ask(&mut sup, "echo not yet; exit 3"),
            Err("exit code 3: not yet".to_owned())
        );
        assert_eq!(
            ask(&mut sup, "kill -9 $$"),
            Err("signal 9 (SIGKILL)".to_owned())
        );
        let why = exec(&words(&["/no/such"]), &mut sup, &here(), within(LONG))
            .unwrap()
            .unwrap_err();
        assert!(why.contains("/no/such"), "{why}");
    }

    #[test]
    fn an_exec_probe_that_hangs_is_killed_at_its_deadline_with_its_children() {
        // A busy machine may not come to the first word in time.
        let child = [200, 2000, 20_000, 200_000].into_iter().find_map(|limit| {
            let script = "sleep 1000 & echo $!; wait";
            let outcome = exec(&sh(script), &mut supervisor(), &here(), within(limit)).unwrap();
            let saw = outcome.unwrap_err();
            assert!(saw.starts_with("no answer in time"), "{saw}");
            saw.split_once(": ").map(|(_, child)| child.to_owned())
        });
        let status = format!("/proc/{}/stat", child.expect("it was in time once"));
        // A zombie has ended; whether it is reaped is not up to us.
        while std::fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z ")) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_daemon_left_behind_with_the_pipe_open_does_not_hold_the_probe_up() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; exit 0", pid.display());
        // Held up, it would have no answer in time.
        let outcome = exec(&sh(&script), &mut supervisor(), &here(), within(LONG)).unwrap();
        assert_eq!(outcome, Ok(()));
        let pid = std::fs::read_to_string(pid).unwrap().trim().parse();
        let daemon = rustix::process::Pid::from_raw(pid.unwrap()).unwrap();
        rustix::process::kill_process(daemon, rustix::process::Signal::KILL).unwrap();
    }

    #[test]
    fn a_file_probe_waits_until_the_file_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready");
        let script = format!("sleep 0.2; touch {}; sleep 1000", path.display());
        let mut sup = supervisor();
        sup.start_service(&here(), &sh(&script)).unwrap();
        let probe = Probe::File {
            path: path.to_str().unwrap().to_owned(),
        };
        let attempts = wait_ready(&ready(probe, 2), &mut sup, &here()).unwrap();
        assert!(attempts >= 3, "{attempts}");
        sup.signal_service(rustix::process::Signal::KILL);
    }

    #[test]
    fn a_log_probe_matches_the_output_of_the_service_on_either_stream() {
        for stream in ["", ">&2"] {
            let mut sup = supervisor();
            let probe = Probe::Log {
                pattern: "accept (connections|clients)".to_owned(),
            };
            prepare(&probe, &mut sup).unwrap();
            let script = format!(
                "echo starting; sleep 0.1; echo Ready to accept connections {stream}; sleep 1000"
            );
            sup.start_service(&here(), &sh(&script)).unwrap();
            assert_eq!(wait_ready(&ready(probe, 1), &mut sup, &here()).unwrap(), 1);
            sup.signal_service(rustix::process::Signal::KILL);
        }
    }

    #[test]
    fn a_log_probe_that_times_out_shows_the_last_line() {
        let mut sup = supervisor();
        let probe = Probe::Log {
            pattern: "never".to_owned(),
        };
        prepare(&probe, &mut sup).unwrap();
        sup.start_service(&here(), &sh("echo still loading; sleep 1000"))
            .unwrap();
        // A busy service may not come to its first word in time.
        let told = [200, 2000, 20_000, 200_000].into_iter().find(|limit| {
            let ready = Ready {
                timeout_ms: *limit,
                ..ready(probe.clone(), 1)
            };
            let Err(NotReady::Timeout(saw)) = wait_ready(&ready, &mut sup, &here()) else {
                panic!("it is not ready");
            };
            saw == "last line of output: still loading"
        });
        assert!(told.is_some());
        sup.signal_service(rustix::process::Signal::KILL);
    }

    #[test]
    fn a_notify_probe_takes_ready_and_shows_the_status_until_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/notify");
        let mut sup = supervisor();
        sup.notify = Some(NotifySocket::bind(&path).unwrap());
        let service = UnixDatagram::unbound().unwrap();
        service
            .send_to(b"STATUS=warming up\nMAINPID=3", &path)
            .unwrap();
        let early = Ready {
            timeout_ms: 200,
            ..ready(Probe::Notify, 1)
        };
        let outcome = wait_ready(&early, &mut sup, &here());
        assert!(
            matches!(outcome, Err(NotReady::Timeout(saw)) if saw == "no READY=1; status: warming up")
        );
        service.send_to(b"STATUS=done\nREADY=1\n", &path).unwrap();
        assert_eq!(
            wait_ready(&ready(Probe::Notify, 1), &mut sup, &here()).unwrap(),
            1
        );
    }

    #[test]
    fn a_service_that_exits_first_ends_the_wait_at_once() {
        let mut sup = supervisor();
        sup.start_service(&here(), &sh("sleep 0.1; exit 7"))
            .unwrap();
        let probe = Probe::File {
            path: "/no/such/file".to_owned(),
        };
        // Not at once would be in a year.
        let year = 365 * 24 * 3_600_000;
        let slow = Ready {
            interval_ms: year,
            timeout_ms: 2 * year,
            ..ready(probe, 1)
        };
        let outcome = wait_ready(&slow, &mut sup, &here());
        let Err(NotReady::Interrupted(Interrupt::ServiceExited(status), Some(saw))) = outcome
        else {
            panic!("{outcome:?}");
        };
        assert_eq!(status, ExitStatus::Exited(7));
        assert!(saw.contains("/no/such/file"));
    }

    #[test]
    fn a_tcp_probe_sees_a_refusal_and_then_the_listener() {
        let mut sup = supervisor();
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(tcp::connect(port, &mut sup, within(LONG)).unwrap().is_ok());
        drop(listener);
        let saw = tcp::connect(port, &mut sup, within(LONG))
            .unwrap()
            .unwrap_err();
        assert_eq!(saw, "connection refused");
        let six = TcpListener::bind(("::1", 0)).unwrap();
        let port = six.local_addr().unwrap().port();
        assert!(tcp::connect(port, &mut sup, within(LONG)).unwrap().is_ok());
    }

    /// A server that answers one connection with these bytes, and then closes it or not.
    fn server(answer: &'static [u8], close: bool) -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                std::io::Read::read_exact(&mut stream, &mut byte).unwrap();
                head.push(byte[0]);
            }
            assert!(head.starts_with(b"GET /health?x=1 HTTP/1.1\r\nHost: localhost:"));
            stream.write_all(answer).unwrap();
            if !close {
                // Until the probe has closed it.
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
        });
        port
    }

    fn http(answer: &'static [u8], close: bool, body: Option<&str>) -> Result<(), String> {
        http_within(LONG, answer, close, body)
    }

    fn http_within(
        limit: u64,
        answer: &'static [u8],
        close: bool,
        body: Option<&str>,
    ) -> Result<(), String> {
        let probe = Probe::Http {
            port: server(answer, close),
            path: "/health?x=1".to_owned(),
            status: vec![200, 204],
            body: body.map(str::to_owned),
        };
        try_once(&probe, &mut supervisor(), &here(), within(limit)).unwrap()
    }

    #[test]
    fn an_http_probe_looks_at_the_status() {
        assert_eq!(http(b"HTTP/1.1 204 No Content\r\n\r\n", true, None), Ok(()));
        assert_eq!(http(b"HTTP/1.0 200\r\n\r\n", true, None), Ok(()));
        let saw = http(
            b"HTTP/1.1 503 Service Unavailable\r\n\r\nloading the index",
            true,
            None,
        );
        assert_eq!(saw, Err("HTTP 503: loading the index".to_owned()));
    }

    #[test]
    fn an_http_probe_looks_into_the_body_however_its_end_is_told() {
        let answers: [(&[u8], bool); 3] = [
            (b"HTTP/1.0 200 OK\r\n\r\n{\"status\":\"UP\"}", true),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"status\":\"UP\"}", false),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\n{\"sta\r\na\r\ntus\":\"UP\"}\r\n0\r\n\r\n", false),
        ];
        for (answer, close) in answers {
            assert_eq!(http(answer, close, Some("\"status\":\"UP\"")), Ok(()));
            assert_eq!(
                http(answer, close, Some("DOWN")),
                Err("HTTP 200, but the body does not match: {\"status\":\"UP\"}".to_owned())
            );
        }
    }

    #[test]
    fn an_http_probe_survives_whatever_is_not_http() {
        assert!(
            http(b"-ERR unknown command\r\n\r\n", true, None)
                .unwrap_err()
                .starts_with("not HTTP")
        );
        assert!(http(b"", true, None).unwrap_err().contains("closed"));
        assert!(
            http(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                true,
                Some("x")
            )
            .is_err()
        );
        let chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc";
        assert!(http(chunk, true, Some("x")).is_err());
        assert_eq!(
            http_within(500, b"HTTP/1.1 200 OK\r\nX: ", false, None),
            Err("no whole answer in time".to_owned())
        );
        static LONG: [u8; 200_000] = [b'h'; 200_000];
        assert!(http(&LONG, false, None).is_err());
    }
}
