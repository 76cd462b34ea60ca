//! The network of a guest: its packets, names and answers of DNS, what it asks a proxy for; rules.

use smol_net::{Rule, fuzz};
use smol_protocol::net::{DNS_V4, DNS_V6, GATEWAY_V4, GUEST_V4, GUEST_V6, Packets};

use crate::input::{join, parts};

/// Words of rules, of HTTP and of environment variables.
pub const WORDS: &[&str] = &[
    "*.",
    "xn--",
    "localhost",
    "/24",
    "/128",
    "[::1]:443",
    "[2001:db8::/32]",
    "::ffff:127.0.0.1",
    ":65535",
    "0x7f.1",
    "CONNECT ",
    "POST http://",
    " HTTP/1.1\r\n",
    "\r\n\r\n",
    "HTTP/1.1 100 \r\n\r\n",
    "HTTP/1.1 407 x\r\n",
    "Content-Length: ",
    "Transfer-Encoding: chunked\r\n",
    "Connection: ",
    "Proxy-Authorization: ",
    "ffffffffffffffff\r\n",
    "0\r\n\r\n",
    "http://u:p%40@",
    "nameserver ",
];

/// Packets of a guest, which the engine takes one after the other.
///
/// Holds: no socket is opened, and the guest gets whole packets, of which none is longer than what it has
/// sent but by headers.
pub fn packets(data: &[u8]) -> bool {
    let sent = parts(data, 32);
    let output = fuzz::packets(sent.iter().copied());
    let (mut stream, mut count) = (Packets::default(), 0);
    let mut rest = &output[..];
    loop {
        let space = stream.space();
        let n = space.len().min(rest.len());
        space[..n].copy_from_slice(&rest[..n]);
        stream.filled(n);
        rest = &rest[n..];
        while let Some(packet) = stream.next_packet().expect("packets come out") {
            assert!(matches!(packet[0] >> 4, 4 | 6));
            count += 1;
        }
        if rest.is_empty() {
            break;
        }
    }
    // Each packet is answered at once by a few at most; the rest are repetitions.
    assert!(count <= 64 * sent.len(), "{count} packets");
    count > 0
}

/// What a stream says, in pieces of any length.
///
/// Holds: no packet is empty, or longer than the MTU.
pub fn stream(data: &[u8]) -> bool {
    let (mut stream, mut rest, mut any) = (Packets::default(), data, false);
    while !rest.is_empty() {
        let space = stream.space();
        assert!(!space.is_empty());
        let n = space
            .len()
            .min(rest.len())
            .min(1 + usize::from(rest[0]) * 300);
        space[..n].copy_from_slice(&rest[..n]);
        stream.filled(n);
        rest = &rest[n..];
        loop {
            match stream.next_packet() {
                Ok(Some(packet)) => {
                    assert!((1..=smol_protocol::net::MTU).contains(&packet.len()));
                    any = true;
                }
                Ok(None) => break,
                Err(_) => return any,
            }
        }
    }
    any
}

/// A query, then an answer to it.
///
/// Holds: a server is sent a name of the length that names have, and nothing but what is understood; few
/// addresses are taken.
pub fn dns(data: &[u8]) -> bool {
    let parts = parts(data, 2);
    let Some((name, _, sent)) = fuzz::dns_query(parts[0]) else {
        return false;
    };
    assert!(name.len() <= 4 * 255 && name.is_ascii());
    assert!(!name.chars().any(char::is_control), "{name:?}");
    assert!(sent.len() <= 12 + 255 + 4 + 11);
    let again = fuzz::dns_query(&sent).expect("what we send is a query");
    assert_eq!(again.0, name);
    let found = fuzz::dns_answer(parts[0], parts.get(1).copied().unwrap_or_default());
    assert!(found.is_none_or(|found| found <= 64));
    found.is_some()
}

/// A rule.
///
/// Holds: it is read as it is written; what is wrong has one line.
pub fn rule(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    match text.parse::<Rule>() {
        Ok(rule) => {
            let shown = rule.to_string();
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
            assert_eq!(shown.parse(), Ok(rule));
            true
        }
        Err(error) => {
            assert!(!error.to_string().contains('\n'));
            false
        }
    }
}

/// The head of a request and some of its body, then the head of an answer.
///
/// Holds: what goes on is one head, which is read as a request for the same; nothing of the host's proxy
/// is in what the guest gets.
pub fn proxy(data: &[u8]) -> bool {
    let parts = parts(data, 2);
    if let Some(head) = fuzz::response(parts.get(1).copied().unwrap_or_default()) {
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        assert!(text.ends_with("\r\n\r\n") && text.matches("\r\n\r\n").count() == 1);
        assert!(!text.contains("\nproxy-authenticate:") && !text.contains("\nvia:"));
    }
    let Some((host, port, sent, own)) = fuzz::request(parts[0]) else {
        return false;
    };
    assert!(port != 0 && !host.is_empty() && !host.contains(['/', '@', ' ', '\r', '\n']));
    assert!(own.is_none_or(|own| own <= parts[0].len()));
    if !sent.is_empty() {
        let ends = sent.windows(4).filter(|bytes| bytes == b"\r\n\r\n").count();
        assert!(ends == 1 && sent.ends_with(b"\r\n\r\n"));
        let text = String::from_utf8_lossy(&sent).to_ascii_lowercase();
        assert!(!text.contains("\nproxy-authorization:"));
        assert_eq!(text.matches("\nhost:").count(), 1, "{text}");
    }
    true
}

