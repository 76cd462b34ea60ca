//! Mirrors and insecure registries: containers-registries.conf(5), version 2.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Kind, Result, shown};
use crate::transport::Host;

/// Most bytes of the file.
const MOST: u64 = 1 << 20;
/// Most mirrors of a registry that are tried.
const MOST_MIRRORS: usize = 32;

/// A `registries.conf`. What has no meaning for an image that is named in full is passed over.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Registries {
    registry: Vec<Registry>,
    /// Tables of version 1.
    registries: Option<toml::Table>,
    #[serde(skip)]
    path: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Registry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<Mirror>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Mirror {
    location: String,
    insecure: bool,
    pull_from_mirror: String,
}

/// A repository at a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    pub host: Host,
    pub repository: String,
}

impl Source {
    /// The server that requests go to: docker.io has its API elsewhere.
    pub fn server(&self) -> Host {
        let name = match self.host.name.as_str() {
            "docker.io" => "registry-1.docker.io",
            name => name,
        };
        Host {
            name: name.to_owned(),
            insecure: self.host.insecure,
        }
    }
}

impl Registries {
    /// Reads the first of these files that exists.
    ///
    /// # Errors
    /// If it is none, which names it.
    pub fn load(files: &[PathBuf]) -> Result<Self> {
        for path in files {
            let wrong = |why: String| {
                let message = format!("the file of mirrors {}: {why}", path.display());
                Error::new(Kind::Config, message)
            };
            if let Some(text) = read(path).map_err(wrong)? {
                let mut registries = Self::parse(&text).map_err(wrong)?;
                registries.path = path.clone();
                return Ok(registries);
            }
        }
        Ok(Self::default())
    }

    /// Parses a file.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let registries: Self = toml::from_str(text).map_err(|e| {
            let before = &text.as_bytes()[..e.span().map_or(0, |span| span.start.min(text.len()))];
            let line = 1 + before.iter().filter(|b| **b == b'\n').count();
            format!("line {line}: {}", shown(e.message()))
        })?;
        if registries.registries.is_some() {
            return Err("[registries] is of version 1; version 2 has [[registry]]".into());
        }
        for registry in &registries.registry {
            if registry.prefix.is_empty() && registry.location.is_empty() {
                return Err("a [[registry]] has neither prefix nor location".into());
            }
            let mirrors = registry.mirror.iter().map(|mirror| &mirror.location);
            let locations = mirrors.chain([&registry.location]);
            for location in locations.filter(|location| !location.is_empty()) {
                split(location).ok_or_else(|| format!("{:?} is no location", shown(location)))?;
            }
            if registry.mirror.iter().any(|m| m.location.is_empty()) {
                return Err("a [[registry.mirror]] has no location".into());
            }
        }
        Ok(registries)
    }

    /// Returns where an image can be had, in the order in which it is tried: mirrors, then the
    /// registry itself.
    ///
    /// # Errors
    /// If its registry is blocked.
    pub fn sources(
        &self,
        registry: &str,
        repository: &str,
        by_digest: bool,
    ) -> Result<Vec<Source>> {
        let full = format!("{registry}/{repository}");
        let matching = self.registry.iter().filter_map(|entry| {
            let prefix = match entry.prefix.as_str() {
                "" => entry.location.as_str(),
                prefix => prefix,
            };
            Some((matched(prefix, &full)?, entry))
        });
        let mut sources = Vec::new();
        let Some((len, entry)) = matching.max_by_key(|(len, _)| *len) else {
            sources.extend(source(&full, false));
            return Ok(sources);
        };
        if entry.blocked {
            let message = format!("{full} is blocked by {}", self.path.display());
            return Err(Error::new(Kind::Config, message));
        }
        let rest = &full[len..];
        for mirror in entry.mirror.iter().take(MOST_MIRRORS) {
            let used = match mirror.pull_from_mirror.as_str() {
                "digest-only" => by_digest,
                "tag-only" => !by_digest,
                _ => by_digest || !entry.mirror_by_digest_only,
            };
            if used {
                let location = mirror.location.trim_end_matches('/');
                sources.extend(source(&format!("{location}{rest}"), mirror.insecure));
            }
        }
        // A prefix with a wildcard has no location that all its hosts could be replaced by.
        let itself = match entry.location.trim_end_matches('/') {
            "" => full.clone(),
            location => format!("{location}{rest}"),
        };
        sources.extend(source(&itself, entry.insecure));
        if sources.is_empty() {
            let message = format!("{} gives no location for {full}", self.path.display());
            return Err(Error::new(Kind::Config, message));
        }
        Ok(sources)
    }
}

