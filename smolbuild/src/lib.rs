//! smolbuild: from a Smolfile to a bundle.
//!
//! The pipeline, in its order:
//!
//! | stage | room | from | to |
//! |---|---|---|---|
//! | read | [`smolfile`] | text | spanned, typed values, or all mistakes at once |
//! | lock | [`lock`] | Smolfile and lock file | every input, by version and digest |
//! | plan | [`plan`] | Smolfile and lock | everything that can change a byte, in one value |
//! | fetch | [`fetch`] | pinned packages | package files |
//! | assemble | [`assemble`] | the Plan | kernel, initramfs, rootfs |
//! | prepare | [`prepare`] | images | frames that are compressed already; beside the boot |
//! | boot | [`boot`] | images | a machine that is ready, frozen: state and RAM |
//! | pack | [`pack`] | images, state and RAM, frames | a bundle |
//!
//! [`pipeline`] walks through them from top to bottom, unless [`built`] has the bundle already. [`commands`] holds the subcommands.
//! [`kernel`] builds kernels from recipes, [`initramfs`] makes the initramfs. [`diff`] says what differs between two bundles; [`sources`] takes copied files back out of one, so
//! that it can be built again. [`hash`] takes digests of large files.

pub mod assemble;
pub mod boot;
pub mod built;
pub mod cli;
pub mod commands;
pub mod diff;
pub mod error;
pub mod fetch;
pub mod hash;
pub mod initramfs;
pub mod kernel;
pub mod lock;
pub mod pack;
pub mod pipeline;
pub mod plan;
pub mod prepare;
pub mod smolfile;
pub mod sources;
pub mod subprocess;
pub mod work;
