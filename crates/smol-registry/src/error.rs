//! The error of this crate: what failed, at which server, and what to do.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

/// What kind of failure an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The server has no such repository, tag, manifest, blob or file (404, 410).
    NotFound,
    /// The server wants to know who asks, and no credentials are known or they are refused (401).
    Unauthorized,
    /// The server refuses, whoever asks or because of who asks (403).
    Denied,
    /// Too many requests (429), also after the waits that the server asked for.
    RateLimited,
    /// No connection, or one that was cut or silent too often: DNS, TCP, TLS, or a server that answers
    /// with its own failure (5xx). It may go well later.
    Unreachable,
    /// Bytes that are not what they should be: digest, size, range; or more than there may be.
    Corrupt,
    /// The server's answer is none that the protocol knows.
    Protocol,
    /// The caller wants to stop.
    Interrupted,
    /// A configuration file is wrong, forbids it, or names a program that cannot be run.
    Config,
    /// This host could not write or read a file.
    Local,
}

/// Whether the same request may go well when it is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    No,
    Yes,
    /// As long as the server wants us to wait.
    After(Duration),
}

/// Why nothing came from a server: one sentence, without a final full stop.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
    again: Again,
}

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error {
            kind,
            message: message.into(),
            hint: None,
            again: Again::No,
        }
    }

    pub(crate) fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted")
    }

    /// For `map_err`: says what was being done with a file of this host.
    pub(crate) fn local(doing: &str) -> impl FnOnce(std::io::Error) -> Self {
        move |e| Error::new(Kind::Local, format!("{doing}: {e}"))
    }

    /// The same, for a file of this name.
    pub(crate) fn local_at(doing: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |e| Error::new(Kind::Local, format!("{doing} {}: {e}", path.display()))
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn with_again(mut self, again: Again) -> Self {
        self.again = again;
        self
    }

    /// Says in front what was to be done.
    pub(crate) fn context(mut self, doing: impl fmt::Display) -> Self {
        if self.kind != Kind::Interrupted {
            self.message = format!("{doing}: {}", self.message);
        }
        self
    }

    pub(crate) fn again(&self) -> Again {
        self.again
    }

    /// Returns what kind of failure it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns what the user can do about it, if that is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Most characters that are shown of what a server says.
const MOST_SHOWN: usize = 200;

/// Returns foreign text as it can be shown: one line, no control characters, not long.
pub(crate) fn shown(text: &str) -> String {
    let clean = |c: char| match c {
        _ if c.is_control() || c.is_whitespace() => ' ',
        // Marks that reorder what stands around them.
        '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}'
        | '\u{feff}' => '\u{fffd}',
        c => c,
    };
    let words: String = text.chars().take(8 * MOST_SHOWN).map(clean).collect();
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST_SHOWN) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

/// The body of an answer that is an error (OCI distribution specification, "Error Codes").
#[derive(Deserialize)]
struct Answer {
    errors: Vec<Reported>,
}

#[derive(Deserialize)]
struct Reported {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

/// Returns what the body of an error says, as it can be shown; nothing for a page of HTML.
pub(crate) fn reported(body: &[u8]) -> Option<String> {
    if let Ok(answer) = serde_json::from_slice::<Answer>(body) {
        let first = answer.errors.into_iter().next()?;
        let text = match (first.code, first.message) {
            (Some(code), Some(message)) if !message.is_empty() => format!("{code}: {message}"),
            (Some(text), _) | (None, Some(text)) => text,
            (None, None) => return None,
        };
        return Some(shown(&text)).filter(|text| !text.is_empty());
    }
    let text = shown(&String::from_utf8_lossy(body));
    (!text.is_empty() && !text.starts_with('<')).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_cannot_drive_a_terminal_and_is_not_long() {
        assert_eq!(shown("a\u{1b}[31m\r\nb\t c\u{202e}"), "a [31m b c\u{fffd}");
        let long = shown(&"x".repeat(100_000));
        assert_eq!(long.len(), MOST_SHOWN + 3);
        assert_eq!(shown(&"ä".repeat(300)).chars().count(), MOST_SHOWN + 3);
    }

    #[test]
    fn the_first_error_of_a_body_is_shown() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\nunknown","detail":{}},{}]}"#;
        let text = reported(body);
        assert_eq!(text.as_deref(), Some("MANIFEST_UNKNOWN: manifest unknown"));
        assert_eq!(reported(b"no JSON").as_deref(), Some("no JSON"));
        assert_eq!(reported(b"<html>"), None);
        assert_eq!(reported(br#"{"errors":[]}"#), None);
        assert_eq!(reported(b"\xff\x00").as_deref(), Some("\u{fffd}"));
    }
}
