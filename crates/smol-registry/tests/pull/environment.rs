//! What the environment says: proxies, CAs, DNS servers. Each test runs itself in a process with the
//! variables that it is about.

use std::net::UdpSocket;

use smol_registry::{Kind, Options};
use smol_testing::docker::{DockerRegistry, Setup};
use smol_testing::left_out;
use smol_testing::registry::{Answer, Registry};

use crate::support::*;

/// Runs the test of this name in a process with these variables; true in that process.
pub fn with_environment(test: &str, variables: &[(&str, &str)]) -> bool {
    if std::env::var_os("TEST_WITH_ENVIRONMENT").is_some() {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(proxy).env_remove(proxy.to_lowercase());
    }
    command.env("TEST_WITH_ENVIRONMENT", "1");
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{output:?}"
    );
    false
}

#[test]
fn a_proxy_is_used_but_for_this_host() {
    let proxy = Registry::start(|request, _| match request.method.as_str() {
        "CONNECT" => Answer::new(502, ""),
        _ => Answer::new(200, "{}"),
    });
    let url = format!("http://{}", proxy.host());
    let variables = [
        ("HTTPS_PROXY", url.as_str()),
        ("HTTP_PROXY", &url),
        ("NO_PROXY", "not.invalid"),
        ("TEST_PROXY", &url),
    ];
    let test = "environment::a_proxy_is_used_but_for_this_host";
    if !with_environment(test, &variables) {
        let targets: Vec<_> = proxy.requests().into_iter().map(|r| r.target).collect();
        let secure = "registry.invalid:443";
        let plain = "http://plain.invalid/v2/a/manifests/latest";
        let known = [secure, "plain.invalid:443", plain];
        assert!(
            targets.iter().all(|t| known.contains(&t.as_str())),
            "{targets:?}"
        );
        for name in known {
            assert!(targets.iter().any(|t| t == name), "{targets:?}");
        }
        return;
    }
    let home = Home::new();
    let error = home
        .client()
        .manifest(&reference("registry.invalid/a"))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    assert!(error.hint().unwrap().contains("HTTPS_PROXY"), "{error:?}");
    let options = Options {
        insecure: vec!["plain.invalid".into()],
        ..home.options()
    };
    client(options)
        .manifest(&reference("plain.invalid/a"))
        .unwrap();
    let error = home
        .client()
        .manifest(&reference("not.invalid/a"))
        .unwrap_err();
    assert!(error.to_string().contains("no DNS server"), "{error}");
    let registry = Registry::start(|_, _| Answer::new(200, "{}"));
    home.client()
        .manifest(&reference(&format!("{}/a", registry.host())))
        .unwrap();
}

#[test]
fn the_host_s_cas_are_those_that_the_environment_names() {
    let setup = Setup {
        tls: true,
        ..Setup::default()
    };
    let Some(registry) = DockerRegistry::start(setup) else {
        return left_out("docker-registry is not installed");
    };
    let (ca, host) = (registry.ca(), registry.host());
    let variables = [
        ("SSL_CERT_FILE", ca.to_str().unwrap()),
        ("TEST_HOST", &host),
    ];
    let test = "environment::the_host_s_cas_are_those_that_the_environment_names";
    if !with_environment(test, &variables) {
        return;
    }
    let name = format!("{}/a", std::env::var("TEST_HOST").unwrap());
    let error = Home::new()
        .client()
        .manifest(&reference(&name))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
}

#[test]
fn a_host_without_cas_is_spoken_to_without_tls_all_the_same() {
    let test = "environment::a_host_without_cas_is_spoken_to_without_tls_all_the_same";
    let variables = [
        ("SSL_CERT_FILE", "/nonexistent"),
        ("SSL_CERT_DIR", "/nonexistent"),
    ];
    if !with_environment(test, &variables) {
        return;
    }
    let registry = Registry::start(|_, _| Answer::new(200, "{}"));
    let name = format!("{}/a", registry.host());
    Home::new().client().manifest(&reference(&name)).unwrap();
    let setup = Setup {
        tls: true,
        ..Setup::default()
    };
    let Some(registry) = DockerRegistry::start(setup) else {
        return;
    };
    let name = format!("{}/a", registry.host());
    let error = Home::new()
        .client()
        .manifest(&reference(&name))
        .unwrap_err();
    assert!(error.to_string().contains("no CA certificates"), "{error}");
}

/// A DNS server that knows `registry.test`, at an address of its own; none without privileges.
fn dns_server() -> Option<&'static str> {
    const ADDRESS: &str = "127.0.0.77";
    let socket = UdpSocket::bind((ADDRESS, 53)).ok()?;
    std::thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut packet) {
            let question = &packet[12..len];
            let end = 1 + question.iter().position(|b| *b == 0).unwrap();
            let known = question[..end].eq_ignore_ascii_case(b"\x08registry\x04test\x00");
            let is_a = question[end..end + 2] == [0, 1];
            let (code, answers) = (if known { 0 } else { 3 }, u8::from(known && is_a));
            let mut answer = packet[..2].to_vec();
            answer.extend([0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0]);
            answer.extend(&question[..end + 4]);
            if answers > 0 {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    Some(ADDRESS)
}

#[test]
fn a_name_is_looked_up_at_the_servers_of_resolv_conf() {
    let Some(server) = dns_server() else {
        return left_out("port 53 is for root");
    };
    let setup = Setup {
        tls: true,
        ..Setup::default()
    };
    let Some(registry) = DockerRegistry::start(setup) else {
        return left_out("docker-registry is not installed");
    };
    let folder = tempfile::tempdir().unwrap();
    let image = Image::new(vec![noise(100_000, 1)]);
    registry.push(&image.write(folder.path()), "a:1");
    let home = Home::new();
    home.write("resolv.conf", &format!("nameserver {server}\n"));
    let host = format!("registry.test:{}", registry.port());
    let certificates = home.path("certs.d").join(&host);
    std::fs::create_dir_all(&certificates).unwrap();
    std::fs::copy(registry.ca(), certificates.join("ca.crt")).unwrap();
    let name = reference(&format!("{host}/a:1"));
    assert_eq!(home.client().manifest(&name).unwrap().bytes, image.manifest);

    let error = home
        .client()
        .manifest(&reference("other.test/a"))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    assert!(
        error
            .to_string()
            .contains("DNS knows no address of other.test"),
        "{error}"
    );
}
