//! What host and guest say to each other, both ways, and what other processes say to smolrun.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use serde::Serialize;
use serde::de::DeserializeOwned;
use smol_guest::init::{fuzz::http_answer, users};
use smol_host::emulated::JobStatus;
use smol_host::emulated::wire::{FrameKind, read_frame, write_frame};
use smol_protocol::log::{Decoder, Frame, Stream, encode};
use smol_protocol::{
    CONTROL_PORT, Event, ExitStatus, ForwardReply, ForwardRequest, GuestConfig, GuestFailure,
    LOG_PORT, LineBuffer, MAX_ENTROPY, MAX_LINE, MIN_ENTROPY, Probe, Reply, Request, RestoreParams,
    Stage, decode_line, encode_line,
};
use smolbuild::boot::fuzz::{messages, observe as observe_boot};
use smolbuild::boot::{Failed, Message};
use smolrun::fuzz as smolrun;

use crate::input::{join, parts};

/// Whether a line means something, and if so that it is written as it can be read again.
fn same_again<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(line: &[u8]) -> bool {
    let Ok(message) = decode_line::<T>(line) else {
        return false;
    };
    match encode_line(&message) {
        Ok(again) => assert_eq!(decode_line::<T>(&again), Ok(message)),
        // Escapes may make a line longer.
        Err(_) => assert!(line.len() * 6 > MAX_LINE),
    }
    true
}

/// Sizes of pieces, then the bytes of a control stream of the guest.
///
/// Holds: lines are the same in whatever pieces they come; an event is written as it can be read
/// again; what is shown of it has no control characters; a build's observer takes all of it.
pub fn guest_events(data: &[u8]) -> bool {
    let parts = parts(data, 2);
    let stream = parts.last().copied().unwrap_or_default();
    let lines = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut buffer, mut lines) = (LineBuffer::default(), Vec::new());
        for piece in pieces {
            buffer.push(piece);
            loop {
                match buffer.next_line() {
                    Ok(Some(line)) => lines.push(line),
                    Ok(None) => break,
                    Err(_) => return lines,
                }
            }
        }
        lines
    };
    let mut sizes = parts[0].iter().map(|size| usize::from(*size) + 1).cycle();
    let mut rest = stream;
    let mut pieces = std::iter::from_fn(|| {
        let (piece, behind) = rest.split_at(sizes.next()?.min(rest.len()));
        rest = behind;
        (!piece.is_empty()).then_some(piece)
    });
    let found = lines(&mut pieces);
    if parts[0].is_empty() {
        return false;
    }
    let mut accepted = false;
    assert_eq!(found, lines(&mut std::iter::once(stream)));
    for line in &found {
        if let Ok(event) = decode_line::<Event>(line) {
            accepted |= same_again::<Event>(line);
            let shown = smol_cli::human::printable(&format!("{event:?}"));
            assert!(
                !shown
                    .chars()
                    .any(|c| c.is_control() && c != '\n' && c != '\t')
            );
        }
    }
    observe(&[(CONTROL_PORT, stream)], &[]);
    accepted
}

/// What the process of a machine that is built says to its parent: the guest may have taken it over.
///
/// Holds: messages are the same in whatever pieces they come, and are written as they can be read
/// again.
pub fn boot_messages(data: &[u8]) -> bool {
    let found = messages(data, data.len());
    assert_eq!(found, messages(data, 7));
    for message in found.iter().flatten() {
        let line = [&message[..], b"\n"].concat();
        assert_eq!(messages(&line, line.len()), [Some(message.clone())]);
    }
    found.iter().any(Option::is_some)
}

