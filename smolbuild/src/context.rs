//! What the stages of a build share.

use std::path::Path;

use smol_cli::{Interrupt, Progress};

use crate::environment::EnvironmentInputs;
use crate::fetch::Net;

/// What the stages of a build share: folders, permissions, progress and the interrupt.
#[derive(Clone, Copy)]
pub struct BuildContext<'a> {
    /// Folder of downloads.
    pub downloads: &'a Path,
    /// What may be downloaded.
    pub net: Net,
    /// What the environment adds to the Smolfile.
    pub environment: &'a EnvironmentInputs,
    /// Stages and notes for the user.
    pub progress: &'a Progress,
    /// Set when the user wants to stop.
    pub interrupt: &'a Interrupt,
}
