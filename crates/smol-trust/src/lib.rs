//! Trust: whether a bundle is signed by a known key. smolrun runs no other, `smolbuild verify` passes
//! no other.
//!
//! Known are the keys of `--key`; without that option, every `*.pub` file in the trust folder,
//! `trust/` in smol's config folder. What the signature covers is the manifest's digest, and
//! through it every byte of the bundle ([`Bundle::verify_signature`]).

mod keys;

use std::path::{Path, PathBuf};

use smol_bundle::{Bundle, KeyId, PublicKey, SignatureError};
use smol_cli::{ExitKind, Failure};

pub use self::keys::{load_private, load_public, public_file};

/// What a bundle is checked for, in the words of its refusal.
#[derive(Clone, Copy, Debug)]
pub struct Purpose {
    /// What happens to the bundle: `is refused`.
    pub refused: &'static str,
    /// Hint for a bundle that is not signed.
    pub unsigned: &'static str,
    /// Further hint for a bundle that is signed by unknown keys only.
    pub unknown: Option<&'static str>,
}

/// The keys that count, and where they were looked for.
#[derive(Debug)]
pub struct Keyring {
    keys: Vec<PublicKey>,
    /// The trust folder, unless keys were named.
    folder: Option<PathBuf>,
}

impl Keyring {
    /// The keys of these files.
    ///
    /// # Errors
    /// For a file that is no public key.
    pub fn named(files: &[PathBuf]) -> anyhow::Result<Self> {
        let keys = files.iter().map(|file| load_public(file));
        Ok(Self {
            keys: keys.collect::<Result<_, _>>()?,
            folder: None,
        })
    }

    /// The keys that count for a command: those of these files, or if none is named those of the trust
    /// folder of the user. `note` is told what is passed over.
    ///
    /// # Errors
    /// As for [`Keyring::named`] and [`Keyring::of_folder`]; or there is no place for a folder.
    pub fn of_user(named: &[PathBuf], note: impl FnMut(&str)) -> anyhow::Result<Self> {
        match named.is_empty() {
            false => Self::named(named),
            true => Self::of_folder(&smol_cli::paths::config_dir()?.join("trust"), note),
        }
    }

    /// The keys of a trust folder, which need not exist. A file in it that is no key is reported to
    /// `note` and passed over.
    ///
    /// # Errors
    /// If the folder is there and cannot be read.
    pub fn of_folder(folder: &Path, mut note: impl FnMut(&str)) -> anyhow::Result<Self> {
        let mut files = Vec::new();
        match std::fs::read_dir(folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            entries => {
                let what = || format!("cannot read the trust folder {}", folder.display());
                for entry in anyhow::Context::with_context(entries, what)? {
                    files.push(anyhow::Context::with_context(entry, what)?.path());
                }
            }
        }
        files.retain(|file| file.extension().is_some_and(|ending| ending == "pub"));
        files.sort();
        let mut keys = Vec::new();
        for file in files {
            match PublicKey::load(&file) {
                Ok(key) => keys.push(key),
                Err(e) => note(&format!("passing over a file in the trust folder: {e}")),
            }
        }
        Ok(Self {
            keys,
            folder: Some(folder.to_owned()),
        })
    }

    /// Accepts the bundle if it is signed by one of the keys, and returns which. With `insecure`, a
    /// bundle that is not signed by a known key is accepted, too (`None`); a false signature by a
    /// known key never is.
    ///
    /// # Errors
    /// Of kind [`ExitKind::Verification`], with the reason and what to do.
    pub fn check(
        &self,
        bundle: &Bundle,
        insecure: bool,
        purpose: Purpose,
    ) -> anyhow::Result<Option<KeyId>> {
        let error = match bundle.verify_signature(&self.keys) {
            Ok(key) => return Ok(Some(key)),
            Err(SignatureError::Unsigned | SignatureError::UnknownKey { .. }) if insecure => {
                return Ok(None);
            }
            Err(error) => error,
        };
        let path = bundle.path().display();
        let refusal = Failure::new(
            ExitKind::Verification,
            format!("{path} {}: {error}", purpose.refused),
        );
        Err(match &error {
            SignatureError::Unsigned => refusal.hint(purpose.unsigned),
            SignatureError::UnknownKey { .. } => {
                let refusal = refusal.hint(self.how_to_trust());
                purpose.unknown.into_iter().fold(refusal, Failure::hint)
            }
            SignatureError::Bad { .. } => {
                refusal.hint("get the bundle again, from where it was published")
            }
        }
        .into())
    }

