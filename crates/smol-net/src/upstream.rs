//! How the host itself gets to the world: its DNS servers, and its proxies.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use base64::Engine as _;
use smol_protocol::net::{GATEWAY_V4, PROXY_PORT};

use crate::policy::address::contains;
use crate::policy::rule::host_name;

/// DNS servers that are asked, as in the C library.
const MOST_SERVERS: usize = 3;
/// Most bytes of a file of the host that are read.
const MOST: u64 = 1 << 20;

/// How the host itself gets to the world.
#[derive(Clone, Debug, Default)]
pub struct Upstream {
    /// Its DNS servers.
    pub servers: Vec<SocketAddr>,
    /// Its proxies.
    pub proxies: Proxies,
    /// Whether guests get a proxy although the host has none: it makes connections itself, and knows
    /// them by their names.
    pub offer_proxy: bool,
}

impl Upstream {
    /// What `/etc/resolv.conf`, `/etc/hosts` (for the names of proxies alone) and these environment
    /// variables say.
    ///
    /// # Errors
    /// If a variable names no proxy that can be used.
    pub fn of_host(variable: impl Fn(&str) -> Option<String>) -> Result<Self, InvalidProxy> {
        let resolv = read(Path::new("/etc/resolv.conf"));
        let hosts = read(Path::new("/etc/hosts"));
        Ok(Upstream {
            servers: servers(&resolv),
            proxies: Proxies::from_variables(variable, &hosts)?,
            offer_proxy: false,
        })
    }

    /// Whether the guest is given a proxy.
    pub fn has_proxy(&self) -> bool {
        self.offer_proxy || self.proxies.http.is_some() || self.proxies.https.is_some()
    }

    /// Environment variables for programs in the guest: the way to the proxy, if it is given one.
    pub fn guest_variables(&self) -> Vec<(String, String)> {
        let url = format!("http://{GATEWAY_V4}:{PROXY_PORT}");
        let local = "localhost,127.0.0.1,::1";
        let offered = [
            (
                self.offer_proxy || self.proxies.http.is_some(),
                "http_proxy",
                &*url,
            ),
            (
                self.offer_proxy || self.proxies.https.is_some(),
                "https_proxy",
                &*url,
            ),
            (self.has_proxy(), "no_proxy", local),
        ];
        let offered = offered.into_iter().filter(|(offered, _, _)| *offered);
        offered
            .flat_map(|(_, name, value)| {
                [name.to_owned(), name.to_ascii_uppercase()].map(|name| (name, value.to_owned()))
            })
            .collect()
    }
}

/// What is in a file; nothing, if it cannot be read.
fn read(path: &Path) -> String {
    use std::io::Read;
    let mut text = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // What was read before an error counts.
        let _ = file.take(MOST).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The DNS servers of a resolv.conf (resolv.conf(5)). Without one there are none: a public one would
/// learn what is asked for.
pub fn servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let lines = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then_some(())?;
        let address = words.next()?;
        // The link of a link-local address has no place in what is asked of here.
        address.parse::<IpAddr>().ok()
    });
    lines
        .take(MOST_SERVERS)
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

/// The host's proxies, of the variables that curl knows.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// For requests of `http://` URLs.
    pub http: Option<Proxy>,
    /// For connections, which those of `https://` URLs are.
    pub https: Option<Proxy>,
    /// For what there is none.
    pub except: Exceptions,
}

/// A proxy of the host.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Its addresses, where they are known without DNS.
    pub addresses: Vec<IpAddr>,
    /// The value of `Proxy-Authorization`.
    pub authorization: Option<String>,
}

/// Without the credentials.
impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.authorization.as_ref().map(|_| "...");
        f.debug_struct("Proxy")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("addresses", &self.addresses)
            .field("authorization", &known)
            .finish()
    }
}

/// A variable names no proxy that can be used. The value is not shown: it may have a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{variable} is no proxy that can be used: {why}; it is written http://[USER:PASSWORD@]HOST[:PORT]"
)]
pub struct InvalidProxy {
    variable: String,
    why: &'static str,
}

