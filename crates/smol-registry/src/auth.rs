//! Who asks: Basic, or tokens of the server that a registry names (distribution specification,
//! "Token Authentication"; OAuth 2 for identity tokens).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_auth::ChallengeParser;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, Url};
use serde::Deserialize;

use crate::credentials::{self, Credential};
use crate::error::{Again, Error, Kind, Result, reported, shown};
use crate::mirrors::Source;
use crate::transport::{self, Host, Request, Transport};

/// Most bytes of a token server's answer, and of an error's body.
const MOST_ANSWER: usize = 256 << 10;
const MOST_ERROR: usize = 64 << 10;
/// Most bytes of a challenge that are looked at.
const MOST_CHALLENGE: usize = 8 << 10;
/// How long a token is good when its server does not say.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// A token is renewed so long before its end.
const MARGIN: Duration = Duration::from_secs(5);

/// What a registry wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// User name and password.
    Basic,
    /// A token of this server.
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

impl Challenge {
    /// Reads the values of `WWW-Authenticate`; a token is preferred.
    pub fn parse<'v>(values: impl Iterator<Item = &'v str>) -> Option<Self> {
        let mut basic = None;
        for value in values.filter(|value| value.len() <= MOST_CHALLENGE) {
            for challenge in ChallengeParser::new(value).map_while(std::result::Result::ok) {
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Challenge::Basic);
                }
                if !challenge.scheme.eq_ignore_ascii_case("bearer") {
                    continue;
                }
                let param = |name: &str| {
                    let mut params = challenge.params.iter();
                    let found = params.find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if let Some(realm) = param("realm") {
                    let service = param("service");
                    return Some(Challenge::Bearer { realm, service });
                }
            }
        }
        basic
    }

    fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter();
        Self::parse(values.filter_map(|value| value.to_str().ok()))
    }
}

/// A token as its server gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What is shown to the registry.
    pub text: String,
    /// How long it is good.
    pub life: Duration,
}

impl Token {
    /// Reads a token server's answer.
    ///
    /// # Errors
    /// If there is no token in it.
    pub fn parse(answer: &[u8]) -> std::result::Result<Self, &'static str> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<f64>,
        }
        let answer: Answer =
            serde_json::from_slice(answer).map_err(|_| "answers with something else")?;
        let text = [answer.token, answer.access_token].into_iter().flatten();
        let text = text.into_iter().find(|text| !text.is_empty());
        let text = text.ok_or("gives no token")?;
        if text.bytes().any(|b| !b.is_ascii_graphic()) {
            return Err("gives a token with forbidden characters");
        }
        // A day is longer than anything that is pulled.
        let life = answer.expires_in.map_or(DEFAULT_LIFE, |seconds| {
            Duration::from_secs_f64(if seconds.is_finite() {
                seconds.clamp(0.0, 86400.0)
            } else {
                0.0
            })
        });
        Ok(Token { text, life })
    }
}

/// What is shown to one registry for one repository.
#[derive(Clone)]
struct Shown {
    value: HeaderValue,
    until: Option<Instant>,
}

/// Credentials and tokens, as far as they were needed.
#[derive(Default)]
pub struct Auth {
    shown: Mutex<HashMap<Source, Shown>>,
    credentials: Mutex<HashMap<Source, Option<Credential>>>,
}

