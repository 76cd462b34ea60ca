//! The client: the synchronous face of it all.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::File;
use std::sync::{Mutex, PoisonError};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};

use crate::blob::{Blob, Wanted};
use crate::digest;
use crate::download::{Download, Size};
use crate::error::{Error, Kind, Result, shown};
use crate::mirrors::{Registries, Source};
use crate::options::Options;
use crate::patience::Patience;
use crate::reference::Reference;
use crate::session::Session;
use crate::transport;
use crate::work::{GoOn, Worker};

/// Most bytes of a manifest or an index (what registries take at least, distribution specification).
pub const MAX_MANIFEST: usize = 4 << 20;
/// Blobs that are downloaded at a time.
const AT_ONCE: usize = 3;

/// Media types of what is asked for.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// A manifest or an index, as the registry has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its very bytes.
    pub bytes: Vec<u8>,
    /// Their sha256 digest, computed here.
    pub digest: String,
    /// The media type that the registry names, without parameters.
    pub media_type: Option<String>,
}

/// Pulls from registries.
pub struct Client {
    worker: Worker,
    session: Session,
    registries: Registries,
    /// Mirrors that could not be reached.
    dead: Mutex<HashSet<Source>>,
}

impl Client {
    /// Creates a client. `go_on` is asked again and again; once it returns false, every call ends
    /// within some 100 ms with an error of kind [`Kind::Interrupted`].
    ///
    /// # Errors
    /// If the configuration of mirrors is wrong, or this host has no resources for connections.
    pub fn new(options: Options, go_on: GoOn) -> Result<Self> {
        let registries = Registries::load(&options.places.registries)?;
        Ok(Client {
            worker: Worker::new(go_on.clone())?,
            session: Session::new(options, go_on),
            registries,
            dead: Mutex::default(),
        })
    }

    /// Gets the manifest or index that a reference names: by its digest, if it has one, else by its
    /// tag. It has at most [`MAX_MANIFEST`] bytes.
    ///
    /// # Errors
    /// With the kinds of [`Kind`]; [`Kind::Corrupt`] if it has not the digest that the reference has, or
    /// the registry says it has.
    pub fn manifest(&self, reference: &Reference) -> Result<Manifest> {
        let get = async |source: &Source| {
            let mut patience = Patience::new();
            loop {
                match self.get_manifest(source, reference).await {
                    Err(error) => patience.wait(error, self.session.options()).await?,
                    manifest => return manifest,
                }
            }
        };
        let outcome = self.worker.block_on(async {
            let sources = self.sources(reference)?;
            self.first(&sources, get).await
        });
        outcome.map_err(|error| error.context(format!("cannot get the manifest of {reference}")))
    }

    /// Downloads a blob of `size` bytes into a file, which may have its beginning already. When this
    /// returns, the whole file has the digest. `progress` is told how many bytes it has.
    ///
    /// # Errors
    /// With the kinds of [`Kind`]; after one of [`Kind::Corrupt`] the file is empty, after any other one a
    /// later call goes on where this one stopped.
    pub fn blob(
        &self,
        reference: &Reference,
        digest: &str,
        size: u64,
        to: &mut File,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let sources = self.sources(&reference.with_digest(digest))?;
        self.worker
            .block_on(self.get_blob(reference, &sources, digest, size, to, progress))
    }

    /// Downloads several blobs, each as [`blob`](Self::blob) does, and some of them at once. `progress`
    /// is told which of them has how many bytes now.
    ///
    /// # Errors
    /// The first one, which ends the others.
    pub fn blobs(
        &self,
        reference: &Reference,
        wanted: &mut [Wanted],
        progress: &mut dyn FnMut(usize, u64),
    ) -> Result<()> {
        let Some(first) = wanted.first() else {
            return Ok(());
        };
        let sources = self.sources(&reference.with_digest(&first.digest))?;
        let shared = RefCell::new(progress);
        let downloads = wanted.iter_mut().enumerate().map(|(at, wanted)| {
            let (shared, sources) = (&shared, &sources);
            async move {
                let mut progress = |bytes| (shared.borrow_mut())(at, bytes);
                let (digest, size, file) = (&wanted.digest, wanted.size, &mut wanted.file);
                self.get_blob(reference, sources, digest, size, file, &mut progress)
                    .await
            }
        });
        let all = stream::iter(downloads).buffer_unordered(AT_ONCE);
        self.worker.block_on(all.try_collect())
    }

