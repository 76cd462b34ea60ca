//! URLs of files that anybody may get.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;

use crate::error::shown;

/// Most bytes of a URL.
const MOST: usize = 8 << 10;

/// The URL of a file that anybody may get: `http` or `https`, without credentials.
///
/// [`Display`](fmt::Display) gives it as it is asked for: in the normal form of the URL standard, without a
/// fragment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileUrl(Url);

impl FileUrl {
    pub(crate) fn url(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for FileUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for FileUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let wrong = |why: &str| InvalidUrl {
            message: format!("{:?} {why}", shown(text)),
            hint: None,
        };
        let too_long = || wrong(&format!("is longer than {MOST} bytes"));
        if text.len() > MOST {
            return Err(too_long());
        }
        // The URL standard drops some of them without a word.
        if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(wrong("has a space or a control character in it"));
        }
        let lower = text.to_ascii_lowercase();
        if !lower.starts_with("http://") && !lower.starts_with("https://") {
            return Err(wrong("does not begin with https:// or http://"));
        }
        let mut url = Url::parse(text).map_err(|e| match text.contains('@') {
            // There may be a secret before it.
            true => InvalidUrl {
                message: format!("it is no URL: {e}"),
                hint: None,
            },
            false => wrong(&format!("is no URL: {e}")),
        })?;
        if !url.username().is_empty() || url.password().is_some() {
            let _ = url.set_username("");
            let _ = url.set_password(None);
            // Never the secret.
            let without = shown(url.as_str());
            return Err(InvalidUrl {
                message: format!("the URL of {without} has a user name or a password in it"),
                hint: Some(PUBLIC_ONLY),
            });
        }
        url.set_fragment(None);
        match url.as_str().len() <= MOST {
            true => Ok(FileUrl(url)),
            false => Err(too_long()),
        }
    }
}

/// What to do about a file that not everybody may get.
pub const PUBLIC_ONLY: &str = "only what anybody may get can be fetched: download the file by hand, and \
     name it in [[copy]]";

/// Why a text is no [`FileUrl`]: one sentence, without a final full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidUrl {
    message: String,
    hint: Option<&'static str>,
}

impl InvalidUrl {
    /// Returns what the user can do about it, if that is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint
    }
}

impl fmt::Display for InvalidUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for InvalidUrl {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_http_or_https_and_has_its_normal_form() {
        for (text, normal) in [
            ("https://a.example/b?c=d", "https://a.example/b?c=d"),
            ("HTTP://A.example:80", "http://a.example/"),
            ("https://a.example/../x#part", "https://a.example/x"),
            ("https://[::1]:8443/ä", "https://[::1]:8443/%C3%A4"),
        ] {
            let url: FileUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), normal);
            assert_eq!(normal.parse(), Ok(url));
        }
    }

    #[test]
    fn what_is_no_url_of_a_file_says_why() {
        for (text, word) in [
            ("", "begin with https://"),
            ("a.example/b", "begin with https://"),
            ("ftp://a.example/b", "begin with https://"),
            ("file:///etc/passwd", "begin with https://"),
            ("https://", "is no URL"),
            ("https://a.example:99999/", "is no URL"),
            ("https://a.example/b c", "space"),
            ("https://a.example/\n", "control character"),
            (&format!("https://a.example/{}", "x".repeat(MOST)), "longer"),
            // Its normal form is.
            (
                &format!("https://a.example/{}", "ä".repeat(MOST / 3)),
                "longer",
            ),
        ] {
            let error = text.parse::<FileUrl>().unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_not_shown() {
        let error = "https://user:secret@/".parse::<FileUrl>().unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        for text in [
            "https://user:secret@a.example/b",
            "http://secret@a.example/b",
        ] {
            let error = text.parse::<FileUrl>().unwrap_err();
            let said = error.to_string();
            assert!(said.contains("a.example/b has a user name"), "{said}");
            assert!(!said.contains("secret"), "{said}");
            assert!(error.hint().unwrap().contains("[[copy]]"));
        }
    }
}
