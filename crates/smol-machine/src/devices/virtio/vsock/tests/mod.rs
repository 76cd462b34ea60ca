//! The device against a mock guest that speaks packets over real rings.

mod build;
mod live;

use std::time::{Duration, Instant};

use smol_testing::LIMIT;

use super::super::testing::Driver;
use super::packet::{HEADER, HOST_CID, Header, STREAM, op};
use super::{EVENT, RECEIVE, TRANSMIT, Vsock};

const CID: u64 = 3;

/// The guest's end of a connection.
#[derive(Clone, Copy)]
struct Ports {
    guest: u32,
    host: u32,
}

struct Guest {
    driver: Driver,
    /// Receive buffers are given back to the device as they are used.
    refill: bool,
}

impl Guest {
    fn new(device: Vsock) -> Self {
        let mut this = Self::without_buffers(device);
        this.refill = true;
        for _ in 0..this.driver.free(RECEIVE) {
            this.add_buffer();
        }
        this.driver.kick(RECEIVE);
        for _ in 0..8 {
            this.driver.add(EVENT, &[], &[8]);
        }
        this.driver.kick(EVENT);
        this
    }

    fn without_buffers(device: Vsock) -> Self {
        Self {
            driver: Driver::new(device),
            refill: false,
        }
    }

    /// One buffer for header and data, as Linux has it.
    fn add_buffer(&mut self) {
        self.driver.add(RECEIVE, &[], &[(HEADER + 4096) as u32]);
    }

    fn send_raw(&mut self, header: Header, data: &[u8]) {
        let bytes = header.to_bytes();
        // Split at odd places: section 2.7.4.1 leaves the framing to the driver.
        let (a, b) = data.split_at(data.len() / 3);
        let parts: &[&[u8]] = if data.is_empty() {
            &[&bytes[..20], &bytes[20..]]
        } else {
            &[&bytes, a, b]
        };
        self.driver.add(TRANSMIT, parts, &[]);
        self.driver.kick_if_wanted(TRANSMIT, 1);
        while self.driver.completed(TRANSMIT).is_some() {}
    }

    fn send(&mut self, ports: Ports, op: u16, data: &[u8]) {
        self.send_raw(header(ports, op, data.len()), data);
    }

    fn send_flags(&mut self, ports: Ports, op: u16, flags: u32) {
        let header = Header {
            flags,
            ..header(ports, op, 0)
        };
        self.send_raw(header, &[]);
    }

    /// The next packet of the device, if there is one.
    fn packet(&mut self) -> Option<(Header, Vec<u8>)> {
        let bytes = self.driver.completed(RECEIVE)?;
        let (header, data) = bytes.split_first_chunk::<HEADER>().unwrap();
        let header = Header::from_bytes(header);
        assert_eq!(header.len as usize, data.len());
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        if self.refill {
            self.add_buffer();
            self.driver.kick_if_wanted(RECEIVE, 1);
        }
        Some((header, data.to_vec()))
    }

    /// The next packet, which a live device may take its time with.
    #[track_caller]
    fn await_packet(&mut self) -> (Header, Vec<u8>) {
        let start = Instant::now();
        loop {
            if let Some(packet) = self.packet() {
                return packet;
            }
            assert!(start.elapsed() < LIMIT, "the packet never comes");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The next packet, which is of this operation and on this connection.
    #[track_caller]
    fn expect(&mut self, ports: Ports, op: u16) -> (Header, Vec<u8>) {
        let (header, data) = self.await_packet();
        assert_eq!(header.op, op, "{header:?}");
        assert_eq!(
            (header.src_port, header.dst_port),
            (ports.host, ports.guest)
        );
        assert_eq!(header.kind, STREAM);
        (header, data)
    }

    #[track_caller]
    fn connect(&mut self, ports: Ports) {
        self.send(ports, op::REQUEST, &[]);
        let (response, _) = self.expect(ports, op::RESPONSE);
        assert_eq!((response.buf_alloc, response.fwd_cnt), (256 << 10, 0));
    }

    /// Takes the connection that the host asks for on a port of the guest.
    #[track_caller]
    fn accept(&mut self, port: u32) -> Ports {
        let (request, _) = self.await_packet();
        assert_eq!((request.op, request.dst_port), (op::REQUEST, port));
        let ports = Ports {
            guest: port,
            host: request.src_port,
        };
        self.send(ports, op::RESPONSE, &[]);
        ports
    }
}

/// A packet of the guest, which has all the room in the world.
fn header(ports: Ports, op: u16, len: usize) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: ports.guest,
        dst_port: ports.host,
        len: len as u32,
        kind: STREAM,
        op,
        flags: 0,
        buf_alloc: 1 << 30,
        fwd_cnt: 0,
    }
}
