//! Files by URL and digest, from servers that are as they should be, and from others.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};

use smol_registry::{Error, Fetcher, Kind, Options};
use smol_testing::registry::{Answer, End, Registry, Request};

use crate::environment::with_environment;
use crate::redirects::TlsServer;
use crate::support::*;

const SIZE: usize = 300_000;

fn sha256(bytes: &[u8]) -> String {
    digest(bytes)["sha256:".len()..].to_owned()
}

fn url(server: &Registry) -> String {
    format!("http://{}/pool/a.tar.gz?x=1", server.host())
}

/// A server of one file, whose answer is changed.
fn with_file(
    change: impl Fn(&Request, usize, Answer) -> Answer + Send + Sync + 'static,
) -> (Registry, Vec<u8>) {
    let file = noise(SIZE, 3);
    let bytes = file.clone();
    let server = Registry::start(move |request, number| {
        let answer = Answer::of(&bytes, request);
        change(request, number, answer)
    });
    (server, file)
}

fn ranges(server: &Registry) -> Vec<Option<usize>> {
    server.requests().iter().map(Request::range).collect()
}

/// Fetches it in vain; nothing stays.
fn fails(server: &Registry, file: &[u8]) -> Error {
    let downloads = Downloads::new();
    let error = downloads.fetch(&url(server), &sha256(file)).unwrap_err();
    let text = error.to_string();
    let begin = format!("cannot fetch {}: {}", url(server), server.host());
    assert!(text.starts_with(&begin), "{text}");
    assert_eq!(downloads.names(), [""; 0]);
    error
}

#[test]
fn a_file_is_fetched_once_and_verified_each_time() {
    let (server, file) = with_file(|_, _, answer| answer);
    let (downloads, sha256) = (Downloads::new(), sha256(&file));
    let fetcher = downloads.fetcher();
    assert!(fetcher.find(&sha256, &downloads.folder).unwrap().is_none());
    let mut told = Vec::new();
    let mut progress = |done, total| told.push((done, total));
    let address = url(&server).parse().unwrap();
    let mut found = fetcher
        .fetch(&address, &sha256, MOST, &downloads.folder, &mut progress)
        .unwrap();
    assert!(found.downloaded && found.size == SIZE as u64);
    assert!(content(&mut found.file) == file && fs::read(&found.path).unwrap() == file);
    assert_eq!(told.last(), Some(&(SIZE as u64, Some(SIZE as u64))));
    let name = format!("{sha256}.file");
    assert_eq!(downloads.names(), [name.as_str()]);

    for found in [
        downloads.fetch("https://file.invalid/", &sha256).unwrap(),
        fetcher.find(&sha256, &downloads.folder).unwrap().unwrap(),
    ] {
        assert!(!found.downloaded && found.size == SIZE as u64);
        let mut to_its_end = Vec::new();
        std::io::Read::read_to_end(&mut { found.file }, &mut to_its_end).unwrap();
        assert!(to_its_end == file);
    }
    assert_eq!(server.requests().len(), 1);
    assert_eq!(server.requests()[0].target, "/pool/a.tar.gz?x=1");

    // A damaged one is none.
    downloads.write(&name, &file[1..]);
    assert!(fetcher.find(&sha256, &downloads.folder).unwrap().is_none());
    let mut found = downloads.fetch(&url(&server), &sha256).unwrap();
    assert!(found.downloaded && content(&mut found.file) == file);
    assert_eq!(downloads.names(), [name.as_str()]);
    downloads.write(&name, b"damaged");
    let (refusing, _) = with_file(|_, _, _| Answer::new(404, ""));
    downloads.fetch(&url(&refusing), &sha256).unwrap_err();
    assert_eq!(downloads.names(), [""; 0]);
}