/// Log frames of the guest.
///
/// Holds: frames are the same in whatever pieces they come, each of 1 to 65,536 bytes, and the same
/// when they are written again; a build's observer takes all of it.
pub fn guest_log(data: &[u8]) -> bool {
    let read = |step: usize| {
        let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
        for piece in data.chunks(step) {
            decoder.push(piece);
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(_) => return frames,
                }
            }
        }
        frames
    };
    let frames = read(data.len().max(1));
    assert_eq!(read(7), frames);
    let mut wire = Vec::new();
    for Frame { stream, bytes } in &frames {
        assert!((1..=smol_protocol::log::MAX_FRAME).contains(&bytes.len()));
        encode(*stream, bytes, &mut wire);
    }
    assert!(data.starts_with(&wire));
    observe(&[(LOG_PORT, data)], data);
    !frames.is_empty()
}

/// Has the builder's observer take what a guest says: lines come out printable and of bounded length.
fn observe(streams: &[(u32, &[u8])], console: &[u8]) {
    let (messages, failure) = observe_boot(streams, console);
    for message in &messages {
        if let Message::Log(line) | Message::Console(line) = message {
            // What is not printable is written out, with up to eight bytes for one.
            assert!(line.len() <= 8 * 4096, "{} bytes", line.len());
            assert!(
                !line.chars().any(|c| c == '\u{1b}' || c == '\n'),
                "{line:?}"
            );
        }
    }
    assert!(failure.console.len() <= 100 && failure.log.len() <= 100);
}

/// A line to the guest: its identity, a request, a forwarded connection; and what the guest answers.
///
/// Holds: what is accepted is written as it can be read again; entropy and host name are within
/// their limits.
pub fn guest_requests(data: &[u8]) -> bool {
    if same_again::<RestoreParams>(data) {
        let params: RestoreParams = decode_line(data).expect("it was read before");
        let json = serde_json::to_value(&params).expect("plain data");
        let digits = json["entropy"].as_str().map_or(0, str::len);
        assert!((MIN_ENTROPY..=MAX_ENTROPY).contains(&(digits / 2)));
        return true;
    }
    same_again::<Request>(data)
        | same_again::<Reply>(data)
        | same_again::<ForwardRequest>(data)
        | same_again::<ForwardReply>(data)
}

/// The guest's configuration.
///
/// Holds: what is accepted passes its own check, and is written as it can be read again.
pub fn guest_config(data: &[u8]) -> bool {
    let Ok(config) = GuestConfig::parse(data) else {
        return false;
    };
    assert_eq!(config.check(), Ok(()));
    let again = serde_json::to_vec(&config).expect("plain data");
    if again.len() <= smol_protocol::MAX_CONFIG {
        assert_eq!(GuestConfig::parse(&again), Ok(config));
    }
    true
}

/// What the service answers to an http probe in the guest; then passwd(5), group(5) and a user.
///
/// Holds: an answer is the same whether more may come or not, and no longer than its limit.
pub fn guest_files(data: &[u8]) -> bool {
    let parts = parts(data, 4);
    if let Ok(Some((status, body))) = http_answer(parts[0], false) {
        assert!(status < 1000 && body.len() <= 64 << 10);
        assert_eq!(http_answer(parts[0], true), Ok(Some((status, body))));
    }
    let accepted = matches!(http_answer(parts[0], true), Ok(Some(_)));
    if let [_, passwd, group, user] = parts[..] {
        let [passwd, group, user] = [passwd, group, user].map(String::from_utf8_lossy);
        if let Ok(user) = users::resolve(&user, &passwd, &group) {
            assert!(user.groups.contains(&user.gid) && user.groups.is_sorted());
            assert!(user.uid != u32::MAX && user.gid != u32::MAX);
        }
    }
    accepted
}

/// Frames of the emulated host.
///
/// Holds: each is written as it was read, and has no more than its limit.
pub fn wire(data: &[u8]) -> bool {
    let (mut from, mut wire) = (data, Vec::new());
    while let Ok(Some((kind, payload))) = read_frame(&mut from) {
        assert!(payload.len() <= smol_host::emulated::wire::MAX_PAYLOAD);
        write_frame(&mut wire, kind, &payload).expect("memory");
        if kind == FrameKind::Exited
            && let Ok(status) = serde_json::from_slice::<JobStatus>(&payload)
        {
            let _ = status.code.is_some() || status.signal.is_some();
            let _ = ExitStatus::Exited(status.code.unwrap_or(0)).to_string();
            status.shell_code();
        }
    }
    assert!(data.starts_with(&wire));
    !wire.is_empty()
}

