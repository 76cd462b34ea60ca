//! Files of credentials, as `docker login` and `podman login` write them
//! (containers-auth.json(5), docker's `config.json`).

use std::collections::BTreeMap;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::Credential;

/// The key that docker has for Docker Hub.
pub const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// A file of credentials. What is not known is passed over.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthFile {
    auths: Option<BTreeMap<String, Option<Entry>>>,
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// Where a file says that credentials are.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// In the file.
    Here(Credential),
    /// `docker-credential-NAME` has them, for this server.
    Helper { name: String, server: String },
}

impl AuthFile {
    /// Parses a file; an empty one has nothing in it.
    ///
    /// # Errors
    /// Says what is wrong, without anything secret.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        // The message of a wrong type shows the value, which may be a password.
        serde_json::from_slice(bytes).map_err(|e| {
            let what = match e.classify() {
                serde_json::error::Category::Data => "a value has the wrong type",
                _ => "it is no JSON",
            };
            format!("{what}, in line {} column {}", e.line(), e.column())
        })
    }

    /// Returns where the credentials for a repository of a registry are. An entry for
    /// `HOST/NAMESPACE` goes before one for `HOST`.
    ///
    /// # Errors
    /// For an entry that is none.
    pub fn find(&self, registry: &str, repository: &str) -> Result<Option<Found>, String> {
        let keys = keys(registry, repository);
        let helpers = self.cred_helpers.iter().flatten();
        let helpers: BTreeMap<_, _> = helpers
            .filter_map(|(key, name)| Some((key, name.as_deref().filter(|n| !n.is_empty())?)))
            .collect();
        for key in &keys {
            if let Some(name) = helpers.get(key) {
                return Ok(Some(helper(name, server(key))));
            }
        }
        let auths = || self.auths.iter().flatten();
        for key in &keys {
            let exact = auths().filter(|(have, _)| *have == key);
            let alike = auths().filter(|(have, _)| *have != key && host_of(have) == key);
            for (have, entry) in exact.chain(alike) {
                let credential = entry.as_ref().map(Entry::credential).transpose();
                let credential = credential.map_err(|why| format!("the entry {have:?} {why}"))?;
                if let Some(credential) = credential.flatten() {
                    return Ok(Some(Found::Here(credential)));
                }
            }
        }
        let store = self.creds_store.as_deref().filter(|name| !name.is_empty());
        let last = keys.last().map(String::as_str).unwrap_or_default();
        Ok(store.map(|name| helper(name, server(last))))
    }
}

fn helper(name: &str, server: &str) -> Found {
    Found::Helper {
        name: name.to_owned(),
        server: server.to_owned(),
    }
}

impl Entry {
    /// The credential; none where a program keeps it, and the entry only says so.
    fn credential(&self) -> Result<Option<Credential>, String> {
        let text = |value: &Option<String>| value.clone().filter(|text| !text.is_empty());
        if let Some(token) = text(&self.identitytoken) {
            return Ok(Some(Credential::Identity(token)));
        }
        if let Some(auth) = text(&self.auth) {
            let config = GeneralPurposeConfig::new()
                .with_decode_padding_mode(DecodePaddingMode::Indifferent);
            let plain = GeneralPurpose::new(&STANDARD, config).decode(auth.trim());
            let plain = plain.ok().and_then(|plain| String::from_utf8(plain).ok());
            let plain = plain.ok_or("has an auth that is not base64")?;
            let (user, password) = plain
                .split_once(':')
                .ok_or("has an auth that is not USER:PASSWORD")?;
            // docker pads some with zero bytes.
            let password = password.trim_end_matches('\0');
            return Ok(Some(Credential::password(user, password)));
        }
        Ok(match (text(&self.username), text(&self.password)) {
            (Some(user), Some(password)) => Some(Credential::password(&user, &password)),
            _ => None,
        })
    }
}

/// The keys under which credentials may be, the longest first.
fn keys(registry: &str, repository: &str) -> Vec<String> {
    let full = format!("{registry}/{repository}");
    let mut keys = vec![full.clone()];
    let slashes = full.match_indices('/').rev();
    keys.extend(slashes.map(|(at, _)| full[..at].to_owned()));
    if registry == "docker.io" {
        keys.extend([DOCKER_HUB.to_owned(), "index.docker.io".to_owned()]);
    }
    keys
}

