//! What the end-to-end tests and the benchmarks share.
//!
//! | module | purpose |
//! |---|---|
//! | [`host`] | this host: the programs built, guests, keys and Smolfiles in their places |
//! | [`suite`] | the list of the end-to-end tests, and their outcomes |
//! | [`tools`] | the two programs, and the machines that they run |
//! | [`support`] | starting programs, and waiting for them; small clients of services |

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "not a program for others"
)]

pub mod host;
pub mod suite;
pub mod support;
pub mod tools;
