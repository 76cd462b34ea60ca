//! Where the bytes of a bundle come from: a file, memory, or whatever else can be read at any place.

pub(crate) mod file;
mod memory;
mod named;

pub(crate) use named::Named;

use std::io;

/// Bytes that can be read at any place, by many threads at once.
///
/// A source is not trusted: what it returns is verified before it is used. It may be slow, and each
/// of its reads may fail.
pub trait ReadAt: Send + Sync {
    /// Returns the number of bytes. A bundle asks once, when it is opened.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// If not all of them can be had. The error says why, as far as the source knows (the device's
    /// error, the server's answer); the bundle adds its name and the offset.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }
}
