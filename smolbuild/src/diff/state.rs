//! The state of vCPUs and devices.

use anyhow::Result;
use serde_json::Value;
use smol_bundle::Bundle;

use super::values::{self, Change, Numbers};
use crate::error::ResultExt;

/// Longest state that is looked into, in bytes; a longer one is compared as bytes. A vCPU has some 40
/// KiB.
pub const MAX_STATE: usize = 4 << 20;
/// The parts whose numbers are registers.
const REGISTERS: &[&str] = &["cpu.", "vcpus[", "irqchip."];

/// Compares the states by path. A state that is not JSON is compared as bytes.
pub fn compare(a: &Bundle, b: &Bundle) -> Result<Vec<Change>> {
    let (a, b) = (a.state().classify()?, b.state().classify()?);
    let (Some(a), Some(b)) = (&a, &b) else {
        let side = |state: &Option<Vec<u8>>| state.as_ref().map(|s| format!("{} bytes", s.len()));
        let change = Change {
            path: "snapshot".into(),
            a: side(&a),
            b: side(&b),
        };
        return Ok(if a == b { Vec::new() } else { vec![change] });
    };
    Ok(documents(a, b))
}

fn documents(a: &[u8], b: &[u8]) -> Vec<Change> {
    let parse = |bytes: &[u8]| {
        let short = bytes.len() <= MAX_STATE;
        short.then(|| serde_json::from_slice::<Value>(bytes).ok())?
    };
    match (parse(a), parse(b)) {
        _ if a == b => Vec::new(),
        (Some(x), Some(y)) if x != y => values::compare(&x, &y, Numbers::HexBelow(REGISTERS)),
        _ => {
            let first = a.iter().zip(b).take_while(|(a, b)| a == b).count();
            let byte = |bytes: &[u8]| bytes.get(first).map(|byte| format!("{byte:#04x}"));
            vec![Change {
                path: format!("byte {first}"),
                a: byte(a),
                b: byte(b),
            }]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_any_form_are_compared() {
        assert_eq!(documents(b"{\"a\":1}", b"{\"a\":1}"), []);
        assert_eq!(
            documents(b"{\"irqchip\":{\"x\":16}}", b"{\"irqchip\":{\"x\":17}}"),
            [Change::new("irqchip.x", "0x10", "0x11")]
        );
        assert_eq!(
            documents(b"abc", b"abd"),
            [Change::new("byte 2", "0x63", "0x64")]
        );
        // The same document in another form is another state all the same.
        assert_eq!(documents(b"{\"a\": 1}", b"{\"a\":1}").len(), 1);
    }
}
