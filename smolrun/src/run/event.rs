//! What happens to a machine while it runs, as the supervisor sees it.

use smol_machine::Stop;
use smol_protocol::Event as GuestEvent;

use crate::run::request::ControlRequest;

/// Something that happened to a machine.
#[derive(Debug)]
pub enum Event {
    /// The guest says so.
    Guest(GuestEvent),
    /// The guest speaks nonsense, or cannot be told who it is.
    Broken(String),
    /// Somebody wants something.
    Request(ControlRequest),
    /// The guest does not do what was asked of it.
    Refused(String),
    /// The machine stopped.
    Stopped(smol_machine::Result<Stop>),
}
