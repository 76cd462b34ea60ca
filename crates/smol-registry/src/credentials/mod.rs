//! Credentials: where docker and podman keep them.
//!
//! | module | what |
//! |---|---|
//! | [`file`] | the files |
//! | [`helper`] | programs that have them |

pub mod file;
pub mod helper;

use std::fmt;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use self::file::{AuthFile, Found};
use crate::error::{Error, Kind, Result};

/// Most bytes of a file of credentials.
const MOST: u64 = 1 << 20;

/// What a registry is shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user's name and password, or a token in its place.
    Password { user: String, password: String },
    /// A token that others can be got with (a refresh token of OAuth 2).
    Identity(String),
}

impl Credential {
    pub(crate) fn password(user: &str, password: &str) -> Self {
        Credential::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        }
    }
}

/// Without the secret.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credential::Password { user, .. } => write!(f, "Password({user:?})"),
            Credential::Identity(_) => write!(f, "Identity"),
        }
    }
}

/// Returns the credentials for a repository, of the first file that has some.
///
/// # Errors
/// For a file or a helper that is broken, which is named.
pub fn find(
    files: &[PathBuf],
    registry: &str,
    repository: &str,
    go_on: &dyn Fn() -> bool,
) -> Result<Option<Credential>> {
    for path in files {
        let wrong = |why: &str| {
            let message = format!("the file of credentials {}: {why}", path.display());
            Error::new(Kind::Config, message)
        };
        let Some(bytes) = read(path).map_err(|why| wrong(&why))? else {
            continue;
        };
        let file = AuthFile::parse(&bytes).map_err(|why| wrong(&why))?;
        let found = file.find(registry, repository).map_err(|why| wrong(&why))?;
        let credential = match found {
            None => None,
            Some(Found::Here(credential)) => Some(credential),
            Some(Found::Helper { name, server }) => {
                let hint = format!("{} names it", path.display());
                helper::get(&name, &server, go_on).map_err(|error| error.with_hint(hint))?
            }
        };
        if credential.is_some() {
            return Ok(credential);
        }
    }
    Ok(None)
}

/// Returns the bytes of a file, if it is there.
fn read(path: &Path) -> std::result::Result<Option<Vec<u8>>, String> {
    let file = match std::fs::File::open(path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        file => file.map_err(|e| e.to_string())?,
    };
    let mut bytes = Vec::new();
    let mut file = file.take(MOST + 1);
    file.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MOST {
        return Err("it is longer than 1 MiB".into());
    }
    Ok(Some(bytes))
}
