//! Bytes into a file: gone on with where a download stopped, and verified.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use reqwest::Response;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use sha2::{Digest, Sha256};

use crate::digest;
use crate::error::{Again, Error, Kind, Result, shown};
use crate::options::{Options, PROGRESS};
use crate::patience::Patience;
use crate::range::ContentRange;
use crate::transport;

/// Bytes that are hashed between two looks at the clock.
const PIECE: usize = 1 << 20;

/// Where the bytes come from.
pub trait Origin {
    /// The server, as messages name it.
    fn name(&self) -> &str;

    fn options(&self) -> &Options;

    /// Asks for the bytes, with these headers. The answer is a success.
    async fn get(&mut self, headers: HeaderMap) -> Result<Response>;

    /// What to do about bytes that have another digest, if they are all from this download.
    fn other_digest(&self) -> Option<&'static str> {
        None
    }
}

/// How many bytes there are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// So many.
    Exactly(u64),
    /// What the server says, at most so many.
    AtMost(u64),
}

/// Told how many bytes are in the file, and how many there are to be, if that is known.
pub type Progress<'p> = &'p mut dyn FnMut(u64, Option<u64>);

/// Bytes that are being downloaded.
pub struct Download<'w> {
    digest: &'w str,
    wanted: Size,
    /// Bytes of the whole, once they are known.
    size: Option<u64>,
    file: &'w mut File,
    /// Bytes that are in the file, and their hash.
    done: u64,
    hash: Sha256,
    /// Whether they are of more than one answer, or were there before.
    resumed: bool,
}

