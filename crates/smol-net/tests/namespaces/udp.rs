//! Datagrams: UDP and echoes.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use smol_net::Policy;

use crate::world::*;

#[test]
fn datagrams_go_there_and_back_to_whoever_has_sent_them() {
    if !possible() {
        return;
    }
    let world = World::new();
    let network = world.open_network();
    for (here, there) in [
        ("0.0.0.0:0", "198.51.100.2:7"),
        ("[::]:0", "[2001:db8:1::2]:7"),
    ] {
        let server = world.servers.udp(there);
        let to: SocketAddr = there.parse().unwrap();
        let guests = [world.guest.udp(here), world.guest.udp(here)];
        let mut buffer = vec![0; 70_000];
        // The largest that fits into one packet of the link.
        for (length, guest) in [1, 1472, 65_000].into_iter().zip(guests.iter().cycle()) {
            let sent = vec![length as u8; length];
            guest.send_to(&sent, to).unwrap();
            let (n, from) = receive(&server, &mut buffer).unwrap();
            assert_eq!(buffer[..n], sent);
            server.send_to(&buffer[..n], from).unwrap();
            let (n, from) = receive(guest, &mut buffer).unwrap();
            assert_eq!((n, from), (length, to));
        }
    }
    assert_eq!(network.report().exchanges, 4);
}

#[test]
fn a_port_that_nobody_has_is_told() {
    if !possible() {
        return;
    }
    let world = World::new();
    let network = world.open_network();
    for (here, there) in [
        ("0.0.0.0:0", "198.51.100.2:9"),
        ("[::]:0", "[2001:db8:1::2]:9"),
    ] {
        let guest = world.guest.udp(here);
        guest.connect(there.parse::<SocketAddr>().unwrap()).unwrap();
        guest.send(b"x").unwrap();
        let error = receive(&guest, &mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{there}");
    }
    network.report();
}

#[test]
fn more_exchanges_than_there_can_be_push_the_oldest_out() {
    if !possible() {
        return;
    }
    let world = World::new();
    let network = world.open_network();
    let server = world.servers.udp("198.51.100.2:7");
    let to: SocketAddr = "198.51.100.2:7".parse().unwrap();
    let mut buffer = [0; 8];
    for n in 0..1500_u16 {
        let guest = world.guest.udp("0.0.0.0:0");
        guest.send_to(&n.to_be_bytes(), to).unwrap();
        let (length, from) = receive(&server, &mut buffer).unwrap();
        server.send_to(&buffer[..length], from).unwrap();
        receive(&guest, &mut buffer).unwrap();
        assert_eq!(buffer[..2], n.to_be_bytes());
    }
    let report = network.report();
    assert!(
        report.exchanges > 1400 && report.over_limit > 0,
        "{report:?}"
    );
}

/// Whether an echo comes back.
fn answers(world: &World, address: &'static str) -> bool {
    let ping = move || {
        let mut ping = Command::new("ping");
        ping.args(["-n", "-c", "1", "-W", "5", "-s", "1000", address]);
        ping.stdout(Stdio::null()).status().unwrap().success()
    };
    world.guest.run(ping)
}

#[test]
fn echoes_come_back_from_where_they_are_asked() {
    if !possible() {
        return;
    }
    if Command::new("ping")
        .arg("-V")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        smol_testing::left_out("there is no ping");
        return;
    }
    let world = World::new();
    let network = world.network(Policy::listed(rules(&[SERVER, SERVER_V6])), with_dns());
    for address in [
        "192.0.0.1",
        "192.0.0.3",
        "fd53:6d6f:6c00::1",
        SERVER,
        SERVER_V6,
    ] {
        assert!(answers(&world, address), "{address}");
    }
    assert!(!answers(&world, OTHER), "not in the list");
    assert!(!answers(&world, HOST), "an address of the host");
    let report = network.report();
    assert_eq!(refused(&report), [OTHER, HOST]);
}