#[test]
fn a_cut_download_is_gone_on_with_while_the_etag_is_the_same() {
    for (etag, condition) in [
        (Some("\"v1\""), Some("\"v1\"")),
        (Some("W/\"v1\""), None),
        (None, None),
    ] {
        let (server, file) = with_file(move |_, number, mut answer| {
            if let Some(etag) = etag {
                answer = answer.header("ETag", etag);
            }
            match number {
                0 => answer.end(End::Cut(100_000)),
                1 => answer.end(End::Cut(1)),
                _ => answer,
            }
        });
        let downloads = Downloads::new();
        let mut found = downloads.fetch(&url(&server), &sha256(&file)).unwrap();
        assert!(content(&mut found.file) == file);
        let (ranges, requests) = (ranges(&server), server.requests());
        assert_eq!((ranges.len(), ranges[0]), (3, None));
        assert!(ranges[1] > Some(0) && ranges[1] <= ranges[2], "{ranges:?}");
        let conditions: Vec<_> = requests.iter().map(|r| r.header("if-range")).collect();
        assert_eq!(conditions, [None, condition, condition]);
    }
}

#[test]
fn what_changes_in_the_middle_of_a_download_is_read_from_the_beginning() {
    // A server that knows conditions.
    let (server, file) = with_file(|request, number, answer| match number {
        0 => Answer::new(200, noise(SIZE + 5, 4))
            .header("ETag", "\"old\"")
            .end(End::Cut(1000)),
        _ => {
            assert_eq!(request.header("if-range"), Some("\"old\""));
            Answer::new(200, noise(SIZE, 3)).header("ETag", answer.status.to_string())
        }
    });
    let downloads = Downloads::new();
    let mut found = downloads.fetch(&url(&server), &sha256(&file)).unwrap();
    assert!(content(&mut found.file) == file);
    assert_eq!(server.requests().len(), 2);

    // And one that does not: once its bytes are seen not to fit.
    let (server, file) = with_file(|_, number, answer| match number {
        0 => Answer::new(200, noise(SIZE, 4)).end(End::Cut(1000)),
        _ => answer,
    });
    let mut found = Downloads::new()
        .fetch(&url(&server), &sha256(&file))
        .unwrap();
    assert!(content(&mut found.file) == file);
    let ranges = ranges(&server);
    assert_eq!((ranges.len(), ranges[2]), (3, None));
}

#[test]
fn a_later_call_goes_on_where_one_stopped() {
    let (server, file) = with_file(|_, number, answer| match number {
        0 => answer.end(End::Cut(100_000)),
        1..5 => Answer::new(503, ""),
        _ => answer,
    });
    let (downloads, sha256) = (Downloads::new(), sha256(&file));
    let error = downloads.fetch(&url(&server), &sha256).unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    assert_eq!(downloads.names(), [format!("{sha256}.part")]);
    let mut found = downloads.fetch(&url(&server), &sha256).unwrap();
    assert!(content(&mut found.file) == file);
    assert_eq!(downloads.names(), [format!("{sha256}.file")]);
    let ranges = ranges(&server);
    assert_eq!(ranges.len(), 6);
    assert!(ranges[5] > Some(0) && ranges[5] == ranges[4], "{ranges:?}");
}

#[test]
fn what_is_there_of_a_file_is_used_if_it_is_its_beginning_only() {
    let file = noise(SIZE, 3);
    let (name, longer) = (format!("{}.part", sha256(&file)), noise(SIZE + 1, 3));
    for (before, requests) in [
        (&file[..1000], vec![Some(1000)]),
        // It was killed before the rename.
        (&file[..], vec![]),
        (&file[1..2000], vec![Some(1999), None]),
        (&longer, vec![Some(SIZE + 1), None]),
        (&noise(2 << 20, 5), vec![None]),
    ] {
        let (server, _) = with_file(|_, _, answer| answer);
        let downloads = Downloads::new();
        downloads.write(&name, before);
        let mut found = downloads.fetch(&url(&server), &sha256(&file)).unwrap();
        assert!(content(&mut found.file) == file);
        assert_eq!(ranges(&server), requests);
        assert_eq!(downloads.names().len(), 1);
    }
}