impl Proxies {
    /// Reads `http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`, each before the one in capitals.
    /// `hosts` is the text of /etc/hosts, in which proxies may be named.
    ///
    /// # Errors
    /// If a variable names no proxy that can be used: one over TLS, or of SOCKS.
    pub fn from_variables(
        variable: impl Fn(&str) -> Option<String>,
        hosts: &str,
    ) -> Result<Self, InvalidProxy> {
        let set = |name: &str| {
            let names = [name.to_owned(), name.to_ascii_uppercase()];
            let mut found = names.into_iter().filter_map(|name| {
                let value = variable(&name)?;
                (!value.trim().is_empty()).then_some((name, value))
            });
            found.next()
        };
        let proxy = |name: &str| match set(name).or_else(|| set("all_proxy")) {
            None => Ok(None),
            Some((variable, value)) => match parse_proxy(value.trim(), hosts) {
                Ok(proxy) => Ok(Some(proxy)),
                Err(why) => Err(InvalidProxy { variable, why }),
            },
        };
        Ok(Proxies {
            http: proxy("http_proxy")?,
            https: proxy("https_proxy")?,
            except: Exceptions::parse(&set("no_proxy").map_or(String::new(), |(_, value)| value)),
        })
    }
}

fn parse_proxy(url: &str, hosts: &str) -> Result<Proxy, &'static str> {
    let rest = match url.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
            return Err("a proxy that is spoken to over TLS is not supported");
        }
        Some(_) => return Err("only proxies of HTTP are supported"),
        None => url,
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (user, place) = match authority.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, authority),
    };
    let (host, port) = split_port(place).ok_or("host or port cannot be read")?;
    let port = port.unwrap_or(80);
    let addresses = match (
        host.parse::<IpAddr>(),
        host.eq_ignore_ascii_case("localhost"),
    ) {
        (Ok(address), _) => vec![address],
        (Err(_), true) => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        (Err(_), false) => {
            host_name(host)?;
            in_hosts(hosts, host)
        }
    };
    let authorization = user.map(|user| {
        let user = match user.contains(':') {
            true => unescape(user),
            false => [unescape(user), b":".to_vec()].concat(),
        };
        let text = base64::engine::general_purpose::STANDARD.encode(user);
        format!("Basic {text}")
    });
    Ok(Proxy {
        host: host.to_owned(),
        port,
        addresses,
        authorization,
    })
}

/// Host and port of `HOST[:PORT]`, without the brackets of IPv6; `None` if that is none.
pub fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (host, rest)
        }
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    if host.is_empty() {
        return None;
    }
    if rest.is_empty() {
        return Some((host, None));
    }
    let port = rest.strip_prefix(':')?;
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = port.parse().ok().filter(|port| digits && *port != 0)?;
    Some((host, Some(port)))
}

/// Bytes of a text in which some are written as `%XX`.
fn unescape(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, more)) = rest.split_first() {
        let escaped = more.first_chunk::<2>().filter(|_| *first == b'%');
        let escaped = escaped.and_then(|digits| {
            let digit = |at: usize| char::from(digits[at]).to_digit(16);
            u8::try_from(digit(0)? * 16 + digit(1)?).ok()
        });
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    bytes
}

/// The addresses of a name in a file of hosts(5).
fn in_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let lines = hosts.lines().filter_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        words
            .any(|word| word.eq_ignore_ascii_case(name))
            .then_some(address)
    });
    lines.take(8).collect()
}

/// What there is no proxy for: `NO_PROXY`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exceptions(Vec<Exception>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Exception {
    All,
    /// A name and all below it, and perhaps a port.
    Name(String, Option<u16>),
    Network(IpAddr, u8),
}

impl Exceptions {
    fn parse(text: &str) -> Self {
        let parts = text.split([',', ' ', '\t']).filter(|part| !part.is_empty());
        let exceptions = parts.filter_map(|part| {
            if part == "*" {
                return Some(Exception::All);
            }
            let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
            if let Some((network, length)) = part.split_once('/') {
                let network: IpAddr = network.parse().ok()?;
                let length = length.parse().ok().filter(|n| *n <= bits(network))?;
                return Some(Exception::Network(network, length));
            }
            let plain = part.trim_start_matches('[').trim_end_matches(']');
            if let Ok(address) = plain.parse::<IpAddr>() {
                return Some(Exception::Network(address, bits(address)));
            }
            let (name, port) = split_port(part)?;
            let name = name.trim_start_matches("*.").trim_matches('.');
            Some(Exception::Name(name.to_ascii_lowercase(), port))
        });
        Exceptions(exceptions.collect())
    }

