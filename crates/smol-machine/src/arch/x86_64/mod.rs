//! x86-64.

pub mod boot;
pub mod contract;
pub mod cpu;
pub mod layout;
pub mod ports;
pub mod state;
pub mod xsave;
