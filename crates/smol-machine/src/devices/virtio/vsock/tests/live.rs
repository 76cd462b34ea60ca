//! The live machine's device: Unix sockets and a thread.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};

use super::super::super::testing::{STATUS, board};
use super::super::VsockHandle;
use super::super::packet::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use super::*;

const BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

fn guest() -> (Guest, VsockHandle) {
    let (device, handle) = Vsock::live(CID, None).unwrap();
    (Guest::new(device), handle)
}

fn connecting(handle: &VsockHandle, port: u32) -> JoinHandle<io::Result<UnixStream>> {
    let handle = handle.clone();
    thread::spawn(move || handle.connect(port))
}

/// A connection that the host made, both ends.
fn connected() -> (Guest, VsockHandle, Ports, UnixStream) {
    let (mut guest, handle) = guest();
    let host = connecting(&handle, 80);
    let ports = guest.accept(80);
    let host = host.join().unwrap().unwrap();
    host.set_read_timeout(Some(LIMIT)).unwrap();
    (guest, handle, ports, host)
}

fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    stream.read_exact(&mut buf).unwrap();
    buf
}

/// Bytes without a short period.
fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn the_host_connects_to_a_port_of_the_guest() {
    let (mut guest, _handle, ports, mut host) = connected();
    host.write_all(b"question").unwrap();
    assert_eq!(guest.expect(ports, op::RW).1, b"question");
    guest.send(ports, op::RW, b"answer");
    assert_eq!(read(&mut host, 6), b"answer");
    guest.send_flags(ports, op::SHUTDOWN, BOTH);
    guest.expect(ports, op::RST);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_refused_connection_says_so() {
    let (mut guest, handle) = guest();
    let host = connecting(&handle, 81);
    let (request, _) = guest.await_packet();
    let ports = Ports {
        guest: 81,
        host: request.src_port,
    };
    guest.send(ports, op::RST, &[]);
    let error = host.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert!(error.to_string().contains("port 81"));
}

#[test]
fn a_connection_that_is_answered_too_late_is_reset() {
    let (mut guest, handle) = guest();
    let error = handle
        .connect_timeout(82, Duration::from_millis(50))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let ports = guest.accept(82);
    guest.expect(ports, op::RST);
}

#[test]
fn the_guest_connects_to_a_listener_of_this_process() {
    let (mut guest, handle) = guest();
    let (sender, streams) = channel();
    handle.listen(1024, move |stream| sender.send(stream).unwrap());
    let ports = Ports {
        guest: 7,
        host: 1024,
    };
    guest.connect(ports);
    let mut host = streams.recv_timeout(LIMIT).unwrap();
    guest.send(ports, op::RW, b"ready\n");
    assert_eq!(read(&mut host, 6), b"ready\n");
    host.write_all(b"go on").unwrap();
    assert_eq!(guest.expect(ports, op::RW).1, b"go on");
    let refused = Ports {
        guest: 7,
        host: 1025,
    };
    guest.send(refused, op::REQUEST, &[]);
    guest.expect(refused, op::RST);
}

#[test]
fn a_listener_takes_one_connection_and_those_after_it_are_refused_open_or_closed() {
    let (mut guest, handle) = guest();
    let (sender, streams) = channel();
    handle.listen(1024, move |stream| sender.send(stream).unwrap());
    let ports = |guest| Ports { guest, host: 1024 };
    guest.connect(ports(7));
    let mut first = streams.recv_timeout(LIMIT).unwrap();
    guest.send(ports(8), op::REQUEST, &[]);
    guest.expect(ports(8), op::RST);
    guest.send(ports(7), op::RW, b"mine");
    assert_eq!(read(&mut first, 4), b"mine");
    guest.send_flags(ports(7), op::SHUTDOWN, BOTH);
    guest.expect(ports(7), op::RST);
    guest.send(ports(7), op::REQUEST, &[]);
    guest.expect(ports(7), op::RST);
    assert!(streams.try_recv().is_err());
}

#[test]
fn other_processes_connect_by_the_socket_and_listen_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let (device, _handle) = Vsock::live(CID, Some(&path)).unwrap();
    let mut guest = Guest::new(device);

    let mut client = UnixStream::connect(&path).unwrap();
    // What follows the line belongs to the guest, even if it comes with it.
    client.write_all(b"CONN").unwrap();
    client.write_all(b"ECT 5000\nearly").unwrap();
    let ports = guest.accept(5000);
    assert_eq!(guest.expect(ports, op::RW).1, b"early");
    guest.send(ports, op::RW, b"late");
    let mut client = BufReader::new(client);
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    assert_eq!(line, format!("OK {}\n", ports.host));
    let mut late = [0; 4];
    client.read_exact(&mut late).unwrap();
    assert_eq!(&late, b"late");

    let beside = UnixListener::bind(folder.path().join("vsock_99")).unwrap();
    let ports = Ports { guest: 9, host: 99 };
    guest.connect(ports);
    let (mut server, _) = beside.accept().unwrap();
    guest.send(ports, op::RW, b"hello");
    assert_eq!(read(&mut server, 5), b"hello");

    drop(guest);
    assert!(!path.exists(), "the socket goes with the machine");
}

