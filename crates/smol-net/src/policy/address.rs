//! What kind of address one is. What is not public is reachable only if a rule names it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an address is for, as far as it decides who may reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// On the internet.
    Public,
    /// Of a network that belongs to somebody: the words say which kind. A rule may name the network.
    Private(&'static str),
    /// Of this host, this link, or of the cloud that this host is in, which hands out credentials: the
    /// words say which. Only a rule for this very address reaches it.
    Local(&'static str),
}

/// The form in which an address is compared: one of IPv4 that is written as one of IPv6 is one of IPv4, since
/// the kernel connects to that.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// What an address is for, by the registries of special addresses of IANA and the documents of clouds.
pub fn class(address: IpAddr) -> Class {
    match canonical(address) {
        IpAddr::V4(address) => class_v4(address),
        IpAddr::V6(address) => class_v6(address),
    }
}

/// Networks of IPv4, the smaller ones first: network, bits, class.
const V4: &[(Ipv4Addr, u8, Class)] = &[
    // AWS, Azure, Google, OpenStack and others; in 169.254.0.0/16, but for these.
    (Ipv4Addr::new(100, 100, 100, 200), 32, METADATA),
    (Ipv4Addr::new(168, 63, 129, 16), 32, METADATA),
    (Ipv4Addr::new(192, 0, 0, 192), 32, METADATA),
    (Ipv4Addr::new(169, 254, 0, 0), 16, Class::Local(LINK_LOCAL)),
    (Ipv4Addr::new(0, 0, 0, 0), 8, Class::Local("this network")),
    (Ipv4Addr::new(127, 0, 0, 0), 8, Class::Local(LOOPBACK)),
    (
        Ipv4Addr::new(192, 0, 0, 0),
        24,
        Class::Local("for links and protocols"),
    ),
    (Ipv4Addr::new(224, 0, 0, 0), 4, Class::Local(MULTICAST)),
    (Ipv4Addr::new(240, 0, 0, 0), 4, Class::Local("reserved")),
    (Ipv4Addr::new(10, 0, 0, 0), 8, Class::Private(PRIVATE)),
    (Ipv4Addr::new(172, 16, 0, 0), 12, Class::Private(PRIVATE)),
    (Ipv4Addr::new(192, 168, 0, 0), 16, Class::Private(PRIVATE)),
    (
        Ipv4Addr::new(100, 64, 0, 0),
        10,
        Class::Private("behind a provider's NAT"),
    ),
    (
        Ipv4Addr::new(198, 18, 0, 0),
        15,
        Class::Private("for measurements"),
    ),
];

/// Networks of IPv6, the smaller ones first.
const V6: &[(Ipv6Addr, u8, Class)] = &[
    (v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]), 128, METADATA),
    (v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]), 128, METADATA),
    (
        v6([0, 0, 0, 0, 0, 0, 0, 0]),
        128,
        Class::Local("no address"),
    ),
    (v6([0, 0, 0, 0, 0, 0, 0, 1]), 128, Class::Local(LOOPBACK)),
    (v6([0, 0, 0, 0, 0, 0, 0, 0]), 96, Class::Local("reserved")),
    (
        v6([0xfe80, 0, 0, 0, 0, 0, 0, 0]),
        10,
        Class::Local(LINK_LOCAL),
    ),
    (
        v6([0xff00, 0, 0, 0, 0, 0, 0, 0]),
        8,
        Class::Local(MULTICAST),
    ),
    // Which addresses of IPv4 are behind these is up to a router.
    (
        v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0]),
        48,
        Class::Private("behind a local NAT64"),
    ),
    (
        v6([0x2001, 0, 0, 0, 0, 0, 0, 0]),
        32,
        Class::Private("of a tunnel"),
    ),
    (
        v6([0xfc00, 0, 0, 0, 0, 0, 0, 0]),
        7,
        Class::Private(PRIVATE),
    ),
    (
        v6([0xfec0, 0, 0, 0, 0, 0, 0, 0]),
        10,
        Class::Private(PRIVATE),
    ),
    (
        v6([0x100, 0, 0, 0, 0, 0, 0, 0]),
        64,
        Class::Private("a discard address"),
    ),
];

