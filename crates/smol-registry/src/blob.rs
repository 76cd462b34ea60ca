//! Blobs into files: gone on with where a download stopped, and verified.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use reqwest::Response;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE,
};
use sha2::{Digest, Sha256};

use crate::digest;
use crate::error::{Again, Error, Kind, Result, shown};
use crate::mirrors::Source;
use crate::options::PROGRESS;
use crate::range::ContentRange;
use crate::session::{Patience, Session};
use crate::transport;

/// Bytes that are hashed between two looks at the clock.
const PIECE: usize = 1 << 20;

/// A blob that is wanted.
#[derive(Debug)]
pub struct Wanted {
    /// Its digest, which is a sha256.
    pub digest: String,
    /// Its size, bytes.
    pub size: u64,
    /// Where it goes. What is in the file already is taken for its beginning.
    pub file: File,
}

/// A blob that is being downloaded.
pub struct Download<'w> {
    digest: &'w str,
    size: u64,
    file: &'w mut File,
    /// Bytes that are in the file, and their hash.
    done: u64,
    hash: Sha256,
    /// Whether some of them were there before, or are from another source.
    resumed: bool,
}

impl<'w> Download<'w> {
    /// Reads what the file has already.
    pub async fn new(digest: &'w str, size: u64, file: &'w mut File) -> Result<Self> {
        let mut download = Download {
            digest,
            size,
            file,
            done: 0,
            hash: Sha256::new(),
            resumed: false,
        };
        let len = download
            .file
            .metadata()
            .map_err(Error::local("cannot look at a file"))?
            .len();
        if len > size {
            download.restart()?;
        } else {
            download.read_on(len).await?;
        }
        Ok(download)
    }

    /// Bytes that are there.
    pub fn done(&self) -> u64 {
        self.done
    }

    async fn read_on(&mut self, len: u64) -> Result<()> {
        const DOING: &str = "cannot read what was downloaded before";
        self.file
            .seek(SeekFrom::Start(0))
            .map_err(Error::local(DOING))?;
        let mut piece = vec![0; PIECE.min(usize::try_from(len).unwrap_or(PIECE))];
        while self.done < len {
            let read = self.file.read(&mut piece).map_err(Error::local(DOING))?;
            if read == 0 {
                break;
            }
            self.hash.update(&piece[..read]);
            self.done += read as u64;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Throws away what was downloaded.
    pub fn restart(&mut self) -> Result<()> {
        const DOING: &str = "cannot empty a file";
        self.file.set_len(0).map_err(Error::local(DOING))?;
        self.file
            .seek(SeekFrom::Start(0))
            .map_err(Error::local(DOING))?;
        (self.done, self.hash, self.resumed) = (0, Sha256::new(), false);
        Ok(())
    }

    /// Downloads what is missing from one source, and verifies it.
    pub async fn run(
        &mut self,
        session: &Session,
        source: &Source,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        self.resumed = self.done > 0;
        let mut patience = Patience::new(session.options());
        loop {
            let before = self.done;
            let outcome = match self.done < self.size {
                true => self.attempt(session, source, progress).await,
                false => Ok(()),
            };
            let outcome = outcome.and_then(|()| self.verify(source));
            match outcome {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == Kind::Corrupt => {
                    // It may be what was there before that is wrong.
                    let again = self.resumed;
                    self.restart()?;
                    progress(0);
                    if !again {
                        return Err(error);
                    }
                }
                Err(error) => {
                    if self.done >= before.saturating_add(PROGRESS) {
                        patience.renew();
                    }
                    patience.wait(error).await?;
                }
            }
        }
    }

    /// One request, up to its end or failure.
    async fn attempt(
        &mut self,
        session: &Session,
        source: &Source,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if self.done > 0 {
            let range = format!("bytes={}-", self.done);
            let range = HeaderValue::from_str(&range);
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let path = format!("blobs/{}", self.digest);
        let mut response = session.get(source, &path, headers).await?;
        self.begin(source, &response)?;
        let wanted = self.size;
        while let Some(chunk) = transport::chunk(&mut response, session.options()).await? {
            let done = self.done + chunk.len() as u64;
            if done > wanted {
                return Err(corrupt(
                    source,
                    format!("sends more than its {wanted} bytes"),
                ));
            }
            self.file
                .write_all(&chunk)
                .map_err(Error::local("cannot write what is downloaded"))?;
            self.hash.update(&chunk);
            self.done = done;
            progress(done);
        }
        Ok(())
    }

    /// Checks that an answer begins where the file ends.
    fn begin(&mut self, source: &Source, response: &Response) -> Result<()> {
        let header = |name| {
            let value = response.headers().get(name);
            value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        if let Some(encoding) = header(CONTENT_ENCODING).filter(|e| e != "identity") {
            let what = format!(
                "encodes it as {}, which was not asked for",
                shown(&encoding)
            );
            return Err(Error::new(
                Kind::Protocol,
                format!("{} {what}", source.host.name),
            ));
        }
        let (first, wanted) = match response.status().as_u16() {
            206 => {
                let value = header(CONTENT_RANGE).unwrap_or_default();
                let range = ContentRange::parse(&value).filter(|range| {
                    let total = range.total.is_none_or(|total| total == self.size);
                    range.first == self.done && range.last < self.size && total
                });
                let parts = range.map(|range| (range.first, range.last - range.first + 1));
                parts.ok_or_else(|| {
                    let (done, size) = (self.done, self.size);
                    let what = format!("answers with the range {:?}", shown(&value));
                    corrupt(
                        source,
                        format!("{what} where bytes {done} to {size} were asked for"),
                    )
                })?
            }
            200 => (0, self.size),
            status => {
                let message = format!("{} answers {status}", source.host.name);
                return Err(Error::new(Kind::Protocol, message));
            }
        };
        if first == 0 && self.done > 0 {
            self.restart()?;
        }
        if let Some(len) = response.content_length().filter(|len| *len != wanted) {
            let what = format!("sends {len} bytes of it where there should be {wanted}");
            return Err(corrupt(source, what));
        }
        Ok(())
    }

    /// Checks what is there once nothing more comes.
    fn verify(&mut self, source: &Source) -> Result<()> {
        if self.done < self.size {
            let name = &source.host.name;
            let message = format!("{name} ends it after {} of {} bytes", self.done, self.size);
            return Err(Error::new(Kind::Unreachable, message).with_again(Again::Yes));
        }
        let is = digest::finish(self.hash.clone());
        match is == self.digest {
            true => Ok(()),
            false => Err(corrupt(source, format!("sends bytes with the digest {is}"))),
        }
    }
}

fn corrupt(source: &Source, what: String) -> Error {
    Error::new(Kind::Corrupt, format!("{} {what}", source.host.name))
}