#[test]
fn clients_that_do_not_say_connect_are_closed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let (device, _handle) = Vsock::live(CID, Some(&path)).unwrap();
    let _guest = Guest::new(device);
    let long = [b'x'; 100];
    let lines: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n",
        b"CONNECT x\n",
        b"CONNECT 4294967296\n",
        b"\n",
        &long,
    ];
    for line in lines {
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client.write_all(line).unwrap();
        let end = client.read(&mut [0]);
        assert!(
            matches!(&end, Ok(0)) || end.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset)
        );
    }
}

#[test]
fn a_socket_that_exists_is_not_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    std::fs::write(&path, b"").unwrap();
    let error = Vsock::live(CID, Some(&path)).err().unwrap();
    assert!(error.to_string().contains("vsock"));
    assert!(path.exists());
}

/// The guest sends 10 MiB to an echo on the host and reads them back, with a small buffer of
/// its own, both ways at once.
#[test]
fn ten_mebibytes_there_and_back() {
    const GUEST_BUFFER: u32 = 32 << 10;
    let (mut guest, handle) = guest();
    handle.listen(7, |stream| {
        thread::spawn(move || io::copy(&mut &stream, &mut &stream).unwrap());
    });
    let ports = Ports { guest: 1, host: 7 };
    guest.connect(ports);
    let data = noise(10 << 20);
    let (mut sent, mut back) = (0, Vec::new());
    let (mut room, mut told) = (256 << 10, 0);
    let start = Instant::now();
    while back.len() < data.len() {
        assert!(
            start.elapsed() < 3 * LIMIT,
            "{sent} sent, {} back",
            back.len()
        );
        let mut header = header(ports, op::RW, 0);
        (header.buf_alloc, header.fwd_cnt) = (GUEST_BUFFER, back.len() as u32);
        let n = room.min(data.len() - sent).min(10_000);
        if n > 0 {
            header.len = n as u32;
            guest.send_raw(header, &data[sent..sent + n]);
            sent += n;
            room -= n;
            told = back.len();
        } else if back.len() - told >= GUEST_BUFFER as usize / 2 {
            header.op = op::CREDIT_UPDATE;
            guest.send_raw(header, &[]);
            told = back.len();
        }
        while let Some((packet, bytes)) = guest.packet() {
            assert!(matches!(
                packet.op,
                op::RW | op::CREDIT_UPDATE | op::CREDIT_REQUEST
            ));
            room = (packet.fwd_cnt + packet.buf_alloc) as usize - sent;
            back.extend(bytes);
            assert!(
                back.len() - told <= GUEST_BUFFER as usize,
                "beyond the guest's credit"
            );
            if packet.op == op::CREDIT_REQUEST {
                (header.op, header.len) = (op::CREDIT_UPDATE, 0);
                header.fwd_cnt = back.len() as u32;
                guest.send_raw(header, &[]);
                told = back.len();
            }
        }
    }
    assert!(back == data);
    guest.send_flags(ports, op::SHUTDOWN, BOTH);
    guest.expect(ports, op::RST);
}

#[test]
fn either_end_can_stop_sending_and_go_on_receiving() {
    let (mut guest, _handle, ports, mut host) = connected();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(ports, op::SHUTDOWN).0.flags, SHUTDOWN_SEND);
    guest.send(ports, op::RW, b"still here");
    assert_eq!(read(&mut host, 10), b"still here");

    let (mut guest, _handle, ports, mut host) = connected();
    guest.send(ports, op::RW, b"last words");
    guest.send_flags(ports, op::SHUTDOWN, SHUTDOWN_SEND);
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"last words");
    host.write_all(b"heard").unwrap();
    assert_eq!(guest.expect(ports, op::RW).1, b"heard");
    drop(host);
    assert_eq!(guest.expect(ports, op::SHUTDOWN).0.flags, BOTH);
    guest.send(ports, op::RST, &[]);
}

#[test]
fn a_host_that_is_gone_resets_what_the_guest_sends() {
    let (mut guest, _handle, ports, host) = connected();
    drop(host);
    assert_eq!(guest.expect(ports, op::SHUTDOWN).0.flags, BOTH);
    guest.send(ports, op::RW, b"anyone?");
    guest.expect(ports, op::RST);
}

