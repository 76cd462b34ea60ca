//! smolbuild: from a Smolfile to a bundle.
//!
//! The pipeline, in its order:
//!
//! | stage | module | from | to |
//! |---|---|---|---|
//! | read | [`smolfile`] | text | spanned, typed values, or all mistakes at once |
//! | resolve | [`resolve`], [`lock`] | Smolfile and lock file | every input, by version and digest |
//! | plan | [`plan`] | Smolfile and lock | everything that can change a byte, in one value |
//! | assemble | [`assemble`] | the Plan | the sealed Plan, and the three images |
//! | … kernel | [`kernel`] | a recipe | the kernel |
//! | … root file system | [`rootfs`], [`input`] | an input and the `[[copy]]`s | an EROFS image |
//! | … initramfs | [`initramfs`] | smol-guest and its configuration | a cpio archive |
//! | prepare | [`prepare`] | images | compressed frames, made while the machine boots |
//! | boot | [`boot`] | images | a machine that is ready, frozen: state and RAM |
//! | pack | [`pack`] | images, state and RAM, frames | a bundle |
//!
//! [`pipeline`] calls them from top to bottom, unless [`bundle_cache`] has the bundle already. [`commands`]
//! holds the subcommands, [`habits`] answers to what other tools' users type, [`context`] what the stages share, [`environment`] what the environment adds
//! to a Smolfile. [`fetch`] downloads source packages.
//! [`diff`] says what differs between two bundles; [`extract`] takes copied files back out of one, so
//! that it can be built again. [`hash`] takes digests of files,
//! [`folder`] their folders; [`source_dir`] is the folder of a Smolfile, without what is ignored.

pub mod assemble;
pub mod boot;
pub mod bundle_cache;
pub mod cli;
pub mod commands;
pub mod context;
pub mod diff;
pub mod environment;
pub mod error;
pub mod extract;
pub mod fetch;
pub mod folder;
pub mod habits;
pub mod hash;
pub mod initramfs;
pub mod input;
pub mod kernel;
pub mod lock;
pub mod pack;
pub mod pipeline;
pub mod plan;
pub mod prepare;
pub mod resolve;
pub mod rootfs;
pub mod smolfile;
pub mod source_dir;
pub mod subprocess;
pub mod work;
