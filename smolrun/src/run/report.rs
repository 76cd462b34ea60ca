//! What a running machine reports to whoever started it: the terminal, the smolrun that waits for
//! a machine in the background, or the smolrun outside of the emulated host.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smol_cli::{ExitKind, human};

use crate::run::metrics::Metrics;
use crate::run::output::Output;
use crate::run::publish::Publish;

/// The service runs and its ports are open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Up {
    /// Whether the snapshot was restored; else the machine was booted cold.
    pub restored: bool,
    /// From the beginning of the restore or boot until the service ran, ms.
    pub took_ms: f64,
    /// Where it can be reached.
    pub ports: Vec<Publish>,
    /// What was measured so far.
    pub metrics: Metrics,
}

/// A part of a start that takes at least this much of what came before the restore is named.
const LARGE_PART: f64 = 0.25;
/// What came before the restore is told from here on, ms.
const WORTH_TELLING: f64 = 100.0;

impl Up {
    /// Returns the line for the user: `redis: restored in 21.0 ms, 127.0.0.1:16379 -> 6379`.
    pub fn line(&self, machine: &str) -> String {
        let how = if self.restored { "restored" } else { "booted" };
        let took = duration(self.took_ms);
        let in_all = self.in_all().unwrap_or_default();
        let ports: String = self.ports.iter().map(|port| format!(", {port}")).collect();
        format!("{machine}: {how} in {took}{in_all}{ports}")
    }

    /// Returns how long the start took with what came before the restore, and what that was, if it
    /// is much: ` (3.60 s with the start of the emulated host)`.
    fn in_all(&self) -> Option<String> {
        let total = self.metrics.total_ms?;
        let before = total - self.took_ms;
        if total <= 1.5 * self.took_ms || before < WORTH_TELLING {
            return None;
        }
        let parts = [
            ("unpacking", self.metrics.images_ms),
            ("the check for KVM", self.metrics.accel_ms),
            (
                "the start of the emulated host",
                self.metrics.emulated_host_ms,
            ),
        ];
        let is_large = |ms: Option<f64>| ms.is_some_and(|ms| ms >= LARGE_PART * before);
        let large = parts.iter().filter(|(_, ms)| is_large(*ms));
        let large: Vec<_> = large.map(|(part, _)| *part).collect();
        let with = match large.is_empty() {
            true => "in all".to_owned(),
            false => format!("with {}", large.join(" and ")),
        };
        Some(format!(" ({} {with})", duration(total)))
    }
}

fn duration(ms: f64) -> String {
    human::duration(Duration::from_secs_f64(ms.max(0.0) / 1e3))
}

/// Whoever started the machine.
pub trait Report: Send + Sync {
    /// Reports a line for the user.
    fn note(&self, text: &str);
    /// From here on this is the machine's output; whoever reports into its log does so through it.
    fn attach(&self, output: &Arc<Output>) {
        let _ = output;
    }
    /// Reports that the service runs; called once.
    ///
    /// # Errors
    /// If whoever started the machine is gone: then it is to be stopped.
    fn up(&self, up: &Up) -> io::Result<()>;
    /// Reports what was measured so far.
    fn metrics(&self, metrics: &Metrics);
}

/// Exit codes that smolrun alone gives: about the bundle, about the host, about smolrun.
const VERDICTS: [ExitKind; 3] = [ExitKind::Verification, ExitKind::Host, ExitKind::Internal];

/// How a machine ended, when nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The service's exit code.
    Exited(i32),
    /// There was a service, and it was stopped by force.
    Killed,
}

impl End {
    /// Returns the exit code of smolrun; a stop by force counts as SIGKILL, as in a shell.
    pub fn code(self) -> u8 {
        match self {
            // Codes have 8 bits.
            End::Exited(code) => (code & 0xff) as u8,
            End::Killed => 128 + 9,
        }
    }

    /// Returns the exit code of smolrun in the foreground: as [`End::code`], but a service cannot
    /// pronounce a verdict of smolrun's own ([`VERDICTS`]). Says so in a line to `note`.
    pub fn exit_code(self, note: impl FnOnce(&str)) -> u8 {
        let code = self.code();
        if !VERDICTS.map(ExitKind::code).contains(&code) {
            return code;
        }
        let ours = ExitKind::Failed.code();
        note(&format!(
            "the service ended with exit code {code}, which has a meaning of smolrun's own: this is exit code {ours}"
        ));
        ours
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_pronounces_no_verdict_of_smolruns_own() {
        for code in 0..=255 {
            let mut notes = Vec::new();
            let seen = End::Exited(code).exit_code(|text| notes.push(text.to_owned()));
            match code {
                4 | 5 | 70 => {
                    assert_eq!(seen, 1);
                    assert!(
                        notes[0].contains(&format!("exit code {code},")),
                        "{notes:?}"
                    );
                }
                _ => assert_eq!((i32::from(seen), notes.len()), (code, 0)),
            }
        }
        assert_eq!(End::Exited(256 + 4).exit_code(|_| {}), 1);
        assert_eq!(End::Killed.exit_code(|_| {}), 137);
    }

    #[test]
    fn the_line_of_a_machine_that_is_up_names_its_ports() {
        let up = Up {
            restored: true,
            took_ms: 21.04,
            ports: vec![
                "16379:6379".parse().unwrap(),
                "0.0.0.0:80:8080".parse().unwrap(),
            ],
            metrics: Metrics::default(),
        };
        let line = "redis: restored in 21.0 ms, 127.0.0.1:16379 -> 6379, 0.0.0.0:80 -> 8080";
        assert_eq!(up.line("redis"), line);
        let cold = Up {
            restored: false,
            took_ms: 1500.0,
            ports: Vec::new(),
            metrics: Metrics::default(),
        };
        assert_eq!(cold.line("x"), "x: booted in 1.50 s");
    }

    #[test]
    fn the_line_says_how_long_it_took_in_all_and_why_if_that_is_much_longer() {
        let line = |took_ms, total, images, accel, emulated_host| {
            let up = Up {
                restored: true,
                took_ms,
                ports: vec!["1:2".parse().unwrap()],
                metrics: Metrics {
                    total_ms: Some(total),
                    images_ms: Some(images),
                    accel_ms: Some(accel),
                    emulated_host_ms: emulated_host,
                    ..Metrics::default()
                },
            };
            let line = up.line("m");
            let line = line.strip_prefix("m: restored in ").unwrap();
            line.strip_suffix(", 127.0.0.1:1 -> 2").unwrap().to_owned()
        };
        for (told, wanted) in [
            (line(20.0, 28.0, 1.0, 0.0, None), "20.0 ms"),
            (line(20.0, 119.0, 90.0, 0.0, None), "20.0 ms"),
            (line(2000.0, 2900.0, 900.0, 0.0, None), "2.00 s"),
            (
                line(20.0, 500.0, 400.0, 0.0, None),
                "20.0 ms (500 ms with unpacking)",
            ),
            (line(20.0, 500.0, 1.0, 1.0, None), "20.0 ms (500 ms in all)"),
            (
                line(462.0, 3600.0, 10.0, 400.0, Some(2700.0)),
                "462 ms (3.60 s with the start of the emulated host)",
            ),
            (
                line(462.0, 9000.0, 3600.0, 1500.0, Some(2700.0)),
                "462 ms (9.00 s with unpacking and the start of the emulated host)",
            ),
        ] {
            assert_eq!(told, wanted);
        }
    }
}
