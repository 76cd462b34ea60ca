//! What the supervisor of a machine takes.

use smol_machine::Stop;
use smol_protocol::Event as GuestEvent;

use crate::run::request::ControlRequest;

/// An event of a machine.
#[derive(Debug)]
pub enum Event {
    /// The guest has sent this.
    Guest(GuestEvent),
    /// The guest has sent what is no event, or does not take its identity.
    Broken(String),
    /// A control request.
    Request(ControlRequest),
    /// The guest does not stop its service, and why.
    Refused(String),
    /// The machine stopped.
    Stopped(smol_machine::Result<Stop>),
}
