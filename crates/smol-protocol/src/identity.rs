//! Random bytes and machine ids, as hex digits on the wire.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{MAX_ENTROPY, MIN_ENTROPY};

/// Random bytes; hex digits on the wire, never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Entropy(Vec<u8>);

impl Entropy {
    /// Takes [`MIN_ENTROPY`] to [`MAX_ENTROPY`] bytes; `None` for any other number.
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        (MIN_ENTROPY..=MAX_ENTROPY)
            .contains(&bytes.len())
            .then_some(Entropy(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entropy({} bytes)", self.0.len())
    }
}

impl Serialize for Entropy {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Entropy {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let digits = String::deserialize(from)?;
        unhex(&digits).and_then(Entropy::new).ok_or_else(|| {
            D::Error::custom(format!(
                "expected {MIN_ENTROPY} to {MAX_ENTROPY} bytes as lower-case hex digits"
            ))
        })
    }
}

/// A machine id as in machine-id(5): 128 bits, not all zero, 32 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineId([u8; 16]);

impl MachineId {
    /// Makes an id of random bytes, marked as a version 4 UUID as machine-id(5) asks for.
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        MachineId(bytes)
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl Serialize for MachineId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MachineId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let digits = String::deserialize(from)?;
        unhex(&digits)
            .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok())
            .filter(|bytes| bytes != &[0; 16])
            .map(MachineId)
            .ok_or_else(|| {
                D::Error::custom("expected a machine id: 32 lower-case hex digits, not all zero")
            })
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut digits = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(digits, "{byte:02x}").expect("a String takes everything");
    }
    digits
}

/// Lower-case hex digits only: one value has one spelling.
fn unhex(digits: &str) -> Option<Vec<u8>> {
    let nibble = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    if !digits.len().is_multiple_of(2) || digits.len() > MAX_ENTROPY * 2 {
        return None;
    }
    digits
        .as_bytes()
        .chunks_exact(2)
        .map(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?))
        .collect()
}
