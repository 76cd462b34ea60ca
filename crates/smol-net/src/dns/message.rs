//! Messages of DNS (RFC 1035): as much as it takes to know what is asked, and which addresses an answer
//! gives. Everything else goes through as it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Longest message, in bytes: its length has 16 bits over TCP, and over UDP there is no longer one.
pub const MOST: usize = 65535;
/// Longest message to a server, in bytes: a name, and what EDNS adds.
pub const MOST_QUERY: usize = 1024;
const HEADER: usize = 12;
/// Bytes of a name on the wire.
const MOST_NAME: usize = 255;
/// Pointers of one name that are followed.
const MOST_POINTERS: usize = 32;
/// Addresses of one answer that are looked at.
const MOST_ADDRESSES: usize = 64;
/// Aliases in one answer that are followed.
const MOST_ALIASES: usize = 16;

/// Types of records.
pub const A: u16 = 1;
const CNAME: u16 = 5;
/// See [`A`].
pub const AAAA: u16 = 28;
const OPT: u16 = 41;
const INTERNET: u16 = 1;
/// The first type that asks for something other than records: zone transfers, mail groups, anything.
const FIRST_META: u16 = 249;
const LAST_META: u16 = 255;

/// How a message says that something went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Nothing did; there may be no records all the same.
    NoError = 0,
    /// The message cannot be read.
    Format = 1,
    /// The server cannot answer.
    Server = 2,
    /// There is no such name.
    NoName = 3,
    /// The server does not do such things.
    NotImplemented = 4,
}

/// The bytes are no message that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The asker's number for it.
    pub id: u16,
    /// The name, in lower case, without a final dot; bytes that are no letters, digits, `-` or `_` as
    /// `\DDD`.
    pub name: String,
    /// The type of records.
    pub kind: u16,
    /// The question as the message has it.
    question: Vec<u8>,
    flags: u16,
    /// The largest answer over UDP, and flags, of EDNS.
    edns: Option<(u16, u16)>,
}

/// Reads a query.
///
/// # Errors
/// The code to answer with, and the number of the query, if it has one.
pub fn query(message: &[u8]) -> Result<Query, (Option<u16>, Code)> {
    let header = Header::read(message).map_err(|Malformed| (None, Code::Format))?;
    if header.is_answer() {
        // Whoever answered it would make two servers talk to each other for ever.
        return Err((None, Code::Format));
    }
    let id = header.id;
    let fail = move |code| (Some(id), code);
    if header.flags & 0x7800 != 0 {
        return Err(fail(Code::NotImplemented));
    }
    if header.counts[0] != 1 || header.counts[1] != 0 || header.counts[2] != 0 {
        return Err(fail(Code::Format));
    }
    let (name, end) = name(message, HEADER, false).map_err(|Malformed| fail(Code::Format))?;
    let kind = number(message, end).map_err(|Malformed| fail(Code::Format))?;
    let class = number(message, end + 2).map_err(|Malformed| fail(Code::Format))?;
    let transfer = (FIRST_META..=LAST_META).contains(&kind) || kind == OPT;
    if class != INTERNET || transfer {
        return Err(fail(Code::NotImplemented));
    }
    let mut rest = Records {
        message,
        at: end + 4,
        left: header.counts[3].into(),
    };
    let mut edns = None;
    while let Some(record) = rest.next().map_err(|Malformed| fail(Code::Format))? {
        if record.kind == OPT {
            // The class is the size; in place of the time to live are version and flags.
            edns = Some((record.class, record.ttl as u16));
        }
    }
    Ok(Query {
        id,
        name,
        kind,
        question: message[HEADER..end + 4].to_vec(),
        flags: header.flags,
        edns,
    })
}

impl Query {
    /// One of our own.
    pub fn new(host: &str, kind: u16) -> Result<Self, Malformed> {
        let mut question = Vec::new();
        for label in host.trim_end_matches('.').split('.') {
            let length = u8::try_from(label.len())
                .ok()
                .filter(|n| (1..64).contains(n));
            question.push(length.ok_or(Malformed)?);
            question.extend(label.as_bytes());
        }
        question.push(0);
        if question.len() > MOST_NAME {
            return Err(Malformed);
        }
        question.extend(kind.to_be_bytes());
        question.extend(INTERNET.to_be_bytes());
        Ok(Query {
            id: 0,
            name: host.trim_end_matches('.').to_ascii_lowercase(),
            kind,
            question,
            flags: RECURSION_DESIRED,
            edns: None,
        })
    }