/// The value of variables that name proxies, then a resolv.conf and a file of hosts.
pub fn upstream(data: &[u8]) -> bool {
    let parts = parts(data, 2);
    let text = |at: usize| String::from_utf8_lossy(parts.get(at).copied().unwrap_or_default());
    fuzz::upstream(&text(0), &text(1))
}

fn v4(protocol: u8, to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(GUEST_V4.octets());
    packet.extend(to);
    packet.extend(payload);
    packet
}

fn v6(protocol: u8, to: [u8; 16], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([protocol, 64]);
    packet.extend(GUEST_V6.octets());
    packet.extend(to);
    packet.extend(payload);
    packet
}

/// A segment of TCP; an acknowledged number of zero stands for that of what came last.
fn segment(to: u16, number: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut segment = vec![0x9c, 0x40];
    segment.extend(to.to_be_bytes());
    segment.extend(number.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(data);
    segment
}

fn datagram(to: u16, data: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0x9c, 0x40];
    datagram.extend(to.to_be_bytes());
    datagram.extend((8 + data.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    datagram
}

const ASKED: &[u8] = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x01a\x07example\0\0\x01\0\x01";
const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN: u8 = 1;
const RST: u8 = 4;

/// Seeds of [`packets`].
pub fn packet_seeds() -> Vec<Vec<u8>> {
    let conversation = |to: [u8; 4], port: u16, data: &[u8]| {
        let next = 1 + data.len() as u32;
        join(&[
            &v4(6, to, &segment(port, 0, SYN, b"")),
            &v4(6, to, &segment(port, 1, ACK, b"")),
            &v4(6, to, &segment(port, 1, ACK, data)),
            &v4(6, to, &segment(port, next, ACK | FIN, b"")),
            &v4(6, to, &segment(port, next + 1, ACK, b"")),
        ])
    };
    let over_tcp = [&(ASKED.len() as u16).to_be_bytes()[..], ASKED].concat();
    let get = b"GET http://a.example/ HTTP/1.1\r\n\r\n";
    vec![
        conversation(DNS_V4.octets(), 53, &over_tcp),
        conversation(GATEWAY_V4.octets(), 3128, get),
        conversation([198, 51, 100, 2], 80, b""),
        join(&[
            &v4(17, DNS_V4.octets(), &datagram(53, ASKED)),
            &v4(17, [198, 51, 100, 2], &datagram(443, b"x")),
            &v4(1, GATEWAY_V4.octets(), b"\x08\0\0\0\0\x01\0\x02hello"),
            &v6(17, DNS_V6.octets(), &datagram(53, ASKED)),
            &v6(58, DNS_V6.octets(), b"\x80\0\0\0\0\x01\0\x02hello"),
            &v6(6, DNS_V6.octets(), &segment(53, 0, SYN, b"")),
            &v6(6, DNS_V6.octets(), &segment(53, 1, RST, b"")),
        ]),
    ]
}

/// Seeds of [`stream`].
pub fn stream_seeds() -> Vec<Vec<u8>> {
    vec![b"\0\x03abc\0\x01d\x01\0rest".to_vec(), vec![0xff; 4]]
}

/// Seeds of [`dns`].
pub fn dns_seeds() -> Vec<Vec<u8>> {
    let mut answer = ASKED.to_vec();
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[7] = 2;
    answer.extend(b"\xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x04\x01b\xc0\x0e");
    answer.extend(b"\x01b\xc0\x0e\0\x01\0\x01\0\0\0\x3c\0\x04\xc6\x33\x64\x01");
    let mut edns = ASKED.to_vec();
    edns[11] = 1;
    edns.extend(b"\0\0\x29\x04\xd0\0\0\x80\0\0\0");
    vec![join(&[ASKED, &answer]), join(&[&edns, &answer])]
}

/// Seeds of [`rule`].
pub fn rule_seeds() -> Vec<Vec<u8>> {
    let seeds = [
        "*.registry.example.org:443",
        "192.0.2.7:5432",
        "198.51.100.0/24",
        "[2001:db8::1]:443",
        "[2001:db8::/32]:22",
        "127.1",
    ];
    seeds.map(|seed| seed.as_bytes().to_vec()).to_vec()
}

/// Seeds of [`proxy`].
pub fn proxy_seeds() -> Vec<Vec<u8>> {
    let answer: &[u8] = b"HTTP/1.1 200 OK\r\nVia: 1.1 p\r\nContent-Length: 5\r\n\r\nhello";
    vec![
        join(&[
            b"POST http://a.example:8080/x?y HTTP/1.1\r\nHost: b\r\nConnection: x-hop\r\nX-Hop: 1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET ",
            answer,
        ]),
        join(&[b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\n\r\n", answer]),
        b"GET http://a.example HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc".to_vec(),
    ]
}

/// Seeds of [`upstream`].
pub fn upstream_seeds() -> Vec<Vec<u8>> {
    vec![
        join(&[
            b"http://us%40er:p@proxy.example:3128",
            b"nameserver 192.0.2.1\n10.0.0.1 proxy.example\n",
        ]),
        b"example.org,10.0.0.0/8, *.x:80 [::1]".to_vec(),
        b"socks5://a".to_vec(),
    ]
}
