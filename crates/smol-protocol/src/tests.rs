use super::*;

/// The wire form of everything, as the other side of the protocol relies on it.
#[test]
fn events_keep_their_form_on_the_wire() {
    let wire = [
        (Event::Booted, r#""booted""#),
        (
            Event::ServiceStarted { pid: 17 },
            r#"{"service_started":{"pid":17}}"#,
        ),
        (
            Event::ProbeFailed {
                attempt: 2,
                saw: "HTTP 503".into(),
            },
            r#"{"probe_failed":{"attempt":2,"saw":"HTTP 503"}}"#,
        ),
        (Event::Ready { attempts: 3 }, r#"{"ready":{"attempts":3}}"#),
        (
            Event::WarmStarted { number: 1 },
            r#"{"warm_started":{"number":1}}"#,
        ),
        (
            Event::WarmFinished {
                number: 1,
                status: ExitStatus::Exited(0),
                output_tail: "OK".into(),
            },
            r#"{"warm_finished":{"number":1,"status":{"exited":0},"output_tail":"OK"}}"#,
        ),
        (Event::Quiesced, r#""quiesced""#),
        (Event::Snapshot, r#""snapshot""#),
        (Event::Restored, r#""restored""#),
        (
            Event::Resumed {
                sample: "00ff".into(),
            },
            r#"{"resumed":{"sample":"00ff"}}"#,
        ),
        (
            Event::ServiceExited {
                status: ExitStatus::Signaled(15),
            },
            r#"{"service_exited":{"status":{"signaled":15}}}"#,
        ),
        (Event::TestRestored, r#""test_restored""#),
        (
            Event::Failed(GuestFailure {
                stage: Stage::TestRestore,
                reason: "request 1 failed".into(),
                probe: Some(Probe::Exec {
                    cmd: vec!["ask".into()],
                }),
                last_saw: Some("no".into()),
                status: None,
            }),
            r#"{"failed":{"stage":"test_restore","reason":"request 1 failed","probe":{"exec":{"cmd":["ask"]}},"last_saw":"no","status":null}}"#,
        ),
        (Event::Stopping, r#""stopping""#),
        (
            Event::Failed(GuestFailure {
                stage: Stage::Ready,
                reason: "not ready".into(),
                probe: Some(Probe::Tcp { port: 6379 }),
                last_saw: None,
                status: None,
            }),
            r#"{"failed":{"stage":"ready","reason":"not ready","probe":{"tcp":{"port":6379}},"last_saw":null,"status":null}}"#,
        ),
    ];
    for (event, text) in wire {
        let line = encode_line(&event).unwrap();
        assert_eq!(line, format!("{text}\n").into_bytes());
        assert_eq!(decode_line::<Event>(&line).unwrap(), event);
    }
}

#[test]
fn requests_and_forwards_keep_their_form_on_the_wire() {
    assert_eq!(
        decode_line::<Request>(b"\"ping\"\n").unwrap(),
        Request::Ping
    );
    let shutdown = decode_line::<Request>(br#"{"shutdown":{"grace_ms":5000}}"#).unwrap();
    assert_eq!(shutdown, Request::Shutdown { grace_ms: 5000 });
    assert_eq!(encode_line(&Reply::Pong).unwrap(), b"\"pong\"\n");
    assert_eq!(
        encode_line(&ForwardRequest { port: 6379 }).unwrap(),
        b"{\"port\":6379}\n"
    );
    assert_eq!(
        encode_line(&ForwardReply {
            ok: true,
            error: None
        })
        .unwrap(),
        b"{\"ok\":true}\n"
    );
}

#[test]
fn restore_parameters_come_through_and_hide_their_entropy() {
    let params = RestoreParams {
        entropy: Entropy::new((0..64).collect()).unwrap(),
        wall_clock_ns: u64::MAX,
        machine_id: MachineId::from_random([0xff; 16]),
        hostname: Some("clone-1".into()),
        online_cpus: 4,
        test_restore: false,
    };
    let line = encode_line(&params).unwrap();
    assert_eq!(decode_line::<RestoreParams>(&line).unwrap(), params);
    let text = String::from_utf8(line).unwrap();
    assert!(text.contains("\"000102030405"), "{text}");
    assert!(
        text.contains("\"ffffffffffff4fffbfffffffffffffff\""),
        "{text}"
    );
    assert!(!format!("{params:?}").contains("0001"));
}

#[test]
fn restore_parameters_that_are_too_weak_or_malformed_are_refused() {
    let id = "00112233445566778899aabbccddeeff";
    let good = "ab".repeat(64);
    let params = |entropy: &str, id: &str| {
        let text = format!(r#"{{"entropy":"{entropy}","wall_clock_ns":1,"machine_id":"{id}"}}"#);
        decode_line::<RestoreParams>(text.as_bytes())
    };
    assert_eq!(params(&good, id).unwrap().online_cpus, 1);
    let bad_entropy = [
        "",
        &"ab".repeat(63),
        &"ab".repeat(4097),
        &"AB".repeat(64),
        &"a".repeat(129),
        &"xy".repeat(64),
    ];
    for entropy in bad_entropy {
        assert!(params(entropy, id).is_err(), "{entropy:?}");
    }
    for id in [
        "",
        "0",
        &"0".repeat(32),
        &id.to_uppercase(),
        &id[1..],
        "uninitialized",
    ] {
        assert!(params(&good, id).is_err(), "{id:?}");
    }
    assert!(decode_line::<RestoreParams>(b"{}").is_err());
}

#[test]
fn unknown_fields_and_wrong_types_are_refused() {
    for line in [
        r#"{"ready":{"attempts":1,"extra":2}}"#,
        r#"{"ready":{"attempts":-1}}"#,
        r#"{"ready":{}}"#,
        r#"{"unheard_of":{}}"#,
        r#"{"ready":{"attempts":1},"booted":null}"#,
        r#""booted" "booted""#,
        "",
        "null",
        "\u{0}",
    ] {
        assert!(decode_line::<Event>(line.as_bytes()).is_err(), "{line:?}");
    }
    assert!(decode_line::<Event>(b"\xff\xfe").is_err());
    // Deep nesting ends in an error, not in a stack overflow.
    assert!(decode_line::<Event>("[".repeat(MAX_LINE).as_bytes()).is_err());
}

#[test]
fn a_line_over_the_limit_is_refused_on_both_sides() {
    let long = Event::ProbeFailed {
        attempt: 1,
        saw: "x".repeat(MAX_LINE),
    };
    assert_eq!(encode_line(&long), Err(ProtocolError::TooLong(MAX_LINE)));
    assert_eq!(
        decode_line::<Event>(&vec![b' '; MAX_LINE + 1]),
        Err(ProtocolError::TooLong(MAX_LINE))
    );
    // The longest there can be fits, whatever JSON makes of it.
    let longest = Event::Failed(GuestFailure {
        stage: Stage::Warm,
        reason: "\u{1}".repeat(MAX_WORDS + 1000),
        probe: Some(Probe::Log {
            pattern: "\u{1}".repeat(MAX_WORDS),
        }),
        last_saw: Some("\u{1}".repeat(OUTPUT_TAIL)),
        status: None,
    });
    assert!(encode_line(&longest).is_ok());
}

#[test]
fn lines_arrive_whole_whatever_pieces_the_stream_comes_in() {
    let stream = b"one\n\ntwo\nrest";
    for step in 1..stream.len() {
        let mut lines = LineBuffer::default();
        let mut seen = Vec::new();
        for piece in stream.chunks(step) {
            lines.push(piece);
            while let Some(line) = lines.next_line().unwrap() {
                seen.push(line);
            }
        }
        assert_eq!(seen, [b"one".to_vec(), b"".to_vec(), b"two".to_vec()]);
        assert_eq!(lines.into_rest(), b"rest");
    }
}

#[test]
fn an_endless_line_is_refused_whether_its_end_is_in_sight_or_not() {
    let mut lines = LineBuffer::default();
    lines.push(&[b'x'; MAX_LINE - 1]);
    assert_eq!(lines.next_line(), Ok(None));
    lines.push(b"x");
    assert_eq!(lines.next_line(), Err(ProtocolError::TooLong(MAX_LINE)));
    lines.push(b"\n");
    assert_eq!(lines.next_line(), Err(ProtocolError::TooLong(MAX_LINE)));
}

fn config() -> serde_json::Value {
    serde_json::json!({
        "hostname": "redis",
        "rootfs": {"device": "/dev/pmem0"},
        "service": {"cmd": ["redis-server", "--save", ""], "env": {"A": "b"}, "user": "redis", "workdir": "/var", "stop_signal": 3},
        "warm": [{"cmd": ["redis-cli", "set", "k", "v"], "timeout_ms": 1000}],
        "warm_restore": [{"probe": {"http": {"port": 80, "path": "/"}}, "timeout_ms": 1000}],
        "ready": {"probe": {"tcp": {"port": 6379}}, "timeout_ms": 60000, "interval_ms": 100},
        "ports": [6379],
        "snapshot": {"drop_caches": false},
        "mode": "run",
    })
}

fn parse(config: &serde_json::Value) -> Result<GuestConfig, ProtocolError> {
    GuestConfig::parse(config.to_string().as_bytes())
}

#[test]
fn a_configuration_comes_through_with_its_defaults() {
    let full = parse(&config()).unwrap();
    assert_eq!(
        (full.ready.successes, full.mode, full.snapshot.drop_caches),
        (1, Mode::Run, false)
    );
    assert_eq!(
        GuestConfig::parse(&serde_json::to_vec(&full).unwrap()).unwrap(),
        full
    );

    let mut least = config();
    for key in [
        "rootfs",
        "warm",
        "warm_restore",
        "ports",
        "snapshot",
        "mode",
    ] {
        least.as_object_mut().unwrap().remove(key);
    }
    let least = parse(&least).unwrap();
    let text = serde_json::to_string(&least).unwrap();
    assert!(
        !text.contains("restore") && !text.contains("\"init\""),
        "what a machine does not have changes none of its bytes: {text}"
    );
    assert_eq!(
        (least.rootfs, least.mode, least.snapshot.drop_caches),
        (None, Mode::Build, true)
    );
}

#[test]
fn every_probe_is_read_and_an_http_status_may_be_one_or_many() {
    let probe = |probe: serde_json::Value| {
        let mut config = config();
        config["ready"]["probe"] = probe;
        parse(&config).map(|c| c.ready.probe)
    };
    use serde_json::json;
    assert_eq!(probe(json!("notify")).unwrap(), Probe::Notify);
    assert_eq!(
        probe(json!({"exec": {"cmd": ["true"]}})).unwrap(),
        Probe::Exec {
            cmd: vec!["true".into()]
        }
    );
    assert_eq!(
        probe(json!({"log": {"pattern": "a+"}})).unwrap(),
        Probe::Log {
            pattern: "a+".into()
        }
    );
    assert_eq!(
        probe(json!({"file": {"path": "/run/x"}})).unwrap(),
        Probe::File {
            path: "/run/x".into()
        }
    );
    for (status, list) in [(json!(204), vec![204]), (json!([200, 401]), vec![200, 401])] {
        let http = probe(json!({"http": {"port": 80, "path": "/", "status": status}})).unwrap();
        assert_eq!(
            http,
            Probe::Http {
                port: 80,
                path: "/".into(),
                status: list,
                body: None
            }
        );
    }
    for bad in [
        json!({"tcp": {"port": 0}}),
        json!({"tcp": {"port": 65536}}),
        json!({"exec": {"cmd": []}}),
        json!({"exec": {"cmd": [""]}}),
        json!({"log": {"pattern": "("}}),
        json!({"file": {"path": "relative"}}),
        json!({"http": {"port": 80, "path": "no-slash"}}),
        json!({"http": {"port": 80, "path": "/a b\r\nX: y"}}),
        json!({"http": {"port": 80, "path": "/", "status": []}}),
        json!({"http": {"port": 80, "path": "/", "status": 99}}),
        json!({"http": {"port": 80, "path": "/", "body": "["}}),
        json!({"tcp": {"port": 1}, "notify": null}),
        json!("tcp"),
        json!({"exec": {"cmd": ["true", "x".repeat(MAX_WORDS)]}}),
        json!({"log": {"pattern": "x".repeat(MAX_WORDS + 1)}}),
        json!({"file": {"path": format!("/{}", "x".repeat(MAX_WORDS))}}),
        json!({"http": {"port": 80, "path": format!("/{}", "x".repeat(MAX_WORDS))}}),
    ] {
        assert!(probe(bad.clone()).is_err(), "{bad}");
    }
}

#[test]
fn a_configuration_that_cannot_be_meant_is_refused_with_the_key() {
    use serde_json::json;
    let refuse = |path: &str, value: serde_json::Value, key: &str| {
        let mut config = config();
        *config.pointer_mut(path).unwrap() = value;
        let why = parse(&config).unwrap_err().to_string();
        assert!(why.contains(key), "{path}: {why}");
    };
    refuse("/hostname", json!(""), "hostname");
    refuse("/hostname", json!("a b"), "hostname");
    refuse("/hostname", json!("x".repeat(65)), "hostname");
    refuse("/service/cmd", json!([]), "service.cmd");
    refuse("/service/cmd", json!(["a\u{0}b"]), "service.cmd");
    refuse("/service/env", json!({"A=B": "c"}), "service.env");
    refuse("/service/env", json!({"": "c"}), "service.env");
    refuse("/service/workdir", json!("relative"), "service.workdir");
    for signal in [0, 32, 33, 65] {
        refuse("/service/stop_signal", json!(signal), "service.stop_signal");
    }
    refuse("/warm/0/cmd", json!([]), "warm.cmd");
    refuse("/warm/0/timeout_ms", json!(0), "warm.timeout_ms");
    let key = "warm_restore.probe";
    for probe in [
        json!("notify"),
        json!({"log": {"pattern": "up"}}),
        json!({"file": {"path": "/run/up"}}),
    ] {
        refuse("/warm_restore/0/probe", probe, key);
    }
    refuse(
        "/warm_restore/0/probe",
        json!({"tcp": {"port": 0}}),
        "probe.port",
    );
    refuse(
        "/warm_restore/0/timeout_ms",
        json!(0),
        "warm_restore.timeout_ms",
    );
    refuse("/ready/interval_ms", json!(0), "ready");
    refuse("/ready/timeout_ms", json!(0), "ready");
    refuse("/ports", json!([70000]), "u16");
    refuse("/mode", json!("deploy"), "deploy");
    refuse("/snapshot", json!({"drop_cache": true}), "drop_cache");
    assert_eq!(
        GuestConfig::parse(&vec![b' '; MAX_CONFIG + 1]),
        Err(ProtocolError::TooLong(MAX_CONFIG))
    );
}

#[test]
fn a_time_limit_is_told_in_its_largest_unit() {
    for (ms, text) in [
        (3_600_000, "1 h (guest time)"),
        (5_400_000, "90 min (guest time)"),
        (60_000, "1 min (guest time)"),
        (1_000, "1 s (guest time)"),
        (1_500, "1500 ms (guest time)"),
    ] {
        assert_eq!(guest_time(ms), text);
    }
}