/// How much of a name a prefix covers, if it does: `host/a` covers `host/a/b` and not `host/ab`;
/// `*.host` covers all hosts below it.
fn matched(prefix: &str, full: &str) -> Option<usize> {
    let prefix = prefix.trim_end_matches('/');
    let ends = |rest: &str| rest.is_empty() || rest.starts_with(['/', ':', '@']);
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = full.split(['/', ':']).next().unwrap_or_default();
        let is_below = domain.starts_with('.') && host.len() > domain.len();
        return (is_below && host.ends_with(domain)).then_some(host.len());
    }
    let rest = full.strip_prefix(prefix)?;
    // A port makes another registry of a host.
    let other_port = rest.starts_with(':') && !prefix.contains('/');
    (ends(rest) && !other_port).then_some(prefix.len())
}

/// A location as host and path.
fn split(location: &str) -> Option<(&str, &str)> {
    let (host, path) = location.split_once('/').unwrap_or((location, ""));
    let of = |c: char, more: &str| c.is_ascii_alphanumeric() || more.contains(c);
    let host_is_one =
        !host.is_empty() && !host.ends_with(':') && host.chars().all(|c| of(c, ".-_:[]"));
    let path_is_one = path.chars().all(|c| of(c, "._-/")) && !path.split('/').any(|p| p == "..");
    (host_is_one && path_is_one).then_some((host, path))
}

fn source(full: &str, insecure: bool) -> Option<Source> {
    let (host, repository) = split(full)?;
    (!repository.is_empty()).then(|| Source {
        host: Host {
            name: host.to_owned(),
            insecure,
        },
        repository: repository.to_owned(),
    })
}

fn read(path: &Path) -> std::result::Result<Option<String>, String> {
    let file = match std::fs::File::open(path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        file => file.map_err(|e| e.to_string())?,
    };
    let mut text = String::new();
    let mut file = file.take(MOST + 1);
    file.read_to_string(&mut text).map_err(|e| e.to_string())?;
    if text.len() as u64 > MOST {
        return Err("it is longer than 1 MiB".into());
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
unqualified-search-registries = ["docker.io"]
[[registry]]
location = "docker.io"
[[registry.mirror]]
location = "mirror:5000/hub"
insecure = true
[[registry.mirror]]
location = "second"
pull-from-mirror = "digest-only"
[[registry]]
prefix = "docker.io/library"
location = "else.where/lib"
[[registry]]
prefix = "*.example.com"
insecure = true
[[registry]]
location = "bad.host"
blocked = true
"#;

    fn sources(registry: &str, repository: &str, by_digest: bool) -> Vec<String> {
        let registries = Registries::parse(FILE).unwrap();
        let sources = registries.sources(registry, repository, by_digest);
        let text = |source: Source| {
            let insecure = if source.host.insecure {
                " insecure"
            } else {
                ""
            };
            format!("{} {}{insecure}", source.host.name, source.repository)
        };
        sources.unwrap().into_iter().map(text).collect()
    }

    #[test]
    fn mirrors_go_before_the_registry_and_the_longest_prefix_counts() {
        assert_eq!(
            sources("docker.io", "a/b", false),
            ["mirror:5000 hub/a/b insecure", "docker.io a/b"]
        );
        assert_eq!(
            sources("docker.io", "a/b", true),
            [
                "mirror:5000 hub/a/b insecure",
                "second a/b",
                "docker.io a/b"
            ]
        );
        assert_eq!(
            sources("docker.io", "library/x", false),
            ["else.where lib/x"]
        );
        assert_eq!(sources("docker.io", "library2/x", true).len(), 3);
        assert_eq!(
            sources("a.example.com", "x", false),
            ["a.example.com x insecure"]
        );
        assert_eq!(sources("example.com", "x", false), ["example.com x"]);
        assert_eq!(sources("docker.io:5", "x", false), ["docker.io:5 x"]);
        assert_eq!(sources("quay.io", "x/y", false), ["quay.io x/y"]);
    }

    #[test]
    fn a_blocked_registry_is_an_error_and_so_is_a_broken_file() {
        let registries = Registries::parse(FILE).unwrap();
        let error = registries.sources("bad.host", "a", true).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.to_string().contains("blocked"), "{error}");
        for (text, word) in [
            ("a = ", "line 1"),
            ("\n[[registry]]\nlocation = 1", "line 3"),
            ("[registries.search]\nregistries = []", "version 1"),
            ("[[registry]]\ninsecure = true", "neither"),
            ("[[registry]]\nlocation = \"http://a\"", "no location"),
            ("[[registry]]\nlocation = \"a/../b\"", "no location"),
            ("[[registry]]\nlocation = \"a@b\"", "no location"),
            (
                "[[registry]]\nlocation = \"a\"\n[[registry.mirror]]",
                "no location",
            ),
        ] {
            let error = Registries::parse(text).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        assert!(Registries::parse("").unwrap().registry.is_empty());
    }
}