/// A control request to smolrun, and what a process answers to one; a machine's record; a message of
/// the smolrun in an emulated host.
///
/// Holds: not a byte more than the line is read; what is accepted is written as it can be read again.
pub fn control(data: &[u8]) -> bool {
    let (mut from, mut accepted) = (data, false);
    if let Ok((line, request)) = smolrun::control_request(&mut from) {
        accepted = true;
        assert!(line.len() <= 4096);
        assert_eq!([line.as_bytes(), from].concat(), data);
        let again = smolrun::control_line(request);
        assert_eq!(
            smolrun::control_request(again.as_bytes()),
            Ok((again.clone(), request))
        );
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        if theirs.write_all(&data[..data.len().min(8192)]).is_ok() {
            let _ = theirs.shutdown(Shutdown::Write);
            let _ = smolrun::control_answer(&ours, request);
        }
    }
    for read in [smolrun::record, smolrun::message] {
        if let Some(again) = read(data) {
            assert_eq!(read(&again).as_ref(), Some(&again));
            accepted = true;
        }
    }
    accepted
}

/// An answer to a request to stop, in a socket.
///
/// Holds: it is read, or it is an error.
pub fn control_answer(data: &[u8]) -> bool {
    let (_, request) = smolrun::control_request(STOP).expect("a request");
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    let _ = theirs.write_all(&data[..data.len().min(8192)]);
    let _ = theirs.shutdown(Shutdown::Write);
    let Some(answer) = smolrun::control_answer(&ours, request) else {
        return false;
    };
    let known = ["Accepted", "Refused", "OtherVersion"];
    assert!(known.iter().any(|known| answer.starts_with(known)));
    true
}

const STOP: &[u8] = b"{\"version\":1,\"request\":{\"stop\":{\"grace_ms\":2500}}}\n";

/// Every event.
pub fn event_seeds() -> Vec<Vec<u8>> {
    let text = || "text \u{1b}[31m".to_owned();
    let failure = GuestFailure {
        probe: Some(Probe::Tcp { port: 80 }),
        last_saw: Some(text()),
        status: Some(ExitStatus::Signaled(9)),
        ..GuestFailure::at(Stage::Ready, text())
    };
    let events = [
        Event::Booted,
        Event::ServiceStarted { pid: 7 },
        Event::ProbeFailed {
            attempt: 1,
            saw: text(),
        },
        Event::Ready { attempts: 2 },
        Event::WarmStarted { number: 1 },
        Event::WarmFinished {
            number: 1,
            status: ExitStatus::Exited(1),
            output_tail: text(),
        },
        Event::Quiesced,
        Event::Snapshot,
        Event::Restored,
        Event::Resumed {
            sample: "5a".repeat(16),
        },
        Event::Warning {
            stage: Stage::Serve,
            reason: text(),
        },
        Event::Failed(failure),
        Event::Stopping,
        Event::ServiceExited {
            status: ExitStatus::Exited(0),
        },
    ];
    let lines = events.map(|event| encode_line(&event).expect("a short line"));
    vec![join(&[&[3, 0, 200], &lines.concat()])]
}

/// Messages of each kind.
pub fn message_seeds() -> Vec<Vec<u8>> {
    let failure = Failed::new("text \u{1b}[31m");
    let messages = [
        Message::Guest(Event::Ready { attempts: 2 }),
        Message::Log("a line".into()),
        Message::Console("a line".into()),
        Message::Captured { nonzero_pages: 7 },
        Message::Failed(failure),
    ];
    let line = |message: &Message| serde_json::to_string(message).expect("plain data") + "\n";
    vec![messages.iter().map(line).collect::<String>().into_bytes()]
}

/// A few frames.
pub fn log_seeds() -> Vec<Vec<u8>> {
    let mut wire = Vec::new();
    encode(Stream::Stdout, b"hello\nthere \x1b[31m", &mut wire);
    encode(Stream::Stderr, &[b'x'; 5000], &mut wire);
    vec![wire]
}

