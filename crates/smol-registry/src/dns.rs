//! Names to addresses, by the servers in `/etc/resolv.conf` and the names in `/etc/hosts`.
//!
//! hickory and not getaddrinfo: that of a statically linked glibc loads modules of the host's, which
//! may be of another version. And not reqwest's use of hickory, which asks a public server where
//! resolv.conf is missing or has none.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::parse_resolv_conf;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Most bytes of a resolv.conf that are read.
const MOST: u64 = 64 << 10;

/// A resolver that reads its configuration at the first name.
#[derive(Clone)]
pub struct Resolver(Arc<Shared>);

struct Shared {
    path: PathBuf,
    state: OnceLock<Result<State, ResolveError>>,
}

struct State {
    resolver: TokioResolver,
    /// Why there are no servers to ask; names of `/etc/hosts` are known all the same.
    without: Option<String>,
}

impl Resolver {
    /// Returns one whose servers are in this file.
    pub fn new(path: PathBuf) -> Self {
        Resolver(Arc::new(Shared {
            path,
            state: OnceLock::new(),
        }))
    }

    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        if is_local(name) {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let state = self.0.state.get_or_init(|| self.open());
        let state = state.as_ref().map_err(Clone::clone)?;
        match state.resolver.lookup_ip(name).await {
            Ok(found) => Ok(found.iter().collect()),
            Err(error) => Err(ResolveError::of(name, &error, state.without.as_deref())),
        }
    }

    fn open(&self) -> Result<State, ResolveError> {
        let path = self.0.path.display();
        let text = read(&self.0.path);
        let (config, mut options, without) = match text {
            Ok(text) => match parse_resolv_conf(text) {
                Ok((config, options)) => (config, options, None),
                Err(error) => none(format!("{path}: {error}")),
            },
            Err(error) => none(format!("cannot read {path}: {error}")),
        };
        options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let resolver = builder
            .build()
            .map_err(|error| ResolveError(format!("cannot ask DNS servers: {error}")))?;
        Ok(State { resolver, without })
    }
}

/// No servers, for this reason.
fn none(why: String) -> (ResolverConfig, ResolverOpts, Option<String>) {
    let config = ResolverConfig::from_name_servers(Vec::new());
    (config, ResolverOpts::default(), Some(why))
}

fn read(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut text = Vec::new();
    std::fs::File::open(path)?
        .take(MOST)
        .read_to_end(&mut text)?;
    Ok(text)
}

/// Whether it is this host by definition (RFC 6761, section 6.3).
pub fn is_local(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let found = resolver.addresses(name.as_str()).await?;
            // The port is that of the URL.
            let found = found.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(found) as Addrs)
        })
    }
}

/// Why a name has no address.
#[derive(Clone, Debug)]
pub struct ResolveError(String);

impl ResolveError {
    fn of(name: &str, error: &NetError, without: Option<&str>) -> Self {
        if let Some(why) = without {
            return Self(format!("no DNS server is known ({why})"));
        }
        if error.is_nx_domain() || error.is_no_records_found() {
            return Self(format!("DNS knows no address of {name}"));
        }
        Self(format!("DNS does not answer: {error}"))
    }
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ResolveError {}