    async fn get_manifest(&self, source: &Source, reference: &Reference) -> Result<Manifest> {
        let options = self.session.options();
        let path = format!("manifests/{}", reference.name());
        let accept = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MANIFESTS))]);
        let mut response = self.session.get(source, &path, accept).await?;
        let media_type = transport::media_type(&response);
        let header = response.headers().get("docker-content-digest");
        let said = header.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let bytes = transport::body(&mut response, MAX_MANIFEST, options).await?;
        let digest = digest::of(&bytes);
        let name = &source.host.name;
        if let Some(wanted) = reference.digest().filter(|wanted| *wanted != digest) {
            let message = format!("{name} sends one with the digest {digest}, not {wanted}");
            return Err(Error::new(Kind::Corrupt, message));
        }
        // Digests of other algorithms are not ours to check.
        if let Some(said) = said.filter(|said| said.starts_with("sha256:") && *said != digest) {
            let said = shown(&said);
            let message = format!("{name} sends one with the digest {digest}, and says {said}");
            return Err(Error::new(Kind::Corrupt, message));
        }
        Ok(Manifest {
            bytes,
            digest,
            media_type,
        })
    }

    async fn get_blob(
        &self,
        reference: &Reference,
        sources: &[Source],
        digest: &str,
        size: u64,
        to: &mut File,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let (registry, repository) = (reference.registry(), reference.repository());
        let context = |error: Error| {
            error.context(format!(
                "cannot get {} of {registry}/{repository}",
                shown(digest)
            ))
        };
        if !digest::is_sha256(digest) {
            let message = "only sha256 digests are known";
            return Err(context(Error::new(Kind::Protocol, message)));
        }
        let download = Download::new(digest, Size::Exactly(size), to);
        let mut download = download.await.map_err(context)?;
        if download.done() > 0 {
            progress(download.done());
        }
        let (download, progress) = (RefCell::new(&mut download), RefCell::new(progress));
        #[expect(
            clippy::await_holding_refcell_ref,
            reason = "one source after the other"
        )]
        let get = async |source: &Source| {
            let (mut download, mut progress) = (download.borrow_mut(), progress.borrow_mut());
            let mut blob = Blob {
                session: &self.session,
                source,
                digest,
            };
            let mut told = |done, _| progress(done);
            download.run(&mut blob, &mut told).await
        };
        self.first(sources, get).await.map_err(context)
    }

    fn sources(&self, reference: &Reference) -> Result<Vec<Source>> {
        let (registry, repository) = (reference.registry(), reference.repository());
        let by_digest = reference.digest().is_some();
        self.registries.sources(registry, repository, by_digest)
    }

    /// What the first of the sources gives that has it. The error is that of the last one, which is the
    /// registry itself.
    async fn first<T>(
        &self,
        sources: &[Source],
        get: impl AsyncFn(&Source) -> Result<T>,
    ) -> Result<T> {
        let dead = || self.dead.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = Vec::new();
        for (at, source) in sources.iter().enumerate() {
            let is_last = at + 1 == sources.len();
            if !is_last && dead().contains(source) {
                continue;
            }
            match get(source).await {
                Err(error) if is_last && !before.is_empty() => {
                    let before = before.join("; ");
                    return Err(error.context(format!("mirrors failed ({before}), and then")));
                }
                Err(error) if !is_last && !ends_all(error.kind()) => {
                    if error.kind() == Kind::Unreachable {
                        dead().insert(source.clone());
                    }
                    before.push(error.to_string());
                }
                outcome => return outcome,
            }
        }
        Err(Error::new(Kind::Config, "there is no registry to ask"))
    }
}

/// Whether a failure is one of this host, which no other source makes good.
fn ends_all(kind: Kind) -> bool {
    matches!(kind, Kind::Interrupted | Kind::Local | Kind::Config)
}
