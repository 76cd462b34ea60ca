//! What is not allowed is not reached, and told.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;

use smol_net::{Error, Policy, Stop, Upstream, serve};

use crate::world::*;

/// Whether a connection to this address comes about.
fn reaches(world: &World, to: &str) -> bool {
    let to: SocketAddr = to.parse().unwrap();
    match world.guest.connect(to) {
        Ok(_) => true,
        Err(e) => {
            // Prohibited, as the kernel tells it of IPv4 and of IPv6.
            let prohibited = [ErrorKind::HostUnreachable, ErrorKind::PermissionDenied];
            assert!(prohibited.contains(&e.kind()), "{to}: {e}");
            false
        }
    }
}

#[test]
fn everything_is_the_world_and_nothing_of_the_host() {
    if !possible() {
        return;
    }
    let world = World::new();
    let network = world.open_network();
    let any = ["0.0.0.0:80", "[::]:81"].map(|at| world.host.listen(at));
    let _server = world.servers.listen("198.51.100.2:80");
    let _private = world.servers.listen("10.7.0.2:80");
    let _dns = ["198.51.100.2:53", "198.51.100.2:853"].map(|at| world.servers.listen(at));
    assert!(reaches(&world, "198.51.100.2:80"));
    let closed = [
        "198.51.100.1:80",
        "[2001:db8:1::1]:81",
        // The gateway is the host's loopback, to whom it may be.
        "192.0.0.1:80",
        "[fd53:6d6f:6c00::1]:81",
        "10.7.0.2:80",
        "10.7.0.1:80",
        "169.254.169.254:80",
        "100.100.100.200:80",
        "[fd00:ec2::254]:80",
        "[64:ff9b::7f00:1]:80",
        "198.51.100.2:53",
        "198.51.100.2:853",
    ];
    for address in closed {
        assert!(!reaches(&world, address), "{address}");
    }
    let report = network.report();
    assert_eq!(report.connections, 1);
    assert_eq!(report.refused.len(), closed.len(), "{report:?}");
    assert_eq!(report.refused[0].target, "198.51.100.1:80");
    assert!(
        report.refused[0]
            .to_string()
            .contains("an address of this host")
    );
    assert_eq!(report.refused[2].target, "127.0.0.1:80");
    drop(any);
}

#[test]
fn what_a_rule_names_is_reached_and_its_other_ports_are_not() {
    if !possible() {
        return;
    }
    let world = World::new();
    let named = [
        "127.0.0.1:8080",
        "10.7.0.2:80",
        "198.51.100.0/24:81",
        "198.51.100.1:22",
    ];
    let network = world.network(Policy::listed(rules(&named)), Upstream::default());
    let loopback = world.host.listen("127.0.0.1:8080");
    let _host = world.host.listen("198.51.100.1:22");
    let _private = world.servers.listen("10.7.0.2:80");
    let _server = ["198.51.100.2:80", "198.51.100.3:81"].map(|at| world.servers.listen(at));
    for open in ["10.7.0.2:80", "198.51.100.3:81", "198.51.100.1:22"] {
        assert!(reaches(&world, open), "{open}");
    }
    let mut guest = world
        .guest
        .connect("192.0.0.1:8080".parse().unwrap())
        .unwrap();
    let (mut server, from) = loopback.accept().unwrap();
    assert!(from.ip().is_loopback());
    guest.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    for closed in [
        "198.51.100.2:80",
        "198.51.100.1:81",
        "10.7.0.2:81",
        "192.0.0.1:8081",
    ] {
        assert!(!reaches(&world, closed), "{closed}");
    }
    let report = network.report();
    let expected = [
        "198.51.100.2:80",
        "198.51.100.1:81",
        "10.7.0.2:81",
        "127.0.0.1:8081",
    ];
    assert_eq!(refused(&report), expected);
}

#[test]
fn names_without_anybody_to_ask_are_an_error_at_the_start() {
    let (_guest, ours) = std::os::unix::net::UnixStream::pair().unwrap();
    let stop = Stop::new().unwrap();
    let error = serve(ours, &Policy::all(), &Upstream::default(), &stop).unwrap_err();
    assert!(matches!(error, Error::NoServer), "{error}");
    assert!(error.to_string().contains("/etc/resolv.conf"));
}

#[test]
fn a_stream_that_carries_no_packets_is_an_error() {
    let (mut guest, ours) = std::os::unix::net::UnixStream::pair().unwrap();
    let stop = Stop::new().unwrap();
    guest.write_all(&[0xff, 0xff]).unwrap();
    let error = serve(ours, &Policy::none(), &Upstream::default(), &stop).unwrap_err();
    assert!(matches!(error, Error::Guest(_)), "{error}");
    let (guest, ours) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(guest);
    serve(ours, &Policy::none(), &Upstream::default(), &stop).unwrap();
}
