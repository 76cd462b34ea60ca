//! The codecs against the tools that know their formats, hostile archives, reproducibility.

mod archive;
mod attributes;
mod common;
mod cpio;
mod host;
mod image;
mod layers;
mod limits;
mod readback;
