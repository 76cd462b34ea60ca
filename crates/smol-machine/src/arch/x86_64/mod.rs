//! x86-64.

pub mod boot;
pub mod cpu;
pub mod layout;
pub mod state;
