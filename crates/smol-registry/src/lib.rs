//! Pulls from registries of OCI images, and fetches files by URL and digest: synchronous clients that hand
//! out bytes which are what their digests say. They know nothing of what is in them.
//!
//! ```text
//! client ──> session ──> transport ──> tls, dns      one request, its redirects
//!    │          └──────> auth ──> credentials        who asks
//!    ├─────> mirrors                                 where it may be had
//!    └─────> blob ──> download ──> range             into files, resumed, verified
//! fetch ───> transport, download                     the same, of a URL
//! ```
//!
//! | module | purpose |
//! |---|---|
//! | `client` | [`Client`]: manifests and blobs |
//! | `fetch` | [`Fetcher`]: files by URL and digest, in a folder of downloads |
//! | `work` | one runtime, interruption |
//! | `reference`, `file_url` | [`Reference`]: names of images; [`FileUrl`] |
//! | `options` | [`Options`], and the files of the host that are read |
//! | `mirrors` | `registries.conf`: mirrors, insecure and blocked registries |
//! | `download`, `range` | bytes into a file, gone on with where it stopped |
//! | `blob` | a blob as where they come from |
//! | `session` | requests that are authorised |
//! | `patience` | how often they are repeated |
//! | `auth` | challenges, tokens |
//! | `credentials` | `auth.json`, `config.json`, credential helpers |
//! | `transport`, `failure` | one request to one server; what its failure means |
//! | `tls`, `dns` | certificates, names |
//! | `digest`, `error` | sha256; [`Error`] |
//! | [`fuzz`] | parsers, for the fuzz targets |
//!
//! What a server sends is hostile until its digest says otherwise: everything has a limit, is read in
//! pieces, and no credential goes to a server that it is not for. `docs/registries.md` says what is read
//! from where.

mod auth;
mod blob;
mod client;
mod credentials;
mod digest;
mod dns;
mod download;
mod error;
mod failure;
mod fetch;
mod file_url;
#[doc(hidden)]
pub mod fuzz;
mod mirrors;
mod options;
mod patience;
mod range;
mod reference;
mod session;
mod tls;
mod transport;
mod work;

pub use self::blob::Wanted;
pub use self::client::{Client, MAX_MANIFEST, Manifest};
pub use self::download::Progress;
pub use self::error::{Error, Kind, Result};
pub use self::fetch::{Fetched, Fetcher};
pub use self::file_url::{FileUrl, InvalidUrl};
pub use self::options::{Options, Places};
pub use self::reference::{InvalidReference, Reference};
pub use self::work::GoOn;
