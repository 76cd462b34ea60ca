//! What the fuzz targets call; no interface. Each function takes what a server sends, or what is in a
//! file.

use crate::auth::{Challenge, Token};
use crate::credentials::file::AuthFile;
use crate::credentials::helper;
use crate::error;
use crate::mirrors::Registries;
use crate::range::ContentRange;

/// Reads a `Content-Range`: first and last byte, and how many there are.
pub fn content_range(value: &str) -> Option<(u64, u64, Option<u64>)> {
    let range = ContentRange::parse(value)?;
    Some((range.first, range.last, range.total))
}

/// Reads a `WWW-Authenticate`; returns the realm of a token server, empty for a password.
pub fn challenge(value: &str) -> Option<String> {
    match Challenge::parse(std::iter::once(value))? {
        Challenge::Basic => Some(String::new()),
        Challenge::Bearer { realm, .. } => Some(realm),
    }
}

/// Reads a token server's answer; returns the token.
pub fn token(answer: &[u8]) -> Option<String> {
    Token::parse(answer).ok().map(|token| token.text)
}

/// Returns what is shown of an error's body.
pub fn reported(body: &[u8]) -> Option<String> {
    error::reported(body)
}

/// Reads a file of credentials and looks one up. Returns what there is, or why not, as it is shown.
pub fn credentials(file: &[u8], registry: &str, repository: &str) -> Result<String, String> {
    let file = AuthFile::parse(file)?;
    let found = file.find(registry, repository)?;
    Ok(format!("{found:?}"))
}

/// Reads a helper's answer.
pub fn helper_answer(answer: &[u8]) -> bool {
    helper::answer(answer).is_ok()
}

/// Reads a file of mirrors and looks a repository up. Returns servers and repositories.
///
/// # Errors
/// Why it is none, as it is shown.
pub fn mirrors(
    file: &str,
    registry: &str,
    repository: &str,
) -> Result<Vec<(String, String)>, String> {
    let registries = Registries::parse(file)?;
    let sources = registries.sources(registry, repository, true);
    let sources = sources.map_err(|error| error.to_string())?;
    let both = sources.into_iter();
    Ok(both
        .map(|source| (source.host.name, source.repository))
        .collect())
}
