//! The clients against servers: Debian's docker-registry, filled by skopeo, and such as fail.

mod docker;
mod environment;
mod faults;
mod fetch;
mod redirects;
mod support;
mod tokens;
