//! Heads of HTTP/1.1 (RFC 9112): what a guest asks a proxy for, and what an answer begins with. Heads are
//! made anew, of what was understood.

use std::net::IpAddr;

use crate::policy::address::canonical;
use crate::policy::rule::host_name;
use crate::upstream::{Proxy, split_port};

/// Longest head, in bytes.
pub const MOST: usize = 32 << 10;
const MOST_HEADERS: usize = 100;

/// What is wrong with a request: the status to answer with, and words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad(pub u16, pub &'static str);

/// What a guest asks a proxy for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whom to connect to: a name in lower case, or an address.
    pub host: String,
    /// At which port.
    pub port: u16,
    /// What is asked of it; `None` for a connection (`CONNECT`).
    pub plain: Option<Plain>,
}

/// Names and values.
type Headers = Vec<(String, Vec<u8>)>;

/// A request by a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plain {
    method: String,
    /// Host and port as the URL has them.
    authority: String,
    /// Path and query.
    path: String,
    headers: Headers,
    /// What comes behind the head.
    pub body: Body,
}

/// How long what comes behind a head is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// So many bytes.
    Length(u64),
    /// As many as its chunks say.
    Chunked,
}

impl Request {
    /// Whom it is about, if that is an address.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok().map(canonical)
    }

    /// `host:port`, as in a URL.
    pub fn authority(&self) -> String {
        match self.address() {
            Some(IpAddr::V6(address)) => format!("[{address}]:{}", self.port),
            _ => format!("{}:{}", self.host, self.port),
        }
    }

    /// What is sent to a proxy, or to the server itself, before anything else. Nothing is sent to a
    /// server itself for a connection.
    pub fn to_server(&self, via: Option<&Proxy>) -> Vec<u8> {
        let mut head = Vec::new();
        let authority = self.authority();
        match (&self.plain, via) {
            (None, None) => return head,
            (None, Some(_)) => {
                head.extend(
                    format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n").bytes(),
                );
            }
            (Some(plain), _) => {
                let scheme_and_host = match via {
                    Some(_) => format!("http://{}", plain.authority),
                    None => String::new(),
                };
                let (method, path) = (&plain.method, &plain.path);
                let first = format!("{method} {scheme_and_host}{path} HTTP/1.1\r\n");
                head.extend(first.bytes());
                head.extend(format!("Host: {}\r\n", plain.authority).bytes());
                for (name, value) in &plain.headers {
                    header(&mut head, name, value);
                }
                // One request a connection: so none can hide behind another.
                header(&mut head, "Connection", b"close");
            }
        }
        if let Some(authorization) = via.and_then(|proxy| proxy.authorization.as_ref()) {
            header(&mut head, "Proxy-Authorization", authorization.as_bytes());
        }
        head.extend(b"\r\n");
        head
    }
}

fn header(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    head.extend(name.bytes());
    head.extend(b": ");
    head.extend(value);
    head.extend(b"\r\n");
}

/// Reads the head of a request. Returns it and its length; `None` until it is whole.
///
/// # Errors
/// What is wrong with it.
pub fn request(bytes: &[u8]) -> Result<Option<(Request, usize)>, Bad> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= MOST => length,
        Ok(httparse::Status::Partial) if bytes.len() < MOST => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            return Err(Bad(431, "the head is too long"));
        }
        Err(_) => return Err(Bad(400, "this is no request of HTTP")),
    };
    let (Some(method), Some(target)) = (parsed.method, parsed.path) else {
        return Err(Bad(400, "this is no request of HTTP"));
    };
    if method == "CONNECT" {
        let (host, port) = split_port(target).ok_or(Bad(400, "no host and port to connect to"))?;
        let port = port.ok_or(Bad(400, "no port to connect to"))?;
        let host = host_of(host)?;
        let request = Request {
            host,
            port,
            plain: None,
        };
        return Ok(Some((request, length)));
    }
    let scheme = target
        .get(..7)
        .filter(|s| s.eq_ignore_ascii_case("http://"));
    if scheme.is_none() {
        return Err(Bad(400, "a proxy is asked by http:// URLs, or to connect"));
    }
    let rest = &target[7..];
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let path = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/{path}"),
    };
    if path.contains('#') || authority.contains('@') {
        return Err(Bad(
            400,
            "a fragment or a user is no part of what a proxy is asked",
        ));
    }
    let (host, port) = split_port(authority).ok_or(Bad(400, "no host in the URL"))?;
    let (kept, body) = headers_of(parsed.headers)?;
    let request = Request {
        host: host_of(host)?,
        port: port.unwrap_or(80),
        plain: Some(Plain {
            method: method.to_owned(),
            authority: authority.to_owned(),
            path,
            headers: kept,
            body,
        }),
    };
    Ok(Some((request, length)))
}

