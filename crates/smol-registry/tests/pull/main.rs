//! The client against registries: Debian's docker-registry, filled by skopeo.

mod docker;
mod environment;
mod faults;
mod redirects;
mod support;
mod tokens;