#[test]
fn a_guest_that_ignores_its_credit_is_reset() {
    let (mut guest, _handle, ports, _host) = connected();
    let mut sent = 0;
    let reset = loop {
        guest.send(ports, op::RW, &[0; 32 << 10]);
        sent += 32 << 10;
        if let Some((packet, _)) = guest.packet()
            && packet.op == op::RST
        {
            break packet;
        }
        assert!(sent < 4 << 20, "nobody stops the guest");
    };
    assert_eq!(reset.dst_port, ports.guest);
    assert!(sent > 256 << 10);
}

/// Fills the socket and then the device's buffer, as far as the credit goes; returns how much of the data
/// was sent.
fn fill(guest: &mut Guest, ports: Ports, data: &[u8]) -> usize {
    let (mut sent, mut room) = (0, 256 << 10);
    while room > 0 {
        let n = room.min(60_000).min(data.len() - sent);
        guest.send(ports, op::RW, &data[sent..sent + n]);
        sent += n;
        while let Some((packet, _)) = guest.packet() {
            room = (packet.fwd_cnt + packet.buf_alloc) as usize;
        }
        room = room.min(data.len()).saturating_sub(sent);
        if sent == data.len() {
            break;
        }
    }
    sent
}

#[test]
fn a_slow_reader_gets_all_of_a_stream_that_the_guest_has_closed() {
    let (mut guest, _handle, ports, mut host) = connected();
    let data = noise(512 << 10);
    let sent = fill(&mut guest, ports, &data);
    guest.send_flags(ports, op::SHUTDOWN, BOTH);
    guest.expect(ports, op::RST);
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert!(all == data[..sent], "{} of {sent}", all.len());
}

/// A slow reader gets all of a stream of a guest that comes to this end, and perhaps closes it before.
fn ends(closed: bool, end: impl FnOnce(&mut Option<Guest>)) {
    let (mut guest, _handle, ports, mut host) = connected();
    let data = noise(512 << 10);
    let sent = fill(&mut guest, ports, &data);
    if closed {
        guest.send_flags(ports, op::SHUTDOWN, BOTH);
        guest.expect(ports, op::RST);
    }
    let mut guest = Some(guest);
    end(&mut guest);
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert!(all == data[..sent], "{closed}: {} of {sent}", all.len());
}

#[test]
fn a_slow_reader_gets_all_of_a_stream_of_a_machine_that_is_gone() {
    for closed in [true, false] {
        ends(closed, |guest| drop(guest.take()));
    }
}

#[test]
fn a_slow_reader_gets_all_of_a_stream_of_a_guest_that_resets_its_devices() {
    for closed in [true, false] {
        ends(closed, |guest| {
            guest.as_mut().unwrap().driver.set(STATUS, 0);
        });
    }
}

#[test]
fn the_host_waits_for_the_credit_of_the_guest() {
    let (mut guest, handle) = guest();
    let host = connecting(&handle, 80);
    let (request, _) = guest.await_packet();
    let ports = Ports {
        guest: 80,
        host: request.src_port,
    };
    let credit = |op, room, taken| Header {
        buf_alloc: room,
        fwd_cnt: taken,
        ..header(ports, op, 0)
    };
    guest.send_raw(credit(op::RESPONSE, 4, 0), &[]);
    let mut host = host.join().unwrap().unwrap();
    host.write_all(b"abcdefgh").unwrap();
    assert_eq!(guest.expect(ports, op::RW).1, b"abcd");
    guest.expect(ports, op::CREDIT_REQUEST);
    guest.send_raw(credit(op::CREDIT_UPDATE, 4, 0), &[]);
    thread::sleep(Duration::from_millis(20));
    assert!(guest.packet().is_none(), "no credit, no data");
    guest.send_raw(credit(op::CREDIT_UPDATE, 4, 3), &[]);
    assert_eq!(guest.expect(ports, op::RW).1, b"efg");
    // A lie: more taken than was sent.
    guest.expect(ports, op::CREDIT_REQUEST);
    guest.send_raw(credit(op::CREDIT_UPDATE, 4, 100), &[]);
    thread::sleep(Duration::from_millis(20));
    assert!(guest.packet().is_none());
}

/// A guest that has given `buffers` receive buffers, and no more.
fn frugal(buffers: u32) -> (Guest, VsockHandle) {
    let (device, handle) = Vsock::live(CID, None).unwrap();
    let mut guest = Guest::without_buffers(device);
    for _ in 0..buffers {
        guest.add_buffer();
    }
    guest.driver.kick(RECEIVE);
    (guest, handle)
}

#[test]
fn data_waits_for_receive_buffers() {
    let (mut guest, handle) = frugal(1);
    let host = connecting(&handle, 80);
    let ports = guest.accept(80);
    let mut host = host.join().unwrap().unwrap();
    host.write_all(b"patience").unwrap();
    thread::sleep(Duration::from_millis(20));
    assert!(guest.packet().is_none());
    guest.add_buffer();
    assert!(
        guest.driver.kick_if_wanted(RECEIVE, 1),
        "the device asks for buffers"
    );
    assert_eq!(guest.expect(ports, op::RW).1, b"patience");
    assert!(guest.driver.line.level());
}

