//! IP packets: what one of the guest says, and those that answer it without a connection.

use std::net::IpAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable,
    Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpProtocol, IpRepr, Ipv4Packet, Ipv4Repr, Ipv6Packet,
    Ipv6Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

use crate::link::Out;

/// A packet of the guest, whole and in one piece. Fragments are none: no packet has to be cut on a link
/// with an MTU this large, except datagrams of more than 65492 bytes.
#[derive(Debug)]
pub struct Packet<'a> {
    /// All of it, without what may follow.
    pub bytes: &'a [u8],
    /// Where it says that it comes from.
    pub from: IpAddr,
    /// Where it goes.
    pub to: IpAddr,
    /// What is in it.
    pub payload: Payload<'a>,
}

/// What is in a packet.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// A segment of TCP.
    Tcp(Segment),
    /// A datagram of UDP.
    Udp {
        /// Port that it comes from.
        from: u16,
        /// Port that it goes to.
        to: u16,
        /// What is in it.
        data: &'a [u8],
    },
    /// A request for an echo.
    Echo {
        /// Whose request it is.
        ident: u16,
        /// Which one.
        number: u16,
        /// What shall come back.
        data: &'a [u8],
    },
}

/// What matters of a segment outside of its connection.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Port that it comes from.
    pub from: u16,
    /// Port that it goes to.
    pub to: u16,
    /// Whether it begins a connection.
    pub syn: bool,
    /// Whether it ends one at once.
    pub rst: bool,
    /// The number that it acknowledges.
    ack: Option<TcpSeqNumber>,
    /// The number behind it.
    next: TcpSeqNumber,
}

/// Reads a packet; `None` if it is none that anything is done with: damaged, a fragment, with extension
/// headers, or of another protocol.
pub fn read(bytes: &[u8]) -> Option<Packet<'_>> {
    match bytes.first()? >> 4 {
        4 => {
            let packet = Ipv4Packet::new_checked(bytes).ok()?;
            if packet.more_frags() || packet.frag_offset() != 0 {
                return None;
            }
            let bytes = &bytes[..packet.total_len().into()];
            let data = bytes.get(packet.header_len().into()..)?;
            Some(Packet {
                bytes,
                from: packet.src_addr().into(),
                to: packet.dst_addr().into(),
                payload: payload(packet.next_header(), data)?,
            })
        }
        6 => {
            let packet = Ipv6Packet::new_checked(bytes).ok()?;
            let bytes = &bytes[..packet.total_len()];
            Some(Packet {
                bytes,
                from: packet.src_addr().into(),
                to: packet.dst_addr().into(),
                payload: payload(packet.next_header(), &bytes[packet.header_len()..])?,
            })
        }
        _ => None,
    }
}

fn payload(protocol: IpProtocol, data: &[u8]) -> Option<Payload<'_>> {
    match protocol {
        IpProtocol::Tcp => segment(data).map(Payload::Tcp),
        IpProtocol::Udp => {
            let datagram = UdpPacket::new_checked(data).ok()?;
            let (from, to) = (datagram.src_port(), datagram.dst_port());
            let data = data.get(8..datagram.len().into())?;
            (from != 0 && to != 0).then_some(Payload::Udp { from, to, data })
        }
        IpProtocol::Icmp => {
            let message = Icmpv4Packet::new_checked(data).ok()?;
            let request =
                message.msg_type() == Icmpv4Message::EchoRequest && message.msg_code() == 0;
            request.then(|| Payload::Echo {
                ident: message.echo_ident(),
                number: message.echo_seq_no(),
                data: &data[8..],
            })
        }
        IpProtocol::Icmpv6 => {
            let message = Icmpv6Packet::new_checked(data).ok()?;
            let request =
                message.msg_type() == Icmpv6Message::EchoRequest && message.msg_code() == 0;
            request.then_some(())?;
            Some(Payload::Echo {
                ident: message.echo_ident(),
                number: message.echo_seq_no(),
                data: data.get(8..)?,
            })
        }
        _ => None,
    }
}

fn segment(data: &[u8]) -> Option<Segment> {
    let segment = TcpPacket::new_checked(data).ok()?;
    let (from, to) = (segment.src_port(), segment.dst_port());
    if from == 0 || to == 0 {
        return None;
    }
    Some(Segment {
        from,
        to,
        syn: segment.syn() && !segment.ack(),
        rst: segment.rst(),
        ack: segment.ack().then(|| segment.ack_number()),
        next: segment.seq_number() + segment.segment_len(),
    })
}

/// Why a packet does not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// No route leads to the network.
    Network,
    /// The host does not answer.
    Host,
    /// Nobody listens on the port.
    Port,
    /// It is not allowed.
    Prohibited,
}

/// Appends a packet whose transport header and data `fill` writes.
fn push(
    out: &mut Out,
    from: IpAddr,
    to: IpAddr,
    protocol: IpProtocol,
    length: usize,
    fill: Fill<'_>,
) {
    let hop_limit = 64;
    let ip = match (from, to) {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => IpRepr::Ipv4(Ipv4Repr {
            src_addr,
            dst_addr,
            next_header: protocol,
            payload_len: length,
            hop_limit,
        }),
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => IpRepr::Ipv6(Ipv6Repr {
            src_addr,
            dst_addr,
            next_header: protocol,
            payload_len: length,
            hop_limit,
        }),
        _ => return,
    };
    if out.is_full() {
        return;
    }
    out.push(ip.buffer_len(), |bytes| {
        ip.emit(&mut *bytes, &ChecksumCapabilities::default());
        fill(&mut bytes[ip.header_len()..]);
    });
}

