//! What a client can be told: where its files are, which registries may be spoken to without TLS, how
//! long it waits.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// How a [`Client`](crate::Client) works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Registries, as `HOST[:PORT]`, whose certificates are not checked, and which may be spoken to
    /// without TLS. Without a port, all ports of the host.
    pub insecure: Vec<String>,
    /// Where configuration is read from.
    pub places: Places,
    /// How long a connection may take to be made, TLS included.
    pub connect_timeout: Duration,
    /// How long a server may send nothing.
    pub idle_timeout: Duration,
    /// How often a request is repeated that may go well the next time. A download that went on by
    /// [`PROGRESS`] bytes counts anew.
    pub retries: u32,
    /// The wait before the first repetition; each further one is twice as long, up to a minute.
    pub retry_delay: Duration,
    /// The longest wait that a server may ask for (`Retry-After`); a longer one is an error.
    pub most_retry_after: Duration,
}

/// Bytes of a blob that make a download count as one that gets on.
pub const PROGRESS: u64 = 1 << 20;

impl Default for Options {
    fn default() -> Self {
        Options {
            insecure: Vec::new(),
            places: Places::of_environment(),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            retries: 4,
            retry_delay: Duration::from_millis(250),
            most_retry_after: Duration::from_secs(60),
        }
    }
}

/// Files of the host that a client reads. None of them has to exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Credentials, as `docker login` and `podman login` write them; the first file that has some for
    /// an image is taken.
    pub credentials: Vec<PathBuf>,
    /// Mirrors and insecure registries: containers-registries.conf(5), version 2. The first file that
    /// exists is taken.
    pub registries: Vec<PathBuf>,
    /// Folders with a folder `HOST[:PORT]` for each registry that has CAs (`*.crt`) of its own.
    pub certificates: Vec<PathBuf>,
    /// Where the addresses of DNS servers are.
    pub resolver: PathBuf,
}

impl Places {
    /// Returns the places where docker and podman have these files.
    pub fn of_environment() -> Self {
        Self::of(|name| std::env::var_os(name))
    }

    /// Returns the places by these environment variables. An empty one counts as absent.
    fn of(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| {
            variable(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let home = path("HOME");
        let config = path("XDG_CONFIG_HOME").or(home.as_ref().map(|home| home.join(".config")));
        let config = config.map(|config| config.join("containers"));
        let docker = path("DOCKER_CONFIG").or(home.as_ref().map(|home| home.join(".docker")));
        let runtime = path("XDG_RUNTIME_DIR").map_or_else(
            || format!("/run/containers/{}", rustix::process::getuid().as_raw()).into(),
            |runtime| runtime.join("containers"),
        );
        let credentials = match path("REGISTRY_AUTH_FILE") {
            Some(file) => vec![file],
            None => [
                Some(runtime.join("auth.json")),
                config.as_ref().map(|folder| folder.join("auth.json")),
                docker.map(|folder| folder.join("config.json")),
            ]
            .into_iter()
            .flatten()
            .collect(),
        };
        let registries = match path("CONTAINERS_REGISTRIES_CONF") {
            Some(file) => vec![file],
            None => (config.iter())
                .map(|folder| folder.join("registries.conf"))
                .chain(["/etc/containers/registries.conf".into()])
                .collect(),
        };
        let certificates = (config.iter())
            .map(|folder| folder.join("certs.d"))
            .chain(["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from))
            .collect();
        Places {
            credentials,
            registries,
            certificates,
            resolver: "/etc/resolv.conf".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Places {
        Places::of(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.into())
        })
    }

    #[test]
    fn files_are_where_docker_and_podman_have_them() {
        let places = of(&[
            ("HOME", "/h"),
            ("XDG_RUNTIME_DIR", "/r"),
            ("DOCKER_CONFIG", ""),
        ]);
        let credentials = [
            "/r/containers/auth.json",
            "/h/.config/containers/auth.json",
            "/h/.docker/config.json",
        ];
        assert_eq!(places.credentials, credentials.map(PathBuf::from));
        let registries = [
            "/h/.config/containers/registries.conf",
            "/etc/containers/registries.conf",
        ];
        assert_eq!(places.registries, registries.map(PathBuf::from));
        let certificates = [
            "/h/.config/containers/certs.d",
            "/etc/containers/certs.d",
            "/etc/docker/certs.d",
        ];
        assert_eq!(places.certificates, certificates.map(PathBuf::from));
    }

    #[test]
    fn a_file_named_by_the_environment_is_the_only_one() {
        let places = of(&[
            ("HOME", "/h"),
            ("REGISTRY_AUTH_FILE", "/a"),
            ("CONTAINERS_REGISTRIES_CONF", "/c"),
        ]);
        assert_eq!(places.credentials, [PathBuf::from("/a")]);
        assert_eq!(places.registries, [PathBuf::from("/c")]);
        let places = of(&[("DOCKER_CONFIG", "/d"), ("XDG_CONFIG_HOME", "/x")]);
        assert_eq!(
            places.credentials[1],
            PathBuf::from("/x/containers/auth.json")
        );
        assert_eq!(places.credentials[2], PathBuf::from("/d/config.json"));
    }
}
