//! What the fuzz targets call; no interface.

use super::probes;

/// Reads the answer of a service to an http probe, of which `bytes` have arrived, and no more will
/// if `at_end`. Returns status and body; `None` until it is whole.
///
/// # Errors
/// What came instead, in words.
pub fn http_answer(bytes: &[u8], at_end: bool) -> Result<Option<(u16, Vec<u8>)>, String> {
    probes::http::answer(bytes, at_end)
}
