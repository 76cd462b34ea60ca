//! From image files to a bundle that appears whole or not at all.
//!
//! | module | purpose |
//! |---|---|
//! | `writer` | the parts of a bundle in their order |
//! | `pages` | an image to frames and extents: zero and equal pages are found, the rest is stored |
//! | `chunking` | which of the stored pages are compressed together |
//! | `pool`, `prepared` | frames compressed on all cores, and ahead of the writer |
//! | `archive` | the tar around it |
//! | `output` | the file that appears at the end |
//! | `sign` | the same bundle with a signature more |

pub(crate) mod archive;
mod chunking;
pub(crate) mod output;
pub(crate) mod pages;
pub(crate) mod pool;
pub(crate) mod prepared;
pub(crate) mod sign;
pub(crate) mod writer;