#[test]
fn a_stream_without_data_uses_up_no_receive_buffer() {
    let (mut guest, handle) = frugal(2);
    let host = connecting(&handle, 80);
    let ports = guest.accept(80);
    let mut host = host.join().unwrap().unwrap();
    host.write_all(b"the second buffer").unwrap();
    assert_eq!(guest.expect(ports, op::RW).1, b"the second buffer");
}

#[test]
fn no_stream_keeps_the_others_waiting() {
    let (mut guest, handle) = frugal(2);
    let mut hosts = Vec::new();
    for port in 0..2 {
        let host = connecting(&handle, port);
        guest.accept(port);
        hosts.push(host.join().unwrap().unwrap());
    }
    for host in &mut hosts {
        host.write_all(&[0; 100_000]).unwrap();
    }
    thread::sleep(Duration::from_millis(20));
    let mut served = Vec::new();
    for _ in 0..6 {
        guest.add_buffer();
        guest.driver.kick(RECEIVE);
        served.push(guest.await_packet().0.dst_port);
    }
    assert_eq!(
        served.iter().filter(|&&port| port == 0).count(),
        3,
        "{served:?}"
    );
    drop(hosts);
}

#[test]
fn a_device_reset_ends_the_streams_of_the_host() {
    let (guest, _handle, _, mut host) = connected();
    guest.driver.set(STATUS, 0);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_driver_that_breaks_the_protocol_ends_the_streams_of_the_host() {
    let (mut guest, _handle, _, mut host) = connected();
    guest.driver.add(TRANSMIT, &[b"short"], &[]);
    guest.driver.kick(TRANSMIT);
    assert!(guest.driver.transport.fault().is_some());
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_machine_that_is_gone_takes_no_connections() {
    let (guest, handle, _, mut host) = connected();
    let waiting = connecting(&handle, 81);
    thread::sleep(Duration::from_millis(20));
    drop(guest);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    waiting.join().unwrap().unwrap_err();
    assert_eq!(
        handle.connect(80).unwrap_err().kind(),
        ErrorKind::NotConnected
    );
}

/// A guest that was captured with a connection open, on its new machine, not yet resumed.
fn restored() -> (Guest, VsockHandle, Ports) {
    let (before, _handle, ports, host) = connected();
    let (device, handle) = Vsock::live(CID, None).unwrap();
    let guest = Guest {
        driver: before.driver.move_to(device),
        refill: true,
    };
    drop(before); // first, lest it tell the guest that the host is gone
    drop(host);
    (guest, handle, ports)
}

#[test]
fn a_restored_guest_learns_that_its_connections_are_gone_before_it_gets_new_ones() {
    let (mut guest, handle, old) = restored();
    let host = connecting(&handle, 90);
    thread::sleep(Duration::from_millis(50));
    assert!(guest.packet().is_none(), "nothing moves before the resume");
    assert_eq!(guest.driver.line.edges(), 0);

    guest.driver.transport.resume();
    assert!(guest.driver.line.level());
    assert_eq!(guest.driver.completed(EVENT).unwrap(), 0u32.to_le_bytes());
    thread::sleep(Duration::from_millis(50));
    assert!(
        guest.packet().is_none(),
        "new connections wait until the guest knows"
    );
    guest.send(old, op::RW, b"hello?");
    guest.expect(old, op::RST);

    guest.driver.add(EVENT, &[], &[8]);
    assert!(
        guest.driver.kick_if_wanted(EVENT, 1),
        "the device asks to be told"
    );
    let ports = guest.accept(90);
    guest.send(ports, op::RW, b"alive");
    assert_eq!(read(&mut host.join().unwrap().unwrap(), 5), b"alive");
    assert_eq!(guest.driver.completed(EVENT), None, "it is told once");
}

#[test]
fn a_restored_guest_that_ignores_events_gets_connections_after_a_while() {
    let (mut guest, handle, _) = restored();
    let host = connecting(&handle, 90);
    thread::sleep(Duration::from_millis(50));
    guest.driver.transport.resume();
    guest.accept(90);
    host.join().unwrap().unwrap();
}

#[test]
fn a_state_with_another_context_id_is_refused() {
    let (guest, _handle) = guest();
    let state = guest.driver.transport.save();
    let (device, _handle) = Vsock::live(CID + 1, None).unwrap();
    let (transport, _) = board(device, &guest.driver.mem);
    let error = transport.restore(&state).unwrap_err();
    assert!(error.to_string().contains("context id 3"), "{error}");
}
