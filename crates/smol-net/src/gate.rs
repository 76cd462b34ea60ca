//! Decides what the guest reaches now: the policy, and which addresses are whose by what DNS has said.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::policy::address::canonical;
use crate::policy::{Denial, Policy};
use crate::report::Ledger;

/// How long an address is a name's at least. Programs resolve first and connect later, some after a
/// wait of their own, and few of them know the time to live.
const LEAST: Duration = Duration::from_secs(60);
/// And at most.
const MOST: Duration = Duration::from_secs(24 * 60 * 60);
/// Addresses that are remembered.
const MOST_ADDRESSES: usize = 4096;
/// Names of one address that are remembered.
const MOST_NAMES: usize = 16;

/// Decides, remembers and reports.
#[derive(Debug)]
pub struct Gate {
    policy: Policy,
    bound: HashMap<IpAddr, Vec<Binding>>,
    /// What is reported.
    pub ledger: Ledger,
}

/// An address is this name's until then.
#[derive(Debug)]
struct Binding {
    name: Arc<str>,
    until: Instant,
}

/// What the host's routes say of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// It leads out of the host.
    Out,
    /// It is the host's own.
    Own,
    /// There is none.
    Nowhere,
}

impl Gate {
    /// One that knows no names yet.
    pub fn new(policy: Policy) -> Self {
        Gate {
            policy,
            bound: HashMap::new(),
            ledger: Ledger::default(),
        }
    }

    /// Whether this name may be resolved; refusals are reported.
    pub fn resolves(&mut self, name: &str) -> bool {
        let resolves = self.policy.resolves(name);
        if !resolves {
            self.ledger.refuse(name.to_owned(), Denial::NotListed);
        }
        resolves
    }

    /// Whether a proxy may be asked for this name and port; refusals are reported.
    pub fn reaches_name(&mut self, name: &str, port: u16) -> bool {
        let reaches = self.policy.reaches_name(name, port);
        if !reaches {
            let why = Denial::NotListed;
            self.ledger.refuse(format!("{name}:{port}"), why);
        }
        reaches
    }

    /// Whether this address may be reached now; refusals are reported. Port 0 is ICMP echo.
    ///
    /// # Errors
    /// Why not.
    pub fn reaches(&mut self, to: SocketAddr, now: Instant) -> Result<(), Denial> {
        let address = canonical(to.ip());
        let bound = self.bound.get(&address).map_or(&[][..], Vec::as_slice);
        let names = bound.iter().filter(|binding| binding.until > now);
        let mut decision =
            self.policy
                .reaches(address, to.port(), names.map(|binding| &*binding.name));
        let named = self.policy.names_at(address, to.port());
        if decision.is_ok() && !named && route(address) == Route::Own {
            decision = Err(OWN);
        }
        if let Err(why) = decision {
            let target = match (bound.last(), to.port()) {
                (Some(binding), port) => format!("{}:{port}", binding.name),
                (None, 0) => address.to_string(),
                (None, port) => SocketAddr::new(address, port).to_string(),
            };
            self.ledger.refuse(target, why);
        }
        decision
    }

    /// Takes over what DNS says of a name. Nothing of it, if one of the addresses may not be the name's,
    /// which is reported. Returns whether the host has a route to any of the addresses.
    ///
    /// # Errors
    /// What that address is.
    pub fn bind(
        &mut self,
        name: &str,
        addresses: &[(IpAddr, Duration)],
        now: Instant,
    ) -> Result<bool, Denial> {
        let mut routed = false;
        for (address, _) in addresses {
            let address = canonical(*address);
            let route = route(address);
            let own = route == Route::Own && !self.policy.names(address);
            let bound = if own {
                Err(OWN)
            } else {
                self.policy.binds(address)
            };
            if let Err(why) = bound {
                self.ledger.refuse(name.to_owned(), why);
                return Err(why);
            }
            routed |= route != Route::Nowhere;
        }
        let name: Arc<str> = name.into();
        for (address, ttl) in addresses {
            self.remember(
                canonical(*address),
                &name,
                now + (*ttl).clamp(LEAST, MOST),
                now,
            );
        }
        Ok(routed)
    }

    fn remember(&mut self, address: IpAddr, name: &Arc<str>, until: Instant, now: Instant) {
        if self.bound.len() >= MOST_ADDRESSES && !self.bound.contains_key(&address) {
            self.forget_some(now);
        }
        let names = self.bound.entry(address).or_default();
        names.retain(|binding| binding.until > now && binding.name != *name);
        if names.len() >= MOST_NAMES {
            names.remove(0);
        }
        names.push(Binding {
            name: Arc::clone(name),
            until,
        });
    }

