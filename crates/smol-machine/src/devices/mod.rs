//! The devices of a machine.
//!
//! | module | purpose |
//! |---|---|
//! | [`bus`] | what is at the guest's I/O ports and MMIO windows |
//! | [`serial`] | the early serial port |
//! | [`virtio`] | the virtio devices |

pub mod bus;
pub mod serial;
pub mod virtio;
