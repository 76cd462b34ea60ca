//! TLS: rustls, the CAs of the host and those of one registry.
//!
//! Reading all CAs of the host takes some 50 ms, so it is done when the first certificate is to be
//! checked, and not for registries that are spoken to without TLS.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::error::{Error, Kind, Result};

/// Most bytes of a file of certificates, and most of such files of a registry.
const MOST_BYTES: u64 = 4 << 20;
const MOST_FILES: usize = 100;

/// The CAs of the host, read once.
#[derive(Debug, Default)]
pub struct HostRoots(OnceLock<Vec<CertificateDer<'static>>>);

impl HostRoots {
    /// Those that OpenSSL would take: by `SSL_CERT_FILE`, `SSL_CERT_DIR`, or where distributions have
    /// them. Files that cannot be read are passed over, as OpenSSL does.
    fn get(&self) -> &[CertificateDer<'static>] {
        (self.0).get_or_init(|| rustls_native_certs::load_native_certs().certs)
    }
}

/// Returns the configuration for a server whose certificate the host's CAs may vouch for, or one of
/// `own`.
pub fn checked(host: Arc<HostRoots>, own: Vec<CertificateDer<'static>>) -> Result<ClientConfig> {
    configuration(|provider| Checking {
        host,
        own,
        provider,
        verifier: OnceLock::new(),
    })
}

/// Returns the configuration for a server that may have any certificate.
pub fn unchecked() -> Result<ClientConfig> {
    configuration(Accepting)
}

fn configuration<V: ServerCertVerifier + 'static>(
    verifier: impl FnOnce(Arc<CryptoProvider>) -> V,
) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(Kind::Local, format!("cannot use TLS: {e}")))?;
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier(provider)))
        .with_no_client_auth())
}

/// [`WebPkiServerVerifier`], made when it is needed.
#[derive(Debug)]
struct Checking {
    host: Arc<HostRoots>,
    own: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
    verifier: OnceLock<std::result::Result<Arc<WebPkiServerVerifier>, String>>,
}

impl Checking {
    fn verifier(&self) -> std::result::Result<&WebPkiServerVerifier, rustls::Error> {
        let verifier = self.verifier.get_or_init(|| {
            let mut roots = RootCertStore::empty();
            // What webpki cannot read, it cannot check by either.
            roots.add_parsable_certificates(self.own.iter().cloned());
            roots.add_parsable_certificates(self.host.get().iter().cloned());
            if roots.is_empty() {
                return Err("this host has no CA certificates".into());
            }
            WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
                .build()
                .map_err(|e| e.to_string())
        });
        match verifier {
            Ok(verifier) => Ok(verifier),
            Err(why) => Err(rustls::Error::General(why.clone())),
        }
    }
}

impl ServerCertVerifier for Checking {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        // As other tools do: the certificate itself may lie in the registry's folder. webpki would
        // refuse one that says of itself that it is a CA, as those of `openssl req -x509` do.
        if self.own.iter().any(|own| own == end_entity) {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.verifier()?.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// Accepts any certificate, but only from who has its key.
#[derive(Debug)]
struct Accepting(Arc<CryptoProvider>);

impl ServerCertVerifier for Accepting {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Returns the CAs that a registry has of its own: all `*.crt` in `FOLDER/HOST[:PORT]` of each folder.
///
/// # Errors
/// For a file that cannot be read, or that has no certificate in it.
pub fn of_registry(folders: &[PathBuf], host: &str) -> Result<Vec<CertificateDer<'static>>> {
    let mut found = Vec::new();
    // A name of a file, whatever a redirect says.
    if host.contains('/') || host.starts_with('.') {
        return Ok(found);
    }
    for folder in folders {
        for file in files(&folder.join(host))? {
            let wrong = |why: &dyn std::fmt::Display| {
                Error::new(
                    Kind::Config,
                    format!("the CA file {}: {why}", file.display()),
                )
            };
            let text = read(&file).map_err(|e| wrong(&e))?;
            let before = found.len();
            for certificate in CertificateDer::pem_slice_iter(&text) {
                found.push(certificate.map_err(|e| wrong(&e))?);
            }
            if found.len() == before {
                return Err(wrong(&"it has no certificate in it (PEM)"));
            }
        }
    }
    Ok(found)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let doing = |e: io::Error| {
        let what = format!("cannot read the folder {}", folder.display());
        Error::new(Kind::Config, format!("{what}: {e}"))
    };
    let entries = match std::fs::read_dir(folder) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        entries => entries.map_err(doing)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(doing)?.path();
        if path.extension().is_some_and(|ending| ending == "crt") && files.len() < MOST_FILES {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut text = Vec::new();
    let mut file = std::fs::File::open(path)?.take(MOST_BYTES);
    file.read_to_end(&mut text)?;
    Ok(text)
}
