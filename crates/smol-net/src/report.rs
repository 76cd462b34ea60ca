//! What a guest did with its network.

use std::collections::HashMap;
use std::fmt;

use crate::policy::Denial;

/// Distinct refusals that are kept.
const MOST: usize = 100;

/// What a guest did with its network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Bytes of IP packets that came from the guest.
    pub bytes_out: u64,
    /// Bytes of IP packets that went to the guest.
    pub bytes_in: u64,
    /// TCP connections that were made, those to the proxy and to the DNS server included.
    pub connections: u64,
    /// Exchanges of datagrams: UDP and ICMP echo, by address and port.
    pub exchanges: u64,
    /// Names that were resolved.
    pub lookups: u64,
    /// Connections and exchanges that had to wait or failed because there were as many as there can be.
    pub over_limit: u64,
    /// What the guest was not allowed to reach, in the order in which it tried first; at most 100.
    pub refused: Vec<Refusal>,
    /// How many others there were after these.
    pub refused_more: u64,
}

/// Something that a guest was not allowed to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `NAME`, `NAME:PORT`, `ADDRESS:PORT` or `ADDRESS`. The guest chose it: ASCII without control
    /// characters, at most 1100 bytes.
    pub target: String,
    /// Why.
    pub why: Denial,
    /// How often it tried.
    pub times: u64,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.target, self.why)
    }
}

/// Keeps the [`Report`].
#[derive(Debug, Default)]
pub struct Ledger {
    /// What it says so far.
    pub report: Report,
    places: HashMap<String, usize>,
}

impl Ledger {
    /// Notes that the guest tried to reach this.
    pub fn refuse(&mut self, target: String, why: Denial) {
        if let Some(place) = self.places.get(&target) {
            self.report.refused[*place].times += 1;
        } else if self.report.refused.len() < MOST {
            self.places
                .insert(target.clone(), self.report.refused.len());
            self.report.refused.push(Refusal {
                target,
                why,
                times: 1,
            });
        } else {
            self.report.refused_more += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_refusals_are_kept_once_and_not_without_end() {
        let mut ledger = Ledger::default();
        for port in 0..200 {
            ledger.refuse(format!("192.0.2.1:{port}"), Denial::NotListed);
            ledger.refuse("a.example".into(), Denial::ForeignDns);
        }
        let report = ledger.report;
        assert_eq!(report.refused.len(), MOST);
        assert_eq!(report.refused_more, 101);
        assert_eq!(report.refused[1].times, 200);
        assert_eq!(
            report.refused[0].to_string(),
            "192.0.2.1:0 (not in the list)"
        );
    }
}
