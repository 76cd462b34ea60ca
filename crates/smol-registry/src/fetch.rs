//! Files that anybody may get, by URL and digest, into a folder of downloads.
//!
//! In the folder, a whole file is `SHA256.file`, and what there is of one that is not whole
//! `SHA256.part`. Who downloads it holds flock(2) on the latter, which becomes the former by a rename.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Response;
use reqwest::header::{ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use rustix::fs::{FlockOperation, flock};

use crate::auth;
use crate::digest;
use crate::download::{Download, Origin, Progress, Size};
use crate::error::{Again, Error, Kind, Result, shown};
use crate::file_url::{FileUrl, PUBLIC_ONLY};
use crate::options::Options;
use crate::transport::{self, Host, Request, Transport};
use crate::work::{GoOn, Worker};

/// How often it is looked whether another process has ended the same download.
const WAIT: Duration = Duration::from_millis(200);

/// Downloads files that anybody may get.
pub struct Fetcher {
    worker: Worker,
    transport: Transport,
}

/// A file whose digest was verified.
#[derive(Debug)]
pub struct Fetched {
    /// Where it is.
    pub path: PathBuf,
    /// The file itself, at its beginning.
    pub file: File,
    /// Its size, bytes.
    pub size: u64,
    /// Whether it was downloaded now, by this call.
    pub downloaded: bool,
}

impl Fetcher {
    /// Creates one. Of the options' places, the certificates and the resolver are used. `go_on` is asked
    /// again and again; once it returns false, every call ends within some 100 ms with an error of kind
    /// [`Kind::Interrupted`].
    ///
    /// # Errors
    /// If this host has no resources for connections.
    pub fn new(options: Options, go_on: GoOn) -> Result<Self> {
        Ok(Fetcher {
            worker: Worker::new(go_on)?,
            transport: Transport::new(options),
        })
    }

    /// Has the file with this SHA-256 (64 lower-case hexadecimal digits) in the folder `downloads`, which
    /// exists: verifies the one that is there, or downloads it from `url`, at most `most` bytes. `progress`
    /// is told how many bytes there are, and how many there are to be, if that is known.
    ///
    /// The caller keeps the folder from being removed. Another process may do the same at the same time:
    /// one downloads, the others wait for it.
    ///
    /// # Errors
    /// With the kinds of [`Kind`]; after one of [`Kind::Corrupt`] nothing of the file stays, after any other
    /// one a later call goes on where this one stopped.
    pub fn fetch(
        &self,
        url: &FileUrl,
        sha256: &str,
        most: u64,
        downloads: &Path,
        progress: Progress<'_>,
    ) -> Result<Fetched> {
        let place = Place::new(downloads, sha256);
        let outcome = self.worker.block_on(async {
            let place = place?;
            if let Some(found) = place.find().await? {
                return Ok(found);
            }
            let mut part = loop {
                match Part::claim(&place.part)? {
                    Some(part) => break part,
                    None => tokio::time::sleep(WAIT).await,
                }
            };
            if let Some(found) = place.find().await? {
                part.remove();
                return Ok(found);
            }
            // What may be there is damaged.
            remove(&place.whole)?;
            let wanted = Size::AtMost(most);
            let mut download = Download::new(&place.digest, wanted, &mut part.file).await?;
            if !download.is_whole() {
                progress(download.done(), None);
                let mut origin = Public::new(&self.transport, url);
                download.run(&mut origin, progress).await?;
            }
            part.keep(&place)
        });
        outcome.map_err(|error| error.context(format!("cannot fetch {}", shown(&url.to_string()))))
    }

    /// The file with this SHA-256 in the folder `downloads`, verified. No server is asked.
    ///
    /// # Errors
    /// It cannot be read; the digest is none; the caller wants to stop.
    pub fn find(&self, sha256: &str, downloads: &Path) -> Result<Option<Fetched>> {
        let place = Place::new(downloads, sha256)?;
        self.worker.block_on(place.find())
    }

    /// Where the file with this SHA-256 is in the folder `downloads` once it was fetched. It need not be
    /// there, nor be what it should.
    ///
    /// # Errors
    /// What is no SHA-256.
    pub fn place(sha256: &str, downloads: &Path) -> Result<PathBuf> {
        Place::new(downloads, sha256).map(|place| place.whole)
    }
}

/// Where a file is, or goes.
struct Place {
    digest: String,
    whole: PathBuf,
    part: PathBuf,
}

impl Place {
    fn new(downloads: &Path, sha256: &str) -> Result<Self> {
        let digest = format!("sha256:{sha256}");
        if !digest::is_sha256(&digest) {
            let shown = shown(sha256);
            let message = format!("{shown:?} is no SHA-256: 64 lower-case hexadecimal digits");
            return Err(Error::new(Kind::Config, message));
        }
        Ok(Place {
            whole: downloads.join(format!("{sha256}.file")),
            part: downloads.join(format!("{sha256}.part")),
            digest,
        })
    }

    /// The whole file, if it is there and what it should be.
    async fn find(&self) -> Result<Option<Fetched>> {
        let cannot = || Error::local_at("cannot read", &self.whole);
        let mut file = match File::open(&self.whole) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(cannot())?,
        };
        let download = Download::new(&self.digest, Size::AtMost(u64::MAX), &mut file).await?;
        let (is_whole, size) = (download.is_whole(), download.done());
        file.rewind().map_err(cannot())?;
        Ok(is_whole.then(|| Fetched {
            path: self.whole.clone(),
            file,
            size,
            downloaded: false,
        }))
    }
}

