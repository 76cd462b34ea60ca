//! What a value in a lock may look like. Whoever uses a lock may rely on these: words go into
//! commands, and paths are made below a folder.

use serde::de::{Deserializer, Error};
use serde::{Deserialize, de};

/// One line of text, not empty.
pub fn line<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, "one line of text", is_line)
}

/// SHA-256 in hexadecimal.
pub fn sha256<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(
        deserializer,
        "a SHA-256: 64 digits and letters from a to f",
        is_sha256,
    )
}

/// As [`sha256`], where it may be absent.
pub fn some_sha256<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    sha256(deserializer).map(Some)
}

/// The name of a release, package or architecture.
pub fn word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, "a name of Debian's", |text| {
        starts_plainly(text)
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte))
    })
}

/// The version of a package (Debian policy 5.6.12).
pub fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, "a version of Debian's", |text| {
        starts_plainly(text)
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".+-~:".contains(&byte))
    })
}

/// A path in the folder of the Smolfile.
pub fn host_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(
        deserializer,
        "a path that stays in the Smolfile's folder",
        |text| {
            !text.is_empty()
                && !text.starts_with('/')
                && !text.contains('\0')
                && text.split('/').all(|name| name != "..")
        },
    )
}

/// Whether `text` is one line of text, not empty.
pub fn is_line(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

/// Whether `text` is a SHA-256 in hexadecimal.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether `path` is names separated by `/`, none of which leads elsewhere.
pub fn is_inner_path(path: &str) -> bool {
    !path.contains('\0') && path.split('/').all(|name| !matches!(name, "" | "." | ".."))
}

/// No option of a command.
fn starts_plainly(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
}

fn checked<'de, D: Deserializer<'de>>(
    deserializer: D,
    wanted: &str,
    fits: impl Fn(&str) -> bool,
) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    match fits(&text) {
        true => Ok(text),
        false => Err(D::Error::invalid_value(de::Unexpected::Str(&text), &wanted)),
    }
}
