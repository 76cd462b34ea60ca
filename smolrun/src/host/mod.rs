//! Where a machine runs, and how others reach it: as an instance of this process, in the
//! background, or in the emulated host.

pub mod background;
pub mod confine;
pub mod control;
pub mod emulated;
pub mod fetcher;
pub mod instance;
pub mod messages;
pub mod process;
pub mod terminal;
