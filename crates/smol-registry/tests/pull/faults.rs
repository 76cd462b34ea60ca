//! Against a registry that fails: cut, slow, wrong, endless.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use smol_registry::{Client, Error, Kind, MAX_MANIFEST, Options, Wanted};
use smol_testing::registry::{Answer, Contents, End, Registry, Request};

use crate::support::*;

const SIZE: usize = 300_000;

/// A registry with one blob, whose answer is changed.
fn with_blob(
    change: impl Fn(&Request, usize, Answer) -> Answer + Send + Sync + 'static,
) -> (Registry, Vec<u8>) {
    let blob = noise(SIZE, 9);
    let contents = Contents {
        blobs: [(digest(&blob), blob.clone())].into(),
        ..Contents::default()
    };
    let answer = move |request: &Request, number| change(request, number, contents.answer(request));
    (Registry::start(answer), blob)
}

/// Downloads the blob after `before`. Returns the file's content.
fn get(
    options: Options,
    registry: &Registry,
    blob: &[u8],
    before: &[u8],
) -> (Result<(), Error>, Vec<u8>) {
    let (mut to, from) = (file(before), reference(&format!("{}/a", registry.host())));
    let outcome = client(options).blob(&from, &digest(blob), SIZE as u64, &mut to, &mut |_| {});
    let content = content(&mut to);
    (outcome, content)
}

/// Downloads it from nothing, which fails in this way.
fn fails(registry: &Registry, blob: &[u8]) -> (Kind, String, Vec<u8>) {
    let options = Home::new().options();
    let (outcome, content) = get(options, registry, blob, b"");
    let error = outcome.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&registry.host()) && text.contains("/a: "),
        "{text}"
    );
    assert!(!text.contains('\n') && text.len() < 700, "{text}");
    (error.kind(), text, content)
}

#[test]
fn a_blob_that_is_cut_again_and_again_is_gone_on_with() {
    let (registry, blob) = with_blob(|_, number, answer| match number {
        0 => answer.end(End::Cut(100_000)),
        1 => answer.end(End::Cut(0)),
        2 => answer.end(End::Cut(1)),
        _ => answer,
    });
    let (outcome, content) = get(Home::new().options(), &registry, &blob, b"");
    outcome.unwrap();
    assert!(content == blob);
    let ranges: Vec<_> = registry.requests().iter().map(Request::range).collect();
    // How much of a cut connection arrives is up to the kernel.
    assert_eq!((ranges.len(), ranges[0]), (4, None));
    assert!(
        ranges[1] > Some(0) && ranges[1] <= Some(100_000),
        "{ranges:?}"
    );
    assert!(
        ranges[2] == ranges[1] && ranges[3] >= ranges[2],
        "{ranges:?}"
    );
}

#[test]
fn a_registry_that_ignores_ranges_is_read_from_the_beginning() {
    let (registry, blob) = with_blob(|request, _, answer| {
        let whole = Request {
            headers: Vec::new(),
            ..request.clone()
        };
        assert!(whole.range().is_none());
        match answer.status {
            206 => {
                let blob = noise(SIZE, 9);
                Answer::new(200, blob)
            }
            _ => answer,
        }
    });
    let (outcome, content) = get(Home::new().options(), &registry, &blob, &blob[..1000]);
    outcome.unwrap();
    assert!(content == blob);
    let ranges: Vec<_> = registry.requests().iter().map(Request::range).collect();
    assert_eq!(ranges, [Some(1000)]);
}

#[test]
fn a_wrong_range_is_refused() {
    for range in [
        "bytes 0-299999/300000",
        "bytes 1000-299999/300001",
        "bytes 1000-300000/300001",
        "bytes 999-299999/300000",
        "bytes 1000-299999",
        "",
    ] {
        let (registry, blob) = with_blob(move |_, _, answer| match answer.status {
            206 => Answer::new(206, answer.body).header("Content-Range", range),
            _ => answer.end(End::Cut(0)),
        });
        let options = Home::new().options();
        let (outcome, content) = get(options, &registry, &blob, &blob[..1000]);
        let error = outcome.unwrap_err();
        // It began again from nothing, in vain.
        assert_eq!(error.kind(), Kind::Unreachable, "{error}");
        assert_eq!(content, b"");
        let ranges: Vec<_> = registry.requests().iter().map(Request::range).collect();
        assert_eq!(ranges[..2], [Some(1000), None]);
    }
}

