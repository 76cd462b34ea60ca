//! Names: asked of a real server, and what may be reached by them.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;

use smol_net::{Policy, Upstream};

use crate::world::*;

const A: u16 = 1;
const TXT: u16 = 16;
const AAAA: u16 = 28;

/// What came back.
struct Answer {
    code: u8,
    truncated: bool,
    records: usize,
    bytes: Vec<u8>,
}

impl Answer {
    fn read(bytes: &[u8]) -> Self {
        assert_eq!(bytes[..2], [7, 7], "the asker's number");
        Answer {
            code: bytes[3] & 15,
            truncated: bytes[2] & 2 != 0,
            records: bytes[7].into(),
            bytes: bytes.to_vec(),
        }
    }

    fn has(&self, address: &str) -> bool {
        let address: IpAddr = address.parse().unwrap();
        let wanted = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        self.bytes
            .windows(wanted.len())
            .any(|bytes| bytes == wanted)
    }
}

fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message
}

/// Asks by a datagram.
fn ask(world: &World, name: &str, kind: u16) -> Answer {
    ask_at(&world.guest.udp("0.0.0.0:0"), "192.0.0.3:53", name, kind)
}

fn ask_at(socket: &UdpSocket, server: &str, name: &str, kind: u16) -> Answer {
    let server: SocketAddr = server.parse().unwrap();
    socket.send_to(&question(name, kind), server).unwrap();
    let mut buffer = vec![0; 65535];
    let (n, from) = receive(socket, &mut buffer).unwrap();
    assert_eq!(from, server);
    Answer::read(&buffer[..n])
}

/// Asks over a connection.
fn ask_over(stream: &mut TcpStream, name: &str, kind: u16) -> Answer {
    let question = question(name, kind);
    stream
        .write_all(&(question.len() as u16).to_be_bytes())
        .unwrap();
    stream.write_all(&question).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer).unwrap();
    Answer::read(&answer)
}

#[test]
fn names_of_the_list_are_resolved_and_reached_and_no_others() {
    if !possible() {
        return;
    }
    let world = World::new();
    let records = "--host-record=a.example,198.51.100.2 --host-record=b.example,198.51.100.3 \
                   --cname=alias.example,a.example --host-record=x.c.example,198.51.100.2,2001:db8:1::2";
    let _dns = world.dns(records);
    let listed = rules(&["a.example:80", "alias.example:81", "*.c.example:80"]);
    let network = world.network(Policy::listed(listed), with_dns());
    let _servers = [
        "198.51.100.2:80",
        "198.51.100.2:81",
        "198.51.100.2:82",
        "198.51.100.3:80",
    ]
    .map(|at| world.servers.listen(at));
    let reaches = |to: &str| world.guest.connect(to.parse().unwrap()).is_ok();

    assert!(!reaches("198.51.100.2:80"), "nobody has asked for it");
    let answer = ask(&world, "A.example", A);
    assert!(answer.code == 0 && answer.has("198.51.100.2"));
    assert!(reaches("198.51.100.2:80"));
    assert!(!reaches("198.51.100.2:81"), "the other name's port");
    assert!(ask(&world, "alias.example", A).has("198.51.100.2"));
    assert!(reaches("198.51.100.2:81") && !reaches("198.51.100.2:82"));
    assert!(ask(&world, "x.c.example", A).has("198.51.100.2"));

    let denied = ask(&world, "b.example", A);
    assert!(denied.code == 3 && denied.records == 0 && !denied.has("198.51.100.3"));
    assert_eq!(ask(&world, "c.example", A).code, 3);
    assert_eq!(ask(&world, "localhost", A).code, 3);
    assert!(!reaches("198.51.100.3:80"));
    assert_eq!(
        ask(&world, "y.c.example", A).records,
        0,
        "the server has none"
    );
    let report = network.report();
    let expected = [
        "198.51.100.2:80",
        "a.example:81",
        "alias.example:82",
        "b.example",
        "c.example",
        "localhost",
        "198.51.100.3:80",
    ];
    assert_eq!(refused(&report), expected);
    assert_eq!(report.lookups, 4);
}

#[test]
fn names_that_lead_into_the_hosts_networks_have_no_addresses() {
    if !possible() {
        return;
    }
    let world = World::new();
    let records = "--host-record=loop.example,127.0.0.1 --host-record=meta.example,169.254.169.254 \
                   --host-record=private.example,10.7.0.2 --host-record=host.example,198.51.100.1 \
                   --host-record=both.example,198.51.100.2 --host-record=both.example,10.7.0.2 \
                   --host-record=six.example,::ffff:127.0.0.1 --host-record=named.example,10.7.0.2";
    let _dns = world.dns(records);
    let policy = Policy::all_and(rules(&["10.7.0.3", "named.example"]));
    let network = world.network(policy, with_dns());
    for name in [
        "loop.example",
        "meta.example",
        "private.example",
        "host.example",
        "both.example",
        "named.example",
    ] {
        let answer = ask(&world, name, A);
        assert_eq!((answer.code, answer.records), (0, 0), "{name}");
    }
    let six = ask(&world, "six.example", AAAA);
    assert_eq!((six.code, six.records), (0, 0));
    assert_eq!(network.report().refused.len(), 7);

    // With a rule for its address, a name may have it.
    let policy = Policy::all_and(rules(&["10.7.0.0/16:80"]));
    let world = World::new();
    let _dns = world.dns(records);
    let network = world.network(policy, with_dns());
    assert!(ask(&world, "private.example", A).has("10.7.0.2"));
    let _server = world.servers.listen("10.7.0.2:80");
    assert!(world.guest.connect("10.7.0.2:80".parse().unwrap()).is_ok());
    assert!(network.report().refused.is_empty());
}