/// Writes a transport header and its data.
type Fill<'a> = &'a dyn Fn(&mut [u8]);

/// Appends the end of a connection that does not exist, as the answer to a segment.
pub fn push_reset(out: &mut Out, packet: &Packet, segment: &Segment) {
    let (from, to) = (packet.to, packet.from);
    let reset = TcpRepr {
        src_port: segment.to,
        dst_port: segment.from,
        control: TcpControl::Rst,
        seq_number: segment.ack.unwrap_or_default(),
        ack_number: segment.ack.is_none().then_some(segment.next),
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    push(
        out,
        from,
        to,
        IpProtocol::Tcp,
        reset.buffer_len(),
        &|bytes| {
            reset.emit(
                &mut TcpPacket::new_unchecked(bytes),
                &from.into(),
                &to.into(),
                &ChecksumCapabilities::default(),
            );
        },
    );
}

/// Appends a datagram.
pub fn push_datagram(out: &mut Out, from: (IpAddr, u16), to: (IpAddr, u16), data: &[u8]) {
    let datagram = UdpRepr {
        src_port: from.1,
        dst_port: to.1,
    };
    let length = datagram.header_len() + data.len();
    push(out, from.0, to.0, IpProtocol::Udp, length, &|bytes| {
        datagram.emit(
            &mut UdpPacket::new_unchecked(bytes),
            &from.0.into(),
            &to.0.into(),
            data.len(),
            |space| space.copy_from_slice(data),
            &ChecksumCapabilities::default(),
        );
    });
}

/// Appends the answer to a request for an echo that went to `from`.
pub fn push_echo(out: &mut Out, from: IpAddr, to: IpAddr, ident: u16, number: u16, data: &[u8]) {
    match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let reply = Icmpv4Repr::EchoReply {
                ident,
                seq_no: number,
                data,
            };
            push_icmp_v4(out, from, to, &reply);
        }
        (IpAddr::V6(_), IpAddr::V6(_)) => {
            let reply = Icmpv6Repr::EchoReply {
                ident,
                seq_no: number,
                data,
            };
            push_icmp_v6(out, from, to, &reply);
        }
        _ => {}
    }
}

fn push_icmp_v4(out: &mut Out, from: IpAddr, to: IpAddr, message: &Icmpv4Repr) {
    push(
        out,
        from,
        to,
        IpProtocol::Icmp,
        message.buffer_len(),
        &|bytes| {
            message.emit(
                &mut Icmpv4Packet::new_unchecked(bytes),
                &ChecksumCapabilities::default(),
            );
        },
    );
}

fn push_icmp_v6(out: &mut Out, from: IpAddr, to: IpAddr, message: &Icmpv6Repr) {
    let (IpAddr::V6(source), IpAddr::V6(target)) = (from, to) else {
        return;
    };
    push(
        out,
        from,
        to,
        IpProtocol::Icmpv6,
        message.buffer_len(),
        &|bytes| {
            message.emit(
                &source,
                &target,
                &mut Icmpv6Packet::new_unchecked(bytes),
                &ChecksumCapabilities::default(),
            );
        },
    );
}

/// Appends the message that a packet of the guest did not arrive. It comes from where the packet went.
/// `packet` is the packet, or its beginning up to eight bytes behind its header.
pub fn push_unreachable(out: &mut Out, packet: &[u8], why: Unreachable) {
    match packet.first().map(|first| first >> 4) {
        Some(4) => {
            let Some(ip) = Ipv4Packet::new_checked(packet).ok().or_else(|| {
                let header = Ipv4Packet::new_unchecked(packet);
                (packet.len() >= 28).then_some(header)
            }) else {
                return;
            };
            let data = packet.get(ip.header_len().into()..).unwrap_or_default();
            let message = Icmpv4Repr::DstUnreachable {
                reason: match why {
                    Unreachable::Network => Icmpv4DstUnreachable::NetUnreachable,
                    Unreachable::Host => Icmpv4DstUnreachable::HostUnreachable,
                    Unreachable::Port => Icmpv4DstUnreachable::PortUnreachable,
                    Unreachable::Prohibited => Icmpv4DstUnreachable::CommProhibited,
                },
                header: Ipv4Repr {
                    src_addr: ip.src_addr(),
                    dst_addr: ip.dst_addr(),
                    next_header: ip.next_header(),
                    payload_len: usize::from(ip.total_len()).saturating_sub(ip.header_len().into()),
                    hop_limit: ip.hop_limit(),
                },
                data: &data[..data.len().min(8)],
            };
            push_icmp_v4(out, ip.dst_addr().into(), ip.src_addr().into(), &message);
        }
        Some(6) if packet.len() >= 48 => {
            let ip = Ipv6Packet::new_unchecked(packet);
            let data = &packet[40..];
            let message = Icmpv6Repr::DstUnreachable {
                reason: match why {
                    Unreachable::Network => Icmpv6DstUnreachable::NoRoute,
                    Unreachable::Host => Icmpv6DstUnreachable::AddrUnreachable,
                    Unreachable::Port => Icmpv6DstUnreachable::PortUnreachable,
                    Unreachable::Prohibited => Icmpv6DstUnreachable::AdminProhibit,
                },
                header: Ipv6Repr {
                    src_addr: ip.src_addr(),
                    dst_addr: ip.dst_addr(),
                    next_header: ip.next_header(),
                    payload_len: ip.payload_len().into(),
                    hop_limit: ip.hop_limit(),
                },
                data: &data[..data.len().min(512)],
            };
            push_icmp_v6(out, ip.dst_addr().into(), ip.src_addr().into(), &message);
        }
        _ => {}
    }
}
