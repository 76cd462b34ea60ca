//! What can go wrong, each case with its place.

use std::io;
use std::path::{Path, PathBuf};

use crate::{Digest, SignatureError};

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a bundle, key or image could not be read or written.
///
/// [`Error::is_verification_failure`] separates "the bytes are not what they should be" from
/// "the machine could not do it".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb phrase ("read", "create a file in").
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A bundle could not be read at this place.
    #[error("cannot read {} at byte {offset}", path.display())]
    Read {
        /// The bundle.
        path: PathBuf,
        /// Where the bytes that were wanted begin.
        offset: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file system of the output is full.
    #[error("no space left while writing {}; nothing was left behind", path.display())]
    NoSpace {
        /// The output that was being written.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// There is something to which nothing can be written.
    #[error("cannot write {}: {reason}", path.display())]
    Output {
        /// The path that was named as an output.
        path: PathBuf,
        /// What is there.
        reason: &'static str,
    },
    /// The file is something else altogether.
    #[error("{} is not a .smolmachine bundle: {reason}", path.display())]
    NotABundle {
        /// The file.
        path: PathBuf,
        /// What it looks like instead.
        reason: String,
    },
    /// The file carries the magic `SMOLPACK`.
    #[error(
        "{} is a disk bundle of another project (magic SMOLPACK) that uses the same file name ending; \
         smol cannot run it", path.display()
    )]
    ForeignBundle {
        /// The file.
        path: PathBuf,
    },
    /// A newer major version of the format.
    #[error(
        "{} has format {found}, newer than {supported}, which is what this version of smol reads; \
         update smol", path.display()
    )]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// The version's name as found.
        found: String,
        /// The newest name that this library reads.
        supported: &'static str,
    },
    /// The bytes break a rule of the format.
    #[error("{}: {section} at byte {offset}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Archive entry or part of the file.
        section: String,
        /// Where in the file the section (or the flaw itself, where known) begins.
        offset: u64,
        /// Which rule.
        reason: String,
    },
    /// The file ends too early.
    #[error("{} is truncated: {section} needs bytes up to {needed}, the file has {size}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What is cut.
        section: String,
        /// The file size that would do.
        needed: u64,
        /// The file size found.
        size: u64,
    },
    /// A blob's bytes do not have the digest under which they are listed.
    #[error("{}: blob at byte {offset} should be {expected} but is {found}", path.display())]
    DigestMismatch {
        /// The file.
        path: PathBuf,
        /// Where the blob's bytes begin.
        offset: u64,
        /// The digest under which it is listed.
        expected: Digest,
        /// The digest of the bytes there.
        found: Digest,
    },
    /// A frame's bytes are not those that the page index lists.
    #[error("{}: frame {frame} of the {image} image at byte {offset}: {reason}", path.display())]
    Frame {
        /// The file.
        path: PathBuf,
        /// Name of the image.
        image: &'static str,
        /// Number of the frame in its image.
        frame: usize,
        /// Where its bytes begin.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A documented maximum is exceeded.
    #[error("{}: {what} is {found}, the limit is {limit}", path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// What is too large.
        what: String,
        /// Its size or number.
        found: u64,
        /// The maximum.
        limit: u64,
    },
    /// The bundle does not hold what was asked for.
    #[error("{} holds no {what}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// Name of the part.
        what: &'static str,
    },
    /// The caller wanted no more of it.
    #[error("the work on {} was stopped; nothing was left behind", path.display())]
    Stopped {
        /// The output that was being written, or the bundle that was being read.
        path: PathBuf,
    },
    /// What was asked to be written cannot be expressed in the format.
    #[error("cannot make a bundle of this: {0}")]
    InvalidSpec(String),
    /// A key file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// What is wrong and what is expected.
        reason: String,
    },
    /// A signature does not hold.
    #[error("{}: {reason}", path.display())]
    Signature {
        /// The bundle.
        path: PathBuf,
        /// Why not.
        reason: SignatureError,
    },
}

impl Error {
    /// Returns true when the input itself is wrong (altered, damaged, malformed, wrongly signed),
    /// false when the fault lies with the system or with the caller's request.
    pub fn is_verification_failure(&self) -> bool {
        match self {
            Error::NotABundle { .. }
            | Error::ForeignBundle { .. }
            | Error::NewerVersion { .. }
            | Error::Corrupt { .. }
            | Error::Truncated { .. }
            | Error::DigestMismatch { .. }
            | Error::Frame { .. }
            | Error::Limit { .. }
            | Error::Signature { .. } => true,
            Error::Io { .. }
            | Error::Read { .. }
            | Error::NoSpace { .. }
            | Error::Output { .. }
            | Error::Missing { .. }
            | Error::Stopped { .. }
            | Error::InvalidSpec(_)
            | Error::Key { .. } => false,
        }
    }

    /// Wraps a system error; a full file system gets its own variant.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::NoSpace { path, source }
            }
            _ => Error::Io {
                action,
                path,
                source,
            },
        }
    }
}
