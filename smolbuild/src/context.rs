//! What the stages of a build share.

use std::path::Path;

use smol_cli::Session;

use crate::environment::EnvironmentInputs;
use crate::fetch::Net;

/// What the stages of a build share: folders, permissions, the session.
#[derive(Clone, Copy)]
pub struct BuildContext<'a> {
    /// Folder of downloads.
    pub downloads: &'a Path,
    /// What may be downloaded.
    pub net: Net,
    /// What the environment adds to the Smolfile.
    pub environment: &'a EnvironmentInputs,
    /// Where progress is shown, and whether the user wants to stop.
    pub session: &'a Session,
}
