//! Redirects, mirrors, proxies: which server gets what.

use std::sync::Arc;

use smol_registry::{Kind, Options};
use smol_testing::registry::{Answer, Contents, Registry, Request};

use crate::support::*;

fn contents(blob: &[u8]) -> Contents {
    Contents {
        blobs: [(digest(blob), blob.to_vec())].into(),
        manifests: ["a/manifests/1", "hub/a/manifests/1", "a/manifests/2"]
            .map(|name| {
                (
                    name.to_owned(),
                    ("application/x".to_owned(), b"{}".to_vec()),
                )
            })
            .into(),
    }
}

fn blob_of(host: &str, blob: &[u8], options: Options) -> smol_registry::Result<Vec<u8>> {
    let (from, mut to) = (reference(&format!("{host}/a")), file(&blob[..1]));
    let size = blob.len() as u64;
    client(options).blob(&from, &digest(blob), size, &mut to, &mut |_| {})?;
    Ok(content(&mut to))
}

#[test]
fn credentials_are_not_sent_to_where_a_blob_is_redirected_to() {
    let blob = noise(1000, 1);
    let contents = contents(&blob);
    let storage = Registry::start(move |request, _| contents.answer(request));
    let to = Arc::new(storage.host());
    let target = to.clone();
    let registry = Registry::start(move |request, _| match request.header("authorization") {
        None => Answer::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""),
        // First to itself, which may see them.
        Some(_) if !request.target.ends_with("?2") => {
            Answer::redirect(format!("{}?2", request.target))
        }
        Some(_) => Answer::redirect(format!("http://u:p@{target}{}", request.path())),
    });
    let home = Home::new();
    let host = registry.host();
    let auth = format!(r#"{{"auths":{{"{host}":{{"username":"u","password":"p"}}}}}}"#);
    home.write("auth.json", &auth);
    assert!(blob_of(&host, &blob, home.options()).unwrap() == blob);
    let shown: Vec<_> = registry.requests();
    let shown: Vec<_> = shown.iter().map(|r| r.header("authorization")).collect();
    assert_eq!(shown, [None, Some("Basic dTpw"), Some("Basic dTpw")]);
    let requests = storage.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].header("authorization"), None);
    assert_eq!(requests[0].range(), Some(1));
}

