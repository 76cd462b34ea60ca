//! Pulls from registries of OCI images: a synchronous client that hands out bytes which are what their
//! digests say. It knows nothing of what is in them.
//!
//! ```text
//! client ──> session ──> transport ──> tls, dns      one request, its redirects
//!    │          └──────> auth ──> credentials        who asks
//!    ├─────> mirrors                                 where it may be had
//!    └─────> blob ──> range                          into files, resumed, verified
//! ```
//!
//! | module | purpose |
//! |---|---|
//! | `client` | [`Client`]: manifests and blobs, one runtime, interruption |
//! | `reference` | [`Reference`]: names of images |
//! | `options` | [`Options`], and the files of the host that are read |
//! | `mirrors` | `registries.conf`: mirrors, insecure and blocked registries |
//! | `blob`, `range` | a blob into a file, gone on with where it stopped |
//! | `session` | requests that are authorised, and repeated |
//! | `auth` | challenges, tokens |
//! | `credentials` | `auth.json`, `config.json`, credential helpers |
//! | `transport`, `failure` | one request to one server; what its failure means |
//! | `tls`, `dns` | certificates, names |
//! | `digest`, `error` | sha256; [`Error`] |
//! | [`fuzz`] | parsers, for the fuzz targets |
//!
//! What a registry sends is hostile until its digest says otherwise: everything has a limit, is read in
//! pieces, and no credential goes to a server that it is not for. `docs/registries.md` says what is read
//! from where.

mod auth;
mod blob;
mod client;
mod credentials;
mod digest;
mod dns;
mod error;
mod failure;
#[doc(hidden)]
pub mod fuzz;
mod mirrors;
mod options;
mod range;
mod reference;
mod session;
mod tls;
mod transport;

pub use self::blob::Wanted;
pub use self::client::{Client, MAX_MANIFEST, Manifest};
pub use self::error::{Error, Kind, Result};
pub use self::options::{Options, Places};
pub use self::reference::{InvalidReference, Reference};
pub use self::session::GoOn;
