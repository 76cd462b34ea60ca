//! A build step: a command that changes the root file system, in a machine of its own that ends with it.
//!
//! ```text
//! guest                                        host
//! /smol/step.json  StepConfig, baked into the initramfs
//! control stream   Booted, StepFinished or Failed     ---->  vsock port 1024
//! log stream       what the command prints            ---->  vsock port 1025
//! layer stream     the files that it changed, as tar  ---->  vsock port 1028
//! ```
//! The layer is the upper directory of an overlay as the kernel left it
//! (Documentation/filesystems/overlayfs.rst): a name that is gone is a character device 0:0, and a
//! directory that replaces one has the attribute `trusted.overlay.opaque`. No process of a guest can
//! make either of them through the overlay.

use serde::{Deserialize, Serialize};

use crate::{MAX_CONFIG, ProtocolError, Rootfs, Service, check_hostname};

/// Host port that receives the layer of a build step.
pub const LAYER_PORT: u32 = 1028;
/// Where the initramfs holds the [`StepConfig`].
pub const STEP_PATH: &str = "/smol/step.json";

/// Everything that the guest of a build step has to do. How long it may take is not said: the host ends
/// it, so that nothing in the guest depends on the limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepConfig {
    /// Host name.
    pub hostname: String,
    /// The root file system as the step finds it.
    pub rootfs: Rootfs,
    /// Its place among the Smolfile's `[[run]]`s, from 1.
    pub number: u32,
    /// The command and its world.
    pub command: Service,
    /// No file of the layer is younger, in seconds since the Unix epoch.
    pub epoch: u64,
    /// Whether it has a network, as [`crate::net`] says.
    #[serde(default)]
    pub network: bool,
}

impl StepConfig {
    /// Reads and checks a configuration file's text.
    pub fn parse(text: &[u8]) -> Result<Self, ProtocolError> {
        if text.len() > MAX_CONFIG {
            return Err(ProtocolError::TooLong(MAX_CONFIG));
        }
        let config: StepConfig =
            serde_json::from_slice(text).map_err(|e| ProtocolError::Json(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Finds what no guest could act on.
    pub fn check(&self) -> Result<(), ProtocolError> {
        check_hostname(&self.hostname)?;
        self.command.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_builder_writes_is_what_the_guest_reads_and_nonsense_is_refused() {
        let config = StepConfig {
            hostname: "app".into(),
            rootfs: Rootfs::default(),
            number: 1,
            command: Service {
                cmd: vec!["true".into()],
                env: Default::default(),
                user: None,
                workdir: None,
                stop_signal: None,
                init: None,
            },
            epoch: 1,
            network: true,
        };
        let read = |config: &StepConfig| StepConfig::parse(&serde_json::to_vec(config).unwrap());
        assert_eq!(read(&config).unwrap(), config);
        let mut nothing = config.clone();
        nothing.command.cmd.clear();
        assert!(read(&nothing).is_err());
        let nameless = StepConfig {
            hostname: String::new(),
            ..config
        };
        assert!(read(&nameless).is_err());
    }
}
