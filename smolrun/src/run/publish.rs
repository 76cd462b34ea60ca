//! The ports that the user wants forwarded: `-p [IP:]HOST:GUEST`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use smol_cli::human;

/// A port of this host and the port of the guest that it leads to: `[ip:]host:guest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Address here; 127.0.0.1 by default. Port 0: any free one.
    pub host: SocketAddr,
    /// Port in the guest.
    pub guest: u16,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |what: &str, text: &str, least: u16| match text.parse::<u16>() {
            Ok(port) if port >= least && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => Err(format!("{text:?} is not a {what} port ({least} to 65535)")),
        };
        let (rest, guest) = text
            .rsplit_once(':')
            .ok_or("expected [ip:]host:guest, as in 8080:80, 0.0.0.0:8080:80 or [::1]:8080:80")?;
        let guest = port("guest", guest, 1)?;
        let (ip, host) = match rest.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
            Some((ip, host)) => (parse_ip(ip)?, host),
        };
        Ok(Self {
            host: SocketAddr::new(ip, port("host", host, 0)?),
            guest,
        })
    }
}

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let ip = match text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(inner) => inner.parse().map(IpAddr::V6).ok(),
        None => text.parse().map(IpAddr::V4).ok(),
    };
    ip.ok_or_else(|| {
        format!("{text:?} is not an IP address (IPv6 in brackets, as in [::1]:8080:80)")
    })
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.host, self.guest)
    }
}

/// Returns the line that says how to reach a machine that declares ports, if none is forwarded.
pub fn how_to_reach(machine: &str, declared: &[u16], forwarded: &[Publish]) -> Option<String> {
    if declared.is_empty() || !forwarded.is_empty() {
        return None;
    }
    let (ports, options) = (list(declared), human::publish_options(declared));
    Some(format!(
        "{machine} listens on {ports}: add {options} to reach it"
    ))
}

/// Returns the warning about ports that are forwarded, but not among those that the machine declares.
/// A machine that declares none may listen anywhere.
pub fn undeclared(machine: &str, declared: &[u16], forwarded: &[Publish]) -> Option<String> {
    let guests = forwarded.iter().map(|port| port.guest);
    let others: Vec<_> = guests.filter(|port| !declared.contains(port)).collect();
    if declared.is_empty() || others.is_empty() {
        return None;
    }
    let (others, declared) = (list(&others), list(declared));
    Some(format!(
        "warning: {machine} listens on {declared} by its Smolfile, not on {others}"
    ))
}

fn list(ports: &[u16]) -> String {
    let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
    ports.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_whose_ports_are_not_forwarded_says_how_to_reach_them() {
        let forwarded = ["1:80".parse().unwrap()];
        for (declared, forwarded, line) in [
            (&[][..], &[][..], None),
            (
                &[6379],
                &[],
                Some("m listens on 6379: add -p 16379:6379 to reach it"),
            ),
            (
                &[80, 60000],
                &[],
                Some("m listens on 80, 60000: add -p 10080:80 -p 60000:60000 to reach it"),
            ),
            (&[80, 443], &forwarded, None),
        ] {
            assert_eq!(how_to_reach("m", declared, forwarded).as_deref(), line);
        }
    }

    #[test]
    fn a_port_that_is_not_declared_is_warned_about() {
        let ports = |texts: &[&str]| -> Vec<Publish> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        for (declared, forwarded, line) in [
            (&[][..], &["1:80"][..], None),
            (&[80], &["1:80", "2:80"], None),
            (
                &[8000],
                &["18000:9999"],
                Some("warning: m listens on 8000 by its Smolfile, not on 9999"),
            ),
            (
                &[80, 443],
                &["1:80", "2:81", "3:82"],
                Some("warning: m listens on 80, 443 by its Smolfile, not on 81, 82"),
            ),
        ] {
            let warning = undeclared("m", declared, &ports(forwarded));
            assert_eq!(warning.as_deref(), line);
        }
    }

    fn parse(text: &str) -> Result<String, String> {
        text.parse::<Publish>().map(|p| p.to_string())
    }

    #[test]
    fn a_port_is_bound_to_loopback_unless_told_otherwise() {
        assert_eq!(parse("16379:6379").unwrap(), "127.0.0.1:16379 -> 6379");
        assert_eq!(parse("0.0.0.0:80:8080").unwrap(), "0.0.0.0:80 -> 8080");
        assert_eq!(parse("[::1]:80:8080").unwrap(), "[::1]:80 -> 8080");
        assert_eq!(parse("0:80").unwrap(), "127.0.0.1:0 -> 80");
    }

    #[test]
    fn malformed_ports_are_refused_with_what_is_wrong() {
        for (text, wrong) in [
            ("", "[ip:]host:guest"),
            ("80", "[ip:]host:guest"),
            ("80:", "guest port"),
            (":80", "host port"),
            ("80:0", "guest port"),
            ("80:+80", "guest port"),
            ("65536:80", "host port"),
            ("80:65536", "guest port"),
            ("a:80", "host port"),
            ("localhost:80:80", "IP address"),
            ("::1:80:80", "IP address"),
            ("[127.0.0.1]:80:80", "IP address"),
            ("1.2.3.4.5:80:80", "IP address"),
            ("80:80/udp", "guest port"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(wrong), "{text}: {error}");
        }
    }
}
