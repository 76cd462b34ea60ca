//! A source with its name, which every error of a bundle begins with.

use std::path::{Path, PathBuf};

use crate::{Error, ReadAt, Result};

/// A source, the name that it has in messages, and its size when the bundle was opened.
#[derive(Debug)]
pub(crate) struct Named<S> {
    source: S,
    name: PathBuf,
    size: u64,
}

impl<S: ReadAt> Named<S> {
    pub(crate) fn new(source: S, name: PathBuf) -> Result<Self> {
        let size = source.size().map_err(|e| Error::io("read", &name, e))?;
        Ok(Named { source, name, size })
    }

    /// Fills `buffer` with the bytes from `offset` on.
    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let read = self.source.read_exact_at(buffer, offset);
        read.map_err(|source| Error::Read {
            path: self.name.clone(),
            offset,
            source,
        })
    }
}

impl<S> Named<S> {
    pub(crate) fn source(&self) -> &S {
        &self.source
    }

    pub(crate) fn name(&self) -> &Path {
        &self.name
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the error that bytes at `offset`, or from there on, break a rule of the format.
    pub(crate) fn corrupt(&self, section: &str, offset: u64, reason: impl Into<String>) -> Error {
        Error::Corrupt {
            path: self.name.clone(),
            section: section.into(),
            offset,
            reason: reason.into(),
        }
    }

    /// Returns the error that `section` needs more bytes than there are.
    pub(crate) fn truncated(&self, section: &str, needed: u64) -> Error {
        Error::Truncated {
            path: self.name.clone(),
            section: section.into(),
            needed,
            size: self.size,
        }
    }

    /// Returns the error that `what` is larger than the format allows.
    pub(crate) fn too_large(&self, what: impl Into<String>, found: u64, limit: u64) -> Error {
        Error::Limit {
            path: self.name.clone(),
            what: what.into(),
            found,
            limit,
        }
    }

    /// Returns the error that the bundle has no such part.
    pub(crate) fn missing(&self, what: &'static str) -> Error {
        Error::Missing {
            path: self.name.clone(),
            what,
        }
    }
}