impl Auth {
    /// Returns what was shown before, while it is good.
    pub fn known(&self, source: &Source) -> Option<HeaderValue> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let found = shown.get(source)?;
        if found.until.is_some_and(|until| Instant::now() >= until) {
            shown.remove(source);
            return None;
        }
        Some(found.value.clone())
    }

    /// Returns what to show to a registry that has answered with 401; `None` if it is nothing else
    /// than what was shown.
    ///
    /// # Errors
    /// If credentials cannot be read, or the token server does not give a token.
    pub async fn answer(
        &self,
        transport: &Transport,
        source: &Source,
        response: &Response,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<HeaderValue>> {
        let name = &source.host.name;
        let Some(challenge) = Challenge::of(response.headers()) else {
            let message = format!("{name} answers 401 and does not say what it wants to see");
            return Err(Error::new(Kind::Protocol, message));
        };
        let before = self.forget(source);
        let credential = self.credential(transport, source, go_on)?;
        let (value, life) = match challenge {
            Challenge::Basic => match credential {
                None => return Ok(None),
                Some(Credential::Identity(_)) => {
                    let message = format!(
                        "{name} wants a password, and only an identity token is known for it"
                    );
                    return Err(unauthorized(message, source));
                }
                Some(Credential::Password { user, password }) => {
                    (basic(&user, &password, name)?, None)
                }
            },
            Challenge::Bearer { realm, service } => {
                let realm = self.realm(transport, source, &realm)?;
                let token = token(transport, source, realm, service, credential).await?;
                (
                    secret(&format!("Bearer {}", token.text), name)?,
                    Some(token.life),
                )
            }
        };
        if before.as_ref() == Some(&value) {
            return Ok(None);
        }
        let until = life.map(|life| Instant::now() + life.saturating_sub(MARGIN));
        let shown = Shown {
            value: value.clone(),
            until,
        };
        let mut all = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(source.clone(), shown);
        Ok(Some(value))
    }

    /// Whether credentials were found for a source.
    pub fn has_credential(&self, source: &Source) -> bool {
        let credentials = self
            .credentials
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        matches!(credentials.get(source), Some(Some(_)))
    }

    fn forget(&self, source: &Source) -> Option<HeaderValue> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.remove(source).map(|shown| shown.value)
    }

    /// The credentials for a source; looked for once.
    fn credential(
        &self,
        transport: &Transport,
        source: &Source,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<Credential>> {
        let mut known = self
            .credentials
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(credential) = known.get(source) {
            return Ok(credential.clone());
        }
        let files = &transport.options().places.credentials;
        let (registry, repository) = (&source.host.name, &source.repository);
        let found = credentials::find(files, registry, repository, go_on)?;
        known.insert(source.clone(), found.clone());
        Ok(found)
    }

    /// The URL of a token server. Credentials do not go to one without TLS, unless the registry itself
    /// is spoken to so.
    fn realm(&self, transport: &Transport, source: &Source, realm: &str) -> Result<Url> {
        let name = &source.host.name;
        let wrong = |why: &str| {
            let message = format!("{name} names the token server {:?}, {why}", shown(realm));
            Error::new(Kind::Protocol, message)
        };
        let url = Url::parse(realm).map_err(|_| wrong("which is no URL"))?;
        let plain = url.scheme() == "http" && transport.is_plain(&source.server());
        if url.scheme() != "https" && !plain {
            return Err(wrong("which does not use TLS"));
        }
        if !url.has_host() || !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("which is no server"));
        }
        Ok(url)
    }
}

/// Gets a token for pulling from a repository.
async fn token(
    transport: &Transport,
    source: &Source,
    mut realm: Url,
    service: Option<String>,
    credential: Option<Credential>,
) -> Result<Token> {
    let scope = format!("repository:{}:pull", source.repository);
    let mut request = Request::get(HeaderMap::new());
    match &credential {
        Some(Credential::Identity(token)) => {
            let mut form = vec![
                ("grant_type", "refresh_token".to_owned()),
                ("client_id", "smol".to_owned()),
                ("scope", scope),
                ("refresh_token", token.clone()),
            ];
            form.extend(service.map(|service| ("service", service)));
            request.form = Some(form);
        }
        other => {
            let mut query = realm.query_pairs_mut();
            if let Some(service) = &service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &scope);
            if let Some(Credential::Password { user, password }) = other {
                query.append_pair("account", user);
                request.authorization = Some(basic(user, password, &source.host.name)?);
            }
        }
    }
    let server = transport::authority(&realm);
    // What is insecure about a registry is not so about its token server, but where they are one.
    let host = Host {
        name: source.server().name,
        insecure: source.host.insecure,
    };
    let mut response = transport.send_to(realm, &host, &request).await?;
    if !response.status().is_success() {
        return Err(refusal(transport, source, &server, &credential, &mut response).await);
    }
    let answer = transport::body(&mut response, MOST_ANSWER, transport.options()).await?;
    Token::parse(&answer).map_err(|why| {
        let message = format!("{server}, the token server of {}, {why}", source.host.name);
        Error::new(Kind::Protocol, message)
    })
}

/// Says why a token server gives no token.
async fn refusal(
    transport: &Transport,
    source: &Source,
    server: &str,
    credential: &Option<Credential>,
    response: &mut Response,
) -> Error {
    let status = response.status().as_u16();
    let said = said(transport, response).await;
    let name = &source.host.name;
    let message = format!("{server}, the token server of {name}, answers {status}{said}");
    // OAuth 2 has 400 for a refresh token that is not good any more.
    let refused =
        status == 401 || status == 400 && matches!(credential, Some(Credential::Identity(_)));
    match status {
        _ if refused => unauthorized(message, source),
        403 => Error::new(Kind::Denied, message),
        _ => failed(status, message, response),
    }
}

