//! What the failure of a connection means: in words, and for what is to be done next.

use std::error::Error as StdError;
use std::io;

use reqwest::Url;

use crate::dns::ResolveError;
use crate::error::{Again, Error, Kind, shown};
use crate::options::Options;

/// A request that was not answered.
pub struct Failed {
    pub error: Error,
    /// Whether the server may be one that does not speak TLS.
    pub perhaps_plain: bool,
    /// Whether it is one for sure.
    pub is_plain: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed {
            error,
            perhaps_plain: false,
            is_plain: false,
        }
    }
}

/// The error for a server that has sent nothing for too long.
pub fn silent(name: &str, options: &Options) -> Error {
    let seconds = options.idle_timeout.as_secs_f32();
    let message = format!("{name} sends nothing for {seconds} s");
    Error::new(Kind::Unreachable, message).with_again(Again::Yes)
}

/// Returns what a failure of a request to `url` means, whose server is `name`.
pub fn of(error: &reqwest::Error, url: &Url, name: &str, options: &Options) -> Failed {
    let unreachable = |message: String| Error::new(Kind::Unreachable, message);
    if let Some(why) = find::<ResolveError>(error) {
        return unreachable(format!("cannot find {name}: {why}")).into();
    }
    if let Some(why) = find::<rustls::Error>(error) {
        return of_tls(why, url, name);
    }
    let kind = io_kind(error);
    // A handshake that the server ends without a word.
    let tls = error.is_connect() && url.scheme() == "https";
    if error.is_connect() && (error.is_timeout() || kind == Some(io::ErrorKind::TimedOut)) {
        let seconds = options.connect_timeout.as_secs_f32();
        let message = format!("{name} takes no connection within {seconds} s");
        return Failed {
            perhaps_plain: tls,
            ..Failed::from(unreachable(message).with_again(Again::Yes))
        };
    }
    if let (true, Some(kind)) = (error.is_connect(), kind)
        && !is_cut(kind)
    {
        let message = format!("cannot connect to {name}: {}", innermost(error));
        return Failed {
            // Nobody listens at the port of https; there may be one who does at that of http.
            perhaps_plain: tls && url.port().is_none(),
            ..Failed::from(unreachable(message))
        };
    }
    let what = match tls {
        true => "TLS handshake",
        false => "connection",
    };
    let message = format!("the {what} with {name} fails: {}", innermost(error));
    Failed {
        perhaps_plain: tls,
        ..Failed::from(unreachable(message).with_again(Again::Yes))
    }
}

fn of_tls(why: &rustls::Error, url: &Url, name: &str) -> Failed {
    let unreachable = |message: String| Error::new(Kind::Unreachable, message);
    let why_shown = shown(&why.to_string());
    match why {
        rustls::Error::InvalidMessage(_) => Failed {
            error: unreachable(format!("{name} does not speak TLS")),
            perhaps_plain: true,
            is_plain: true,
        },
        rustls::Error::InvalidCertificate(_) => {
            let folder = url.host_str().unwrap_or_default();
            let folder = url
                .port()
                .map_or(folder.to_owned(), |port| format!("{folder}:{port}"));
            let message = format!("the TLS certificate of {name} is not accepted: {why_shown}");
            let hint = format!(
                "if its CA is one of your own, put the CA's certificate into \
                 /etc/docker/certs.d/{folder}/ca.crt"
            );
            unreachable(message).with_hint(hint).into()
        }
        _ => unreachable(format!("no TLS with {name}: {why_shown}")).into(),
    }
}

/// Whether it is how a connection ends that was there.
fn is_cut(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::InvalidData
            | io::ErrorKind::Other
    )
}

/// The kind of the innermost I/O error.
fn io_kind(error: &reqwest::Error) -> Option<io::ErrorKind> {
    let errors = causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>());
    errors.last().map(io::Error::kind)
}

fn find<T: StdError + 'static>(error: &reqwest::Error) -> Option<&T> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// Returns what the innermost cause of an error says.
pub fn innermost(error: &reqwest::Error) -> String {
    let last = causes(error).last().map(ToString::to_string);
    shown(&last.unwrap_or_default())
}

/// An error and its causes, from the outside to the inside; also those that an I/O error only carries.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let first: &(dyn StdError + 'static) = error;
    std::iter::successors(Some(first), |&error| {
        let carried = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        match carried {
            Some(carried) => Some(carried),
            None => error.source(),
        }
    })
}