#[test]
fn a_range_that_was_not_asked_for_is_refused() {
    let (registry, blob) = with_blob(|_, _, answer| {
        Answer::new(206, &answer.body[5..]).header("Content-Range", "bytes 5-299999/300000")
    });
    let (kind, text, content) = fails(&registry, &blob);
    assert_eq!((kind, content.len()), (Kind::Corrupt, 0));
    assert!(text.contains("bytes 5-299999/300000"), "{text}");
}

#[test]
fn wrong_bytes_are_thrown_away() {
    let (registry, blob) = with_blob(|_, _, mut answer| {
        answer.body[SIZE - 1] ^= 1;
        answer
    });
    let (kind, text, content) = fails(&registry, &blob);
    assert_eq!((kind, content.len()), (Kind::Corrupt, 0));
    assert!(text.contains(&digest(&blob)), "{text}");
    assert_eq!(registry.requests().len(), 1);
}

#[test]
fn a_wrong_size_is_refused_before_its_bytes_are_read() {
    let (registry, blob) = with_blob(|_, _, mut answer| {
        answer.body.push(0);
        Answer::new(200, answer.body)
    });
    let (kind, _, content) = fails(&registry, &blob);
    assert_eq!((kind, content.len()), (Kind::Corrupt, 0));
    assert_eq!(registry.requests().len(), 1);
    let (registry, blob) = with_blob(|_, _, answer| Answer::new(200, &answer.body[..7]));
    let (kind, text, _) = fails(&registry, &blob);
    assert_eq!(kind, Kind::Corrupt);
    assert!(text.contains("sends 7 bytes"), "{text}");
}

#[test]
fn an_endless_body_is_refused_after_its_size() {
    let (registry, blob) = with_blob(|_, _, answer| answer.end(End::Never));
    let (kind, text, content) = fails(&registry, &blob);
    assert_eq!((kind, content.len()), (Kind::Corrupt, 0));
    assert!(text.contains("more than its 300000 bytes"), "{text}");
}

#[test]
fn endless_answers_take_little_memory() {
    let test = "faults::endless_answers_take_little_memory";
    smol_testing::memory::within(64 << 20, test, || {
        for status in [200, 401, 404, 500] {
            let registry = Registry::start(move |_, _| {
                let answer = Answer::new(status, vec![b' '; 1 << 16]);
                let answer = answer.header("WWW-Authenticate", "Basic realm=\"x\"");
                answer.end(End::Never)
            });
            let from = reference(&format!("{}/a:1", registry.host()));
            let client = Home::new().client();
            let error = client.manifest(&from).unwrap_err();
            let wanted = match status {
                200 => Kind::Corrupt,
                401 => Kind::Unauthorized,
                404 => Kind::NotFound,
                _ => Kind::Unreachable,
            };
            assert_eq!(error.kind(), wanted, "{error}");
        }
        let (registry, blob) = with_blob(|_, _, answer| answer.end(End::Never));
        assert_eq!(fails(&registry, &blob).0, Kind::Corrupt);
    });
}

#[test]
fn a_body_that_is_compressed_unasked_is_refused() {
    let (registry, blob) = with_blob(|_, _, answer| answer.header("Content-Encoding", "gzip"));
    let (kind, text, _) = fails(&registry, &blob);
    assert_eq!(kind, Kind::Protocol);
    assert!(text.contains("gzip"), "{text}");
    assert_eq!(
        registry.requests()[0].header("accept-encoding"),
        Some("identity")
    );
}