/// What a helper is asked for.
fn server(key: &str) -> &str {
    match key {
        "docker.io" | "index.docker.io" => DOCKER_HUB,
        key => key,
    }
}

/// The host of a key that is a URL, as older versions of docker wrote them; else the key.
fn host_of(key: &str) -> &str {
    let rest = ["https://", "http://"]
        .iter()
        .find_map(|scheme| key.strip_prefix(scheme));
    match rest {
        Some(rest) => rest.split('/').next().unwrap_or_default(),
        None => key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(file: &str, registry: &str, repository: &str) -> Option<Found> {
        let file = AuthFile::parse(file.as_bytes()).unwrap();
        file.find(registry, repository).unwrap()
    }

    fn user(user: &str) -> Option<Found> {
        Some(Found::Here(Credential::password(user, "p")))
    }

    #[test]
    fn the_longest_key_goes_first() {
        // u1:p, u2:p, u3:p
        let file = r#"{"auths":{"h:5":{"auth":"dTE6cA=="},"h:5/a":{"auth":"dTI6cA"},
            "h:5/a/b":{"auth":"dTM6cA=="},"other":{}},"more":[1]}"#;
        assert_eq!(find(file, "h:5", "a/b"), user("u3"));
        assert_eq!(find(file, "h:5", "a/bc"), user("u2"));
        assert_eq!(find(file, "h:5", "ab"), user("u1"));
        assert_eq!(find(file, "h", "a/b"), None);
        assert_eq!(find(file, "other", "a"), None);
    }

    #[test]
    fn docker_hub_has_a_key_of_its_own() {
        for key in [
            "https://index.docker.io/v1/",
            "docker.io",
            "index.docker.io",
            "https://docker.io",
        ] {
            let file = format!(r#"{{"auths":{{"{key}":{{"auth":"dTE6cA=="}}}}}}"#);
            assert_eq!(
                find(&file, "docker.io", "library/nginx"),
                user("u1"),
                "{key}"
            );
            assert_eq!(find(&file, "h", "library/nginx"), None, "{key}");
        }
        let file = r#"{"auths":{"https://h:5/v2/":{"username":"u1","password":"p"}}}"#;
        assert_eq!(find(file, "h:5", "a"), user("u1"));
    }

    #[test]
    fn identity_tokens_and_helpers_are_found() {
        let file = r#"{"auths":{"h":{"auth":"dTE6cA==","identitytoken":"t"}}}"#;
        let token = Some(Found::Here(Credential::Identity("t".into())));
        assert_eq!(find(file, "h", "a"), token);
        let file = r#"{"auths":{"h":{},"i":{"auth":"dTE6cA=="}},"credsStore":"s",
            "credHelpers":{"g":"x","e":""}}"#;
        assert_eq!(find(file, "g", "a"), Some(helper("x", "g")));
        assert_eq!(find(file, "h", "a"), Some(helper("s", "h")));
        assert_eq!(find(file, "e", "a"), Some(helper("s", "e")));
        assert_eq!(find(file, "i", "a"), user("u1"));
        assert_eq!(
            find(file, "docker.io", "a/b"),
            Some(helper("s", DOCKER_HUB))
        );
        assert_eq!(find(r#"{"credsStore":""}"#, "h", "a"), None);
        assert_eq!(find("", "h", "a"), None);
        assert_eq!(find("{}", "h", "a"), None);
        assert_eq!(find(r#"{"auths":null,"credHelpers":null}"#, "h", "a"), None);
    }

    #[test]
    fn a_broken_file_is_an_error_that_shows_no_secret() {
        for text in ["{", "1", r#"{"auths":{"h":{"auth":["secret"]}}}"#] {
            let error = AuthFile::parse(text.as_bytes()).unwrap_err();
            assert!(
                error.contains("line 1") && !error.contains("secret"),
                "{error}"
            );
        }
        for auth in ["%%", "dTE=", "/w=="] {
            let text = format!(r#"{{"auths":{{"h":{{"auth":"{auth}"}}}}}}"#);
            let file = AuthFile::parse(text.as_bytes()).unwrap();
            let error = file.find("h", "a").unwrap_err();
            assert!(error.starts_with("the entry \"h\""), "{error}");
        }
    }
}