    fn how_to_trust(&self) -> String {
        match &self.folder {
            None => "--key names the public keys that count; none of them is among these".into(),
            Some(folder) => {
                let (folder, keys) = (folder.display(), self.keys.len());
                format!(
                    "if you trust a key, name its file by --key FILE, or put it into {folder} as a \
                     *.pub file ({keys} there now)"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol_bundle::{BundleSpec, ClockMode, Config, CpuContract, PrivateKey, Tsc, TscNeeds};

    /// A bundle in a folder of its own.
    struct Sample {
        _dir: tempfile::TempDir,
        bundle: PathBuf,
    }

    impl Sample {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let kernel = dir.path().join("kernel");
            std::fs::write(&kernel, "a kernel").unwrap();
            let bundle = dir.path().join("sample.smolmachine");
            let spec = BundleSpec {
                config: config(),
                kernel,
                initramfs: None,
                rootfs: None,
                snapshot: None,
                smolfile: None,
                lock: None,
                parent: None,
            };
            smol_bundle::write(&spec, &bundle, &mut |_, _| {}).unwrap();
            Self { _dir: dir, bundle }
        }

        fn open(&self) -> Bundle {
            Bundle::open(&self.bundle).unwrap()
        }
    }

    fn config() -> Config {
        Config {
            name: "sample".into(),
            version: None,
            arch: "x86_64".into(),
            cpus: 1,
            memory: 16 << 20,
            cmdline: String::new(),
            ports: Vec::new(),
            warm: None,
            clock: ClockMode::Virtual,
            reproducible: None,
            cpu: CpuContract {
                arch: "x86_64".into(),
                features: Vec::new(),
                physical_address_bits: 40,
                xcr0: 0,
                tsc: Tsc {
                    needs: TscNeeds::None,
                    khz: None,
                },
            },
        }
    }

    const PURPOSE: Purpose = Purpose {
        refused: "is refused",
        unsigned: "--insecure-unsigned runs it",
        unknown: Some("further"),
    };

    fn code(outcome: anyhow::Result<Option<KeyId>>) -> (u8, String) {
        let error = outcome.unwrap_err();
        (
            smol_cli::exit_kind(&error).code(),
            smol_cli::error::render(&error, false),
        )
    }

    fn ring(keys: &[&PrivateKey]) -> Keyring {
        Keyring {
            keys: keys.iter().map(|k| k.public()).collect(),
            folder: None,
        }
    }

    #[test]
    fn an_unsigned_bundle_is_refused_unless_told_otherwise() {
        let sample = Sample::new();
        let bundle = sample.open();
        let key = PrivateKey::generate().unwrap();
        let (code, text) = code(ring(&[&key]).check(&bundle, false, PURPOSE));
        assert_eq!(code, 4);
        assert!(
            text.contains("not signed") && text.contains("--insecure-unsigned"),
            "{text}"
        );
        assert_eq!(ring(&[&key]).check(&bundle, true, PURPOSE).unwrap(), None);
    }

    #[test]
    fn only_a_known_key_is_trusted() {
        let sample = Sample::new();
        let (ours, other) = (
            PrivateKey::generate().unwrap(),
            PrivateKey::generate().unwrap(),
        );
        smol_bundle::sign(&sample.bundle, &ours, &sample.bundle).unwrap();
        let bundle = sample.open();
        assert_eq!(
            ring(&[&other, &ours])
                .check(&bundle, false, PURPOSE)
                .unwrap(),
            Some(ours.public().id())
        );
        let (code, text) = code(ring(&[&other]).check(&bundle, false, PURPOSE));
        assert_eq!(code, 4);
        assert!(text.contains(&ours.public().id().to_string()), "{text}");
        assert_eq!(ring(&[&other]).check(&bundle, true, PURPOSE).unwrap(), None);
    }

    #[test]
    fn the_trust_folder_holds_keys_and_passes_over_everything_else() {
        let dir = tempfile::tempdir().unwrap();
        let key = PrivateKey::generate().unwrap();
        key.public().save(&dir.path().join("me.pub")).unwrap();
        std::fs::write(dir.path().join("broken.pub"), "no key").unwrap();
        std::fs::write(dir.path().join("README"), "hello").unwrap();
        let mut notes = Vec::new();
        let ring = Keyring::of_folder(dir.path(), |n| notes.push(n.to_owned())).unwrap();
        assert_eq!(ring.keys, [key.public()]);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("broken.pub"), "{notes:?}");
    }

    #[test]
    fn without_a_trust_folder_nobody_is_trusted() {
        let ring = Keyring::of_folder(Path::new("/nonexistent/trust"), |_| {}).unwrap();
        let sample = Sample::new();
        let key = PrivateKey::generate().unwrap();
        smol_bundle::sign(&sample.bundle, &key, &sample.bundle).unwrap();
        let (code, text) = code(ring.check(&sample.open(), false, PURPOSE));
        assert_eq!(code, 4);
        assert!(
            text.contains("/nonexistent/trust as a *.pub file (0 there now)"),
            "{text}"
        );
        assert!(text.ends_with("  hint: further\n"), "{text}");
    }

    #[test]
    fn a_named_key_file_that_is_no_public_key_is_a_usage_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Keyring::named(&[file.path().to_owned()]).unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
    }
}