#[test]
fn a_failure_of_the_server_is_tried_again_and_no_more_than_so_often() {
    let (registry, blob) = with_blob(|_, number, answer| match number {
        0 => Answer::new(500, "oh"),
        1 => Answer::new(503, ""),
        _ => answer,
    });
    get(Home::new().options(), &registry, &blob, b"").0.unwrap();
    assert_eq!(registry.requests().len(), 3);

    let (registry, blob) = with_blob(|_, _, _| Answer::new(502, "<html>"));
    let (kind, text, _) = fails(&registry, &blob);
    assert_eq!(kind, Kind::Unreachable);
    assert!(text.contains("502") && !text.contains('<'), "{text}");
    assert_eq!(registry.requests().len(), 5);

    let (registry, blob) = with_blob(|_, _, _| Answer::new(403, "\x1b[31mno\nway"));
    let (kind, text, _) = fails(&registry, &blob);
    assert_eq!(kind, Kind::Denied);
    assert!(text.ends_with("answers 403 ([31mno way)"), "{text:?}");
    assert_eq!(registry.requests().len(), 1);
}

#[test]
fn a_wait_that_the_registry_asks_for_is_kept_unless_it_is_too_long() {
    // Who comes back before the second is over is sent away once more.
    let first = OnceLock::new();
    let (registry, blob) = with_blob(move |_, _, answer| {
        let begin = *first.get_or_init(Instant::now);
        match begin.elapsed() < Duration::from_secs(1) {
            true => Answer::new(429, "").header("Retry-After", "1"),
            false => answer,
        }
    });
    get(Home::new().options(), &registry, &blob, b"").0.unwrap();
    assert_eq!(registry.requests().len(), 2);

    let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"pull rate limit"}]}"#;
    let (registry, blob) =
        with_blob(move |_, _, _| Answer::new(429, body).header("Retry-After", "3600"));
    let (outcome, _) = get(Home::new().options(), &registry, &blob, b"");
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), Kind::RateLimited);
    assert!(error.to_string().contains("pull rate limit"), "{error}");
    assert!(error.hint().unwrap().contains("3600 s"), "{error:?}");
    assert_eq!(registry.requests().len(), 1);
}

#[test]
fn a_silent_server_is_left_after_a_while() {
    let (registry, blob) = with_blob(|_, number, answer| match number {
        0 => answer.end(End::Stall(1000)),
        _ => answer,
    });
    let options = |home: &Home| Options {
        idle_timeout: Duration::from_millis(200),
        // On a slow host others may seem to be silent, too.
        retries: 1000,
        ..home.options()
    };
    let home = Home::new();
    let (outcome, content) = get(options(&home), &registry, &blob, b"");
    outcome.unwrap();
    assert!(content == blob);
    assert!(registry.requests().len() > 1);

    let (registry, blob) = with_blob(|_, _, answer| answer.end(End::Stall(1000)));
    let options = Options {
        retries: 1,
        ..options(&home)
    };
    let (outcome, content) = get(options, &registry, &blob, b"");
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    assert!(error.to_string().contains("sends nothing"), "{error}");
    // A later call goes on there.
    assert!(content.len() <= 2000 && content == blob[..content.len()]);
}

#[test]
fn an_interruption_ends_every_wait() {
    let stalls: [fn(Answer) -> Answer; 2] = [
        |answer| answer.end(End::Stall(1000)),
        |_| Answer::new(429, "").header("Retry-After", "50"),
    ];
    for stall in stalls {
        let (registry, blob) = with_blob(move |_, _, answer| stall(answer));
        let go_on = Arc::new(AtomicBool::new(true));
        let asked = go_on.clone();
        let options = Home::new().options();
        let client = Client::new(options, Arc::new(move || asked.load(Ordering::SeqCst))).unwrap();
        let from = reference(&format!("{}/a", registry.host()));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let mut to = file(b"");
                client.blob(&from, &digest(&blob), SIZE as u64, &mut to, &mut |_| {})
            });
            while registry.requests().is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
            go_on.store(false, Ordering::SeqCst);
            let error = waiting.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), Kind::Interrupted);
            assert_eq!(error.to_string(), "interrupted");
        });
        let error = client.manifest(&from).unwrap_err();
        assert_eq!(error.kind(), Kind::Interrupted);
    }
}