    /// The message for a server, under another number. It is made anew, of what was understood of the
    /// guest's: the server sees nothing else of what the guest has sent.
    pub fn to_server(&self, id: u16) -> Vec<u8> {
        let flags = self.flags & (RECURSION_DESIRED | AUTHENTIC | CHECKING_DISABLED);
        let additional = u16::from(self.edns.is_some());
        let mut message = header(id, flags, [1, 0, 0, additional]);
        message.extend(&self.question);
        if let Some((size, flags)) = self.edns {
            message.push(0);
            message.extend(OPT.to_be_bytes());
            message.extend(size.clamp(512, 4096).to_be_bytes());
            message.extend([0, 0]);
            message.extend((flags & DNSSEC_OK).to_be_bytes());
            message.extend([0, 0]);
        }
        message
    }

    /// An answer without records.
    pub fn answer(&self, code: Code) -> Vec<u8> {
        let flags = ANSWER
            | RECURSION_AVAILABLE
            | self.flags & (RECURSION_DESIRED | CHECKING_DISABLED)
            | code as u16;
        let mut message = header(self.id, flags, [1, 0, 0, 0]);
        message.extend(&self.question);
        message
    }
}

/// An answer to a message that could not be read as a query.
pub fn failure(id: u16, code: Code) -> Vec<u8> {
    header(id, ANSWER | RECURSION_AVAILABLE | code as u16, [0; 4])
}

const ANSWER: u16 = 0x8000;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const AUTHENTIC: u16 = 0x0020;
const CHECKING_DISABLED: u16 = 0x0010;
/// Of EDNS.
const DNSSEC_OK: u16 = 0x8000;

fn header(id: u16, flags: u16, counts: [u16; 4]) -> Vec<u8> {
    let numbers = [id, flags].into_iter().chain(counts);
    numbers.flat_map(u16::to_be_bytes).collect()
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether it did not fit into the packet.
    pub truncated: bool,
    /// The code, of which 0 is success and 3 that there is no such name.
    pub code: u8,
    /// The addresses of the name that was asked for, or of what it is an alias of.
    pub addresses: Vec<(IpAddr, Duration)>,
}

/// Reads the answer to a query that was sent under this number.
///
/// # Errors
/// If it is none, or that of another query.
pub fn answer(message: &[u8], query: &Query, id: u16) -> Result<Answer, Malformed> {
    let header = Header::read(message)?;
    if header.id != id || !header.is_answer() || header.counts[0] != 1 {
        return Err(Malformed);
    }
    let (asked, end) = name(message, HEADER, false)?;
    if asked != query.name
        || number(message, end)? != query.kind
        || number(message, end + 2)? != INTERNET
    {
        return Err(Malformed);
    }
    let truncated = header.flags & TRUNCATED != 0;
    let mut answer = Answer {
        truncated,
        code: (header.flags & 0xf) as u8,
        addresses: Vec::new(),
    };
    if !truncated {
        let mut records = Records {
            message,
            at: end + 4,
            left: header.counts[1].into(),
        };
        answer.addresses = addresses(&mut records, query)?;
    }
    Ok(answer)
}

/// The addresses of a name, through its aliases.
fn addresses(records: &mut Records, query: &Query) -> Result<Vec<(IpAddr, Duration)>, Malformed> {
    let mut aliases = Vec::new();
    let mut found = Vec::new();
    while let Some(record) = records.next()? {
        if record.class != INTERNET {
            continue;
        }
        let address = match (record.kind, record.data.len()) {
            (CNAME, _) if aliases.len() < MOST_ALIASES => {
                let (target, _) = name(records.message, record.data_at, true)?;
                aliases.push((record.owner, target));
                continue;
            }
            (A, 4) => Ipv4Addr::from(<[u8; 4]>::try_from(record.data).expect("4 bytes")).into(),
            (AAAA, 16) => Ipv6Addr::from(<[u8; 16]>::try_from(record.data).expect("16")).into(),
            _ => continue,
        };
        if found.len() < MOST_ADDRESSES {
            let ttl = Duration::from_secs(record.ttl.into());
            found.push((record.owner, address, ttl));
        }
    }
    let mut names = vec![query.name.clone()];
    // Each round follows at least one alias, whatever their order, or is the last.
    for _ in 0..aliases.len() {
        let new = aliases
            .iter()
            .find(|(owner, target)| names.contains(owner) && !names.contains(target));
        let Some((_, target)) = new else { break };
        names.push(target.clone());
    }
    found.retain(|(owner, _, _)| names.contains(owner));
    let plain = found.into_iter();
    Ok(plain.map(|(_, address, ttl)| (address, ttl)).collect())
}

