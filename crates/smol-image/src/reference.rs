//! How an image is named: as containers-transports(5) has it, which skopeo and podman read.

use std::fmt;

use smol_bundle::Digest;

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageRef {
    /// `oci:FOLDER[:TAG]`: a layout.
    Layout {
        /// The folder.
        path: String,
        /// The image in it, if there are several.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`: a layout as a tar archive.
    OciArchive {
        /// The archive.
        path: String,
        /// The image in it, if there are several.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:NAME]`: what `docker save` writes.
    DockerArchive {
        /// The archive.
        path: String,
        /// The image in it, if there are several: a name with its tag, or `@` and a number from 0.
        name: Option<String>,
    },
    /// `-`: an archive of either kind on standard input.
    Stdin,
    /// `sha256:...`: the digest of the image's configuration, by which engines name images that they
    /// have, too.
    Id(Digest),
    /// `docker.io/library/nginx:1.27`, also with `docker://` before it: in a registry.
    Registry(String),
}

impl ImageRef {
    /// Reads a reference.
    ///
    /// # Errors
    /// What is wrong with it, and what to write instead.
    pub fn parse(text: &str) -> Result<Self, RefError> {
        let wrong = |what: &str, help: &str| RefError {
            what: what.to_owned(),
            help: help.to_owned(),
        };
        if text == "-" {
            return Ok(Self::Stdin);
        }
        if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(wrong("not the name of an image", EXAMPLES));
        }
        let (transport, rest) = text.split_once(':').unwrap_or(("", text));
        let place = || match rest.split_once(':') {
            Some((path, name)) => (path.to_owned(), Some(name.to_owned())),
            None => (rest.to_owned(), None),
        };
        let (path, name) = place();
        let local = match transport {
            "oci" => Self::Layout { path, tag: name },
            "oci-archive" => Self::OciArchive { path, tag: name },
            "docker-archive" => Self::DockerArchive { path, name },
            "sha256" => {
                let id = text.parse();
                let cannot = |_| {
                    wrong(
                        "not the digest of an image",
                        "64 digits and letters from a to f follow `sha256:`",
                    )
                };
                return id.map(Self::Id).map_err(cannot);
            }
            "docker" if rest.starts_with("//") => return registry(&rest[2..]),
            _ => return other(transport, rest).map_or_else(|| registry(text), Err),
        };
        match local.path() {
            Some("") => Err(wrong("the name of the image has no path", EXAMPLES)),
            _ if local.name() == Some("") => Err(wrong(
                "nothing follows the last colon",
                "write the tag there, or remove the colon",
            )),
            _ => Ok(local),
        }
    }

    /// The file or folder that it names.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Layout { path, .. }
            | Self::OciArchive { path, .. }
            | Self::DockerArchive { path, .. } => Some(path),
            Self::Stdin | Self::Id(_) | Self::Registry(_) => None,
        }
    }

    /// The same in another file or folder.
    pub fn with_path(self, path: String) -> Self {
        match self {
            Self::Layout { tag, .. } => Self::Layout { path, tag },
            Self::OciArchive { tag, .. } => Self::OciArchive { path, tag },
            Self::DockerArchive { name, .. } => Self::DockerArchive { path, name },
            other => other,
        }
    }

    /// Which image of a file or folder is meant.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Layout { tag, .. } | Self::OciArchive { tag, .. } => tag.as_deref(),
            Self::DockerArchive { name, .. } => name.as_deref(),
            Self::Stdin | Self::Id(_) | Self::Registry(_) => None,
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self {
            Self::Layout { .. } => "oci:",
            Self::OciArchive { .. } => "oci-archive:",
            Self::DockerArchive { .. } => "docker-archive:",
            Self::Stdin => return f.write_str("-"),
            Self::Id(digest) => return digest.fmt(f),
            Self::Registry(name) => return f.write_str(name),
        };
        write!(f, "{transport}{}", self.path().unwrap_or_default())?;
        self.name().map_or(Ok(()), |name| write!(f, ":{name}"))
    }
}

/// Why a text is not the name of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefError {
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub help: String,
}

const EXAMPLES: &str = "write a name such as \"docker.io/library/nginx:1.27\", or oci:FOLDER:TAG, oci-archive:FILE, docker-archive:FILE";

