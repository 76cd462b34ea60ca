//! What the end-to-end tests and the benchmarks share.
//!
//! | module | purpose |
//! |---|---|
//! | [`host`] | this host: the programs built, guests, keys and Smolfiles in their places |
//! | [`tools`] | the two programs, and the machines that they run |
//! | [`support`] | starting programs, and waiting for them; small clients of services |

pub mod host;
pub mod support;
pub mod tools;
