//! One rule: a name or addresses, and perhaps a port.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::address::{canonical, contains};

/// What a guest may reach: `registry.example.org:443`, `*.example.org`, `192.0.2.7:5432`,
/// `198.51.100.0/24`, `[2001:db8::1]:443`.
///
/// Without a port, all ports are meant. `*.example.org` is all names below `example.org`, at any depth,
/// and not `example.org` itself. Names are lower-cased; one that is not ASCII has to be written as DNS
/// has it (`xn--…`). `Display` writes what [`FromStr`] reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    pub(super) host: Host,
    pub(super) port: Option<u16>,
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Host {
    /// This name.
    Name(String),
    /// All names that end in a dot and this.
    Below(String),
    /// This address.
    Address(IpAddr),
    /// All addresses whose first bits are those of this one.
    Network(IpAddr, u8),
}

impl Rule {
    /// Whether it is about a name rather than addresses.
    pub fn is_name(&self) -> bool {
        matches!(self.host, Host::Name(_) | Host::Below(_))
    }

    pub(super) fn has_port(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
    }

    /// Whether it is about this name, which is in lower case.
    pub(super) fn has_name(&self, name: &str) -> bool {
        match &self.host {
            Host::Name(own) => own == name,
            Host::Below(own) => name
                .strip_suffix(own.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            Host::Address(_) | Host::Network(..) => false,
        }
    }

    /// Whether it is a network that contains this address.
    pub(super) fn has_in_network(&self, address: IpAddr) -> bool {
        matches!(self.host, Host::Network(network, bits) if contains(network, bits, address))
    }
}

/// Why a text is no [`Rule`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule:?} is no destination: {why}; write it like {EXAMPLES}")]
pub struct InvalidRule {
    rule: String,
    why: &'static str,
}

const EXAMPLES: &str = "\"registry.example.org:443\", \"*.example.org\", \"192.0.2.7:5432\", \
                        \"198.51.100.0/24\" or \"[2001:db8::1]:443\"";
/// Longest text of a rule, in bytes: the longest name, a port, a star.
const MOST: usize = 253 + 6 + 2;

impl FromStr for Rule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        parse(text).map_err(|why| InvalidRule {
            rule: text.chars().take(MOST).collect(),
            why,
        })
    }
}

fn parse(text: &str) -> Result<Rule, &'static str> {
    if text.len() > MOST {
        return Err("it is too long");
    }
    if text.contains("://") {
        return Err("a URL, of which only host and port are wanted");
    }
    let (host, port) = split(text)?;
    let port = port.map(parse_port).transpose()?;
    let host = parse_host(host)?;
    Ok(Rule { host, port })
}

/// Host and port, without the brackets of an IPv6 address.
fn split(text: &str) -> Result<(&str, Option<&str>), &'static str> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("a bracket is not closed")?;
        if !host.contains(':') {
            return Err("only IPv6 addresses have brackets");
        }
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err("behind the bracket there can only be \":PORT\""),
        };
    }
    match text.split_once(':') {
        // With more than one colon, it is an IPv6 address.
        Some((host, port)) if !port.contains(':') => Ok((host, Some(port))),
        _ => Ok((text, None)),
    }
}

fn parse_port(text: &str) -> Result<u16, &'static str> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port != 0);
    port.ok_or("a port is a number from 1 to 65535")
}

fn parse_host(text: &str) -> Result<Host, &'static str> {
    if let Some((network, bits)) = text.split_once('/') {
        let network: IpAddr = network
            .parse()
            .map_err(|_| "only a network has a \"/\", as in 198.51.100.0/24")?;
        let most = if network.is_ipv4() { 32 } else { 128 };
        let digits = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
        let bits = bits.parse().ok().filter(|bits| digits && *bits <= most);
        let bits = bits.ok_or("a network has at most 32 bits, or 128 in IPv6")?;
        return parse_network(network, bits);
    }
    if let Ok(address) = text.parse() {
        return Ok(Host::Address(canonical(address)));
    }
    if text == "*" {
        return Err("a single star names nothing");
    }
    if let Some(below) = text.strip_prefix("*.") {
        return host_name(below).map(Host::Below);
    }
    host_name(text).map(Host::Name)
}

