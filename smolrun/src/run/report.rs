//! What a running machine reports to whoever started it: the terminal, the smolrun that waits for
//! a machine in the background, or the smolrun outside of the emulated host.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smol_cli::human;

use crate::run::metrics::Metrics;
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
}

impl Up {
    /// Returns the line for the user: `redis: restored in 21.0 ms, 127.0.0.1:16379 -> 6379`.
    pub fn line(&self, machine: &str) -> String {
        let how = if self.restored { "restored" } else { "booted" };
        let took = human::duration(Duration::from_secs_f64(self.took_ms.max(0.0) / 1e3));
        let ports: String = self.ports.iter().map(|port| format!(", {port}")).collect();
        format!("{machine}: {how} in {took}{ports}")
    }
}

/// Whoever started the machine.
pub trait Report: Send + Sync {
    /// Reports a line for the user.
    fn note(&self, text: &str);
    /// Reports that the service runs; called once.
    ///
    /// # Errors
    /// If whoever started the machine is gone: then it is to be stopped.
    fn up(&self, up: &Up) -> io::Result<()>;
    /// Reports what was measured so far.
    fn metrics(&self, metrics: &Metrics);
}

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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_machine_that_is_up_names_its_ports() {
        let up = Up {
            restored: true,
            took_ms: 21.04,
            ports: vec![
                "16379:6379".parse().unwrap(),
                "0.0.0.0:80:8080".parse().unwrap(),
            ],
        };
        let line = "redis: restored in 21.0 ms, 127.0.0.1:16379 -> 6379, 0.0.0.0:80 -> 8080";
        assert_eq!(up.line("redis"), line);
        let cold = Up {
            restored: false,
            took_ms: 1500.0,
            ports: Vec::new(),
        };
        assert_eq!(cold.line("x"), "x: booted in 1.50 s");
    }
}
