//! One request to one server, its redirects included: which connection it takes, with or without TLS,
//! how long it waits, and what its failure means.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Client, Method, Response, Url, redirect};

use crate::dns::{self, Resolver};
use crate::error::{Error, Kind, Result, shown};
use crate::failure::{self, Failed};
use crate::options::Options;
use crate::tls::{self, HostRoots};

/// Most redirects of one request.
const MOST_REDIRECTS: usize = 5;
/// Most header lines of an answer.
const MOST_HEADERS: usize = 128;

/// A registry, mirror or token server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    /// `HOST[:PORT]`.
    pub name: String,
    /// Whether it may do without TLS, or have any certificate, by the configuration of mirrors.
    pub insecure: bool,
}

/// What is asked for.
pub struct Request {
    pub headers: HeaderMap,
    /// Sent to the server of the first URL alone.
    pub authorization: Option<HeaderValue>,
    /// The form of a POST; without one it is a GET.
    pub form: Option<Vec<(&'static str, String)>>,
    /// Whether any server may be asked without TLS: what is asked for is no secret, and is verified.
    pub may_be_plain: bool,
}

impl Request {
    /// A GET without credentials.
    pub fn get(headers: HeaderMap) -> Self {
        Request {
            headers,
            authorization: None,
            form: None,
            may_be_plain: false,
        }
    }
}

/// How a server is trusted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// TLS, with a certificate that is checked.
    Checked,
    /// This very host: the same, or no TLS at all.
    Loopback,
    /// TLS with any certificate, or none.
    Insecure,
}

/// Connections, and what was learnt about servers.
pub struct Transport {
    options: Options,
    resolver: Resolver,
    roots: Arc<HostRoots>,
    /// By `HOST[:PORT]`, and whether it speaks TLS. Most of them are one.
    clients: Mutex<HashMap<(String, bool), Client>>,
    /// The one for all servers that need nothing of their own.
    usual: Mutex<Option<Client>>,
    /// Servers that may do without TLS, and whether they do.
    plain: Mutex<HashMap<String, bool>>,
}

