//! What a running machine can be asked to do: by a signal, through its control socket, or through the
//! channel into the emulated host.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Grace time of a stop by a signal, and of `smolrun stop` by default.
pub const GRACE: Duration = Duration::from_secs(10);

/// A request to a running machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum ControlRequest {
    /// Stop the service: SIGTERM, after the grace time SIGKILL.
    Stop {
        /// Time between the two, ms.
        grace_ms: u64,
    },
}

impl ControlRequest {
    /// Returns the request to stop with this grace time.
    pub fn stop(grace: Duration) -> Self {
        ControlRequest::Stop {
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
