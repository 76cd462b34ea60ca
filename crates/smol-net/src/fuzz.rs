//! What the fuzz targets call; no interface.

use std::time::{Duration, Instant};

use crate::dns::message;
use crate::engine::Engine;
use crate::proxy::{body, head};
use crate::{Policy, Upstream};

/// Feeds packets of a guest that may reach nothing to the engine: its DNS server and its proxy answer,
/// and no socket is opened. A segment of IPv4 that acknowledges zero acknowledges what came last instead:
/// nobody could guess that. Returns the bytes for the guest.
pub fn packets<'a>(packets: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let upstream = Upstream {
        offer_proxy: true,
        ..Upstream::default()
    };
    let mut now = Instant::now();
    let mut engine = Engine::new(Policy::none(), upstream, now).expect("a descriptor");
    let (mut output, mut last) = (Vec::new(), 0_u32);
    for packet in packets {
        let mut packet = packet.to_vec();
        if let Some(acknowledged) = packet.get_mut(28..32).filter(|number| **number == [0; 4]) {
            acknowledged.copy_from_slice(&last.to_be_bytes());
        }
        engine.packet(&packet, now);
        now += Duration::from_millis(700);
        engine.timers(now);
        let came = engine.take_output();
        // Behind a prefix and a header of IP are two ports, then the number; further on, the flags.
        if let Some([a, b, c, d]) = came.get(26..30)
            && came.get(35).is_some_and(|flags| flags & 2 != 0)
        {
            last = u32::from_be_bytes([*a, *b, *c, *d]).wrapping_add(1);
        }
        output.extend(came);
    }
    output
}

/// Reads a query of DNS. Returns its name, its type, and the message for a server.
pub fn dns_query(bytes: &[u8]) -> Option<(String, u16, Vec<u8>)> {
    let query = message::query(bytes).ok()?;
    let sent = query.to_server(7);
    Some((query.name, query.kind, sent))
}

/// Reads an answer to a query. Returns how many addresses it has.
pub fn dns_answer(query: &[u8], answer: &[u8]) -> Option<usize> {
    let query = message::query(query).ok()?;
    let answer = message::answer(answer, &query, query.id).ok()?;
    Some(answer.addresses.len())
}

/// Reads the head of a request to the proxy. Returns host, port, the head that is sent on, and how much
/// of what follows belongs to it.
pub fn request(bytes: &[u8]) -> Option<(String, u16, Vec<u8>, Option<usize>)> {
    let (request, length) = head::request(bytes).ok()??;
    let sent = request.to_server(None);
    let own = request.plain.as_ref().and_then(|plain| {
        let mut rest = body::Rest::new(plain.body);
        rest.take(&bytes[length..]).ok()
    });
    Some((request.host, request.port, sent, own))
}

/// Reads the head of an answer. Returns the head that the guest gets.
pub fn response(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(head::response(bytes).ok()??.0.head)
}

/// Reads variables of proxies and a resolv.conf.
pub fn upstream(value: &str, file: &str) -> bool {
    let read = crate::Proxies::from_variables(|_| Some(value.to_owned()), file);
    !crate::upstream::servers(file).is_empty() | read.is_ok()
}
