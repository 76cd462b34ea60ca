//! Token servers and credentials.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use smol_registry::{Kind, Manifest, Result};
use smol_testing::registry::{Answer, Registry, Request};

use crate::environment::with_environment;
use crate::support::*;

/// A registry that wants a token, which it gives itself at `/token` in this way. A token is good as
/// long as `good` says.
fn wanting(
    token: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    good: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> Registry {
    Registry::start(move |request, _| {
        if request.path() == "/token" {
            return token(request);
        }
        let shown = request.header("authorization").unwrap_or_default();
        if good(shown.strip_prefix("Bearer ").unwrap_or_default()) {
            return Answer::new(200, "{}");
        }
        let host = request.header("host").unwrap_or_default();
        Answer::wants_token(&format!("http://{host}/token"))
    })
}

fn pull(home: &Home, registry: &Registry) -> Result<Manifest> {
    let name = format!("{}/a/b:1", registry.host());
    home.client().manifest(&reference(&name))
}

fn tokens(registry: &Registry) -> Vec<Request> {
    let all = registry.requests().into_iter();
    all.filter(|request| request.path() == "/token").collect()
}

#[test]
fn an_anonymous_token_is_got_once_and_shown() {
    let registry = wanting(|_| Answer::new(200, r#"{"token":"t1"}"#), |t| t == "t1");
    let name = format!("{}/a/b:1", registry.host());
    let client = Home::new().client();
    client.manifest(&reference(&name)).unwrap();
    client.manifest(&reference(&name)).unwrap();
    let asked = tokens(&registry);
    assert_eq!(asked.len(), 1);
    let target = "/token?service=test&scope=repository%3Aa%2Fb%3Apull";
    assert_eq!(asked[0].target, target);
    assert_eq!(asked[0].header("authorization"), None);
    assert_eq!(registry.requests().len(), 4);
}

#[test]
fn a_token_is_renewed_when_it_ends() {
    // It says so itself: each is used once.
    let number = Arc::new(Mutex::new(0));
    let next = number.clone();
    let registry = wanting(
        move |_| {
            *next.lock().unwrap() += 1;
            let token = *next.lock().unwrap();
            Answer::new(
                200,
                format!(r#"{{"access_token":"{token}","expires_in":1}}"#),
            )
        },
        |token| !token.is_empty(),
    );
    let name = reference(&format!("{}/a/b:1", registry.host()));
    let client = Home::new().client();
    client.manifest(&name).unwrap();
    client.manifest(&name).unwrap();
    assert_eq!(tokens(&registry).len(), 2);

    // Or the registry does, in the middle.
    let number = Arc::new(Mutex::new(0));
    let (next, last) = (number.clone(), number);
    let registry = wanting(
        move |_| {
            *next.lock().unwrap() += 1;
            let token = *next.lock().unwrap();
            Answer::new(200, format!(r#"{{"token":"{token}","expires_in":3600}}"#))
        },
        move |token| token == last.lock().unwrap().to_string(),
    );
    let name = reference(&format!("{}/a/b:1", registry.host()));
    client.manifest(&name).unwrap();
    client.manifest(&name).unwrap();
    assert_eq!(tokens(&registry).len(), 1);
    pull(&Home::new(), &registry).unwrap();
    client.manifest(&name).unwrap();
    assert_eq!(tokens(&registry).len(), 3);
}

#[test]
fn a_token_that_is_refused_is_not_asked_for_again_and_again() {
    let registry = wanting(|_| Answer::new(200, r#"{"token":"t"}"#), |_| false);
    let error = pull(&Home::new(), &registry).unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert!(
        error.to_string().contains("authentication required"),
        "{error}"
    );
    assert_eq!(tokens(&registry).len(), 1);
    assert_eq!(registry.requests().len(), 3);

    // One that was good once, and is given again.
    let good = Arc::new(Mutex::new(true));
    let still = good.clone();
    let registry = wanting(
        |_| Answer::new(200, r#"{"token":"t","expires_in":3600}"#),
        move |token| token == "t" && *still.lock().unwrap(),
    );
    let name = reference(&format!("{}/a/b:1", registry.host()));
    let client = Home::new().client();
    client.manifest(&name).unwrap();
    *good.lock().unwrap() = false;
    let error = client.manifest(&name).unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert_eq!(registry.requests().len(), 3 + 2);
}

#[test]
fn a_token_server_that_fails_is_told_so() {
    for (answer, kind, word) in [
        (Answer::new(200, "<html>"), Kind::Protocol, "something else"),
        (Answer::new(200, r#"{"tok":1}"#), Kind::Protocol, "no token"),
        (
            Answer::new(200, vec![b'{'; 300 << 10]),
            Kind::Corrupt,
            "262144",
        ),
        (
            Answer::new(401, r#"{"details":"no"}"#),
            Kind::Unauthorized,
            "401",
        ),
        (Answer::new(403, ""), Kind::Denied, "403"),
        (Answer::new(404, ""), Kind::Protocol, "404"),
        (Answer::new(500, ""), Kind::Unreachable, "500"),
        (
            Answer::redirect("/token"),
            Kind::Protocol,
            "more than 5 times",
        ),
    ] {
        let registry = wanting(move |_| answer.clone(), |_| false);
        let error = pull(&Home::new(), &registry).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let text = error.to_string();
        assert!(
            text.contains(word) && text.contains(&registry.host()),
            "{text}"
        );
    }
    let registry = Registry::start(|_, _| Answer::new(401, ""));
    let error = pull(&Home::new(), &registry).unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol);
}

#[test]
fn a_password_goes_to_the_token_server_and_not_to_the_registry() {
    let registry = wanting(|_| Answer::new(200, r#"{"token":"t"}"#), |t| t == "t");
    let home = Home::new();
    let key = format!("{}/a", registry.host());
    // user:secret
    home.write(
        "auth.json",
        &format!(r#"{{"auths":{{"{key}":{{"auth":"dXNlcjpzZWNyZXQ="}}}}}}"#),
    );
    pull(&home, &registry).unwrap();
    for request in registry.requests() {
        let shown = request.header("authorization");
        let is_token = request.path() == "/token";
        assert_eq!(
            shown == Some("Basic dXNlcjpzZWNyZXQ="),
            is_token,
            "{request:?}"
        );
        assert_eq!(is_token, request.target.ends_with("&account=user"));
    }
}

#[test]
fn credentials_go_to_no_token_server_without_tls() {
    let thief = Registry::start(|_, _| Answer::new(200, r#"{"token":"t"}"#));
    for realm in [
        "http://registry.invalid/token".to_owned(),
        "ftp://registry.invalid/token".into(),
        "nothing".into(),
        format!("https://user:password@{}/", thief.host()),
    ] {
        let registry = Registry::start(move |_, _| Answer::wants_token(&realm));
        let error = pull(&Home::new(), &registry).unwrap_err();
        let wanted = [Kind::Protocol, Kind::Denied];
        assert!(wanted.contains(&error.kind()), "{error}");
    }
    assert!(thief.requests().is_empty());
}

#[test]
fn an_identity_token_is_exchanged() {
    let registry = wanting(
        |request| match request.method.as_str() {
            "POST" => Answer::new(200, r#"{"access_token":"t","refresh_token":"r"}"#),
            _ => Answer::new(405, ""),
        },
        |t| t == "t",
    );
    let home = Home::new();
    let host = registry.host();
    let file = format!(r#"{{"auths":{{"{host}":{{"identitytoken":"i&1"}}}}}}"#);
    home.write("config.json", &file);
    pull(&home, &registry).unwrap();
    let asked = tokens(&registry);
    let form = "grant_type=refresh_token&client_id=smol&scope=repository%3Aa%2Fb%3Apull\
                &refresh_token=i%261&service=test";
    assert_eq!(String::from_utf8_lossy(&asked[0].body), form);
    assert_eq!(asked[0].header("authorization"), None);

    let refused = r#"{"error":"invalid_grant"}"#;
    let registry = wanting(move |_| Answer::new(400, refused), |_| false);
    let file = format!(
        r#"{{"auths":{{"{}":{{"identitytoken":"i"}}}}}}"#,
        registry.host()
    );
    home.write("config.json", &file);
    let error = pull(&home, &registry).unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized);
}

#[test]
fn a_helper_is_asked_for_credentials() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("docker-credential-test");
    let script = "#!/bin/sh\nread -r server\ncase $1:$server in\n\
        get:127.0.0.1:*) echo '{\"Username\":\"user\",\"Secret\":\"secret\"}' ;;\n\
        get:none) echo 'credentials not found in native keychain'; exit 1 ;;\n\
        *) echo 'the vault is shut'; exit 1 ;;\nesac\n";
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", folder.path().display());
    if !with_environment(
        "tokens::a_helper_is_asked_for_credentials",
        &[("PATH", &path)],
    ) {
        return;
    }
    let registry = wanting(
        |request| match request.header("authorization") {
            Some("Basic dXNlcjpzZWNyZXQ=") => Answer::new(200, r#"{"token":"t"}"#),
            _ => Answer::new(200, r#"{"token":"anonymous"}"#),
        },
        |t| t == "t",
    );
    let home = Home::new();
    home.write("config.json", r#"{"credsStore":"test"}"#);
    pull(&home, &registry).unwrap();
    home.write("config.json", r#"{"credsStore":""}"#);
    assert_eq!(
        pull(&home, &registry).unwrap_err().kind(),
        Kind::Unauthorized
    );

    // A mirror's name is what the helper is asked for.
    let as_host = |name: &str| {
        let host = registry.host();
        let helpers = format!(r#"{{"credHelpers":{{"{host}/a":"{name}"}}}}"#);
        home.write("config.json", &helpers);
        pull(&home, &registry)
    };
    as_host("test").unwrap();
    let error = as_host("missing").unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    assert!(
        error.to_string().contains("docker-credential-missing"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("config.json"), "{error:?}");
}
