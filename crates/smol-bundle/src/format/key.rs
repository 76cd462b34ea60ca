//! ed25519 keys in the files that every tool reads: PKCS#8 PEM (private, RFC 8410) and SPKI PEM
//! (public), as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write them.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::spki::{DecodePublicKey, EncodePublicKey};
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

use crate::format::digest::from_hex;
use crate::{Error, Result, open_regular};

/// Most bytes that are read of a key file.
const MAX_KEY_FILE: u64 = 16 << 10;
/// First line of a PKCS#8 private key, RFC 7468 section 10.
const PRIVATE_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
/// First line of a public key, RFC 7468 section 13.
const PUBLIC_BEGIN: &str = "-----BEGIN PUBLIC KEY-----";

/// A key that signs bundles. Wiped from memory when dropped.
pub struct PrivateKey(SigningKey);

/// A key that verifies signatures.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// Short name of a public key: the first ten bytes of its sha256, in hexadecimal.
///
/// For people to read and compare; trust is decided on the whole key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 10]);

impl PrivateKey {
    /// Makes a new key from the operating system's random numbers.
    pub fn generate() -> Result<Self> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|e| {
            let source = Path::new("getrandom(2)");
            Error::io("get random numbers from", source, e.into())
        })?;
        Ok(PrivateKey(SigningKey::from_bytes(&secret)))
    }

    /// Reads a PKCS#8 PEM file.
    pub fn load(path: &Path) -> Result<Self> {
        load(path, Self::from_pem)
    }

    /// Reads PKCS#8 PEM text; the error says what the text is instead, where that can be seen.
    pub fn from_pem(text: &str) -> std::result::Result<Self, String> {
        if text.contains(PUBLIC_BEGIN) {
            return Err("this is a public key; signing needs the private key".into());
        }
        expect_label(text, PRIVATE_BEGIN, "private")?;
        SigningKey::from_pkcs8_pem(text)
            .map(PrivateKey)
            .map_err(|e| format!("not an ed25519 private key in PKCS#8 PEM form: {e}"))
    }

    /// Writes a new PKCS#8 PEM file that only its owner may read. An existing file is never
    /// overwritten.
    pub fn save(&self, path: &Path) -> Result<()> {
        // Version 1 without the public key: some tools refuse version 2 of PKCS#8.
        let keypair = KeypairBytes {
            secret_key: self.0.to_bytes(),
            public_key: None,
        };
        let pem = keypair
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|e| Error::Key {
                path: path.to_owned(),
                reason: format!("cannot encode the key: {e}"),
            })?;
        write_new(path, pem.as_bytes(), 0o600)
    }

    /// Returns the key that verifies what this one signs.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.public().id())
    }
}

impl PublicKey {
    /// Reads an SPKI PEM file.
    pub fn load(path: &Path) -> Result<Self> {
        load(path, Self::from_pem)
    }

    /// Reads SPKI PEM text; the error says what the text is instead, where that can be seen.
    pub fn from_pem(text: &str) -> std::result::Result<Self, String> {
        if text.contains(PRIVATE_BEGIN) {
            return Err("this is a private key; keep it secret and give the public key".into());
        }
        expect_label(text, PUBLIC_BEGIN, "public")?;
        let key = VerifyingKey::from_public_key_pem(text)
            .map_err(|e| format!("not an ed25519 public key in SPKI PEM form: {e}"))?;
        Self::checked(key)
    }

    /// Takes the 32 bytes of RFC 8032; refuses points of small order, for which signatures mean
    /// nothing.
    pub fn from_bytes(bytes: &[u8; 32]) -> std::result::Result<Self, String> {
        let key = VerifyingKey::from_bytes(bytes)
            .map_err(|e| format!("not an ed25519 public key: {e}"))?;
        Self::checked(key)
    }

    fn checked(key: VerifyingKey) -> std::result::Result<Self, String> {
        if key.is_weak() {
            return Err("a weak ed25519 public key (small order); anyone could sign for it".into());
        }
        Ok(PublicKey(key))
    }

    /// Returns the 32 bytes of RFC 8032.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Returns the SPKI PEM text.
    pub fn to_pem(&self) -> String {
        self.0
            .to_public_key_pem(LineEnding::LF)
            .expect("an ed25519 key has a fixed encoding")
    }

    /// Writes a new SPKI PEM file. An existing file is never overwritten.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_new(path, self.to_pem().as_bytes(), 0o666)
    }

    /// Returns the key's short name.
    pub fn id(&self) -> KeyId {
        let hash: [u8; 32] = Sha256::digest(self.as_bytes()).into();
        KeyId(hash[..10].try_into().expect("ten of 32 bytes"))
    }

    /// Verifies as RFC 8032 says, and also refuses what implementations disagree on.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        self.0.verify_strict(message, &signature).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for KeyId {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        from_hex(s)
            .map(KeyId)
            .ok_or_else(|| format!("{s:?} is not 20 lower-case hexadecimal digits"))
    }
}