const METADATA: Class = Class::Local("the cloud's metadata service");
const LINK_LOCAL: &str = "link-local";
const LOOPBACK: &str = "the host's loopback";
const MULTICAST: &str = "multicast";
const PRIVATE: &str = "private";

const fn v6(s: [u16; 8]) -> Ipv6Addr {
    Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7])
}

fn class_v4(address: Ipv4Addr) -> Class {
    let found = V4
        .iter()
        .find(|(network, bits, _)| contains(IpAddr::V4(*network), *bits, IpAddr::V4(address)));
    found.map_or(Class::Public, |(_, _, class)| *class)
}

fn class_v6(address: Ipv6Addr) -> Class {
    let found = V6
        .iter()
        .find(|(network, bits, _)| contains(IpAddr::V6(*network), *bits, IpAddr::V6(address)));
    if let Some((_, _, class)) = found {
        return *class;
    }
    // Addresses that lead to one of IPv4, by NAT64 (RFC 6052) and 6to4 (RFC 3056).
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0x2002, a, b, ..] => {
            class_v4(Ipv4Addr::from_bits(u32::from(a) << 16 | u32::from(b)))
        }
        _ => Class::Public,
    }
}

/// Whether a network of so many bits contains an address. One of the other version it does not.
pub fn contains(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let mask = u32::MAX
                .checked_shl(32_u32.saturating_sub(bits.into()))
                .unwrap_or(0);
            (network.to_bits() ^ address.to_bits()) & mask == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let mask = u128::MAX
                .checked_shl(128_u32.saturating_sub(bits.into()))
                .unwrap_or(0);
            (network.to_bits() ^ address.to_bits()) & mask == 0
        }
        _ => false,
    }
}

/// Whether all of a network is private: then its name does not stand for the whole internet.
pub fn is_private_network(network: IpAddr, bits: u8) -> bool {
    let v4 = V4
        .iter()
        .map(|(private, private_bits, class)| (IpAddr::V4(*private), *private_bits, *class));
    let v6 = V6
        .iter()
        .map(|(private, private_bits, class)| (IpAddr::V6(*private), *private_bits, *class));
    v4.chain(v6).any(|(private, private_bits, class)| {
        matches!(class, Class::Private(_))
            && private_bits <= bits
            && contains(private, private_bits, network)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Class {
        class(text.parse().unwrap())
    }

    #[test]
    fn what_is_public_is_public() {
        for public in [
            "192.0.2.1",
            "8.8.8.8",
            "172.32.0.1",
            "172.15.255.255",
            "100.128.0.0",
            "2001:db8::1",
            "2606:4700::1",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
            "::ffff:8.8.8.8",
        ] {
            assert_eq!(of(public), Class::Public, "{public}");
        }
    }

    #[test]
    fn what_belongs_to_the_host_or_its_cloud_is_local_in_every_form() {
        for local in [
            "127.0.0.1",
            "127.255.0.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "192.0.0.1",
            "224.0.0.251",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
        ] {
            assert!(matches!(of(local), Class::Local(_)), "{local}");
        }
    }

    #[test]
    fn what_belongs_to_somebody_is_private() {
        for private in [
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "198.19.0.1",
            "fd00::1",
            "fc00::",
            "fec0::1",
            "2001::1",
            "64:ff9b:1::1",
            "64:ff9b::10.0.0.1",
            "::ffff:10.1.2.3",
        ] {
            assert!(matches!(of(private), Class::Private(_)), "{private}");
        }
    }

    #[test]
    fn a_network_is_private_when_all_of_it_is() {
        let is = |address: &str, bits| is_private_network(address.parse().unwrap(), bits);
        assert!(is("10.0.0.0", 8) && is("10.1.0.0", 16) && is("fd00::", 8));
        assert!(!is("10.0.0.0", 7) && !is("0.0.0.0", 0) && !is("::", 0));
        assert!(!is("127.0.0.0", 8), "local, not private");
    }
}