/// A name in lower case, or an address.
fn host_of(host: &str) -> Result<String, Bad> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(canonical(address).to_string());
    }
    host_name(host).map_err(|why| Bad(400, why))
}

/// Headers that are about one connection, not about what is asked (RFC 9110, section 7.6.1), and `Host`,
/// which the URL says.
const OF_A_CONNECTION: &[&str] = &[
    "connection",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
];

/// What of an answer tells of the host's proxy.
const OF_A_PROXY: &[&str] = &["via", "x-cache", "x-cache-lookup", "x-served-by"];

fn is_one_of(name: &str, list: &[&str]) -> bool {
    list.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// The headers to pass on, and how long the body is.
fn headers_of(headers: &[httparse::Header]) -> Result<(Headers, Body), Bad> {
    let named: Vec<String> = headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("connection"))
        .flat_map(|header| {
            let text = String::from_utf8_lossy(header.value).into_owned();
            let names = text.split(',').map(|name| name.trim().to_ascii_lowercase());
            names.collect::<Vec<_>>()
        })
        .collect();
    let (mut kept, mut body) = (Vec::new(), None);
    for header in headers {
        let name = header.name;
        let own_body = if name.eq_ignore_ascii_case("content-length") {
            let digits = std::str::from_utf8(header.value).ok();
            let digits = digits.filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            let length = digits.and_then(|text| text.parse().ok());
            Some(Body::Length(length.ok_or(Bad(400, "the length is none"))?))
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !header.value.eq_ignore_ascii_case(b"chunked") {
                return Err(Bad(
                    501,
                    "the only transfer coding that is known is chunked",
                ));
            }
            Some(Body::Chunked)
        } else {
            None
        };
        if let Some(own) = own_body
            && body.replace(own).is_some()
        {
            return Err(Bad(400, "the length is said twice"));
        }
        let named = named.iter().any(|named| name.eq_ignore_ascii_case(named));
        if own_body.is_some() || !named && !is_one_of(name, OF_A_CONNECTION) {
            kept.push((name.to_owned(), header.value.to_vec()));
        }
    }
    Ok((kept, body.unwrap_or(Body::Length(0))))
}

/// The head of an answer, for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The head as the guest gets it.
    pub head: Vec<u8>,
}

/// Reads the head of an answer. Returns it and its length; `None` until it is whole. What is about the
/// connection to a proxy, or tells of it, is left out.
///
/// # Errors
/// If it is none, or too long.
pub fn response(bytes: &[u8]) -> Result<Option<(Response, usize)>, Bad> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= MOST => length,
        Ok(httparse::Status::Partial) if bytes.len() < MOST => return Ok(None),
        _ => return Err(Bad(502, "the answer is none of HTTP")),
    };
    let status = parsed.code.unwrap_or_default();
    let reason = parsed.reason.unwrap_or_default();
    let mut head = format!("HTTP/1.1 {status} {reason}\r\n").into_bytes();
    for own in parsed.headers.iter() {
        if !is_one_of(own.name, OF_A_CONNECTION) && !is_one_of(own.name, OF_A_PROXY) {
            header(&mut head, own.name, own.value);
        }
    }
    if status >= 200 {
        header(&mut head, "Connection", b"close");
    }
    head.extend(b"\r\n");
    Ok(Some((Response { status, head }, length)))
}