impl Transport {
    pub fn new(options: Options) -> Self {
        Transport {
            resolver: Resolver::new(options.places.resolver.clone()),
            options,
            roots: Arc::default(),
            clients: Mutex::default(),
            usual: Mutex::default(),
            plain: Mutex::default(),
        }
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Sends a request to a path of a server: with TLS; or without it, where that is allowed and the
    /// server does not speak TLS.
    pub async fn send(&self, host: &Host, path: &str, request: &Request) -> Result<Response> {
        let (secure, plain) = (url("https", host, path)?, url("http", host, path)?);
        if self.trust(&secure, host) == Trust::Checked {
            return self.follow(secure, None, host, request).await;
        }
        let known = lock(&self.plain).get(&host.name).copied();
        let failed = match known {
            Some(true) => return self.follow(plain, None, host, request).await,
            Some(false) => return self.follow(secure, None, host, request).await,
            None => match self.hop(&secure, host, request, true).await {
                Ok(response) => {
                    lock(&self.plain).insert(host.name.clone(), false);
                    return self.follow(secure, Some(response), host, request).await;
                }
                Err(failed) => failed,
            },
        };
        if !failed.perhaps_plain {
            return Err(failed.error);
        }
        let response = match self.hop(&plain, host, request, true).await {
            Ok(response) => response,
            Err(second) => return Err(second.error),
        };
        lock(&self.plain).insert(host.name.clone(), true);
        self.follow(plain, Some(response), host, request).await
    }

    /// Sends a request to a URL that `host` has named.
    pub async fn send_to(&self, url: Url, host: &Host, request: &Request) -> Result<Response> {
        self.check_scheme(&url, host, request)?;
        self.follow(url, None, host, request).await
    }

    /// Whether `host` was found to be spoken to without TLS.
    pub fn is_plain(&self, host: &Host) -> bool {
        lock(&self.plain).get(&host.name) == Some(&true)
    }

    /// Whether an answer is of this server itself, and not of one that it has redirected to.
    pub fn is_of(&self, host: &Host, response: &Response) -> bool {
        let scheme = match self.is_plain(host) {
            true => "http",
            false => "https",
        };
        url(scheme, host, "/").is_ok_and(|url| url.origin() == response.url().origin())
    }

    /// Sends a request, whose first answer may be known, until it is answered by no redirect.
    async fn follow(
        &self,
        first: Url,
        mut answer: Option<Response>,
        host: &Host,
        request: &Request,
    ) -> Result<Response> {
        let mut url = first.clone();
        for _ in 0..=MOST_REDIRECTS {
            let response = match answer.take() {
                Some(response) => response,
                None => {
                    let authorized = url.origin() == first.origin();
                    let sent = self.hop(&url, host, request, authorized).await;
                    sent.map_err(|failed| failed.error)?
                }
            };
            let Some(next) = redirected(&url, &response)? else {
                return Ok(response);
            };
            if request.form.is_some() {
                let why = "redirects a request that has credentials in it";
                return Err(protocol(&url, why));
            }
            if url.scheme() == "https" && next.scheme() != "https" {
                let to = authority(&next);
                return Err(protocol(&url, &format!("redirects to {to} without TLS")));
            }
            self.check_scheme(&next, host, request)?;
            url = next;
        }
        let why = format!("redirects more than {MOST_REDIRECTS} times");
        Err(protocol(&first, &why))
    }

    /// Refuses URLs that may not be used.
    fn check_scheme(&self, url: &Url, host: &Host, request: &Request) -> Result<()> {
        match url.scheme() {
            "https" => Ok(()),
            "http" if request.may_be_plain => Ok(()),
            "http" if self.trust(url, host) != Trust::Checked => Ok(()),
            "http" => {
                let name = authority(url);
                let message = format!("{name} would be spoken to without TLS ({})", host.name);
                let hint = format!("--insecure-registry {name} allows it");
                Err(Error::new(Kind::Denied, message).with_hint(hint))
            }
            scheme => {
                let why = format!("names a URL of the scheme {}", shown(scheme));
                Err(Error::new(Kind::Protocol, format!("{} {why}", host.name)))
            }
        }
    }

    /// Sends one request to one URL.
    async fn hop(
        &self,
        url: &Url,
        host: &Host,
        request: &Request,
        authorized: bool,
    ) -> std::result::Result<Response, Failed> {
        let client = self.client(url, host).map_err(Failed::from)?;
        let method = match &request.form {
            Some(_) => Method::POST,
            None => Method::GET,
        };
        let mut builder = client
            .request(method, url.clone())
            .headers(request.headers.clone());
        if let (true, Some(authorization)) = (authorized, &request.authorization) {
            builder = builder.header(AUTHORIZATION, authorization.clone());
        }
        if let Some(form) = &request.form {
            builder = builder.form(form);
        }
        let most = self.options.connect_timeout + self.options.idle_timeout;
        let name = authority(url);
        match tokio::time::timeout(most, builder.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let mut failed = failure::of(&error, url, &name, &self.options);
                if failed.is_plain {
                    let hint = match request.may_be_plain {
                        true => format!(
                            "http://{name} does without; the digest is checked all the same"
                        ),
                        false => format!("--insecure-registry {name} allows to do without"),
                    };
                    failed.error = failed.error.with_hint(hint);
                }
                if let Some(proxy) = proxy(url).filter(|_| error.is_connect()) {
                    let hint = format!("connections go through the proxy that ${proxy} names");
                    failed.error = failed.error.with_hint(hint);
                }
                Err(failed)
            }
            Err(_) => Err(Failed::from(failure::silent(&name, &self.options))),
        }
    }

    /// The client for this URL.
    fn client(&self, url: &Url, host: &Host) -> Result<Client> {
        let (name, tls) = (authority(url), url.scheme() == "https");
        if let Some(client) = lock(&self.clients).get(&(name.clone(), tls)) {
            return Ok(client.clone());
        }
        let client = self.new_client(url, tls, self.trust(url, host))?;
        lock(&self.clients).insert((name, tls), client.clone());
        Ok(client)
    }

