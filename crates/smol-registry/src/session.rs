//! Requests to a repository of a registry: with the credentials that it wants to see, repeated where
//! that is worth it.

use reqwest::Response;
use reqwest::header::HeaderMap;

use crate::auth::{self, Auth};
use crate::error::{Again, Error, Kind, Result};
use crate::mirrors::Source;
use crate::options::Options;
use crate::transport::{self, Request, Transport};
use crate::work::GoOn;

/// Connections and credentials.
pub struct Session {
    pub transport: Transport,
    auth: Auth,
    go_on: GoOn,
}

impl Session {
    pub fn new(options: Options, go_on: GoOn) -> Self {
        Session {
            transport: Transport::new(options),
            auth: Auth::default(),
            go_on,
        }
    }

    pub fn options(&self) -> &Options {
        self.transport.options()
    }

    pub fn go_on(&self) -> bool {
        (self.go_on)()
    }

    /// Gets `/v2/REPOSITORY/PATH`. The answer is a success.
    ///
    /// # Errors
    /// For every other one; [`Error::again`] says whether it is worth to be repeated.
    pub async fn get(&self, source: &Source, path: &str, headers: HeaderMap) -> Result<Response> {
        let server = source.server();
        let path = format!("/v2/{}/{path}", source.repository);
        let mut request = Request::get(headers);
        request.authorization = self.auth.known(source);
        let mut response = self.transport.send(&server, &path, &request).await?;
        let is_own = |response: &Response| self.transport.is_of(&server, response);
        if response.status().as_u16() == 401 && is_own(&response) {
            let go_on = || self.go_on();
            let answer = self.auth.answer(&self.transport, source, &response, &go_on);
            if let Some(authorization) = answer.await? {
                request.authorization = Some(authorization);
                response = self.transport.send(&server, &path, &request).await?;
            }
        }
        match response.status().is_success() {
            true => Ok(response),
            false if is_own(&response) => Err(self.refusal(source, &mut response).await),
            false => Err(self.refusal_elsewhere(source, &mut response).await),
        }
    }

    /// Says why a registry does not give what was asked for.
    async fn refusal(&self, source: &Source, response: &mut Response) -> Error {
        let status = response.status().as_u16();
        let name = &source.host.name;
        let said = auth::said(&self.transport, response).await;
        let message = format!("{name} answers {status}{said}");
        match status {
            401 => {
                let tried = match self.auth.has_credential(source) {
                    true => "the credentials that are known for it are refused".to_owned(),
                    false => format!("no credentials are known for it{}", self.looked_for()),
                };
                auth::unauthorized(format!("{message}; {tried}"), source)
            }
            403 => {
                let error = Error::new(Kind::Denied, message);
                match self.auth.has_credential(source) {
                    true => error,
                    false => error.with_hint(format!("podman login {name}, or docker login")),
                }
            }
            404 => Error::new(Kind::NotFound, message),
            429 if !self.auth.has_credential(source) => {
                let hint = format!("more may be allowed to who has logged in: podman login {name}");
                auth::failed(status, message, response).with_hint(hint)
            }
            _ => auth::failed(status, message, response),
        }
    }

    /// Says why a server that was redirected to does not give what was asked for. Where it may be had
    /// may change, so that it is worth to ask the registry again.
    async fn refusal_elsewhere(&self, source: &Source, response: &mut Response) -> Error {
        let status = response.status().as_u16();
        let (name, there) = (&source.host.name, transport::authority(response.url()));
        let said = auth::said(&self.transport, response).await;
        let message = format!("{there}, where {name} redirects to, answers {status}{said}");
        match status {
            401 | 403 | 404 => Error::new(Kind::Denied, message).with_again(Again::Yes),
            _ => auth::failed(status, message, response),
        }
    }

    /// Where credentials were looked for.
    fn looked_for(&self) -> String {
        let files = &self.options().places.credentials;
        let files: Vec<_> = files.iter().map(|f| f.display().to_string()).collect();
        match files.is_empty() {
            true => String::new(),
            false => format!(" (looked for in {})", files.join(", ")),
        }
    }
}