/// What is wrong with a transport that others know.
fn other(transport: &str, rest: &str) -> Option<RefError> {
    let help = match transport {
        "docker-daemon" => {
            format!("write docker-archive:image.tar, and make it: docker save {rest} -o image.tar")
        }
        "containers-storage" => {
            let name = rest.rsplit(']').next().unwrap_or(rest);
            format!(
                "write oci-archive:image.tar, and make it: podman save --format oci-archive -o image.tar {name}"
            )
        }
        "dir" | "ostree" | "sif" | "tarball" | "atomic" => {
            format!(
                "write oci-archive:image.tar, and make it: skopeo copy {transport}:{rest} oci-archive:image.tar"
            )
        }
        "http" | "https" => {
            "the name of an image has no URL scheme: write registry/name:tag".to_owned()
        }
        _ => return None,
    };
    Some(RefError {
        what: format!("images cannot be read by `{transport}:`"),
        help,
    })
}

/// A name in a registry (the distribution specification, "Pulling manifests"). What is told here is
/// what people write; the registry's client reads it once more.
fn registry(name: &str) -> Result<ImageRef, RefError> {
    let wrong = |what: String| {
        Err(RefError {
            what,
            help: EXAMPLES.to_owned(),
        })
    };
    let (path, digest) = name
        .split_once('@')
        .map_or((name, None), |(p, d)| (p, Some(d)));
    if let Some(digest) = digest
        && digest.parse::<Digest>().is_err()
    {
        return wrong(format!(
            "`{digest}` is not a digest: `sha256:` and 64 digits and letters from a to f"
        ));
    }
    let last = path.rsplit('/').next().unwrap_or_default();
    let (_, tag) = last
        .split_once(':')
        .map_or((last, None), |(name, tag)| (name, Some(tag)));
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return wrong(
            "the tag of an image has letters, digits, `_`, `.` and `-`, at most 128".to_owned(),
        );
    }
    let without_tag = tag.map_or(path, |tag| &path[..path.len() - tag.len() - 1]);
    let mut parts = without_tag.split('/').peekable();
    if let Some(first) = parts.peek()
        && without_tag.contains('/')
        && (first.contains(['.', ':', '[']) || *first == "localhost")
    {
        parts.next();
    }
    let is_part = |part: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        part.bytes().all(|b| inner(b) || b"._-".contains(&b))
            && part.bytes().next().is_some_and(inner)
            && part.bytes().next_back().is_some_and(inner)
    };
    match parts.find(|part| !is_part(part)) {
        Some(part) if part.bytes().any(|b| b.is_ascii_uppercase()) => wrong(format!(
            "the name of an image is in lower case: `{}`",
            part.to_ascii_lowercase()
        )),
        Some(_) => wrong("not the name of an image".to_owned()),
        None => Ok(ImageRef::Registry(name.to_owned())),
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_and_shown_as_they_are_written() {
        let id = format!("sha256:{}", "0a".repeat(32));
        let pinned = format!("nginx:1.27@{id}");
        for text in [
            "-",
            "oci:layout",
            "oci:a/layout:v1",
            "oci-archive:x.tar:docker.io/library/x:1",
            "docker-archive:x.tar",
            "docker-archive:x.tar:x:latest",
            "docker-archive:x.tar:@1",
            "nginx",
            "nginx:1.27",
            "localhost:5000/a/b_c:x",
            "127.0.0.1:5000/a",
            "ghcr.io/a/b-c@sha256:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a",
            &id,
            &pinned,
        ] {
            let read = ImageRef::parse(text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
            assert_eq!(read.to_string(), text);
        }
        let name = ImageRef::parse("docker://nginx").unwrap();
        assert_eq!(name, ImageRef::Registry("nginx".into()));
        let archive = ImageRef::parse("docker-archive:x.tar:x:1").unwrap();
        assert_eq!(
            (archive.path(), archive.name()),
            (Some("x.tar"), Some("x:1"))
        );
    }

    #[test]
    fn what_names_no_image_is_refused_with_what_to_write() {
        for (text, told) in [
            ("", "not the name"),
            ("a b", "not the name"),
            ("oci:", "has no path"),
            ("oci:x:", "last colon"),
            ("sha256:12", "not the digest"),
            ("nginx@sha256:12", "not a digest"),
            ("Nginx", "`nginx`"),
            ("docker.io/A/b", "`a`"),
            ("nginx:1:2", "the tag"),
            ("a//b", "not the name"),
            ("-nginx", "not the name"),
            ("docker-daemon:nginx:1", "docker save nginx:1 -o image.tar"),
            ("containers-storage:[x]nginx", "podman save"),
            ("https://x/y", "URL scheme"),
        ] {
            let error = ImageRef::parse(text).unwrap_err();
            let all = format!("{}; {}", error.what, error.help);
            assert!(all.contains(told), "{text}: {all}");
        }
    }
}
