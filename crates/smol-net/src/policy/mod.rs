//! What a guest may reach: [`Policy`], made of [`Rule`]s. Pure: it opens nothing, and asks nobody.

pub mod address;
pub mod rule;

use std::fmt;
use std::net::IpAddr;

pub use self::rule::{InvalidRule, Rule};

use self::address::{Class, class, is_private_network};
use self::rule::Host;

/// What a guest may reach.
///
/// However much that is, these are reached only where a rule is that very address: the host's loopback
/// and its other addresses, link-local and multicast addresses, and the metadata services of clouds.
/// Private networks (RFC 1918, RFC 4193, RFC 6598) are reached where a rule is an address or a network
/// of theirs. Other servers for DNS (ports 53 and 853) are reached where a rule is that address with
/// that port: names are resolved by the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The internet, and all names.
    everything: bool,
    rules: Vec<Rule>,
}

/// Ports of DNS: plain, and over TLS or QUIC.
const DNS_PORTS: [u16; 2] = [53, 853];

impl Policy {
    /// Nothing can be reached.
    pub fn none() -> Self {
        Self::default()
    }

    /// All of the internet.
    pub fn all() -> Self {
        Self::all_and(Vec::new())
    }

    /// All of the internet, and what these rules name besides, such as an address of a private network.
    pub fn all_and(rules: Vec<Rule>) -> Self {
        Policy {
            everything: true,
            rules,
        }
    }

    /// What these rules name.
    pub fn listed(rules: Vec<Rule>) -> Self {
        Policy {
            everything: false,
            rules,
        }
    }

    /// Whether there are names that a guest may reach, so that DNS is needed.
    pub fn has_names(&self) -> bool {
        self.everything || self.rules.iter().any(Rule::is_name)
    }

    /// Whether this name, which is in lower case, may be resolved.
    pub fn resolves(&self, name: &str) -> bool {
        let local = name == "localhost" || name.ends_with(".localhost");
        !local && (self.everything || self.rules.iter().any(|rule| rule.has_name(name)))
    }

    /// Whether this name, which is in lower case, may be reached at this port, whatever its addresses
    /// are.
    pub fn reaches_name(&self, name: &str, port: u16) -> bool {
        !DNS_PORTS.contains(&port)
            && self.resolves(name)
            && (self.everything
                || self
                    .rules
                    .iter()
                    .any(|rule| rule.has_name(name) && rule.has_port(port)))
    }

    /// Whether an address that DNS gives to a name may be that name's. One that is not public may not,
    /// unless it could be reached without the name: else who has the name leads the guest into this
    /// host's networks.
    ///
    /// # Errors
    /// What the address is instead.
    pub fn binds(&self, address: IpAddr) -> Result<(), Denial> {
        match class(address) {
            Class::Public => Ok(()),
            _ if self.names(address) => Ok(()),
            Class::Private(_) if self.names_private_network(address, None) => Ok(()),
            Class::Private(what) | Class::Local(what) => Err(Denial::NotPublic(what)),
        }
    }

    /// Whether a rule is this very address, at any port.
    pub fn names(&self, address: IpAddr) -> bool {
        self.names_at(address, 0)
    }

    /// Whether a rule is this very address at this port; port 0 stands for any.
    pub fn names_at(&self, address: IpAddr, port: u16) -> bool {
        self.rules
            .iter()
            .any(|rule| rule.host == Host::Address(address) && (port == 0 || rule.has_port(port)))
    }

    /// Whether this address may be reached at this port, for itself or as one of these names, which are
    /// in lower case. Port 0 stands for traffic without ports, ICMP echo: it is allowed where any port is.
    ///
    /// # Errors
    /// Why not.
    pub fn reaches<'a>(
        &self,
        address: IpAddr,
        port: u16,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), Denial> {
        let fits = |rule: &&Rule| port == 0 || rule.has_port(port);
        let mut exact = self
            .rules
            .iter()
            .filter(|rule| rule.host == Host::Address(address))
            .filter(fits)
            .peekable();
        if DNS_PORTS.contains(&port) {
            let named = exact.any(|rule| rule.port == Some(port));
            return named.then_some(()).ok_or(Denial::ForeignDns);
        }
        if exact.peek().is_some() {
            return Ok(());
        }
        match class(address) {
            Class::Local(what) => return Err(Denial::NotPublic(what)),
            Class::Private(_) if self.names_private_network(address, Some(port)) => return Ok(()),
            Class::Private(what) => return Err(Denial::NotPublic(what)),
            Class::Public => {}
        }
        let in_network = |rule: &Rule| rule.has_in_network(address);
        let mut names = names.into_iter();
        let allowed = self.everything
            || self.rules.iter().filter(fits).any(in_network)
            || names.any(|name| {
                let mut rules = self.rules.iter().filter(fits);
                rules.any(|rule| rule.has_name(name))
            });
        allowed.then_some(()).ok_or(Denial::NotListed)
    }

    /// Whether a rule is a network, all of which is private, that contains this address; with this port,
    /// if one is given.
    fn names_private_network(&self, address: IpAddr, port: Option<u16>) -> bool {
        self.rules.iter().any(|rule| {
            let private = matches!(rule.host, Host::Network(network, bits)
                if is_private_network(network, bits));
            private
                && rule.has_in_network(address)
                && port.is_none_or(|port| port == 0 || rule.has_port(port))
        })
    }
}