/// A whole answer of our own.
pub fn answer(status: u16, why: &str) -> Vec<u8> {
    let reason = match status {
        400 => "Bad Request",
        403 => "Forbidden",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        504 => "Gateway Timeout",
        _ => "Bad Gateway",
    };
    let body = format!("{why}\n");
    let length = body.len();
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Request, Bad> {
        request(text.as_bytes()).map(|found| {
            let (request, length) = found.expect("a whole head");
            assert_eq!(length, text.len());
            request
        })
    }

    fn proxy() -> Proxy {
        Proxy {
            host: "proxy.example".into(),
            port: 3128,
            addresses: Vec::new(),
            authorization: Some("Basic QQ==".into()),
        }
    }

    #[test]
    fn a_connection_is_asked_for_anew_with_the_hosts_credentials() {
        let asked = read(
            "CONNECT A.Example:443 HTTP/1.1\r\nHost: other\r\nProxy-Authorization: Basic eA==\r\n\r\n",
        )
        .unwrap();
        assert_eq!((asked.host.as_str(), asked.port), ("a.example", 443));
        let sent = String::from_utf8(asked.to_server(Some(&proxy()))).unwrap();
        assert_eq!(
            sent,
            "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\
             Proxy-Authorization: Basic QQ==\r\n\r\n"
        );
        assert!(asked.to_server(None).is_empty());
        let v6 = read("CONNECT [2001:db8::1]:1 HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(v6.authority(), "[2001:db8::1]:1");
        let mapped = read("CONNECT [::ffff:127.0.0.1]:1 HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(mapped.host, "127.0.0.1");
    }

    #[test]
    fn a_request_goes_on_without_what_is_about_its_connection() {
        let asked = read(
            "POST http://A.example/x?y HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 3\r\n\
             X-One: 1\r\nX-Hop: 2\r\nConnection: keep-alive, x-hop\r\nProxy-Connection: keep-alive\r\n\
             Proxy-Authorization: Basic eA==\r\n\r\n",
        )
        .unwrap();
        assert_eq!(asked.plain.as_ref().unwrap().body, Body::Length(3));
        let direct = String::from_utf8(asked.to_server(None)).unwrap();
        assert_eq!(
            direct,
            "POST /x?y HTTP/1.1\r\nHost: A.example\r\nContent-Length: 3\r\nX-One: 1\r\n\
             Connection: close\r\n\r\n"
        );
        let via = String::from_utf8(asked.to_server(Some(&proxy()))).unwrap();
        assert!(via.starts_with("POST http://A.example/x?y HTTP/1.1\r\nHost: A.example\r\n"));
        assert!(via.ends_with("Proxy-Authorization: Basic QQ==\r\n\r\n"));
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        for (head, status) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET https://a.example/ HTTP/1.1\r\n\r\n", 400),
            ("GET http://u@a.example/ HTTP/1.1\r\n\r\n", 400),
            ("GET http://127.1/ HTTP/1.1\r\n\r\n", 400),
            ("GET http://localhost/ HTTP/1.1\r\n\r\n", 400),
            ("CONNECT a.example HTTP/1.1\r\n\r\n", 400),
            ("CONNECT a.example:0 HTTP/1.1\r\n\r\n", 400),
            ("CONNECT a.example:1:2 HTTP/1.1\r\n\r\n", 400),
            ("\x16\x03\x01\x02\0\r\n\r\n", 400),
            (
                "GET http://a.example/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
                400,
            ),
            (
                "GET http://a.example/ HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
                400,
            ),
            (
                "GET http://a.example/ HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
            ),
            (
                "GET http://a.example/ HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
                501,
            ),
        ] {
            let refused = request(head.as_bytes()).expect_err(head);
            assert_eq!(refused.0, status, "{head}");
        }
        let long = format!("GET http://a.example/ HTTP/1.1\r\nX: {}", "x".repeat(MOST));
        assert_eq!(
            request(long.as_bytes()),
            Err(Bad(431, "the head is too long"))
        );
        assert_eq!(request(b"GET http://a"), Ok(None));
    }

    #[test]
    fn an_answer_says_nothing_of_the_hosts_proxy() {
        let came = b"HTTP/1.1 200 OK\r\nVia: 1.1 proxy.corp\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\
            Proxy-Authenticate: Basic realm=\"corp\"\r\n\r\nhello";
        let (response, length) = response(came).unwrap().unwrap();
        assert_eq!(&came[length..], b"hello");
        let head = String::from_utf8(response.head).unwrap();
        assert_eq!(
            head,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
        );
    }
}
