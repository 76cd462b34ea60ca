//! What the stages of a build share.

use std::path::Path;

use smol_cli::{Interrupt, Progress};

use crate::fetch::Net;
use crate::resolve::EnvironmentInputs;

/// What the stages of a build share: what they may use, whom they tell, who may stop them.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Folder of downloads.
    pub downloads: &'a Path,
    /// What may be downloaded.
    pub net: Net,
    /// What the environment adds to the Smolfile.
    pub environment: &'a EnvironmentInputs,
    /// Stages and notes for the user.
    pub progress: &'a Progress,
    /// The user's wish to stop.
    pub interrupt: &'a Interrupt,
}