impl<'w> Download<'w> {
    /// Reads what the file has already.
    pub async fn new(digest: &'w str, wanted: Size, file: &'w mut File) -> Result<Self> {
        let mut download = Download {
            digest,
            wanted,
            size: wanted.exact(),
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
        if len > wanted.most() {
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

    /// Whether what is there has the digest.
    pub fn is_whole(&self) -> bool {
        digest::finish(self.hash.clone()) == self.digest
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
        self.size = self.wanted.exact();
        Ok(())
    }

    /// Downloads what is missing from one origin, and verifies it.
    pub async fn run(&mut self, origin: &mut impl Origin, progress: Progress<'_>) -> Result<()> {
        let mut patience = Patience::new();
        self.resumed = self.done > 0;
        let mut begun_again = false;
        loop {
            let before = self.done;
            let outcome = match self.size == Some(self.done) {
                true => Ok(()),
                false => self.attempt(origin, progress).await,
            };
            let outcome = outcome.and_then(|()| self.verify(origin));
            match outcome {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == Kind::Corrupt => {
                    // It may be what was there before that is wrong.
                    let again = self.resumed && !begun_again;
                    self.restart()?;
                    progress(0, self.size);
                    if !again {
                        return Err(error);
                    }
                    begun_again = true;
                }
                Err(error) => {
                    if self.done >= before.saturating_add(PROGRESS) {
                        patience.renew();
                    }
                    patience.wait(error, origin.options()).await?;
                }
            }
        }
    }

    /// One request, up to its end or failure.
    async fn attempt(&mut self, origin: &mut impl Origin, progress: Progress<'_>) -> Result<()> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if self.done > 0 {
            self.resumed = true;
            let range = format!("bytes={}-", self.done);
            let range = HeaderValue::from_str(&range);
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let mut response = origin.get(headers).await?;
        self.begin(origin, &response)?;
        while let Some(chunk) = transport::chunk(&mut response, origin.options()).await? {
            let done = self.done + chunk.len() as u64;
            if done > self.size.unwrap_or(self.wanted.most()) {
                return Err(self.too_long(origin));
            }
            self.file
                .write_all(&chunk)
                .map_err(Error::local("cannot write what is downloaded"))?;
            self.hash.update(&chunk);
            self.done = done;
            progress(done, self.size);
        }
        Ok(())
    }

    /// Checks that an answer begins where the file ends.
    fn begin(&mut self, origin: &impl Origin, response: &Response) -> Result<()> {
        let len = match response.status().as_u16() {
            206 => self.begin_part(origin, response)?,
            200 => {
                // Also where a part was asked for: the server knows no parts, or has other bytes now.
                if self.done > 0 {
                    self.restart()?;
                }
                self.size = self.wanted.exact().or(response.content_length());
                self.size
            }
            status => {
                let message = format!("{} answers {status}", origin.name());
                return Err(Error::new(Kind::Protocol, message));
            }
        };
        if self.size.is_some_and(|size| size > self.wanted.most()) {
            return Err(self.too_long(origin));
        }
        match (response.content_length(), len) {
            (Some(is), Some(len)) if is != len => {
                let what = format!("sends {is} bytes of it where there should be {len}");
                Err(corrupt(origin, what))
            }
            _ => Ok(()),
        }
    }

    /// Checks the range of a 206; returns how many bytes it has.
    fn begin_part(&mut self, origin: &impl Origin, response: &Response) -> Result<Option<u64>> {
        let value = response.headers().get(CONTENT_RANGE);
        let value = value.map_or_else(String::new, |value| {
            String::from_utf8_lossy(value.as_bytes()).into_owned()
        });
        let range = ContentRange::parse(&value).filter(|range| {
            let same = |total| self.size.is_none_or(|size| total == size);
            let within = self.size.is_none_or(|size| range.last < size);
            range.first == self.done && within && range.total.is_none_or(same)
        });
        let Some(range) = range else {
            let (done, shown) = (self.done, shown(&value));
            let asked = match self.size {
                Some(size) => format!("bytes {done} to {size} were asked for"),
                None => format!("the bytes from {done} on were asked for"),
            };
            let what = format!("answers with the range {shown:?} where {asked}");
            return Err(corrupt(origin, what));
        };
        self.size = self.size.or(range.total);
        Ok(Some(range.last - range.first + 1))
    }

    /// Checks what is there once nothing more comes.
    fn verify(&mut self, origin: &impl Origin) -> Result<()> {
        if let Some(size) = self.size.filter(|size| self.done < *size) {
            let message = format!(
                "{} ends it after {} of {size} bytes",
                origin.name(),
                self.done
            );
            return Err(Error::new(Kind::Unreachable, message).with_again(Again::Yes));
        }
        if self.is_whole() {
            return Ok(());
        }
        let is = digest::finish(self.hash.clone());
        let error = match self.wanted {
            Size::Exactly(_) => corrupt(origin, format!("sends bytes with the digest {is}")),
            Size::AtMost(_) => {
                let (done, digest) = (self.done, self.digest);
                let what = format!("sends {done} bytes with the digest {is}, not {digest}");
                corrupt(origin, what)
            }
        };
        Err(match origin.other_digest() {
            Some(hint) => error.with_hint(hint),
            None => error,
        })
    }

    fn too_long(&self, origin: &impl Origin) -> Error {
        let what = match (self.wanted, self.size) {
            (Size::AtMost(most), Some(size)) if size > most => {
                format!("has {size} bytes of it, more than the {most} that may be downloaded")
            }
            (Size::AtMost(most), None) => {
                format!("sends more than the {most} bytes that may be downloaded")
            }
            (Size::Exactly(size), _) | (_, Some(size)) => {
                format!("sends more than its {size} bytes")
            }
        };
        corrupt(origin, what)
    }
}

impl Size {
    fn exact(self) -> Option<u64> {
        match self {
            Size::Exactly(size) => Some(size),
            Size::AtMost(_) => None,
        }
    }

    fn most(self) -> u64 {
        let (Size::Exactly(most) | Size::AtMost(most)) = self;
        most
    }
}

fn corrupt(origin: &impl Origin, what: String) -> Error {
    Error::new(Kind::Corrupt, format!("{} {what}", origin.name()))
}