/// Returns the error for a status that is none of those of one kind of request.
pub fn failed(status: u16, message: String, response: &Response) -> Error {
    match status {
        408 | 500 | 502 | 503 | 504 => {
            Error::new(Kind::Unreachable, message).with_again(retry_after(response))
        }
        429 => Error::new(Kind::RateLimited, message).with_again(retry_after(response)),
        500.. => Error::new(Kind::Unreachable, message),
        _ => Error::new(Kind::Protocol, message),
    }
}

/// How long a server wants us to wait. It may also name a date, which is left to our own waits.
fn retry_after(response: &Response) -> Again {
    let value = response.headers().get(reqwest::header::RETRY_AFTER);
    let seconds = value.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    seconds.map_or(Again::Yes, |seconds| {
        Again::After(Duration::from_secs(seconds))
    })
}

/// What the body of an error says, in parentheses.
pub async fn said(transport: &Transport, response: &mut Response) -> String {
    let body = transport::body(response, MOST_ERROR, transport.options()).await;
    let text = body.ok().and_then(|body| reported(&body));
    text.map_or_else(String::new, |text| format!(" ({text})"))
}

/// Returns the error for a registry that wants other credentials.
pub fn unauthorized(message: String, source: &Source) -> Error {
    let login = match source.host.name.as_str() {
        "docker.io" => String::new(),
        name => format!(" {name}"),
    };
    Error::new(Kind::Unauthorized, message).with_hint(format!(
        "if the image is there and private: docker login{login}, or podman login {}",
        source.host.name
    ))
}

fn basic(user: &str, password: &str, registry: &str) -> Result<HeaderValue> {
    let both = STANDARD.encode(format!("{user}:{password}"));
    secret(&format!("Basic {both}"), registry)
}

fn secret(value: &str, registry: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(value).map_err(|_| {
        let message = format!("the credentials of {registry} do not fit into a header");
        Error::new(Kind::Config, message)
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str]) -> Option<Challenge> {
        Challenge::parse(values.iter().copied())
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.into(),
                service: service.map(str::to_owned),
            })
        };
        let value = r#"Bearer realm="https://a/t",service="s \"x\"",scope="repository:a:pull""#;
        assert_eq!(parse(&[value]), bearer("https://a/t", Some("s \"x\"")));
        let value = r#"Basic realm="x", bearer Realm="https://a""#;
        assert_eq!(parse(&[value]), bearer("https://a", None));
        assert_eq!(
            parse(&["Basic realm=x", "Bearer realm=y"]),
            bearer("y", None)
        );
        assert_eq!(parse(&["Basic realm=\"x\""]), Some(Challenge::Basic));
    }

    #[test]
    fn what_is_no_challenge_is_none() {
        for value in [
            "",
            "Bearer",
            "Digest realm=\"x\"",
            "Bearer realm=\"",
            "\u{0}",
            ",,,",
        ] {
            assert_eq!(parse(&[value]), None, "{value:?}");
        }
        let long = format!("Bearer realm=\"{}\"", "x".repeat(MOST_CHALLENGE));
        assert_eq!(parse(&[&long]), None);
    }

    #[test]
    fn a_token_has_either_name_and_a_life() {
        let of = |text: &str| Token::parse(text.as_bytes()).map(|t| (t.text, t.life.as_secs()));
        assert_eq!(
            of(r#"{"token":"t","expires_in":300}"#),
            Ok(("t".into(), 300))
        );
        assert_eq!(of(r#"{"access_token":"a"}"#), Ok(("a".into(), 60)));
        assert_eq!(
            of(r#"{"token":"","access_token":"a"}"#),
            Ok(("a".into(), 60))
        );
        assert_eq!(of(r#"{"token":"t","expires_in":-1}"#), Ok(("t".into(), 0)));
        assert_eq!(
            of(r#"{"token":"t","expires_in":1e300}"#),
            Ok(("t".into(), 86400))
        );
        for wrong in [
            "",
            "{}",
            "[]",
            r#"{"token":"a\nb"}"#,
            r#"{"token":1}"#,
            "<html>",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