/// What there is of a file that is not whole, locked. An empty one goes with this.
struct Part {
    path: PathBuf,
    file: File,
    is_kept: bool,
}

impl Part {
    /// Opens and locks it; `None` if another process has it.
    fn claim(path: &Path) -> Result<Option<Self>> {
        let cannot = || Error::local_at("cannot write", path);
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let file = options.open(path).map_err(cannot())?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(e) if e == rustix::io::Errno::WOULDBLOCK => return Ok(None),
                locked => locked.map_err(|e| cannot()(e.into()))?,
            }
            // Who had it may have renamed or removed it before it was locked here.
            if is_at(&file, path).map_err(cannot())? {
                let (path, is_kept) = (path.to_owned(), false);
                return Ok(Some(Part {
                    path,
                    file,
                    is_kept,
                }));
            }
        }
    }

    /// Makes it the whole file.
    fn keep(mut self, place: &Place) -> Result<Fetched> {
        let cannot = || Error::local_at("cannot write", &place.whole);
        self.file.sync_all().map_err(cannot())?;
        fs::rename(&self.path, &place.whole).map_err(cannot())?;
        self.is_kept = true;
        // One of its own, which does not hold the lock.
        let file = File::open(&place.whole).map_err(cannot())?;
        let size = file.metadata().map_err(cannot())?.len();
        Ok(Fetched {
            path: place.whole.clone(),
            file,
            size,
            downloaded: true,
        })
    }

    /// Removes it, which only who has locked it may do.
    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let len = self.file.metadata().map(|found| found.len());
        if !self.is_kept && matches!(len, Ok(0)) {
            self.remove();
        }
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let (ours, there) = match (file.metadata()?, fs::metadata(path)) {
        (_, Err(e)) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        (ours, there) => (ours, there?),
    };
    Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino()))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::local_at("cannot remove", path)),
    }
}

/// A file at a URL.
struct Public<'a> {
    transport: &'a Transport,
    url: &'a FileUrl,
    host: Host,
    /// What identifies the bytes of the last answer: a strong ETag (RFC 9110, section 8.8.3).
    validator: Option<HeaderValue>,
}

impl<'a> Public<'a> {
    fn new(transport: &'a Transport, url: &'a FileUrl) -> Self {
        let host = Host {
            name: transport::authority(url.url()),
            insecure: false,
        };
        Public {
            transport,
            url,
            host,
            validator: None,
        }
    }

    /// Says why a server does not give the file.
    async fn refusal(&self, response: &mut Response) -> Error {
        let status = response.status().as_u16();
        let own = response.url().origin() == self.url.url().origin();
        let said = auth::said(self.transport, response).await;
        let (name, there) = (&self.host.name, transport::authority(response.url()));
        let message = match own {
            true => format!("{name} answers {status}{said}"),
            false => format!("{there}, where {name} redirects to, answers {status}{said}"),
        };
        let error = match status {
            401 => Error::new(Kind::Unauthorized, message).with_hint(PUBLIC_ONLY),
            403 => Error::new(Kind::Denied, message).with_hint(PUBLIC_ONLY),
            404 | 410 => Error::new(Kind::NotFound, message)
                .with_hint("check the URL; what was there may have been moved or removed"),
            _ => return auth::failed(status, message, response),
        };
        // Where a redirect leads to may change, and be good for a while only.
        match own {
            true => error,
            false => error.with_again(Again::Yes),
        }
    }
}

impl Origin for Public<'_> {
    fn name(&self) -> &str {
        &self.host.name
    }

    fn options(&self) -> &Options {
        self.transport.options()
    }

    async fn get(&mut self, mut headers: HeaderMap) -> Result<Response> {
        let is_part = headers.contains_key(RANGE);
        if let (true, Some(validator)) = (is_part, &self.validator) {
            headers.insert(IF_RANGE, validator.clone());
        }
        let request = Request {
            may_be_plain: true,
            ..Request::get(headers)
        };
        let url = self.url.url().clone();
        let sent = self.transport.send_to(url, &self.host, &request).await;
        let mut response = sent?;
        if response.status().is_success() {
            let is_strong = |etag: &&HeaderValue| !etag.as_bytes().starts_with(b"W/");
            let etag = response.headers().get(ETAG);
            self.validator = etag.filter(is_strong).cloned();
            return Ok(response);
        }
        if is_part && response.status().as_u16() == 416 {
            let message = format!(
                "{} has not as many bytes as are there already",
                self.host.name
            );
            return Err(Error::new(Kind::Corrupt, message));
        }
        Err(self.refusal(&mut response).await)
    }

    fn other_digest(&self) -> Option<&'static str> {
        Some("what is at the URL has changed, or the digest in the Smolfile is wrong")
    }
}
