//! The network of a step: what it may reach, and how this host gets there.

use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use smol_cli::progress::Stage;
use smol_cli::{ErrorExt, ExitKind, human};
use smol_net::{Policy, Rule, Upstream};
use smol_sandbox::Mode;

use crate::boot::{Stepped, Uplink};
use crate::plan::{PlannedNetwork, PlannedRun};

/// Refused destinations that are told.
const MOST_TOLD: usize = 5;

/// The network of one run of a step, if it has any.
pub struct Uplinks {
    uplink: Option<Uplink>,
    /// Environment variables that lead to it.
    variables: Vec<(String, String)>,
}

impl Uplinks {
    /// Begins to serve what the step may reach.
    ///
    /// # Errors
    /// A proxy of this host's environment cannot be used; no descriptors or threads.
    pub fn of(run: &PlannedRun, sandbox: Mode) -> Result<Self> {
        let policy = match &run.network {
            None => {
                return Ok(Self {
                    uplink: None,
                    variables: Vec::new(),
                });
            }
            Some(PlannedNetwork::All) => Policy::all(),
            Some(PlannedNetwork::Listed(rules)) => {
                let rules = rules.iter().map(|rule| rule.parse::<Rule>());
                let rules = rules.collect::<Result<Vec<_>, _>>();
                Policy::listed(rules.kind(ExitKind::Internal)?)
            }
        };
        let upstream = Upstream::of_host(|name| std::env::var(name).ok())
            .context("a proxy of the environment")
            .kind(ExitKind::Usage)?;
        Ok(Self {
            variables: upstream.guest_variables(),
            uplink: Some(Uplink::start(policy, upstream, sandbox)?),
        })
    }

    /// The environment variables of the command, unless the Smolfile has them: never with a credential.
    pub fn variables(&self) -> Vec<(String, String)> {
        self.variables.clone()
    }

    /// The socket for the packets of the guest.
    ///
    /// # Errors
    /// If it was taken before.
    pub fn guest_end(&mut self) -> Result<Option<UnixStream>> {
        self.uplink.as_mut().map(Uplink::guest_end).transpose()
    }

    /// Ends the network of a step that has ended so. What it was not allowed to reach is part of its
    /// failure, and a note otherwise.
    ///
    /// # Errors
    /// Those of the step, and of the network.
    pub fn end(self, stepped: Result<Stepped>, stage: &Stage) -> Result<Stepped> {
        let Some(uplink) = self.uplink else {
            return stepped;
        };
        let report = uplink.end();
        let report = match (stepped.is_err(), report) {
            (_, Ok(report)) => report,
            (false, Err(error)) => return Err(error.context("the network of a [[run]]")),
            // Without it the command could not do what it should.
            (true, Err(error)) => {
                return stepped.map_err(|failed| failed.hint(format!("its network: {error:#}")));
            }
        };
        let (sent, received) = (
            human::bytes(report.bytes_out),
            human::bytes(report.bytes_in),
        );
        stage.output(&format!("network: {sent} sent, {received} received"));
        let refused = report.refused.iter().take(MOST_TOLD);
        let mut refused: Vec<String> = refused.map(ToString::to_string).collect();
        let more = report.refused.len().saturating_sub(MOST_TOLD) as u64 + report.refused_more;
        if more > 0 {
            refused.push(format!("and {more} more"));
        }
        if refused.is_empty() {
            return stepped;
        }
        let refused = human::one_line(&refused.join(", "));
        if stepped.is_ok() {
            stage.note(&format!("it was not allowed to reach {refused}"));
        }
        stepped.map_err(|failed| {
            failed.hint(format!(
                "it was not allowed to reach {refused}: name in `network` what it may reach"
            ))
        })
    }
}
