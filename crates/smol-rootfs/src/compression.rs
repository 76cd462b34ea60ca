//! Archives that are compressed: with what.
//!
//! An archive may consist of several parts one behind the other, as `gzip` (RFC 1952, section 2.2), `zstd`
//! (RFC 8878, section 3) and `xz` allow; what follows the last one must be such a part, too.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

use crate::limits::{MAX_WINDOW_LOG, MAX_XZ_MEMORY};

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// `gzip`: deflate.
    Gzip,
    /// Zstandard.
    Zstd,
    /// `xz`: LZMA2.
    Xz,
}

/// Length of the longest mark that tells a compression.
const MARK: usize = 6;
/// What is read of an archive at a time, bytes.
const BUFFER: usize = 64 << 10;

impl Compression {
    /// Tells it by the first bytes of an archive, whatever its name says; `None` for others, which may be
    /// compressed by something else.
    pub fn of(mark: &[u8]) -> Option<Self> {
        match mark {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            // A frame, or one to be skipped.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            _ => None,
        }
    }

    /// As [`Compression::of`], of a file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of_file(archive: &File) -> io::Result<Option<Self>> {
        let mut mark = [0; MARK];
        match archive.read_exact_at(&mut mark, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            read => read.map(|()| Self::of(&mark)),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
        }
    }

    /// Returns the content of an archive. Reading fails where it is damaged, cut short, or followed by
    /// something else.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn reader<'a>(self, archive: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        let archive = BufReader::with_capacity(BUFFER, archive);
        Ok(match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(archive)),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(archive)?;
                decoder.window_log_max(MAX_WINDOW_LOG)?;
                Box::new(decoder)
            }
            Self::Xz => {
                let stream = Stream::new_stream_decoder(MAX_XZ_MEMORY, CONCATENATED)?;
                Box::new(XzDecoder::new_stream(archive, stream))
            }
        })
    }
}