    fn new_client(&self, url: &Url, tls: bool, trust: Trust) -> Result<Client> {
        let mut own = Vec::new();
        if tls && trust != Trust::Insecure {
            let folders = &self.options.places.certificates;
            own = tls::of_registry(folders, &authority(url))?;
            if let (None, Some(port), Some(name)) =
                (url.port(), url.port_or_known_default(), url.host_str())
            {
                own.extend(tls::of_registry(folders, &format!("{name}:{port}"))?);
            }
        }
        // Without TLS a client never checks anything, so that of the others will do.
        let usual = own.is_empty() && (trust == Trust::Checked || !tls) && !is_loopback(url);
        if usual && let Some(client) = &*lock(&self.usual) {
            return Ok(client.clone());
        }
        let config = match trust {
            Trust::Insecure if tls => tls::unchecked()?,
            _ => tls::checked(self.roots.clone(), own)?,
        };
        let mut builder = Client::builder()
            .user_agent(concat!("smol/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .connect_timeout(self.options.connect_timeout)
            .dns_resolver(self.resolver.clone())
            .http1_max_headers(MOST_HEADERS)
            .referer(false)
            .tls_backend_preconfigured(config);
        if is_loopback(url) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| {
            let why = failure::innermost(&error);
            Error::new(Kind::Local, format!("cannot prepare connections: {why}"))
        })?;
        if usual {
            *lock(&self.usual) = Some(client.clone());
        }
        Ok(client)
    }

    fn trust(&self, url: &Url, host: &Host) -> Trust {
        let mut insecure = self.options.insecure.iter().map(String::as_str);
        if insecure.any(|listed| is_at(url, listed)) || host.insecure && is_at(url, &host.name) {
            Trust::Insecure
        } else if is_loopback(url) {
            Trust::Loopback
        } else {
            Trust::Checked
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The URL of a path at a server; its name may come from a configuration file.
fn url(scheme: &str, host: &Host, path: &str) -> Result<Url> {
    let name = &host.name;
    let parsed = Url::parse(&format!("{scheme}://{name}{path}")).ok();
    let clean = |url: &Url| url.path() == path && url.username().is_empty();
    parsed.filter(clean).ok_or_else(|| {
        let message = format!("{:?} is no host of a registry", shown(name));
        Error::new(Kind::Config, message)
    })
}

/// `HOST[:PORT]` of a URL, without the port that its scheme has anyway.
pub fn authority(url: &Url) -> String {
    let name = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    }
}

/// Whether a URL's server is the one that is listed as `HOST[:PORT]`.
fn is_at(url: &Url, listed: &str) -> bool {
    let (name, port) = match listed.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok()),
        _ => (listed, None),
    };
    let same = url
        .host_str()
        .is_some_and(|host| host.eq_ignore_ascii_case(name));
    same && (port.is_none() || port == url.port_or_known_default())
}

/// The variable that names the proxy which may stand between us and a URL's server.
fn proxy(url: &Url) -> Option<&'static str> {
    const SECURE: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    const PLAIN: [&str; 4] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
    let names = if url.scheme() == "https" {
        SECURE
    } else {
        PLAIN
    };
    let set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    names.into_iter().find(set).filter(|_| !is_loopback(url))
}

/// Whether a URL's server is this very host.
pub fn is_loopback(url: &Url) -> bool {
    let name = url.host_str().unwrap_or_default();
    let address = name.trim_matches(['[', ']']).parse::<IpAddr>();
    address.map_or_else(|_| dns::is_local(name), |address| address.is_loopback())
}

/// Where an answer redirects to.
fn redirected(url: &Url, response: &Response) -> Result<Option<Url>> {
    if ![301, 302, 303, 307, 308].contains(&response.status().as_u16()) {
        return Ok(None);
    }
    let target = response.headers().get(LOCATION);
    let target = target.and_then(|target| url.join(target.to_str().ok()?).ok());
    let Some(mut target) = target.filter(Url::has_host) else {
        return Err(protocol(url, "redirects to no URL"));
    };
    // Credentials of somebody else's choosing.
    let _ = target.set_username("");
    let _ = target.set_password(None);
    Ok(Some(target))
}

fn protocol(url: &Url, what: &str) -> Error {
    Error::new(Kind::Protocol, format!("{} {what}", authority(url)))
}

/// Reads the rest of an answer, at most `most` bytes.
///
/// # Errors
/// If there is more, or the connection fails.
pub async fn body(response: &mut Response, most: usize, options: &Options) -> Result<Vec<u8>> {
    let name = authority(response.url());
    let too_long = || {
        let message = format!("{name} sends more than {most} bytes where that is the most");
        Error::new(Kind::Corrupt, message)
    };
    if response
        .content_length()
        .is_some_and(|len| len > most as u64)
    {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = chunk(response, options).await? {
        if bytes.len() + chunk.len() > most {
            return Err(too_long());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Waits for the next bytes of an answer.
pub async fn chunk(
    response: &mut Response,
    options: &Options,
) -> Result<Option<impl AsRef<[u8]> + std::ops::Deref<Target = [u8]> + use<>>> {
    match tokio::time::timeout(options.idle_timeout, response.chunk()).await {
        Ok(Ok(chunk)) => Ok(chunk),
        Ok(Err(error)) => {
            let url = response.url();
            Err(failure::of(&error, url, &authority(url), options).error)
        }
        Err(_) => Err(failure::silent(&authority(response.url()), options)),
    }
}

/// The media type of an answer, without parameters.
pub fn media_type(response: &Response) -> Option<String> {
    let value = response.headers().get(CONTENT_TYPE)?.to_str().ok()?;
    let value = value.split(';').next().unwrap_or_default().trim();
    (!value.is_empty()).then(|| shown(value))
}
