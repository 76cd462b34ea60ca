//! smolbuild: from a Smolfile to a bundle.
//!
//! The pipeline, in its order:
//!
//! | stage | room | from | to |
//! |---|---|---|---|
//! | read | [`smolfile`] | text | spanned, typed values, or all mistakes at once |
//! | plan | [`plan`] | Smolfile and flags | everything that can change a byte, in one value |
//! | fetch | [`fetch`] | package names | source packages |
//! | assemble | [`assemble`] | the Plan | kernel, initramfs, rootfs |
//! | boot | [`boot`] | images | a machine that is ready, frozen: state and RAM |
//! | pack | [`pack`] | images, state and RAM | a bundle |
//!
//! [`commands`] holds the subcommands; `commands/build.rs` walks the pipeline from top to bottom.
//! [`diff`] says what differs between two bundles.

pub mod assemble;
pub mod boot;
pub mod cli;
pub mod commands;
pub mod diff;
pub mod fetch;
pub mod pack;
pub mod plan;
pub mod smolfile;
pub mod subprocess;
pub mod work;
