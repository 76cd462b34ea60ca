//! Names of images, as docker reads them.

use std::fmt;
use std::str::FromStr;

use oci_client::{ParseError, Reference as Parsed};

use crate::digest;
use crate::error::shown;

/// Most bytes of a reference: a host name, 255 characters of a repository, a tag, a digest.
const MOST: usize = 1024;

const UPPER_CASE: &str = "has upper-case letters in its repository, which must be lower-case";

/// Where an image is: `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`, in full.
///
/// Without a host it is at `docker.io`, there without a `/` in `library/`, and without tag and digest
/// it is `latest`. [`Display`](fmt::Display) gives the full form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference(Parsed);

impl Reference {
    /// Returns the registry, with its port if it has one: `docker.io`.
    pub fn registry(&self) -> &str {
        self.0.registry()
    }

    /// Returns the repository: `library/nginx`.
    pub fn repository(&self) -> &str {
        self.0.repository()
    }

    /// Returns the tag. With a digest, it is only for people.
    pub fn tag(&self) -> Option<&str> {
        self.0.tag()
    }

    /// Returns the digest, which is a sha256.
    pub fn digest(&self) -> Option<&str> {
        self.0.digest()
    }

    /// Returns the same repository's manifest with this digest, without a tag.
    pub fn with_digest(&self, digest: &str) -> Reference {
        Reference(self.0.clone_with_digest(digest.to_owned()))
    }

    /// What is asked for: the digest, else the tag.
    pub(crate) fn name(&self) -> &str {
        self.digest().or(self.tag()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let wrong = |why: &str| InvalidReference(format!("{:?} {why}", shown(text)));
        if text.len() > MOST {
            return Err(wrong("is too long for an image"));
        }
        if let Some(rest) = text.strip_prefix("docker://") {
            let rest = shown(rest);
            return Err(wrong(&format!("begins with docker://; write {rest}")));
        }
        if text.contains("://") {
            return Err(wrong("is a URL; an image is named without https://"));
        }
        let parsed = parse(text).map_err(|e| wrong(&reason(&e, text)))?;
        // The grammar has upper-case letters in a host, and its first part may turn out to be none.
        if parsed
            .repository()
            .contains(|c: char| c.is_ascii_uppercase())
        {
            return Err(wrong(UPPER_CASE));
        }
        if let Some(digest) = parsed.digest()
            && !digest::is_sha256(digest)
        {
            return Err(wrong(
                "has a digest that is not sha256: and 64 lower-case hexadecimal digits",
            ));
        }
        Ok(Reference(parsed))
    }
}

/// Parses it; a host that is an IPv6 address in brackets is put in afterwards, as the grammar of
/// references has none.
fn parse(text: &str) -> Result<Parsed, ParseError> {
    let Some((address, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
        return Parsed::try_from(text);
    };
    if address.parse::<std::net::Ipv6Addr>().is_err() {
        return Err(ParseError::ReferenceInvalidFormat);
    }
    let parsed = Parsed::try_from(format!("localhost{rest}").as_str())?;
    let Some(port) = parsed.registry().strip_prefix("localhost") else {
        return Err(ParseError::ReferenceInvalidFormat);
    };
    let (registry, repository) = (format!("[{address}]{port}"), parsed.repository().to_owned());
    let digest = parsed.digest().map(str::to_owned);
    Ok(match (parsed.tag().map(str::to_owned), digest) {
        (Some(tag), Some(digest)) => Parsed::with_tag_and_digest(registry, repository, tag, digest),
        (Some(tag), None) => Parsed::with_tag(registry, repository, tag),
        (None, digest) => Parsed::with_digest(registry, repository, digest.unwrap_or_default()),
    })
}

/// Says what is wrong with a reference, in words.
fn reason(error: &ParseError, text: &str) -> String {
    let name = text.split(['@']).next().unwrap_or_default();
    let lower = name.to_lowercase();
    match error {
        ParseError::NameEmpty => "names no image".into(),
        ParseError::NameTooLong => "has a repository of more than 255 characters".into(),
        ParseError::DigestInvalidFormat
        | ParseError::DigestInvalidLength
        | ParseError::DigestUnsupported => {
            "has a digest that is not sha256: and 64 lower-case hexadecimal digits".into()
        }
        _ if name != lower && parse(&text.replace(name, &lower)).is_ok() => UPPER_CASE.into(),
        _ if text.contains(char::is_whitespace) => "has a space in it".into(),
        _ if text.contains('@') && parse(name).is_ok() => {
            "has a digest that is not sha256: and 64 lower-case hexadecimal digits".into()
        }
        _ => "is no image: [HOST[:PORT]/]REPOSITORY[:TAG][@sha256:DIGEST] is".into(),
    }
}

/// What is wrong with a text that should name an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidReference(String);

impl fmt::Display for InvalidReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidReference {}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_are_normalised_as_docker_does() {
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".into()),
            ("a/b", "docker.io/a/b:latest".into()),
            ("docker.io/nginx", "docker.io/library/nginx:latest".into()),
            ("index.docker.io/a/b:C", "docker.io/a/b:C".into()),
            ("localhost/a", "localhost/a:latest".into()),
            ("host:5000/a/b:c", "host:5000/a/b:c".into()),
            ("[::1]:5000/a:b", "[::1]:5000/a:b".into()),
            ("ghcr.io/a/b/c:d", "ghcr.io/a/b/c:d".into()),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full);
            assert_eq!(full.parse::<Reference>().unwrap(), reference);
        }
        let both: Reference = format!("h:5000/a/b:t@{DIGEST}").parse().unwrap();
        assert_eq!(both.registry(), "h:5000");
        assert_eq!(both.repository(), "a/b");
        assert_eq!((both.tag(), both.digest()), (Some("t"), Some(DIGEST)));
        assert_eq!(both.name(), DIGEST);
        let plain: Reference = "h:5000/a/b".parse().unwrap();
        assert_eq!(
            plain.with_digest(DIGEST).to_string(),
            format!("h:5000/a/b@{DIGEST}")
        );
        let one: Reference = format!("[::1]:1/a@{DIGEST}").parse().unwrap();
        assert_eq!(one.to_string(), format!("[::1]:1/a@{DIGEST}"));
    }

    #[test]
    fn what_is_no_reference_is_told_so_in_words() {
        for (text, word) in [
            ("", "names no image"),
            ("Nginx", "upper-case"),
            ("a/B:1", "upper-case"),
            ("Host/a", "upper-case"),
            ("https://docker.io/a", "URL"),
            ("docker://nginx", "write nginx"),
            ("a b", "space"),
            ("a@sha256:12", "64 lower-case"),
            (
                &format!("a@{}", DIGEST.replace("e3", "E3")),
                "64 lower-case",
            ),
            ("a@md5:e3b0c44298fc1c149afbf4c8996fb924", "64 lower-case"),
            ("a:", "REPOSITORY"),
            ("../a", "REPOSITORY"),
            ("[::x]/a", "REPOSITORY"),
            ("[::1]a", "REPOSITORY"),
            ("a/../b", "REPOSITORY"),
            (&"a".repeat(2000), "too long"),
            (&"a".repeat(300), "255"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
            assert!(error.len() < 400, "{error}");
        }
    }
}
