//! The build's device: synchronous, guest to host only.

use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::super::super::testing::{NEEDS_RESET, RAM, STATUS};
use super::super::StreamSink;
use super::super::packet::{MAX_DATA, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use super::*;

const BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
const A: Ports = Ports {
    guest: 50_000,
    host: 1024,
};
const B: Ports = Ports {
    guest: 50_001,
    host: 1025,
};

#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Open(u32, u64),
    Data(u64, Vec<u8>),
    Close(u64),
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Seen>>>);

impl Log {
    fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Takes ports below 2000.
impl StreamSink for Log {
    fn open(&mut self, port: u32, stream: u64) -> bool {
        let takes = port < 2000;
        if takes {
            self.0.lock().unwrap().push(Seen::Open(port, stream));
        }
        takes
    }

    fn data(&mut self, _port: u32, stream: u64, bytes: &[u8]) -> Vec<u8> {
        self.0
            .lock()
            .unwrap()
            .push(Seen::Data(stream, bytes.to_vec()));
        match bytes {
            b"?" => b"!".to_vec(),
            _ => Vec::new(),
        }
    }

    fn close(&mut self, _port: u32, stream: u64) {
        self.0.lock().unwrap().push(Seen::Close(stream));
    }
}

fn device() -> (Vsock, Log) {
    let log = Log::default();
    (Vsock::for_build(CID, Box::new(log.clone())), log)
}

fn guest() -> (Guest, Log) {
    let (device, log) = device();
    (Guest::new(device), log)
}

#[test]
fn the_guest_learns_its_context_id() {
    let (guest, _) = guest();
    let mut cid = [0; 8];
    guest.driver.transport.read(0x100, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), CID);
}

#[test]
fn streams_of_the_guest_end_in_the_sink() {
    let (mut guest, log) = guest();
    guest.connect(A);
    guest.connect(B);
    guest.send(A, op::RW, b"event");
    guest.send(B, op::RW, b"log");
    guest.send(A, op::RW, b"another");
    assert!(guest.packet().is_none(), "data needs no answer");
    guest.send_flags(A, op::SHUTDOWN, BOTH);
    guest.expect(A, op::RST);
    guest.send(A, op::RW, b"too late");
    guest.expect(A, op::RST);
    let seen = [
        Seen::Open(1024, 0),
        Seen::Open(1025, 1),
        Seen::Data(0, b"event".into()),
        Seen::Data(1, b"log".into()),
        Seen::Data(0, b"another".into()),
        Seen::Close(0),
    ];
    assert_eq!(log.take(), seen);
}

#[test]
fn a_port_that_nobody_takes_is_refused() {
    let (mut guest, log) = guest();
    let ports = Ports {
        guest: 1,
        host: 4000,
    };
    guest.send(ports, op::REQUEST, &[]);
    guest.expect(ports, op::RST);
    assert_eq!(log.take(), []);
}

#[test]
fn credit_is_given_when_asked_for_and_after_half_the_buffer() {
    let (mut guest, _) = guest();
    guest.connect(A);
    guest.send(A, op::RW, &[1; 1000]);
    guest.send(A, op::CREDIT_REQUEST, &[]);
    assert_eq!(guest.expect(A, op::CREDIT_UPDATE).0.fwd_cnt, 1000);
    guest.send(A, op::RW, &[2; MAX_DATA]);
    assert!(guest.packet().is_none());
    guest.send(A, op::RW, &[3; MAX_DATA]);
    let (update, _) = guest.expect(A, op::CREDIT_UPDATE);
    assert_eq!(update.fwd_cnt as usize, 1000 + 2 * MAX_DATA);
}

#[test]
fn a_half_closed_stream_is_closed_by_the_host_too() {
    let (mut guest, log) = guest();
    guest.connect(A);
    guest.send(A, op::RW, b"all");
    guest.send_flags(A, op::SHUTDOWN, SHUTDOWN_SEND);
    assert_eq!(
        guest.expect(A, op::SHUTDOWN).0.flags & SHUTDOWN_SEND,
        SHUTDOWN_SEND
    );
    guest.send_flags(A, op::SHUTDOWN, BOTH);
    guest.expect(A, op::RST);
    let seen = [
        Seen::Open(1024, 0),
        Seen::Data(0, b"all".into()),
        Seen::Close(0),
    ];
    assert_eq!(log.take(), seen, "closed once");
}

#[test]
fn a_reset_by_the_guest_closes_without_an_answer() {
    let (mut guest, log) = guest();
    guest.connect(A);
    guest.send(A, op::RST, &[]);
    guest.send(A, op::RST, &[]);
    assert!(guest.packet().is_none());
    assert_eq!(log.take(), [Seen::Open(1024, 0), Seen::Close(0)]);
}