    /// Whether there is no proxy for this host, a name in lower case or an address.
    pub fn contain(&self, host: &str, port: u16) -> bool {
        let address = host.parse::<IpAddr>().ok();
        self.0.iter().any(|exception| match exception {
            Exception::All => true,
            Exception::Network(network, bits) => {
                address.is_some_and(|address| contains(*network, *bits, address))
            }
            Exception::Name(name, own) => {
                let rest = host.strip_suffix(name.as_str());
                own.is_none_or(|own| own == port)
                    && rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)], hosts: &str) -> Result<Proxies, InvalidProxy> {
        let variables = variables.to_vec();
        let variable = |name: &str| {
            let found = variables.iter().find(|(own, _)| *own == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Proxies::from_variables(variable, hosts)
    }

    #[test]
    fn servers_are_those_of_resolv_conf_and_no_others() {
        let text = "# nameserver 192.0.2.9\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # x\n\
                    search example.org\nnameserver fe80::1%eth0\nnameserver\nnameserver 127.0.0.53\n\
                    nameserver 192.0.2.4\n";
        let found: Vec<_> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53", "127.0.0.53:53"]);
        assert!(servers("").is_empty());
    }

    #[test]
    fn proxies_are_those_that_curl_would_take() {
        let found = proxies(
            &[
                ("http_proxy", "proxy.example:3128"),
                ("HTTP_PROXY", "http://other"),
                ("HTTPS_PROXY", "http://us%40er:p%3a@[2001:db8::1]:8080/"),
            ],
            "10.0.0.1 x Proxy.Example # y\n",
        );
        let found = found.unwrap();
        let http = found.http.unwrap();
        assert_eq!((http.host.as_str(), http.port), ("proxy.example", 3128));
        assert_eq!(http.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(http.authorization, None);
        let https = found.https.unwrap();
        assert_eq!((https.host.as_str(), https.port), ("2001:db8::1", 8080));
        // us@er:p:
        assert_eq!(https.authorization.as_deref(), Some("Basic dXNAZXI6cDo="));
        let local = proxies(&[("ALL_PROXY", "http://u@localhost:1")], "").unwrap();
        assert_eq!(local.http, local.https);
        assert_eq!(local.http.unwrap().addresses.len(), 2);
        assert!(proxies(&[("http_proxy", " ")], "").unwrap().http.is_none());
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_an_error_without_its_password() {
        for (value, why) in [
            ("https://u:secret@p:1", "over TLS"),
            ("socks5h://u:secret@p:1", "only proxies of HTTP"),
            ("http://u:secret@p:0", "cannot be read"),
            ("http://u:secret@p q", "letters"),
            ("http://u:secret@", "cannot be read"),
        ] {
            let error = proxies(&[("https_proxy", value)], "")
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with("https_proxy ") && error.contains(why),
                "{error}"
            );
            assert!(!error.contains("secret"), "{error}");
        }
        let shown = proxies(&[("http_proxy", "http://u:secret@p")], "").unwrap();
        assert!(!format!("{shown:?}").contains("dTpzZWNyZXQ"), "{shown:?}");
    }

    #[test]
    fn exceptions_are_names_and_what_is_below_and_addresses() {
        let except = Exceptions::parse("example.org, .example.net,10.0.0.0/8 [::1],a.test:8080");
        for (host, port, is) in [
            ("example.org", 1, true),
            ("a.example.org", 1, true),
            ("badexample.org", 1, false),
            ("a.example.net", 1, true),
            ("10.2.3.4", 1, true),
            ("11.2.3.4", 1, false),
            ("::1", 1, true),
            ("a.test", 8080, true),
            ("a.test", 80, false),
        ] {
            assert_eq!(except.contain(host, port), is, "{host}:{port}");
        }
        assert!(Exceptions::parse("*").contain("anything", 1));
        assert!(!Exceptions::parse("").contain("anything", 1));
    }

    #[test]
    fn a_guest_is_told_of_our_proxy_and_of_nothing_of_the_hosts() {
        let mut upstream = Upstream::default();
        assert!(upstream.guest_variables().is_empty());
        upstream.proxies = proxies(
            &[
                ("https_proxy", "http://u:p@proxy.example"),
                ("no_proxy", "inner.example"),
            ],
            "",
        )
        .unwrap();
        let told = upstream.guest_variables();
        let names: Vec<_> = told.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"]
        );
        assert_eq!(told[0].1, "http://192.0.0.1:3128");
        assert!(!format!("{told:?}").contains("example"));
    }
}