#[test]
fn wrong_bytes_are_thrown_away_and_both_digests_are_told() {
    let (server, file) = with_file(|_, _, mut answer| {
        answer.body[SIZE - 1] ^= 1;
        answer
    });
    let error = fails(&server, &file);
    assert_eq!(error.kind(), Kind::Corrupt);
    let (mut sent, text) = (file.clone(), error.to_string());
    sent[SIZE - 1] ^= 1;
    let words = format!(
        "sends {SIZE} bytes with the digest {}, not {}",
        digest(&sent),
        digest(&file)
    );
    assert!(text.ends_with(&words), "{text}");
    let hint = error.hint().unwrap();
    assert!(
        hint.contains("has changed") && hint.contains("Smolfile"),
        "{hint}"
    );
    assert_eq!(server.requests().len(), 1);

    // A server that is wrong and cuts is not asked for ever.
    let (server, file) = with_file(|request, _, mut answer| {
        answer.body[0] ^= 1;
        match request.range() {
            None => answer.end(End::Cut(1000)),
            Some(_) => answer,
        }
    });
    assert_eq!(fails(&server, &file).kind(), Kind::Corrupt);
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn wrong_sizes_and_ranges_are_refused() {
    let too_long = MOST + 1;
    let (server, file) = with_file(move |_, _, answer| answer.len(Some(too_long)).end(End::Cut(0)));
    let error = fails(&server, &file);
    assert_eq!(error.kind(), Kind::Corrupt);
    let words = format!("has {too_long} bytes of it, more than the {MOST}");
    assert!(error.to_string().contains(&words), "{error}");

    // Less than it says is a cut, which is repeated; in the end nothing more comes.
    let (server, file) = with_file(|_, number, answer| match number {
        0 => Answer::new(200, &answer.body[..7]).len(Some(SIZE as u64)),
        _ => Answer::new(500, ""),
    });
    let downloads = Downloads::new();
    let error = downloads.fetch(&url(&server), &sha256(&file)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    assert_eq!(ranges(&server), [None, Some(7), Some(7), Some(7), Some(7)]);

    for range in [
        "bytes 6-299999/300000",
        "bytes 6-299998/300000",
        "bytes 7-1048576/1048577",
        "bytes 7-",
        "",
    ] {
        let (server, file) = with_file(move |_, number, answer| match (number, answer.status) {
            (0, _) => answer.end(End::Cut(7)),
            (_, 206) => Answer::new(206, answer.body).header("Content-Range", range),
            _ => answer,
        });
        let downloads = Downloads::new();
        downloads.fetch(&url(&server), &sha256(&file)).unwrap();
        let ranges = ranges(&server);
        assert_eq!(
            (ranges.len(), ranges[0], ranges[2]),
            (3, None, None),
            "{range}"
        );
    }
}

#[test]
fn an_endless_body_is_refused_after_the_most_and_takes_little_memory() {
    let test = "fetch::an_endless_body_is_refused_after_the_most_and_takes_little_memory";
    smol_testing::memory::within(64 << 20, test, || {
        let (server, file) = with_file(|_, _, answer| answer.end(End::Never));
        let error = fails(&server, &file);
        assert_eq!(error.kind(), Kind::Corrupt);
        let words = format!("sends more than the {MOST} bytes");
        assert!(error.to_string().contains(&words), "{error}");
        assert_eq!(server.requests().len(), 1);
        let (server, file) = with_file(|_, _, _| {
            let answer = Answer::new(404, vec![b' '; 1 << 16]);
            answer.end(End::Never)
        });
        assert_eq!(fails(&server, &file).kind(), Kind::NotFound);
    });
}

#[test]
fn a_body_may_end_with_its_connection_be_empty_or_said_to_be_compressed() {
    let (server, file) = with_file(|_, _, answer| answer.len(None));
    let fetch = |server: &Registry, file: &[u8]| {
        let found = Downloads::new().fetch(&url(server), &sha256(file));
        assert!(content(&mut found.unwrap().file) == file);
    };
    fetch(&server, &file);
    // As servers do that take .gz for a form of the file without it.
    let (server, file) = with_file(|request, _, answer| {
        assert_eq!(request.header("accept-encoding"), Some("identity"));
        answer.header("Content-Encoding", "x-gzip")
    });
    fetch(&server, &file);
    let (server, _) = with_file(|_, _, _| Answer::new(200, ""));
    fetch(&server, b"");
}

#[test]
fn who_does_not_give_a_file_is_told_with_what_can_be_done() {
    for (status, kind, hint) in [
        (404, Kind::NotFound, "check the URL"),
        (410, Kind::NotFound, "check the URL"),
        (401, Kind::Unauthorized, "only what anybody may get"),
        (403, Kind::Denied, "only what anybody may get"),
    ] {
        let (server, file) = with_file(move |_, _, _| {
            Answer::new(status, "\x1b[31mno\nway").header("WWW-Authenticate", "Basic realm=\"x\"")
        });
        let error = fails(&server, &file);
        assert_eq!(error.kind(), kind, "{error}");
        let words = format!("answers {status} ([31mno way)");
        assert!(error.to_string().ends_with(&words), "{error}");
        assert!(error.hint().unwrap().contains(hint), "{error:?}");
        assert_eq!(server.requests().len(), 1);
    }
    let (server, file) = with_file(|_, _, _| Answer::new(204, ""));
    assert_eq!(fails(&server, &file).kind(), Kind::Protocol);
    assert_eq!(server.requests().len(), 1);
    let (server, file) = with_file(|_, _, _| Answer::new(304, ""));
    assert_eq!(fails(&server, &file).kind(), Kind::Protocol);
}

#[test]
fn a_server_that_fails_for_a_while_is_asked_again() {
    let first = OnceLock::new();
    let (server, file) = with_file(move |_, number, answer| {
        let begin = *first.get_or_init(Instant::now);
        match number {
            0 => Answer::new(502, "<html>"),
            // Who comes back before the second is over is sent away once more.
            _ if begin.elapsed() < Duration::from_secs(1) => {
                Answer::new(429, "").header("Retry-After", "1")
            }
            _ => answer,
        }
    });
    let downloads = Downloads::new();
    downloads.fetch(&url(&server), &sha256(&file)).unwrap();
    assert_eq!(server.requests().len(), 3);

    let (server, file) = with_file(|_, _, _| Answer::new(429, "").header("Retry-After", "3600"));
    let error = fails(&server, &file);
    assert_eq!(error.kind(), Kind::RateLimited);
    assert!(error.hint().unwrap().contains("3600 s"), "{error:?}");
    let (server, file) = with_file(|_, _, _| Answer::new(503, ""));
    assert_eq!(fails(&server, &file).kind(), Kind::Unreachable);
    assert_eq!(server.requests().len(), 5);
}

#[test]
fn no_credentials_are_sent_whatever_is_asked_for() {
    let (storage, file) = with_file(|_, number, answer| match number {
        0 => Answer::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""),
        _ => answer,
    });
    let target = format!("http://user:secret@{}/x", storage.host());
    let server = Registry::start(move |_, _| Answer::redirect(target.as_str()));
    let downloads = Downloads::new();
    let entry = |host: String| format!(r#""{host}":{{"username":"u","password":"p"}}"#);
    let (here, there) = (entry(server.host()), entry(storage.host()));
    let auths = format!(r#"{{"auths":{{{here},{there}}}}}"#);
    downloads.home.write("auth.json", &auths);
    downloads.fetch(&url(&server), &sha256(&file)).unwrap();
    let requests = [server.requests(), storage.requests()].concat();
    assert_eq!(requests.len(), 4);
    let bare = |r: &Request| r.header("authorization").is_none() && r.header("referer").is_none();
    assert!(requests.iter().all(bare));

    let (storage, file) = with_file(|_, _, _| Answer::new(403, "expired"));
    let target = format!("http://{}/x", storage.host());
    let server = Registry::start(move |_, _| Answer::redirect(target.as_str()));
    let error = Downloads::new()
        .fetch(&url(&server), &sha256(&file))
        .unwrap_err();
    let words = format!(
        "{}, where {} redirects to, answers 403 (expired)",
        storage.host(),
        server.host()
    );
    assert!(error.to_string().ends_with(&words), "{error}");
}

#[test]
fn redirects_end_and_lead_to_http_only() {
    for (to, word) in [
        ("/again", "more than 5 times"),
        ("ftp://file.invalid/", "scheme ftp"),
        ("file:///etc/passwd", "no URL"),
        ("http://", "no URL"),
    ] {
        let (server, file) = with_file(move |_, _, _| Answer::redirect(to));
        let error = fails(&server, &file);
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(server.requests().len() <= 6);
    }
}

/// A host that trusts this server with TLS, and the server's URL.
fn with_tls(downloads: &Downloads, answer: &str) -> (TlsServer, String) {
    let server = TlsServer::start(downloads.home.0.path(), answer);
    let host = format!("localhost:{}", server.port);
    let certificates = downloads.home.path("certs.d").join(&host);
    fs::create_dir_all(&certificates).unwrap();
    fs::copy(downloads.home.path("ca.crt"), certificates.join("ca.crt")).unwrap();
    (server, format!("https://{host}/v2/a/manifests/1"))
}

#[test]
fn a_certificate_is_checked_also_by_the_cas_of_the_server() {
    let downloads = Downloads::new();
    let answer = "HTTP/1.1 200 Answer\r\nContent-Length: 2\r\n\r\n{}";
    let (_server, url) = with_tls(&downloads, answer);
    let mut found = downloads.fetch(&url, &sha256(b"{}")).unwrap();
    assert_eq!(content(&mut found.file), b"{}");
    fs::remove_dir_all(downloads.home.path("certs.d")).unwrap();
    let error = downloads.fetch(&url, &sha256(b"[]")).unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(error.hint().unwrap().contains("certs.d"), "{error:?}");
}

#[test]
fn tls_is_not_left_behind_nor_asked_of_who_does_not_speak_it() {
    let (plain, file) = with_file(|_, _, answer| answer);
    let downloads = Downloads::new();
    let answer = format!(
        "HTTP/1.1 302 Answer\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n",
        url(&plain)
    );
    let (_server, address) = with_tls(&downloads, &answer);
    // Nor where registries may do without.
    let options = Options {
        insecure: vec!["localhost".into(), "127.0.0.1".into()],
        ..downloads.home.options()
    };
    let insecure = Fetcher::new(options, Arc::new(|| true)).unwrap();
    for fetcher in [downloads.fetcher(), insecure] {
        let error = downloads.with(&fetcher, &address, &sha256(&file));
        let error = error.unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
        assert!(error.to_string().contains("without TLS"), "{error}");
    }
    let address = format!("https://{}/x", plain.host());
    let error = downloads.fetch(&address, &sha256(&file)).unwrap_err();
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
    let hint = error.hint().unwrap();
    assert!(hint.contains(&format!("http://{}", plain.host())), "{hint}");
    assert!(plain.requests().is_empty());
    assert_eq!(downloads.names(), [""; 0]);
}

#[test]
fn a_proxy_stands_between() {
    let proxy = Registry::start(|request, _| match request.method.as_str() {
        "CONNECT" => Answer::new(502, ""),
        _ => Answer::new(200, "file"),
    });
    let address = format!("http://{}", proxy.host());
    let variables = [
        ("HTTPS_PROXY", address.as_str()),
        ("HTTP_PROXY", &address),
        ("NO_PROXY", "not.invalid"),
    ];
    if !with_environment("fetch::a_proxy_stands_between", &variables) {
        let targets: Vec<_> = proxy.requests().into_iter().map(|r| r.target).collect();
        assert_eq!(targets[0], "http://file.invalid/a");
        assert!(targets.len() > 1 && targets[1..].iter().all(|t| t == "file.invalid:443"));
        return;
    }
    let downloads = Downloads::new();
    let sha256 = sha256(b"file");
    downloads.fetch("http://file.invalid/a", &sha256).unwrap();
    let downloads = Downloads::new();
    let error = downloads.fetch("https://file.invalid/a", &sha256);
    let error = error.unwrap_err();
    assert!(error.hint().unwrap().contains("HTTPS_PROXY"), "{error:?}");
    let error = downloads.fetch("http://not.invalid/a", &sha256);
    let error = error.unwrap_err();
    assert!(error.to_string().contains("no DNS server"), "{error}");
}

#[test]
fn a_silent_server_is_left_after_a_while_and_an_interruption_ends_every_wait() {
    let (server, file) = with_file(|_, number, answer| match number {
        0 => answer.end(End::Stall(1000)),
        _ => answer,
    });
    let downloads = Downloads::new();
    let options = Options {
        idle_timeout: Duration::from_millis(200),
        // On a slow host others may seem to be silent, too.
        retries: 1000,
        ..downloads.home.options()
    };
    let fetcher = Fetcher::new(options, Arc::new(|| true)).unwrap();
    let found = downloads.with(&fetcher, &url(&server), &sha256(&file));
    assert!(content(&mut found.unwrap().file) == file);
    assert!(server.requests().len() > 1);

    let (server, file) = with_file(|_, _, answer| answer.end(End::Stall(1000)));
    let (downloads, sha256) = (Downloads::new(), sha256(&file));
    let part = downloads.folder.join(format!("{sha256}.part"));
    // Once something has come.
    let watched = part.clone();
    let go_on = move || fs::metadata(&watched).map_or(0, |found| found.len()) < 1000;
    let fetcher = Fetcher::new(downloads.home.options(), Arc::new(go_on)).unwrap();
    let error = downloads.with(&fetcher, &url(&server), &sha256);
    let error = error.unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted);
    assert_eq!(error.to_string(), "interrupted");
    assert!(fs::read(part).unwrap() == file[..1000]);
}

#[test]
fn one_of_two_that_want_the_same_file_downloads_it() {
    let go = Arc::new(Barrier::new(2));
    let gate = go.clone();
    let (server, file) = with_file(move |_, number, answer| {
        if number == 0 {
            gate.wait();
        }
        answer
    });
    let (downloads, sha256, address) = (Downloads::new(), sha256(&file), url(&server));
    let asked = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| downloads.fetch(&address, &sha256).unwrap());
        while server.requests().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let count = asked.clone();
        let watched = move || {
            count.fetch_add(1, Ordering::SeqCst);
            true
        };
        let second = scope.spawn(|| {
            let fetcher = Fetcher::new(downloads.home.options(), Arc::new(watched)).unwrap();
            downloads.with(&fetcher, &address, &sha256).unwrap()
        });
        // It is at work, and asks nobody.
        while asked.load(Ordering::SeqCst) < 10 && server.requests().len() == 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let asked = server.requests().len();
        go.wait();
        assert_eq!(asked, 1);
        assert!(first.join().unwrap().downloaded);
        let mut second = second.join().unwrap();
        assert!(!second.downloaded && content(&mut second.file) == file);
    });
    assert_eq!(server.requests().len(), 1);
    assert_eq!(downloads.names(), [format!("{sha256}.file")]);
}

#[test]
fn what_is_no_sha256_leads_nowhere() {
    let downloads = Downloads::new();
    for wrong in ["", "../../etc/passwd", &"A".repeat(64), &"0".repeat(63)] {
        let error = downloads.fetch("http://file.invalid/", wrong).unwrap_err();
        assert_eq!(error.kind(), Kind::Config, "{error}");
        let error = downloads.fetcher().find(wrong, &downloads.folder);
        assert_eq!(error.unwrap_err().kind(), Kind::Config);
    }
    assert_eq!(downloads.names(), [""; 0]);
}
