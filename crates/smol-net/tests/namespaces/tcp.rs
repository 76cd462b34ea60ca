//! TCP: both ways, to its end, broken off, refused, many.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt;

use crate::world::*;

const MIB: usize = 1 << 20;

/// Both versions of IP.
const SERVERS: [&str; 2] = ["198.51.100.2:0", "[2001:db8:1::2]:0"];

/// A stream of bytes that does not repeat itself soon.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend(next());
    }
    bytes.truncate(length);
    bytes
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Reads to the end.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// The two ends of a connection from the guest to a server at this address: the guest's, and the server's.
fn connected(world: &World, address: &str) -> (TcpStream, TcpStream) {
    let listener = world.servers.listen(address);
    let guest = world.guest.connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    (guest, server)
}

/// The two ends of a connection, that of the guest first or last.
fn ends(world: &World, guest_first: bool) -> (TcpStream, TcpStream) {
    let (guest, server) = connected(world, SERVERS[0]);
    match guest_first {
        true => (guest, server),
        false => (server, guest),
    }
}

#[test]
fn one_byte_goes_there_and_back() {
    if !possible() {
        return;
    }
    let world = World::new();
    let network = world.open_network();
    for address in SERVERS {
        let (mut guest, mut server) = connected(&world, address);
        let from = server.peer_addr().unwrap().ip().to_string();
        assert!([HOST, HOST_V6].contains(&from.as_str()));
        guest.write_all(b"x").unwrap();
        let mut byte = [0];
        server.read_exact(&mut byte).unwrap();
        server.write_all(&byte).unwrap();
        guest.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
    }
    let report = network.report();
    assert_eq!(report.connections, 2);
    assert!(
        report.bytes_out > 100 && report.bytes_in > 100,
        "{report:?}"
    );
    assert!(report.refused.is_empty(), "{report:?}");
}

#[test]
fn much_goes_both_ways_at_once_and_comes_whole() {
    if !possible() {
        return;
    }
    let world = World::new();
    let network = world.open_network();
    for address in SERVERS {
        let (mut guest, mut server) = connected(&world, address);
        let (out, back) = (bytes(1, 64 * MIB), bytes(2, 64 * MIB));
        let (out_digest, back_digest) = (digest(&out), digest(&back));
        let writers = [
            (guest.try_clone().unwrap(), out),
            (server.try_clone().unwrap(), back),
        ]
        .map(|(mut stream, bytes)| {
            thread::spawn(move || {
                stream.write_all(&bytes).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            })
        });
        let at_server = thread::spawn(move || digest(&rest(&mut server)));
        assert_eq!(digest(&rest(&mut guest)), back_digest);
        assert_eq!(at_server.join().unwrap(), out_digest);
        for writer in writers {
            writer.join().unwrap();
        }
    }
    let report = network.report();
    assert!(report.bytes_in > 128 * MIB as u64 && report.bytes_out > 128 * MIB as u64);
}

#[test]
fn a_side_that_has_ended_still_hears_the_other() {
    if !possible() {
        return;
    }
    let world = World::new();
    let network = world.open_network();
    for guest_first in [true, false] {
        let (mut first, mut second) = ends(&world, guest_first);
        first.write_all(b"question").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&mut second), b"question");
        second.write_all(&bytes(3, MIB)).unwrap();
        drop(second);
        assert_eq!(digest(&rest(&mut first)), digest(&bytes(3, MIB)));
    }
    network.report();
}

#[test]
fn a_connection_that_is_broken_off_is_broken_off_at_the_other_end() {
    if !possible() {
        return;
    }
    let world = World::new();
    let network = world.open_network();
    for guest_first in [true, false] {
        let (first, mut second) = ends(&world, guest_first);
        sockopt::set_socket_linger(&first, Some(Duration::ZERO)).unwrap();
        drop(first);
        let error = second.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{guest_first}");
    }
    network.report();
}

#[test]
fn what_does_not_answer_is_told_as_what_it_is() {
    if !possible() {
        return;
    }
    let world = World::new();
    let network = world.open_network();
    let error = |to: &str| {
        let to: SocketAddr = to.parse().unwrap();
        world.guest.connect(to).expect_err("nobody is there").kind()
    };
    assert_eq!(error("198.51.100.2:9"), ErrorKind::ConnectionRefused);
    assert_eq!(error("[2001:db8:1::2]:9"), ErrorKind::ConnectionRefused);
    // No neighbour answers, no route leads there, and one that loses all.
    assert_eq!(error(&format!("{DEAD}:80")), ErrorKind::HostUnreachable);
    assert_eq!(error("192.0.2.1:80"), ErrorKind::NetworkUnreachable);
    let dead = error(&format!("[{DEAD_V6}]:80"));
    assert_eq!(dead, ErrorKind::NetworkUnreachable);
    // At the guest's own link.
    assert_eq!(error("192.0.0.3:80"), ErrorKind::ConnectionRefused);
    assert!(network.report().refused.is_empty());
}

