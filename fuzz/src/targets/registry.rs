//! Registries: names of images, what a server answers, files of credentials and mirrors.

use smol_registry::{FileUrl, Reference, fuzz};

use crate::input::{join, parts};

/// Words of headers and files.
pub const WORDS: &[&str] = &[
    "bytes ",
    "/*",
    "18446744073709551615",
    "Bearer ",
    "Basic ",
    "realm=\"",
    "service=",
    "\"token\":",
    "\"access_token\":",
    "\"expires_in\":",
    "1e999",
    "\"errors\":[{\"code\":",
    "\"message\":",
    "\"auths\":",
    "\"auth\":\"dTpw\"",
    "\"identitytoken\":",
    "\"credHelpers\":",
    "\"credsStore\":",
    "\"Secret\":",
    "https://index.docker.io/v1/",
    "docker.io/",
    "localhost:5000/",
    "[::1]",
    "@sha256:",
    "[[registry]]\n",
    "[[registry.mirror]]\n",
    "prefix = \"*.",
    "location = \"",
    "\u{202e}",
    "../",
];

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Whether it can be shown: one line without control characters, not long.
fn check_shown(text: &str, most: usize) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(text.chars().count() <= most, "{text:?}");
}

/// A reference.
///
/// Holds: the full form is read as the same; nothing in it can leave the path of a URL; what is wrong
/// can be shown.
pub fn reference(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let reference: Reference = match text.parse() {
        Ok(reference) => reference,
        Err(error) => {
            check_shown(&error.to_string(), 700);
            return false;
        }
    };
    assert_eq!(reference.to_string().parse().as_ref(), Ok(&reference));
    assert!(reference.tag().is_some() || reference.digest().is_some());
    let repository = reference.repository();
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
    assert!(!repository.is_empty() && repository.chars().all(plain));
    assert!(
        repository
            .split('/')
            .all(|part| !part.starts_with('.') && !part.is_empty())
    );
    assert!(!reference.registry().contains(['/', '@', '?', '#', '\\']));
    let pinned = reference.with_digest(DIGEST);
    assert_eq!(pinned.digest(), Some(DIGEST));
    true
}

/// The URL of a file.
///
/// Holds: its normal form is read as the same, is `http` or `https`, and has no credentials; what is wrong
/// can be shown.
pub fn file_url(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let url: FileUrl = match text.parse() {
        Ok(url) => url,
        Err(error) => {
            check_shown(&error.to_string(), 700);
            return false;
        }
    };
    let normal = url.to_string();
    assert_eq!(normal.parse().as_ref(), Ok(&url));
    let rest = normal
        .strip_prefix("https://")
        .or(normal.strip_prefix("http://"));
    let server = rest
        .and_then(|rest| rest.split('/').next())
        .unwrap_or_default();
    assert!(!server.is_empty() && !server.contains('@'), "{normal}");
    assert!(normal.bytes().all(|b| b.is_ascii_graphic()) && !normal.contains('#'));
    true
}

/// A `Content-Range`, then a `WWW-Authenticate`.
///
/// Holds: a range has a first byte that is not after its last, within the whole.
pub fn headers(data: &[u8]) -> bool {
    let parts = parts(data, 2);
    let text = |at: usize| String::from_utf8_lossy(parts.get(at).copied().unwrap_or_default());
    let range = fuzz::content_range(&text(0));
    if let Some((first, last, total)) = range {
        assert!(first <= last && total.is_none_or(|total| last < total));
    }
    let realm = fuzz::challenge(&text(1));
    range.is_some() || realm.is_some()
}

/// The body of an answer: of a token server, a helper, or an error.
///
/// Holds: a token is text that fits into a header; what is shown can be.
pub fn answers(data: &[u8]) -> bool {
    let token = fuzz::token(data);
    if let Some(token) = &token {
        assert!(!token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic()));
    }
    if let Some(text) = fuzz::reported(data) {
        check_shown(&text, 203);
        assert!(!text.is_empty());
    }
    fuzz::helper_answer(data) || token.is_some()
}

/// A file of credentials, then a registry, then a repository.
///
/// Holds: what is wrong has one line.
pub fn credentials(data: &[u8]) -> bool {
    let parts = parts(data, 3);
    let text = |at: usize, or: &str| match parts.get(at) {
        Some(part) => String::from_utf8_lossy(part).into_owned(),
        None => or.to_owned(),
    };
    let (registry, repository) = (text(1, "docker.io"), text(2, "a/b"));
    match fuzz::credentials(parts[0], &registry, &repository) {
        Ok(found) => found != "None",
        Err(error) => {
            assert!(!error.contains('\n'), "{error:?}");
            false
        }
    }
}