#[test]
fn packets_that_fit_no_connection_are_refused_or_ignored() {
    let (mut guest, log) = guest();
    guest.send(A, op::RW, b"nothing is open");
    guest.expect(A, op::RST);
    guest.send_raw(
        Header {
            src_cid: 4,
            ..header(A, op::REQUEST, 0)
        },
        &[],
    );
    assert!(guest.packet().is_none(), "a forged source gets no answer");
    guest.send_raw(
        Header {
            kind: 2,
            ..header(A, op::REQUEST, 0)
        },
        &[],
    );
    let (refusal, _) = guest.await_packet();
    assert_eq!((refusal.op, refusal.kind), (op::RST, 2));
    guest.connect(A);
    guest.send(A, 77, &[]);
    guest.expect(A, op::RST);
    guest.connect(A);
    guest.send(A, op::REQUEST, &[]);
    guest.expect(A, op::RST);
    let seen = [
        Seen::Open(1024, 0),
        Seen::Close(0),
        Seen::Open(1024, 1),
        Seen::Close(1),
    ];
    assert_eq!(log.take(), seen);
}

#[test]
fn another_guest_cannot_be_reached() {
    let (mut guest, _) = guest();
    let elsewhere = Header {
        dst_cid: 9,
        ..header(A, op::REQUEST, 0)
    };
    guest.send_raw(elsewhere, &[]);
    let bytes = guest.driver.completed(RECEIVE).unwrap();
    let refusal = Header::from_bytes(bytes.first_chunk().unwrap());
    assert_eq!(
        (refusal.op, refusal.src_cid, refusal.dst_cid),
        (op::RST, 9, CID)
    );
}

#[test]
fn no_reply_is_lost_on_a_guest_that_has_no_buffers() {
    let (device, _) = device();
    let mut guest = Guest::without_buffers(device);
    let ports = |n| Ports {
        guest: n,
        host: 4000,
    };
    for n in 0..290 {
        guest.send(ports(n), op::REQUEST, &[]);
    }
    assert!(
        guest.driver.free(TRANSMIT) < 128,
        "the device has stopped reading"
    );
    for n in 0..290 {
        guest.add_buffer();
        guest.driver.kick_if_wanted(RECEIVE, 1);
        guest.expect(ports(n), op::RST);
    }
    while guest.driver.completed(TRANSMIT).is_some() {}
    assert_eq!(guest.driver.free(TRANSMIT), 128);
}

#[test]
fn the_number_of_connections_is_limited() {
    let (mut guest, _) = guest();
    let ports = |n| Ports {
        guest: n,
        host: 1024,
    };
    for n in 0..1024 {
        guest.connect(ports(n));
    }
    guest.send(ports(1024), op::REQUEST, &[]);
    guest.expect(ports(1024), op::RST);
    guest.send(ports(0), op::RST, &[]);
    guest.connect(ports(1024));
}

#[test]
fn a_device_reset_closes_all_streams() {
    let (mut guest, log) = guest();
    guest.connect(A);
    guest.driver.set(STATUS, 0);
    assert_eq!(log.take(), [Seen::Open(1024, 0), Seen::Close(0)]);
}

/// Two guests that do the same see the same: every byte of their memory is equal.
#[test]
fn what_the_guest_sees_depends_on_nothing_but_what_it_did() {
    let run = || {
        let (mut guest, _) = guest();
        for i in 0..50 {
            guest.connect(A);
            guest.connect(B);
            for _ in 0..i {
                guest.send(A, op::RW, &[i as u8; 3000]);
                guest.send(B, op::RW, b"line\n");
            }
            guest.send_flags(A, op::SHUTDOWN, SHUTDOWN_SEND);
            guest.send_flags(B, op::SHUTDOWN, BOTH);
            guest.send(A, op::RST, &[]);
            while guest.packet().is_some() {}
        }
        let mut ram = vec![0; RAM];
        guest
            .driver
            .mem
            .read_slice(&mut ram, GuestAddress(0))
            .unwrap();
        (guest.driver.transport.save(), blake3::hash(&ram))
    };
    assert_eq!(run(), run());
}

#[track_caller]
fn fails(guest: &Guest) {
    assert_eq!(guest.driver.get(STATUS) & NEEDS_RESET, NEEDS_RESET);
    assert!(guest.driver.transport.fault().is_some());
}

#[test]
fn a_packet_without_a_whole_header() {
    let (mut guest, _) = guest();
    guest.driver.add(TRANSMIT, &[&[0; HEADER - 1]], &[]);
    guest.driver.kick(TRANSMIT);
    fails(&guest);
}

#[test]
fn a_packet_shorter_than_its_header_says() {
    let (mut guest, log) = guest();
    guest.connect(A);
    guest.send_raw(header(A, op::RW, 10), b"nine byte");
    fails(&guest);
    assert_eq!(log.take().last(), Some(&Seen::Close(0)));
}

#[test]
fn a_packet_of_more_than_the_longest_length() {
    for len in [MAX_DATA + 1, u32::MAX as usize] {
        let (mut guest, _) = guest();
        guest.send_raw(header(A, op::RW, len), &[0; 60_000]);
        fails(&guest);
    }
}

#[test]
fn a_receive_buffer_without_room_for_data() {
    let (device, _) = device();
    let mut guest = Guest::without_buffers(device);
    guest.driver.add(RECEIVE, &[], &[HEADER as u32]);
    guest.send(A, op::REQUEST, &[]);
    fails(&guest);
}
