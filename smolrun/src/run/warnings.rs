//! Warnings of the guest: the first few of each stage are reported, the others are counted. Whoever
//! speaks in the guest could send them for ever.

use smol_cli::human::excerpt;
use smol_protocol::Stage;

/// How many characters of the guest's own words are shown in a line.
pub const MAX_TEXT: usize = 1000;
/// How many warnings of one stage are reported.
const MAX_REPORTED: u64 = 5;

/// How many warnings there were of each stage.
#[derive(Debug, Default)]
pub struct Warnings(Vec<(Stage, u64)>);

impl Warnings {
    /// Counts a warning, and returns the line for the user if it is to be reported.
    pub fn take(&mut self, stage: Stage, reason: &str) -> Option<String> {
        let known = self.0.iter().position(|(known, _)| *known == stage);
        let at = known.unwrap_or_else(|| {
            self.0.push((stage, 0));
            self.0.len() - 1
        });
        self.0[at].1 += 1;
        (self.0[at].1 <= MAX_REPORTED).then(|| {
            let reason = excerpt(reason, MAX_TEXT);
            format!("warning from the guest ({stage}): {reason}")
        })
    }

    /// Returns lines that say how many were not reported.
    pub fn left_out(&self) -> impl Iterator<Item = String> {
        let counts = self.0.iter().filter(|(_, count)| *count > MAX_REPORTED);
        counts.map(|(stage, count)| {
            let more = count - MAX_REPORTED;
            format!("{more} more warnings from the guest ({stage}) were left out")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_warns_for_ever_is_reported_a_few_times_and_counted() {
        let mut warnings = Warnings::default();
        let mut lines = Vec::new();
        for n in 0..100_000 {
            lines.extend(warnings.take(Stage::Serve, &format!("{n}\nerror: forged")));
        }
        lines.extend(warnings.take(Stage::Boot, &"x".repeat(100_000)));
        lines.extend(warnings.left_out());
        assert_eq!(lines.len(), 7);
        assert_eq!(
            lines[0],
            "warning from the guest (serve): 0\\nerror: forged"
        );
        assert!(lines[5].starts_with("warning from the guest (boot): xxx"));
        assert!(lines.iter().all(|line| line.len() < MAX_TEXT + 100));
        assert_eq!(
            lines[6],
            "99995 more warnings from the guest (serve) were left out"
        );
    }
}
