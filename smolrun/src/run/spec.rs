//! What is to be run, as data: the process that runs the machine may be another one than the one that
//! the user has started, and gets it as JSON.

use std::num::NonZeroU32;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use smol_bundle::Config;
use smol_sandbox::Mode;

use crate::images::bundle::Has;
use crate::run::metrics::{Metrics, Moment};
use crate::run::publish::Publish;

/// A machine to run, verified.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// Name of the instance.
    pub name: String,
    /// The bundle's file, absolute.
    pub bundle: PathBuf,
    /// The bundle's digest, whose signature was checked.
    pub digest: String,
    /// The machine.
    pub config: Config,
    /// The images that it has.
    pub has: Has,
    /// Ports to forward.
    pub ports: Vec<Publish>,
    /// When it is booted instead of being restored.
    pub cold: ColdBoot,
    /// Whether nothing of it is to stay when it has ended in the background.
    pub auto_remove: bool,
    /// Shows the guest's consoles and progress.
    pub verbose: bool,
    /// Runs in an emulated host.
    pub emulated: bool,
    /// Whether the processes that run it are confined.
    pub sandbox: Mode,
    /// Where to write [`Metrics`].
    pub metrics_file: Option<PathBuf>,
    /// What was measured before.
    pub metrics: Metrics,
    /// When smolrun was started.
    pub start: Moment,
}

/// When a machine is booted instead of being restored from its snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColdBoot {
    /// `--cold`.
    Always,
    /// If its snapshot cannot be restored on this host.
    Fallback,
    /// `--no-cold`: then it is an error.
    Never,
}

impl RunSpec {
    /// The number of commands that a cold boot runs once the service is ready.
    pub fn warm_commands(&self) -> u32 {
        self.config.warm.map_or(0, NonZeroU32::get)
    }

    /// `kvm` or `emulated`.
    pub fn accel(&self) -> &'static str {
        if self.emulated { "emulated" } else { "kvm" }
    }
}

/// A spec for tests.
#[cfg(test)]
pub fn sample() -> RunSpec {
    RunSpec {
        name: "r".into(),
        bundle: "/b".into(),
        digest: String::new(),
        config: crate::testing::config(),
        has: Has {
            initramfs: true,
            rootfs: true,
            snapshot: true,
        },
        ports: Vec::new(),
        cold: ColdBoot::Fallback,
        auto_remove: false,
        verbose: false,
        emulated: false,
        sandbox: Mode::On,
        metrics_file: None,
        metrics: Metrics::default(),
        start: Moment::now(),
    }
}