fn expect_label(text: &str, label: &str, kind: &str) -> std::result::Result<(), String> {
    if text.trim_start().starts_with(label) {
        return Ok(());
    }
    let found = match text.lines().find(|l| l.starts_with("-----BEGIN ")) {
        Some("-----BEGIN OPENSSH PRIVATE KEY-----") => "an OpenSSH key",
        Some("-----BEGIN ENCRYPTED PRIVATE KEY-----") => "an encrypted key",
        Some(_) => "another kind of PEM file",
        None => "not a PEM file",
    };
    Err(format!(
        "this is {found}; expected an ed25519 {kind} key beginning with {label:?}"
    ))
}

/// Reads a key file and parses its text.
fn load<T>(path: &Path, parse: fn(&str) -> std::result::Result<T, String>) -> Result<T> {
    parse(&read_key_file(path)?).map_err(|reason| Error::Key {
        path: path.to_owned(),
        reason,
    })
}

fn read_key_file(path: &Path) -> Result<String> {
    let io = |e| Error::io("read the key", path, e);
    let key_error = |reason: &str| Error::Key {
        path: path.to_owned(),
        reason: reason.into(),
    };
    let file = open_regular(path).map_err(io)?;
    let file = file.ok_or_else(|| key_error("it is not a regular file"))?;
    let mut bytes = Vec::new();
    file.take(MAX_KEY_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() as u64 > MAX_KEY_FILE {
        return Err(key_error("too large for a key file (over 16 KiB)"));
    }
    String::from_utf8(bytes).map_err(|_| key_error("not a PEM file (it is not text)"))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|e| Error::io("create the key file", path, e))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(|e| {
            // Half a key is worse than none; it was created just above, so it is ours to remove.
            let _ = fs::remove_file(path);
            Error::io("write the key file", path, e)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_survive_their_files_and_the_private_one_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let (private, public) = (dir.path().join("me.key"), dir.path().join("me.pub"));
        let key = PrivateKey::generate().unwrap();
        key.save(&private).unwrap();
        key.public().save(&public).unwrap();
        assert_eq!(
            fs::metadata(&private).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(PrivateKey::load(&private).unwrap().public(), key.public());
        assert_eq!(PublicKey::load(&public).unwrap(), key.public());
        assert_ne!(PrivateKey::generate().unwrap().public(), key.public());
    }

    #[test]
    fn an_existing_key_file_is_never_overwritten() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "precious").unwrap();
        assert!(PrivateKey::generate().unwrap().save(file.path()).is_err());
        assert_eq!(fs::read(file.path()).unwrap(), b"precious");
    }

    #[test]
    fn the_files_are_those_of_rfc_8410() {
        // The example keys of RFC 8410, section 10.
        let private = "-----BEGIN PRIVATE KEY-----\n\
             MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
             -----END PRIVATE KEY-----\n";
        let public = "-----BEGIN PUBLIC KEY-----\n\
             MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
             -----END PUBLIC KEY-----\n";
        let key = PrivateKey::from_pem(private).unwrap();
        assert_eq!(key.public().to_pem(), public);
        assert_eq!(key.public(), PublicKey::from_pem(public).unwrap());
        let file = tempfile::tempdir().unwrap();
        let path = file.path().join("k");
        key.save(&path).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), private);
    }

    #[test]
    fn a_malformed_key_file_is_refused_with_what_it_is() {
        let key = PrivateKey::generate().unwrap();
        let public = key.public().to_pem();
        let cases = [
            ("", "not a PEM file"),
            (public.as_str(), "public key"),
            (
                "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----\n",
                "OpenSSH",
            ),
            (
                "-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----\n",
                "PKCS#8",
            ),
            (
                "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTu\n-----END PRIVATE KEY-----\n",
                "PKCS#8",
            ),
        ];
        for (text, expected) in cases {
            let message = PrivateKey::from_pem(text).expect_err(text);
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_weak_public_key_is_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        assert!(
            PublicKey::from_bytes(&identity)
                .unwrap_err()
                .contains("weak")
        );
    }

    #[test]
    fn a_key_id_survives_the_round_trip_through_text() {
        let id = PrivateKey::generate().unwrap().public().id();
        assert_eq!(id.to_string().parse::<KeyId>().unwrap(), id);
        assert!("00".parse::<KeyId>().is_err());
    }
}