/// One line of each.
pub fn request_seeds() -> Vec<Vec<u8>> {
    let digits = "5a".repeat(64);
    let params = format!(
        "{{\"entropy\":\"{digits}\",\"wall_clock_ns\":1,\"machine_id\":\"{}\",\"hostname\":\"web-1\",\
         \"online_cpus\":2,\"test_restore\":true}}",
        "5a".repeat(16)
    );
    let lines = [
        params.as_str(),
        "\"ping\"",
        "{\"shutdown\":{\"grace_ms\":10}}",
        "{\"port\":80}",
        "{\"ok\":false,\"error\":\"no\"}",
        "{\"error\":{\"reason\":\"no\"}}",
    ];
    lines.map(|line| line.as_bytes().to_vec()).to_vec()
}

/// A configuration with everything.
pub fn config_seeds() -> Vec<Vec<u8>> {
    let json = r#"{"hostname":"web","rootfs":{"device":"/dev/pmem0"},"service":{"cmd":["app","-v"],
        "env":{"A":"b"},"user":"app:www","workdir":"/srv"},"warm":[{"cmd":["true"],"timeout_ms":1}],
        "restore":[{"cmd":["true"],"timeout_ms":1}],"warm_restore":[{"probe":{"http":{"port":80,
        "path":"/","status":[200],"body":"ok"}},"timeout_ms":5}],"ready":{"probe":{"log":{"pattern":
        "^ready$"}},"timeout_ms":5,"interval_ms":1,"successes":1},"ports":[80],"snapshot":
        {"drop_caches":true},"mode":"run"}"#;
    vec![json.as_bytes().to_vec()]
}

/// Answers with each kind of body, and users.
pub fn file_seeds() -> Vec<Vec<u8>> {
    let answers: [&[u8]; 3] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.0 503 no\r\n\r\nto the end",
    ];
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nredis:x:101:102::/var/lib/redis:/bin/false\n";
    let group = b"root:x:0:\nredis:x:102:\ntty:x:5:redis\n";
    answers
        .map(|answer| join(&[answer, passwd, group, b"redis:5"]))
        .to_vec()
}

/// A job from its start to its end.
pub fn wire_seeds() -> Vec<Vec<u8>> {
    let mut wire = Vec::new();
    let frames: [(FrameKind, &[u8]); 5] = [
        (FrameKind::Started, b""),
        (FrameKind::Stdout, b"hello\n"),
        (FrameKind::Channel, b"{\"note\":\"x\"}\n"),
        (FrameKind::Clock, &[0; 8]),
        (FrameKind::Exited, b"{\"code\":0,\"signal\":null}"),
    ];
    for (kind, payload) in frames {
        write_frame(&mut wire, kind, payload).expect("memory");
    }
    vec![wire]
}

/// A request with what follows it, a record, messages.
pub fn control_seeds() -> Vec<Vec<u8>> {
    let record = r#"{"name":"web","machine":"web","bundle":"/tmp/web.smolmachine","digest":"sha256:0",
        "pid":7,"pid_started":8,"started":9,"state":"running","accel":"kvm","ports":[],
        "auto_remove":true}"#;
    let message = "{\"failed\":[4,{\"message\":\"no\",\"causes\":[],\"hints\":[]}]}";
    let mut seeds: Vec<Vec<u8>> = [record, message, "{\"note\":\"x\"}", "{\"ended\":3}"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec();
    seeds.push([STOP, b"more"].concat());
    seeds
}

/// Each answer that there is.
pub fn answer_seeds() -> Vec<Vec<u8>> {
    let answers = [
        "{\"version\":1,\"reply\":\"ok\"}\nstream",
        "{\"version\":1,\"reply\":{\"error\":\"no\"}}\n",
        "{\"version\":2,\"reply\":{\"later\":[]}}\n",
    ];
    answers.map(|answer| answer.as_bytes().to_vec()).to_vec()
}