#[test]
fn another_server_gets_no_credentials_when_it_asks_for_them() {
    let blob = noise(1000, 1);
    let contents = contents(&blob);
    let storage = Registry::start(move |request, number| match number {
        0 => Answer::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""),
        1 => Answer::new(403, "<Error>expired</Error>"),
        _ => contents.answer(request),
    });
    let to = storage.host();
    let registry = Registry::start(move |request, _| {
        Answer::redirect(format!("http://{to}{}", request.target))
    });
    let home = Home::new();
    let entry = |host: &str| format!(r#""{host}":{{"username":"u","password":"p"}}"#);
    let (here, there) = (entry(&registry.host()), entry(&storage.host()));
    home.write("auth.json", &format!(r#"{{"auths":{{{here},{there}}}}}"#));
    assert!(blob_of(&registry.host(), &blob, home.options()).unwrap() == blob);
    // Nor is it the registry that has asked.
    let requests = [storage.requests(), registry.requests()].concat();
    assert_eq!(requests.len(), 6);
    assert!(requests.iter().all(|r| r.header("authorization").is_none()));

    let to = Registry::start(|_, _| Answer::new(404, "gone"));
    let target = format!("http://{}/", to.host());
    let registry = Registry::start(move |_, _| Answer::redirect(target.clone()));
    let error = blob_of(&registry.host(), &blob, home.options()).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    let text = error.to_string();
    let words = format!(
        "{}, where {} redirects to, answers 404 (gone)",
        to.host(),
        registry.host()
    );
    assert!(text.contains(&words), "{text}");
}

#[test]
fn redirects_end_and_do_not_leave_tls_behind() {
    let blob = noise(1000, 1);
    for (to, kind, word) in [
        ("/v2/a/blobs/again", Kind::Protocol, "more than 5 times"),
        ("http://registry.invalid/", Kind::Denied, "without TLS"),
        ("ftp://registry.invalid/", Kind::Protocol, "scheme ftp"),
        ("http://", Kind::Protocol, "no URL"),
        ("file:///etc/passwd", Kind::Protocol, "no URL"),
    ] {
        let registry = Registry::start(move |_, _| Answer::redirect(to));
        let error = blob_of(&registry.host(), &blob, Home::new().options()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(registry.requests().len() <= 6);
    }
    let registry = Registry::start(move |_, _| Answer::new(307, ""));
    let error = blob_of(&registry.host(), &blob, Home::new().options()).unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol);
}

fn mirrored(home: &Home, mirror: &str, more: &str) {
    let text = format!(
        "[[registry]]\nlocation = \"registry.invalid:5000\"\n{more}\n\
         [[registry.mirror]]\nlocation = \"{mirror}/hub\"\n"
    );
    home.write("registries.conf", &text);
}

#[test]
fn a_mirror_is_asked_before_the_registry() {
    let blob = noise(1000, 1);
    let contents = contents(&blob);
    let mirror = Registry::start(move |request, _| contents.answer(request));
    let home = Home::new();
    mirrored(&home, &mirror.host(), "");
    let name = reference("registry.invalid:5000/a:1");
    assert_eq!(home.client().manifest(&name).unwrap().bytes, b"{}");
    assert!(blob_of("registry.invalid:5000", &blob, home.options()).unwrap() == blob);
    let paths: Vec<_> = mirror.requests().into_iter().map(|r| r.target).collect();
    assert_eq!(paths[0], "/v2/hub/a/manifests/1");
    assert_eq!(paths[1], format!("/v2/hub/a/blobs/{}", digest(&blob)));

    let error = home
        .client()
        .manifest(&reference("registry.invalid:5000/b:1"))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    let text = error.to_string();
    let from_mirror = format!("mirrors failed ({} answers 404", mirror.host());
    assert!(
        text.contains(&from_mirror) && text.contains("registry.invalid"),
        "{text}"
    );

    mirrored(&home, &mirror.host(), "blocked = true");
    let error = home.client().manifest(&name).unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    let text = error.to_string();
    assert!(
        text.contains("blocked by") && text.contains("registries.conf"),
        "{text}"
    );
    home.write("registries.conf", "[[registry]]\nprefix = 1\n");
    let client = smol_registry::Client::new(home.options(), Arc::new(|| true));
    let error = client.err().unwrap();
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.to_string().contains("line 2"), "{error}");
}

#[test]
fn what_a_mirror_does_not_have_comes_from_the_registry() {
    let blob = noise(1000, 1);
    let contents = contents(&blob);
    let registry = Registry::start(move |request, _| contents.answer(request));
    let wrong = Registry::start(|request, _| match request.path().contains("blobs") {
        true => Answer::new(200, noise(1000, 2)),
        false => Answer::new(404, ""),
    });
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let home = Home::new();
    let host = registry.host();
    let text = format!(
        "[[registry]]\nlocation = \"{host}\"\n[[registry.mirror]]\nlocation = \"{nobody}\"\n\
         [[registry.mirror]]\nlocation = \"{}\"\n",
        wrong.host()
    );
    home.write("registries.conf", &text);
    let client = home.client();
    let name = reference(&format!("{host}/a:1"));
    assert_eq!(client.manifest(&name).unwrap().bytes, b"{}");
    let mut to = file(b"");
    client
        .blob(&name, &digest(&blob), 1000, &mut to, &mut |_| {})
        .unwrap();
    assert!(content(&mut to) == blob);
    assert_eq!(wrong.requests().len(), 2);
    assert_eq!(registry.requests().len(), 2);
    assert_eq!(registry.requests()[1].range(), None);
}

#[test]
fn a_registry_without_tls_is_spoken_to_where_that_is_allowed_only() {
    let contents = contents(b"blob");
    let registry = Registry::start(move |request, _| contents.answer(request));
    let home = Home::new();
    // A name that is not this host's by definition, though /etc/hosts has it.
    let Some(name) = own_name() else {
        return smol_testing::left_out("/etc/hosts has no other name of this host");
    };
    let host = format!("{name}:{}", registry.host().rsplit(':').next().unwrap());
    let from = reference(&format!("{host}/a:1"));
    let error = home.client().manifest(&from).unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
    assert!(
        error
            .hint()
            .unwrap()
            .contains(&format!("--insecure-registry {host}"))
    );
    assert!(registry.requests().is_empty());
    for listed in [&host, &name] {
        let options = Options {
            insecure: vec![listed.clone()],
            ..home.options()
        };
        client(options).manifest(&from).unwrap();
    }
    let text = format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n");
    home.write("registries.conf", &text);
    home.client().manifest(&from).unwrap();
    assert_eq!(registry.requests().len(), 3);
}

/// A name by which /etc/hosts has an address of loopback, other than `localhost`.
fn own_name() -> Option<String> {
    let hosts = std::fs::read_to_string("/etc/hosts").ok()?;
    let mut names = hosts
        .lines()
        .filter(|line| line.starts_with("127.0.0.1"))
        .flat_map(|line| line.split_whitespace().skip(1));
    names
        .find(|name| !name.starts_with("localhost") && !name.ends_with("localhost"))
        .map(str::to_owned)
}

#[test]
fn requests_say_who_we_are_and_what_we_read() {
    let registry = Registry::start(|_, _| Answer::new(200, "{}"));
    let name = reference(&format!("{}/a:1", registry.host()));
    Home::new().client().manifest(&name).unwrap();
    let requests: Vec<Request> = registry.requests();
    let header = |name| requests[0].header(name).unwrap_or_default().to_owned();
    assert!(header("user-agent").starts_with("smol/"));
    assert!(header("accept").contains("application/vnd.oci.image.index.v1+json"));
    assert_eq!(header("accept-encoding"), "");
}

/// A server with TLS whose one manifest is this very answer: openssl's.
pub struct TlsServer {
    process: std::process::Child,
    pub port: String,
}

impl TlsServer {
    pub fn start(folder: &std::path::Path, answer: &str) -> Self {
        use std::io::BufRead;
        smol_testing::docker::certificate(folder);
        let manifests = folder.join("v2/a/manifests");
        std::fs::create_dir_all(&manifests).unwrap();
        std::fs::write(manifests.join("1"), answer).unwrap();
        let mut command = std::process::Command::new("openssl");
        command.args(["s_server", "-HTTP", "-accept", "127.0.0.1:0"]);
        command.args(["-cert", "server.crt", "-key", "server.key"]);
        command.current_dir(folder);
        command.stdout(std::process::Stdio::piped());
        command.stderr(std::process::Stdio::null());
        let mut process = command.spawn().unwrap();
        let lines = std::io::BufReader::new(process.stdout.take().unwrap()).lines();
        let mut ports = lines.map_while(Result::ok).filter_map(|line| {
            let port = line.strip_prefix("ACCEPT ")?.rsplit(':').next()?.to_owned();
            Some(port)
        });
        let port = ports.next().unwrap();
        std::thread::spawn(move || ports.for_each(drop));
        TlsServer { process, port }
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_redirect_from_tls_to_none_is_refused() {
    let registry = Registry::start(|_, _| Answer::new(200, "{}"));
    let home = Home::new();
    let answer = format!(
        "HTTP/1.1 307 Answer\r\nLocation: http://{}/v2/a/manifests/1\r\nContent-Length: 0\r\n\r\n",
        registry.host()
    );
    let server = TlsServer::start(home.0.path(), &answer);
    let host = format!("localhost:{}", server.port);
    let certificates = home.path("certs.d").join(&host);
    std::fs::create_dir_all(&certificates).unwrap();
    std::fs::copy(home.path("ca.crt"), certificates.join("ca.crt")).unwrap();
    let name = reference(&format!("{host}/a:1"));
    let error = home.client().manifest(&name).unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol, "{error}");
    assert!(error.to_string().contains("without TLS"), "{error}");
    // Nor is it one that is configured so: TLS was there.
    let options = Options {
        insecure: vec!["localhost".into(), "127.0.0.1".into()],
        ..home.options()
    };
    let error = client(options).manifest(&name).unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol, "{error}");
    assert!(registry.requests().is_empty());
}

#[test]
fn a_server_s_own_certificate_may_be_in_the_folder_of_its_cas() {
    let home = Home::new();
    let answer = "HTTP/1.1 200 Answer\r\nContent-Length: 2\r\n\r\n{}";
    let server = TlsServer::start(home.0.path(), answer);
    let host = format!("localhost:{}", server.port);
    let certificates = home.path("certs.d").join(&host);
    std::fs::create_dir_all(&certificates).unwrap();
    std::fs::copy(home.path("server.crt"), certificates.join("own.crt")).unwrap();
    let name = reference(&format!("{host}/a:1"));
    assert_eq!(home.client().manifest(&name).unwrap().bytes, b"{}");
    // For its names alone.
    let other = format!("x.localhost:{}", server.port);
    let folder = home.path("certs.d").join(&other);
    std::fs::rename(&certificates, &folder).unwrap();
    let error = home
        .client()
        .manifest(&reference(&format!("{other}/a:1")))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[test]
fn credentials_of_a_registry_with_tls_go_to_no_token_server_without() {
    let thief = Registry::start(|_, _| Answer::new(200, r#"{"token":"t"}"#));
    let home = Home::new();
    let realm = format!("http://{}/token", thief.host());
    let answer = format!(
        "HTTP/1.1 401 Answer\r\nWWW-Authenticate: Bearer realm=\"{realm}\"\r\n\
         Content-Length: 0\r\n\r\n"
    );
    let server = TlsServer::start(home.0.path(), &answer);
    let host = format!("localhost:{}", server.port);
    let certificates = home.path("certs.d").join(&host);
    std::fs::create_dir_all(&certificates).unwrap();
    std::fs::copy(home.path("ca.crt"), certificates.join("ca.crt")).unwrap();
    let error = home
        .client()
        .manifest(&reference(&format!("{host}/a:1")))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol, "{error}");
    assert!(error.to_string().contains("does not use TLS"), "{error}");
    assert!(thief.requests().is_empty());
}