struct Header {
    id: u16,
    flags: u16,
    counts: [u16; 4],
}

impl Header {
    fn read(message: &[u8]) -> Result<Self, Malformed> {
        if message.len() < HEADER || message.len() > MOST {
            return Err(Malformed);
        }
        let count = |n: usize| number(message, 4 + 2 * n);
        Ok(Header {
            id: number(message, 0)?,
            flags: number(message, 2)?,
            counts: [count(0)?, count(1)?, count(2)?, count(3)?],
        })
    }

    fn is_answer(&self) -> bool {
        self.flags & ANSWER != 0
    }
}

fn number(message: &[u8], at: usize) -> Result<u16, Malformed> {
    let bytes = message.get(at..).and_then(|rest| rest.first_chunk());
    bytes.copied().map(u16::from_be_bytes).ok_or(Malformed)
}

/// Records of a section, each of which takes some bytes of the message: their number is no promise.
struct Records<'a> {
    message: &'a [u8],
    at: usize,
    left: usize,
}

struct Record<'a> {
    owner: String,
    kind: u16,
    class: u16,
    ttl: u32,
    data: &'a [u8],
    /// Where the data are in the message.
    data_at: usize,
}

impl<'a> Records<'a> {
    fn next(&mut self) -> Result<Option<Record<'a>>, Malformed> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let (owner, at) = name(self.message, self.at, true)?;
        let (kind, class) = (number(self.message, at)?, number(self.message, at + 2)?);
        let (high, low) = (number(self.message, at + 4)?, number(self.message, at + 6)?);
        let length = usize::from(number(self.message, at + 8)?);
        let data_at = at + 10;
        let data = self.message.get(data_at..data_at + length);
        self.at = data_at + length;
        Ok(Some(Record {
            owner,
            kind,
            class,
            ttl: u32::from(high) << 16 | u32::from(low),
            data: data.ok_or(Malformed)?,
            data_at,
        }))
    }
}

/// Reads a name, and returns where it ends. A pointer, which not every name may have, leads further to
/// the front each time: so none leads round in a circle.
fn name(message: &[u8], begin: usize, pointers: bool) -> Result<(String, usize), Malformed> {
    let (mut text, mut at, mut end) = (String::new(), begin, None);
    let (mut first, mut length, mut pointed) = (begin, 1, 0);
    loop {
        let head = *message.get(at).ok_or(Malformed)?;
        match head {
            0 => break,
            1..=63 => {
                let label = message.get(at + 1..=at + usize::from(head));
                let label = label.ok_or(Malformed)?;
                length += 1 + label.len();
                if length > MOST_NAME {
                    return Err(Malformed);
                }
                push_label(&mut text, label);
                at += 1 + label.len();
            }
            0xc0.. if pointers => {
                let target = usize::from(number(message, at)? & 0x3fff);
                pointed += 1;
                if target >= first || pointed > MOST_POINTERS {
                    return Err(Malformed);
                }
                end.get_or_insert(at + 2);
                (first, at) = (target, target);
            }
            _ => return Err(Malformed),
        }
    }
    Ok((text, end.unwrap_or(at + 1)))
}