    /// Makes space: what has expired, or else the half that expires first.
    fn forget_some(&mut self, now: Instant) {
        let last = |names: &Vec<Binding>| names.iter().map(|binding| binding.until).max();
        self.bound.retain(|_, names| last(names) > Some(now));
        if self.bound.len() < MOST_ADDRESSES {
            return;
        }
        let mut ends: Vec<_> = self.bound.values().map(last).collect();
        ends.sort_unstable();
        let median = ends[ends.len() / 2];
        self.bound.retain(|_, names| last(names) > median);
    }
}

const OWN: Denial = Denial::NotPublic("an address of this host");

/// What the host's routes say of an address, by connecting a UDP socket, which sends nothing.
///
/// The kernel speaks to each of its own addresses from that address, or from the loopback's.
pub fn route(address: IpAddr) -> Route {
    let family = match address {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let own = || -> rustix::io::Result<bool> {
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddr::new(address, 9))?;
        let name = rustix::net::getsockname(&socket)?;
        let from = SocketAddr::try_from(name)?.ip();
        Ok(canonical(from) == address || canonical(from).is_loopback())
    };
    match own() {
        Ok(true) => Route::Own,
        Ok(false) => Route::Out,
        Err(_) => Route::Nowhere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(rules: &[&str]) -> Gate {
        Gate::new(Policy::listed(
            rules.iter().map(|rule| rule.parse().unwrap()).collect(),
        ))
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn address(text: &str, ttl: u64) -> (IpAddr, Duration) {
        (text.parse().unwrap(), Duration::from_secs(ttl))
    }

    #[test]
    fn an_address_is_a_names_for_its_time_to_live_and_at_least_a_minute() {
        let mut gate = gate(&["a.example:443", "b.example:443"]);
        let now = Instant::now();
        assert!(gate.reaches(at("198.51.100.1:443"), now).is_err());
        gate.bind("a.example", &[address("198.51.100.1", 300)], now)
            .unwrap();
        gate.bind("b.example", &[address("198.51.100.2", 0)], now)
            .unwrap();
        for (seconds, first, second) in [(0, true, true), (59, true, true), (61, true, false)] {
            let then = now + Duration::from_secs(seconds);
            assert_eq!(gate.reaches(at("198.51.100.1:443"), then).is_ok(), first);
            assert_eq!(gate.reaches(at("198.51.100.2:443"), then).is_ok(), second);
        }
        let later = now + Duration::from_secs(301);
        assert!(gate.reaches(at("198.51.100.1:443"), later).is_err());
        assert!(gate.reaches(at("198.51.100.1:80"), now).is_err());
        let refused = &gate.ledger.report.refused;
        assert_eq!(refused[0].target, "198.51.100.1:443");
        assert_eq!(refused.last().unwrap().target, "a.example:80");
    }

    #[test]
    fn an_answer_with_one_address_that_is_not_public_binds_none() {
        for inner in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00::1"] {
            let mut gate = gate(&["a.example"]);
            let now = Instant::now();
            let both = [address("198.51.100.1", 60), address(inner, 60)];
            assert!(gate.bind("a.example", &both, now).is_err(), "{inner}");
            assert!(gate.reaches(at("198.51.100.1:443"), now).is_err());
            assert_eq!(gate.ledger.report.refused[0].target, "a.example");
        }
    }

    #[test]
    fn a_rule_for_the_address_lets_a_name_have_it() {
        let mut gate = gate(&["a.example", "10.0.0.0/8:443"]);
        let now = Instant::now();
        let bound = gate.bind("a.example", &[address("10.0.0.1", 60)], now);
        assert!(bound.is_ok());
        assert!(gate.reaches(at("10.0.0.1:443"), now).is_ok());
        assert!(gate.reaches(at("10.0.0.1:80"), now).is_err());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut gate = gate(&["*.example"]);
        let now = Instant::now();
        for n in 0..3 * MOST_ADDRESSES as u32 {
            let address = IpAddr::V4((0x0808_0000 + n).into());
            let name: Arc<str> = format!("{n}.example").into();
            let until = now + Duration::from_secs(60 + u64::from(n));
            gate.remember(address, &name, until, now);
            assert!(gate.bound.len() <= MOST_ADDRESSES);
        }
        let last = IpAddr::V4((0x0808_0000 + 3 * MOST_ADDRESSES as u32 - 1).into());
        assert!(gate.bound.contains_key(&last), "the newest is there");
        for n in 0..100 {
            let name: Arc<str> = format!("{n}.example").into();
            gate.remember(last, &name, now + LEAST, now);
        }
        assert_eq!(gate.bound[&last].len(), MOST_NAMES);
    }

    #[test]
    fn the_loopback_is_the_hosts_own() {
        assert_eq!(route("127.0.0.1".parse().unwrap()), Route::Own);
        assert_eq!(route("127.1.2.3".parse().unwrap()), Route::Own);
    }
}