#[test]
fn addresses_that_the_host_has_no_route_to_are_not_told() {
    if !possible() {
        return;
    }
    let world = World::new();
    let far = "2001:db8:dead::1".parse::<Ipv6Addr>().unwrap();
    let _dns = world.dns(&format!(
        "--host-record=a.example,198.51.100.2,{far} --host-record=near.example,2001:db8:1::2"
    ));
    let network = world.open_network();
    let answer = ask(&world, "a.example", AAAA);
    assert_eq!((answer.code, answer.records), (0, 0), "no route");
    assert!(ask(&world, "near.example", AAAA).has("2001:db8:1::2"));
    assert!(ask(&world, "a.example", A).has("198.51.100.2"));
    network.report();
}

#[test]
fn a_route_of_ipv6_that_leads_nowhere_does_not_hold_ipv4_up() {
    if !possible() {
        return;
    }
    let world = World::new();
    // There is a route, and nobody answers.
    let route = || {
        let mut ip = std::process::Command::new("ip");
        let words = "-6 route add 2001:db8:dead::/48 via 2001:db8:1::66 dev out";
        assert!(ip.args(words.split(' ')).status().unwrap().success());
    };
    world.host.run(route);
    let network = world.open_network();
    let listener = world.servers.listen("198.51.100.2:80");
    // As those do who try both (RFC 8305): IPv6 is not taken for connected while IPv4 is tried.
    let dead: SocketAddr = format!("[{DEAD_V6}]:80").parse().unwrap();
    let six = world.guest.spawn(move || TcpStream::connect(dead));
    let four = world.guest.connect("198.51.100.2:80".parse().unwrap());
    four.expect("IPv4 is there");
    listener.accept().unwrap();
    assert!(six.join().unwrap().is_err(), "nobody is there");
    network.report();
}

#[test]
fn long_answers_come_over_tcp_and_several_over_one_connection() {
    if !possible() {
        return;
    }
    let world = World::new();
    let long = (0..12)
        .map(|n| {
            format!(
                "--txt-record=long.example,{}",
                format!("{n:02}").repeat(120)
            )
        })
        .collect::<Vec<_>>()
        .join(" ");
    let _dns = world.dns(&format!("{long} --host-record=a.example,198.51.100.2"));
    let network = world.network(
        Policy::listed(rules(&["long.example", "a.example"])),
        with_dns(),
    );
    assert!(ask(&world, "long.example", TXT).truncated);
    for server in ["192.0.0.3:53", "[fd53:6d6f:6c00::3]:53"] {
        let mut stream = world.guest.connect(server.parse().unwrap()).unwrap();
        let whole = ask_over(&mut stream, "long.example", TXT);
        assert_eq!((whole.records, whole.truncated), (12, false));
        assert!(ask_over(&mut stream, "a.example", A).has("198.51.100.2"));
        assert_eq!(ask_over(&mut stream, "b.example", A).code, 3);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    let v6 = ask_at(
        &world.guest.udp("[::]:0"),
        "[fd53:6d6f:6c00::3]:53",
        "a.example",
        A,
    );
    assert!(v6.has("198.51.100.2"));
    network.report();
}

#[test]
fn a_server_that_is_silent_or_lies_is_left_for_the_next_one() {
    if !possible() {
        return;
    }
    let world = World::new();
    let _dns = world.dns("--host-record=a.example,198.51.100.2");
    let upstream = |first: &str| Upstream {
        servers: [first, &format!("{DNS}:53")]
            .map(|at| at.parse().unwrap())
            .to_vec(),
        ..Upstream::default()
    };
    // Nobody listens there.
    let network = world.network(Policy::all(), upstream("198.51.100.2:54"));
    assert!(ask(&world, "a.example", A).has("198.51.100.2"));
    network.report();

    let world = World::new();
    let _dns = world.dns("--host-record=a.example,198.51.100.2");
    let liar = world.servers.udp("198.51.100.3:53");
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((n, from)) = receive(&liar, &mut buffer) {
            // Answers with another number, then to another question, then with damage.
            let mut forged = buffer[..n].to_vec();
            forged[2] |= 0x80;
            forged[0] ^= 1;
            let _ = liar.send_to(&forged, from);
            forged[0] ^= 1;
            forged[13] ^= 1;
            let _ = liar.send_to(&forged, from);
            let _ = liar.send_to(&[0; 5], from);
        }
    });
    let network = world.network(Policy::all(), upstream("198.51.100.3:53"));
    assert!(ask(&world, "a.example", A).has("198.51.100.2"));
    network.report();
}

#[test]
fn without_an_answer_the_guest_is_told_that_there_is_none() {
    if !possible() {
        return;
    }
    let world = World::new();
    let upstream = Upstream {
        servers: vec!["198.51.100.2:54".parse().unwrap()],
        ..Upstream::default()
    };
    let network = world.network(Policy::all(), upstream);
    assert_eq!(ask(&world, "a.example", A).code, 2);
    network.report();
}
