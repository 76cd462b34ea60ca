//! Names of images, as docker reads them.

use std::fmt;
use std::str::FromStr;

use oci_client::Reference as Parsed;

use crate::digest;
use crate::error::shown;

/// Most bytes of a repository (distribution specification, "Pulling manifests") and of a tag.
const MOST_REPOSITORY: usize = 255;
const MOST_TAG: usize = 128;
/// Most bytes of a reference: a host name, a repository, a tag, a digest.
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
        parse(text).map(Reference).map_err(wrong)
    }
}

/// Parses it, or says what is wrong. oci-client has a parser, too, which for one reference compiles a
/// regular expression of 20 MB; a test compares the two.
fn parse(text: &str) -> Result<Parsed, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.to_owned())),
        None => (text, None),
    };
    if rest.is_empty() {
        return Err("names no image");
    }
    if digest
        .as_deref()
        .is_some_and(|digest| !digest::is_sha256(digest))
    {
        return Err("has a digest that is not sha256: and 64 lower-case hexadecimal digits");
    }
    let path_at = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[path_at..].split_once(':') {
        Some((last, tag)) => (&rest[..path_at + last.len()], Some(tag.to_owned())),
        None => (rest, None),
    };
    let (registry, path) = match name.split_once('/') {
        Some((host, path)) if host == "localhost" || host.contains(['.', ':']) => (host, path),
        _ => ("docker.io", name),
    };
    let registry = match registry {
        "index.docker.io" => "docker.io",
        registry => registry,
    };
    let repository = match registry == "docker.io" && !path.contains('/') {
        true => format!("library/{path}"),
        false => path.to_owned(),
    };
    if !is_host(registry) || tag.as_deref().is_some_and(|tag| !is_tag(tag)) {
        return Err(WHAT_IS_ONE);
    }
    if !repository.split('/').all(is_component) {
        let lower = repository.to_ascii_lowercase();
        return Err(match lower.split('/').all(is_component) {
            true => UPPER_CASE,
            false => WHAT_IS_ONE,
        });
    }
    if repository.len() > MOST_REPOSITORY {
        return Err("has a repository of more than 255 characters");
    }
    let registry = registry.to_owned();
    Ok(match (tag, digest) {
        (Some(tag), Some(digest)) => Parsed::with_tag_and_digest(registry, repository, tag, digest),
        (None, Some(digest)) => Parsed::with_digest(registry, repository, digest),
        (tag, None) => {
            let tag = tag.unwrap_or_else(|| "latest".to_owned());
            Parsed::with_tag(registry, repository, tag)
        }
    })
}

/// Whether it is `HOST[:PORT]`, with an IPv6 address in brackets.
fn is_host(text: &str) -> bool {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (text, None),
    };
    let is_port =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let is_label = |label: &str| {
        let known = label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-');
        known && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    let address = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    let is_name = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.split('.').all(is_label),
    };
    is_name && port.is_none_or(is_port)
}

fn is_tag(text: &str) -> bool {
    let known = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let begins = text.starts_with(|c: char| c != '.' && c != '-');
    begins && text.len() <= MOST_TAG && text.bytes().all(known)
}

/// Whether it is a part of a repository: lower-case letters and digits, between them one `.`, one or
/// two `_`, or any number of `-`.
fn is_component(text: &str) -> bool {
    let is_inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends =
        text.bytes().next().is_some_and(is_inner) && text.bytes().last().is_some_and(is_inner);
    let mut separators = text.split(|c: char| u8::try_from(c).is_ok_and(is_inner));
    let known = |s: &str| ["", ".", "_", "__"].contains(&s) || s.bytes().all(|b| b == b'-');
    ends && separators.all(known)
}

const WHAT_IS_ONE: &str = "is no image: [HOST[:PORT]/]REPOSITORY[:TAG][@sha256:DIGEST] is";

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
    fn what_is_accepted_is_what_the_parser_of_oci_client_reads() {
        let mut state = 1u32;
        let mut next = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        let pieces = [
            "a",
            "b1",
            ".",
            "-",
            "_",
            "__",
            "/",
            ":",
            "5000",
            "host",
            "localhost",
            "example.com",
            "@",
            DIGEST,
            "T",
            "docker.io",
            "index.docker.io",
            "library",
        ];
        let (mut accepted, mut refused) = (0, 0);
        for _ in 0..20_000 {
            let len = 1 + next(7);
            let text: String = (0..len).map(|_| pieces[next(pieces.len())]).collect();
            match (text.parse::<Reference>(), Parsed::try_from(text.as_str())) {
                (Ok(ours), theirs) => {
                    assert_eq!(theirs.as_ref(), Ok(&ours.0), "{text}");
                    accepted += 1;
                }
                // Theirs takes hosts with `_`, and upper-case letters into repositories.
                (Err(_), Ok(theirs)) => {
                    let odd = theirs.repository().contains(char::is_uppercase)
                        || theirs.registry().contains('_')
                        || theirs.registry().contains("..")
                        || !is_host(theirs.registry());
                    assert!(odd, "{text}");
                }
                (Err(_), Err(_)) => refused += 1,
            }
        }
        assert!(accepted > 1000 && refused > 1000, "{accepted}, {refused}");
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
            ("a b", "REPOSITORY"),
            ("a._b", "REPOSITORY"),
            ("a___b", "REPOSITORY"),
            ("host:99999/a", "REPOSITORY"),
            ("-host.x/a", "REPOSITORY"),
            (&format!("a:{}", "t".repeat(129)), "REPOSITORY"),
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