/// A `registries.conf`, then an image.
///
/// Holds: there is a server to ask; nothing of its name or path can leave its place in a URL.
pub fn mirrors(data: &[u8]) -> bool {
    let parts = parts(data, 2);
    let file = String::from_utf8_lossy(parts[0]);
    let name = parts.get(1).copied().unwrap_or(b"docker.io/a/b");
    let Ok(image) = String::from_utf8_lossy(name).parse::<Reference>() else {
        return false;
    };
    match fuzz::mirrors(&file, image.registry(), image.repository()) {
        Ok(sources) => {
            assert!(!sources.is_empty());
            for (host, path) in &sources {
                assert!(!host.is_empty() && !path.is_empty());
                let bad = |c: char| c.is_control() || "@?#\\% ".contains(c);
                assert!(!host.contains('/') && !host.contains(bad) && !path.contains(bad));
                assert!(path.split('/').all(|part| part != ".."));
            }
            sources.len() > 1
        }
        Err(error) => {
            check_shown(&error, 800);
            false
        }
    }
}

/// Seeds of [`reference`].
pub fn reference_seeds() -> Vec<Vec<u8>> {
    let seeds = [
        format!("host.example:5000/a/b-c__d.e:Tag-1.2@{DIGEST}"),
        "nginx".into(),
        "index.docker.io/nginx:1.27".into(),
        "localhost/a".into(),
        "[::1]:5000/a:b".into(),
        "Host/Upper:1".into(),
        "docker://nginx".into(),
    ];
    seeds.map(String::into_bytes).to_vec()
}

/// Seeds for [`file_url`].
pub fn file_url_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "https://host.example:8443/a/b-1.2.tar.gz?x=1&y=%2F#part",
        "http://[::1]/",
        "HTTPS://xn--bcher-kva.example/\u{e4}/../b",
        "https://user:password@host.example/",
        "http://0x7f.1/",
        "https:\\\\host.example",
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}

/// Seeds of [`headers`].
pub fn header_seeds() -> Vec<Vec<u8>> {
    let bearer =
        br#"Bearer realm="https://auth.example/token",service="a \"b\"",scope="x", Basic realm=y"#;
    vec![
        join(&[b"bytes 5-9/10", bearer]),
        join(&[
            b"bytes 0-18446744073709551614/18446744073709551615",
            b"Basic realm=\"x\"",
        ]),
        join(&[b"bytes 5-9/*", b"Digest nonce=1, bearer Realm=a"]),
    ]
}

/// Seeds of [`answers`].
pub fn answer_seeds() -> Vec<Vec<u8>> {
    let seeds: [&[u8]; 5] = [
        br#"{"token":"abc.def","expires_in":300,"issued_at":"2026-01-01T00:00:00Z"}"#,
        br#"{"access_token":"abc","refresh_token":"def","expires_in":1e9}"#,
        br#"{"ServerURL":"https://a","Username":"<token>","Secret":"s"}"#,
        br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"a":1}}]}"#,
        b"<html>\r\n\x1b[31m not this",
    ];
    seeds.map(<[u8]>::to_vec).to_vec()
}

/// Seeds of [`credentials`].
pub fn credential_seeds() -> Vec<Vec<u8>> {
    let file = br#"{"auths":{"h:5/a":{"auth":"dTpw"},"https://index.docker.io/v1/":{"username":"u",
        "password":"p"},"i":{"identitytoken":"t"}},"credHelpers":{"g":"x"},"credsStore":""}"#;
    vec![
        join(&[file, b"h:5", b"a/b"]),
        join(&[file, b"docker.io", b"library/nginx"]),
        join(&[file, b"g", b"a"]),
        br#"{"credsStore":"desktop"}"#.to_vec(),
        br#"{"auths":{"docker.io":{"auth":"!!"}}}"#.to_vec(),
    ]
}

/// Seeds of [`mirrors`].
pub fn mirror_seeds() -> Vec<Vec<u8>> {
    let file = br#"unqualified-search-registries = ["docker.io"]
[[registry]]
prefix = "docker.io/library"
location = "mirror.example/lib"
insecure = true
[[registry.mirror]]
location = "10.0.0.1:5000/hub"
insecure = true
[[registry.mirror]]
location = "[::1]:5000"
pull-from-mirror = "digest-only"
[[registry]]
prefix = "*.example.com"
blocked = true
"#;
    vec![
        join(&[file, b"nginx"]),
        join(&[file, b"a.example.com/b"]),
        join(&[file, b"docker.io/other/x"]),
        b"[[registry]]\nlocation = \"https://a\"\n".to_vec(),
        b"[registries.search]\nregistries = [1]\n".to_vec(),
    ]
}