fn push_label(text: &mut String, label: &[u8]) {
    if !text.is_empty() {
        text.push('.');
    }
    for byte in label {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => {
                text.push(byte.to_ascii_lowercase().into());
            }
            _ => text.push_str(&format!("\\{byte:03}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: &[u8] = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x01A\x07eXample\0\0\x01\0\x01";

    /// An answer to [`ASKED`] with these records.
    fn answered(records: &[&[u8]]) -> Vec<u8> {
        let mut message = ASKED.to_vec();
        message[2..4].copy_from_slice(&[0x81, 0x80]);
        message[7] = records.len() as u8;
        message.extend(records.concat());
        message
    }

    fn read(message: &[u8]) -> Result<Answer, Malformed> {
        answer(message, &query(ASKED).unwrap(), 0x1234)
    }

    #[test]
    fn a_query_is_read_and_made_anew() {
        let asked = query(ASKED).unwrap();
        assert_eq!((asked.name.as_str(), asked.kind), ("a.example", A));
        let again = asked.to_server(0x1234);
        assert_eq!(again, ASKED, "with the case of the letters");
        let mut more = ASKED.to_vec();
        more[11] = 1;
        more.extend(b"\0\0\x29\x04\xd0\0\0\x80\0\0\x08secret!!");
        more.extend(b"and more");
        let to_server = query(&more).unwrap().to_server(1);
        assert_eq!(&to_server[ASKED.len()..], b"\0\0\x29\x04\xd0\0\0\x80\0\0\0");
        assert_eq!(
            Query::new("A.eXample.", A).unwrap().to_server(0x1234),
            ASKED
        );
        assert!(Query::new("a..b", A).is_err() && Query::new("", A).is_err());
        assert!(Query::new(&"a.".repeat(130), A).is_err());
    }

    #[test]
    fn what_is_no_question_for_records_is_answered_with_a_code() {
        let with = |at: usize, byte: u8| {
            let mut message = ASKED.to_vec();
            message[at] = byte;
            query(&message).expect_err("no query")
        };
        assert_eq!(with(2, 0x81), (None, Code::Format), "an answer");
        assert_eq!(
            with(2, 0x29),
            (Some(0x1234), Code::NotImplemented),
            "update"
        );
        assert_eq!(with(5, 2), (Some(0x1234), Code::Format), "two questions");
        assert_eq!(with(7, 1), (Some(0x1234), Code::Format), "with an answer");
        for meta in [252, 251, 255, 41] {
            let at = ASKED.len() - 3;
            assert_eq!(with(at, meta), (Some(0x1234), Code::NotImplemented));
        }
        let last = ASKED.len() - 1;
        assert_eq!(with(last, 3).1, Code::NotImplemented, "of another class");
        assert_eq!(query(&ASKED[..5]).unwrap_err().0, None);
        let answer = query(ASKED).unwrap().answer(Code::NoName);
        assert_eq!(&answer[..12], b"\x12\x34\x81\x83\0\x01\0\0\0\0\0\0");
    }

    #[test]
    fn addresses_of_the_name_and_of_its_aliases_are_found_and_no_others() {
        // a.example is an alias of b.example, that of c.example; in the wrong order, and another name.
        let message = answered(&[
            b"\x01b\xc0\x0e\0\x05\0\x01\0\0\0\x3c\0\x04\x01c\xc0\x0e",
            b"\x01c\xc0\x0e\0\x01\0\x01\0\0\0\x3c\0\x04\xc6\x33\x64\x01",
            b"\xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x04\x01b\xc0\x0e",
            b"\x01x\xc0\x0e\0\x01\0\x01\0\0\0\x3c\0\x04\xc6\x33\x64\x02",
            b"\xc0\x0c\0\x01\0\x01\xff\xff\xff\xff\0\x04\xc6\x33\x64\x03",
            b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x03\xc6\x33\x64",
        ]);
        let found = read(&message).unwrap().addresses;
        let found: Vec<_> = found.iter().map(|(ip, _)| ip.to_string()).collect();
        assert_eq!(found, ["198.51.100.1", "198.51.100.3"]);
    }

    #[test]
    fn an_answer_to_something_else_is_none() {
        let good = answered(&[]);
        assert!(read(&good).is_ok());
        for (at, byte) in [(0, 0), (2, 1), (5, 0), (13, b'b'), (good.len() - 3, 28)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert!(read(&bad).is_err(), "byte {at}");
        }
        let mut truncated = good;
        truncated[2] |= 2;
        assert!(read(&truncated).unwrap().truncated);
    }

    #[test]
    fn pointers_that_lead_nowhere_or_round_and_lengths_that_are_false_are_errors() {
        let end = ASKED.len() as u8;
        for bad in [
            &[0xc0, end][..],
            &[0xc0, end + 2, 0xc0, end],
            &[0xff, 0xff],
            &[0x01, b'a', 0xc0, end],
            &[0x80, 0],
            &[0x40],
            &[0x3f, b'a'],
        ] {
            assert!(read(&answered(&[bad])).is_err(), "{bad:?}");
        }
        // More records than there are, and data that are longer than the message.
        let mut few = answered(&[b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04\xc6\x33\x64\x01"]);
        few[6] = 0xff;
        assert!(read(&few).is_err());
        let long = answered(&[b"\xc0\x0c\0\x01\0\x01\0\0\0\0\xff\xff\xc6\x33\x64\x01"]);
        assert!(read(&long).is_err());
    }

    #[test]
    fn names_are_no_longer_than_they_can_be() {
        let mut message = ASKED[..12].to_vec();
        for _ in 0..5 {
            message.push(60);
            message.extend([b'a'; 60]);
        }
        message.extend(b"\0\0\x01\0\x01");
        assert_eq!(query(&message).unwrap_err().1, Code::Format);
        let odd = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x04a.\x1b\xff\0\0\x01\0\x01";
        assert_eq!(query(odd).unwrap().name, "a\\046\\027\\255");
    }
}