/// Why a guest does not reach something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Denial {
    /// No rule names it.
    NotListed,
    /// It is an address of the host, of its networks or of its cloud: the words say of which kind.
    NotPublic(&'static str),
    /// It is a DNS server other than the one that every guest has.
    ForeignDns,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denial::NotListed => f.write_str("not in the list"),
            Denial::NotPublic(what) => write!(f, "{what}: only a rule for that address allows it"),
            Denial::ForeignDns => f.write_str(
                "a DNS server: names are resolved by the host, unless a rule has that address and port",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(rules: &[&str]) -> Policy {
        Policy::listed(rules.iter().map(|rule| rule.parse().unwrap()).collect())
    }

    fn reaches(policy: &Policy, address: &str, port: u16, names: &[&str]) -> bool {
        let address = address.parse().unwrap();
        policy.reaches(address, port, names.iter().copied()).is_ok()
    }

    #[test]
    fn nothing_is_reached_without_a_rule() {
        let none = Policy::none();
        assert!(!reaches(&none, "192.0.2.1", 443, &["a.example"]));
        assert!(!none.resolves("a.example") && !none.has_names());
    }

    #[test]
    fn all_is_the_internet_and_nothing_of_the_host() {
        let all = Policy::all();
        assert!(reaches(&all, "192.0.2.1", 443, &[]) && all.resolves("a.example"));
        for (address, port) in [
            ("127.0.0.1", 80),
            ("169.254.169.254", 80),
            ("100.100.100.200", 80),
            ("fd00:ec2::254", 80),
            ("::1", 80),
            ("10.0.0.1", 80),
            ("fd00::1", 80),
            ("100.64.0.1", 80),
            ("192.0.2.1", 53),
            ("192.0.2.1", 853),
        ] {
            assert!(!reaches(&all, address, port, &["a.example"]), "{address}");
        }
        assert!(!all.resolves("localhost") && !all.resolves("a.localhost"));
        assert!(!all.reaches_name("a.example", 853));
    }

    #[test]
    fn a_rule_for_an_address_reaches_it_wherever_it_is() {
        let rules = ["127.0.0.1:5432", "10.0.0.7", "192.0.2.1:53", "::1:1"];
        let policy = Policy::all_and(rules[..3].iter().map(|r| r.parse().unwrap()).collect());
        assert!(reaches(&policy, "127.0.0.1", 5432, &[]));
        assert!(!reaches(&policy, "127.0.0.1", 5433, &[]));
        assert!(reaches(&policy, "10.0.0.7", 22, &[]));
        assert!(!reaches(&policy, "10.0.0.7", 53, &[]), "no port, no DNS");
        assert!(reaches(&policy, "192.0.2.1", 53, &[]));
        assert!(!reaches(&policy, "192.0.2.1", 853, &[]));
    }

    #[test]
    fn a_network_names_private_addresses_if_all_of_it_is_private() {
        let private = listed(&["10.1.0.0/16:443"]);
        assert!(reaches(&private, "10.1.2.3", 443, &[]));
        assert!(!reaches(&private, "10.1.2.3", 80, &[]));
        assert!(!reaches(&private, "10.2.2.3", 443, &[]));
        assert_eq!(private.binds("10.1.2.3".parse().unwrap()), Ok(()));
        let whole = listed(&["0.0.0.0/0", "127.0.0.0/8", "::/0"]);
        assert!(reaches(&whole, "192.0.2.1", 80, &[]));
        for address in ["10.1.2.3", "127.0.0.1", "169.254.169.254", "fd00::1"] {
            assert!(!reaches(&whole, address, 80, &[]), "{address}");
            assert!(whole.binds(address.parse().unwrap()).is_err(), "{address}");
        }
    }

    #[test]
    fn an_address_is_reached_as_the_name_that_it_is_bound_to_at_the_names_ports() {
        let policy = listed(&["a.example:443", "*.b.example"]);
        assert!(reaches(&policy, "192.0.2.1", 443, &["a.example"]));
        assert!(!reaches(&policy, "192.0.2.1", 80, &["a.example"]));
        assert!(!reaches(&policy, "192.0.2.1", 443, &[]));
        assert!(reaches(&policy, "192.0.2.1", 0, &["a.example"]), "an echo");
        assert!(reaches(&policy, "192.0.2.1", 22, &["c", "x.b.example"]));
        assert!(policy.resolves("a.example") && !policy.resolves("b.example"));
        assert!(policy.reaches_name("a.example", 443) && !policy.reaches_name("a.example", 80));
    }
}
