//! Blobs of a repository.

use std::fs::File;

use reqwest::Response;
use reqwest::header::{CONTENT_ENCODING, HeaderMap};

use crate::download::Origin;
use crate::error::{Error, Kind, Result, shown};
use crate::mirrors::Source;
use crate::options::Options;
use crate::session::Session;

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

/// A blob as one source has it.
pub struct Blob<'a> {
    pub session: &'a Session,
    pub source: &'a Source,
    pub digest: &'a str,
}

impl Origin for Blob<'_> {
    fn name(&self) -> &str {
        &self.source.host.name
    }

    fn options(&self) -> &Options {
        self.session.options()
    }

    async fn get(&mut self, headers: HeaderMap) -> Result<Response> {
        let path = format!("blobs/{}", self.digest);
        let response = self.session.get(self.source, &path, headers).await?;
        let encoding = response.headers().get(CONTENT_ENCODING);
        let encoding = encoding.map(|value| String::from_utf8_lossy(value.as_bytes()));
        match encoding.filter(|encoding| encoding != "identity") {
            None => Ok(response),
            Some(encoding) => {
                let (name, shown) = (self.name(), shown(&encoding));
                let message = format!("{name} encodes it as {shown}, which was not asked for");
                Err(Error::new(Kind::Protocol, message))
            }
        }
    }
}