fn parse_network(network: IpAddr, bits: u8) -> Result<Host, &'static str> {
    if canonical(network) != network {
        return Err("a network of IPv4 addresses is written as one of IPv4");
    }
    let first = match network {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    };
    if first != network {
        return Err("the address has bits behind those of the network");
    }
    Ok(Host::Network(network, bits))
}

/// Checks a name of DNS that can be a host, and returns it in lower case and without a final dot.
///
/// # Errors
/// Why it is none. Text that some programs take for an IPv4 address, like `127.1` or `0x7f000001`, is
/// none either.
pub fn host_name(text: &str) -> Result<String, &'static str> {
    if !text.is_ascii() {
        return Err("a name that is not ASCII is written as DNS has it (\"xn--…\")");
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if name.is_empty() || name.len() > 253 {
        return Err("a name has 1 to 253 characters");
    }
    if name.contains('*') {
        return Err("a star stands for the first part of a name alone, as in \"*.example.org\"");
    }
    let known = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let good = |label: &str| (1..64).contains(&label.len()) && label.bytes().all(known);
    if !name.split('.').all(good) {
        return Err("a name is made of letters, digits, \"-\" and \"_\", and dots between them");
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x");
    if number {
        return Err("an IPv4 address has four numbers");
    }
    if name == "localhost" || name.ends_with(".localhost") {
        return Err("localhost is the guest itself; the host's loopback is named by its address");
    }
    Ok(name)
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => f.write_str(name)?,
            Host::Below(name) => write!(f, "*.{name}")?,
            Host::Address(IpAddr::V6(address)) if self.port.is_some() => write!(f, "[{address}]")?,
            Host::Address(address) => write!(f, "{address}")?,
            Host::Network(network @ IpAddr::V6(_), bits) if self.port.is_some() => {
                write!(f, "[{network}/{bits}]")?;
            }
            Host::Network(network, bits) => write!(f, "{network}/{bits}")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_written() {
        for (text, shown) in [
            ("registry.example.org:443", "registry.example.org:443"),
            ("Registry.Example.ORG.", "registry.example.org"),
            ("*.example.org:443", "*.example.org:443"),
            ("192.0.2.7:5432", "192.0.2.7:5432"),
            ("198.51.100.0/24", "198.51.100.0/24"),
            ("10.0.0.0/8:443", "10.0.0.0/8:443"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("[2001:db8::/32]:22", "[2001:db8::/32]:22"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("_srv.a-b.example", "_srv.a-b.example"),
        ] {
            let rule: Rule = text.parse().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(rule.to_string(), shown, "{text}");
            assert_eq!(shown.parse(), Ok(rule), "{text}");
        }
    }

    #[test]
    fn what_is_no_rule_says_why_and_how_one_looks() {
        for (text, why) in [
            ("", "1 to 253"),
            ("*", "single star"),
            ("a.*.b", "first part"),
            ("https://example.org", "URL"),
            ("example.org:0", "1 to 65535"),
            ("example.org:65536", "1 to 65535"),
            ("example.org:+1", "1 to 65535"),
            ("example.org:", "1 to 65535"),
            ("bücher.example", "xn--"),
            ("127.1", "four numbers"),
            ("2130706433:80", "four numbers"),
            ("0x7f.0x1", "four numbers"),
            ("localhost:80", "by its address"),
            ("a.localhost", "by its address"),
            ("10.0.0.1/8", "bits behind"),
            ("10.0.0.0/33", "at most 32"),
            ("a.example/24", "only a network"),
            ("[::1", "not closed"),
            ("[::1]x", "\":PORT\""),
            ("[192.0.2.1]:1", "brackets"),
            ("a..b", "letters"),
            ("a b", "letters"),
            ("::ffff:10.0.0.0/104", "one of IPv4"),
        ] {
            let error = text.parse::<Rule>().expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
            assert!(error.contains("registry.example.org:443"), "{error}");
        }
    }

    #[test]
    fn a_star_stands_for_names_below_and_not_for_the_name_itself() {
        let rule: Rule = "*.example.org".parse().unwrap();
        assert!(rule.has_name("a.example.org") && rule.has_name("a.b.example.org"));
        for other in [
            "example.org",
            ".example.org",
            "badexample.org",
            "a.example.com",
        ] {
            assert!(!rule.has_name(other), "{other}");
        }
    }
}