#[test]
fn a_connection_is_accepted_once_the_host_has_connected() {
    if !possible() {
        return;
    }
    let world = World::new();
    let network = world.open_network();
    // A server whose queue is full does not answer: the guest's connection must not stand either.
    let listener = world.servers.run(|| {
        let (family, kind) = (
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
        );
        let socket = rustix::net::socket(family, kind, None).unwrap();
        let at: SocketAddr = "198.51.100.2:80".parse().unwrap();
        rustix::net::bind(&socket, &at).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        socket
    });
    let to: SocketAddr = "198.51.100.2:80".parse().unwrap();
    let first = world.host.connect(to).unwrap();
    let waiting = world.guest.spawn(move || TcpStream::connect(to));
    // Its answer comes only when there is space, which there is after this.
    thread::sleep(Duration::from_millis(300));
    assert!(
        !waiting.is_finished(),
        "accepted before anybody has answered"
    );
    let _first = rustix::net::accept(&listener).unwrap();
    waiting.join().unwrap().unwrap();
    let _second = rustix::net::accept(&listener).unwrap();
    drop(first);
    network.report();
}

#[test]
fn ten_thousand_connections_one_after_the_other() {
    if !possible() {
        return;
    }
    let world = World::new();
    let network = world.open_network();
    let listener = world.servers.listen(SERVERS[0]);
    let to = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        for _ in 0..10_000 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
        }
    });
    let done = world.guest.spawn(move || {
        for n in 0..10_000_u32 {
            let mut stream = TcpStream::connect(to).unwrap_or_else(|e| panic!("{n}: {e}"));
            stream.write_all(&[n as u8]).unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [n as u8]);
        }
    });
    done.join().unwrap();
    server.join().unwrap();
    assert_eq!(network.report().connections, 10_000);
}

#[test]
fn hundreds_at_once_and_those_beyond_the_limit_wait() {
    if !possible() {
        return;
    }
    // Two ends and the host's, each.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let enough = rustix::process::Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, enough).unwrap();
    let world = World::new();
    let network = world.open_network();
    let listener = world.servers.listen(SERVERS[0]);
    let to = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let mut open = Vec::new();
        for _ in 0..1100 {
            open.push(listener.accept().unwrap().0);
        }
        open
    });
    let guest = world.guest.spawn(move || {
        let mut open: Vec<TcpStream> = (0..1024).map(|_| TcpStream::connect(to).unwrap()).collect();
        // These come through once others have gone.
        let more: Vec<_> = (0..76)
            .map(|_| thread::spawn(move || TcpStream::connect(to)))
            .collect();
        thread::sleep(Duration::from_millis(200));
        for stream in open.drain(900..) {
            sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        }
        open.extend(more.into_iter().map(|more| more.join().unwrap().unwrap()));
        open
    });
    let mut guests = guest.join().unwrap();
    let mut servers = server.join().unwrap();
    // Those that are left still carry what they are given; the server's end tells which is which.
    for stream in &mut guests {
        stream.write_all(b"x").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    }
    let carried = servers.iter_mut().map(|stream| {
        let mut bytes = Vec::new();
        usize::from(stream.read_to_end(&mut bytes).is_ok() && bytes == b"x")
    });
    assert_eq!(carried.sum::<usize>(), guests.len());
    let report = network.report();
    assert_eq!(report.connections, 1100);
    assert!(report.over_limit > 0, "{report:?}");
}

#[test]
fn whoever_reads_slowly_holds_the_writer_up_and_loses_nothing() {
    if !possible() {
        return;
    }
    let world = World::new();
    let network = world.open_network();
    for guest_reads in [true, false] {
        let (mut reader, mut writer) = ends(&world, guest_reads);
        let sent = bytes(4, 48 * MIB);
        let expected = digest(&sent);
        let (full, is_full) = channel();
        let writer = thread::spawn(move || {
            // Much is under way by now, and there is no space for all of it.
            writer.set_nonblocking(true).unwrap();
            let mut at = 0;
            let mut idle = 0;
            while idle < 50 && at < sent.len() {
                match writer.write(&sent[at..]) {
                    Ok(n) => (at, idle) = (at + n, 0),
                    Err(_) => {
                        idle += 1;
                        thread::sleep(Duration::from_millis(10));
                    }
                }
            }
            assert!(at < sent.len(), "all was taken, and nobody has read");
            full.send(()).unwrap();
            writer.set_nonblocking(false).unwrap();
            writer.write_all(&sent[at..]).unwrap();
        });
        is_full.recv().unwrap();
        assert_eq!(digest(&rest(&mut reader)), expected);
        writer.join().unwrap();
    }
    network.report();
}

#[test]
fn the_end_of_the_stream_ends_all_and_another_may_follow() {
    if !possible() {
        return;
    }
    let world = World::new();
    let network = world.open_network();
    let (guest, mut server) = connected(&world, SERVERS[0]);
    network.report();
    // The host has closed its sockets.
    assert!(matches!(server.read(&mut [0]), Ok(0) | Err(_)));
    drop(guest);
}