#[test]
fn the_first_of_several_blobs_that_fails_ends_the_others() {
    let (registry, blob) = with_blob(|request, _, answer| match request.path().ends_with("0") {
        true => answer.end(End::Stall(1000)),
        false => answer,
    });
    let zeros = format!("sha256:{}", "0".repeat(64));
    let ones = format!("sha256:{}", "1".repeat(64));
    let wanted = |digest: &str| Wanted {
        digest: digest.to_owned(),
        size: SIZE as u64,
        file: file(b""),
    };
    let _ = blob;
    let mut all = vec![wanted(&zeros), wanted(&ones), wanted(&ones), wanted(&ones)];
    let from = reference(&format!("{}/a", registry.host()));
    let error = Home::new()
        .client()
        .blobs(&from, &mut all, &mut |_, _| {})
        .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

/// A registry whose one manifest is answered so.
fn manifest(answer: impl Fn() -> Answer + Send + Sync + 'static) -> Result<Vec<u8>, Error> {
    let registry = Registry::start(move |_, _| answer());
    let from = reference(&format!("{}/a:1", registry.host()));
    let manifest = Home::new().client().manifest(&from);
    manifest.map(|manifest| {
        assert_eq!(manifest.digest, digest(&manifest.bytes));
        manifest.bytes
    })
}

#[test]
fn a_manifest_has_a_most_size_and_the_digest_that_is_said() {
    assert_eq!(manifest(|| Answer::new(200, "{}")).unwrap(), b"{}");
    let most = || Answer::new(200, vec![b' '; MAX_MANIFEST]);
    assert_eq!(manifest(most).unwrap().len(), MAX_MANIFEST);
    for len in [Some(MAX_MANIFEST as u64 + 1), None] {
        let more = move || Answer::new(200, vec![b' '; MAX_MANIFEST + 1]).len(len);
        let error = manifest(more).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains("4194304"), "{error}");
    }
    let said = |value: String| {
        move || Answer::new(200, "{}").header("Docker-Content-Digest", value.clone())
    };
    assert!(manifest(said(digest(b"{}"))).is_ok());
    assert!(manifest(said("sha512:00".into())).is_ok());
    let error = manifest(said(digest(b"[]"))).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains(&digest(b"[]")), "{error}");

    let registry = Registry::start(|_, _| Answer::new(200, "{}"));
    let from = format!("{}/a@{}", registry.host(), digest(b"[]"));
    let error = Home::new()
        .client()
        .manifest(&reference(&from))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
}

#[test]
fn what_is_no_http_is_told_so() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        for stream in listener.incoming().flatten().take(2 + 2 * 4) {
            let _ = (&stream).write_all(b"220 mail.example ESMTP\r\n");
        }
    });
    let error = Home::new()
        .client()
        .manifest(&reference(&format!("{host}/a")))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable, "{error}");
    assert!(error.to_string().contains(&host), "{error}");
    drop(server);
}

#[test]
fn a_port_that_nobody_listens_on_is_told_so() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = Home::new()
        .client()
        .manifest(&reference(&format!("{host}/a")))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    let text = error.to_string();
    assert!(
        text.contains(&format!("cannot connect to {host}")),
        "{text}"
    );
    assert!(text.contains("refused"), "{text}");
}

#[test]
fn a_name_is_not_looked_up_without_a_resolv_conf() {
    let home = Home::new();
    let from = reference("registry.invalid/a");
    let error = home.client().manifest(&from).unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    let text = error.to_string();
    assert!(
        text.contains("no DNS server is known") && text.contains("resolv.conf"),
        "{text}"
    );
    home.write("resolv.conf", "# nothing\n");
    let error = home.client().manifest(&from).unwrap_err();
    assert!(
        error.to_string().contains("no DNS server is known"),
        "{error}"
    );
}
