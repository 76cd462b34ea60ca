//! Key files, with advice for those who give the other half of a pair.

use std::path::{Path, PathBuf};

use smol_bundle::{PrivateKey, PublicKey};
use smol_cli::{ErrorExt, ExitKind};

/// Reads a private key.
///
/// # Errors
/// Of kind [`ExitKind::Usage`], with what to do: for a public key, that its private key is beside it;
/// for a file that is not there, how one is made.
pub fn load_private(path: &Path) -> anyhow::Result<PrivateKey> {
    let error = match PrivateKey::load(path) {
        Ok(key) => return Ok(key),
        Err(error) => anyhow::Error::from(error).kind(ExitKind::Usage),
    };
    if !path.exists() {
        let hint = format!(
            "smolbuild keygen -o {} makes a new key pair",
            path.display()
        );
        return Err(error.hint(hint));
    }
    let Ok(public) = PublicKey::load(path) else {
        return Err(error);
    };
    let found = candidates(path, "key").find(|file| {
        let private = PrivateKey::load(file);
        private.is_ok_and(|private| private.public() == public)
    });
    Err(match found {
        Some(file) => error.hint(format!("its private key is {}", file.display())),
        None => error,
    })
}

/// Returns the file of this public key, if it lies next to that of its private key.
pub fn public_file(private: &Path, key: &PublicKey) -> Option<PathBuf> {
    candidates(private, "pub").find(|file| PublicKey::load(file).is_ok_and(|found| found == *key))
}

/// Reads a public key.
///
/// # Errors
/// Of kind [`ExitKind::Usage`], with what to do: for a private key, that its public key is beside it,
/// or the command that writes it.
pub fn load_public(path: &Path) -> anyhow::Result<PublicKey> {
    let error = match PublicKey::load(path) {
        Ok(key) => return Ok(key),
        Err(error) => anyhow::Error::from(error).kind(ExitKind::Usage),
    };
    let Ok(private) = PrivateKey::load(path) else {
        return Err(error);
    };
    Err(error.hint(match public_file(path, &private.public()) {
        Some(file) => format!("its public key is {}", file.display()),
        None => {
            let private = path.display();
            format!("openssl pkey -in {private} -pubout -out {private}.pub writes its public key")
        }
    }))
}

/// Where the other half of a pair may lie: `me.key` for `me.pub`, `id.pub` for `id`.
fn candidates(path: &Path, ending: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let places = [
        path.with_extension(ending),
        path.with_added_extension(ending),
        path.with_extension(""),
    ];
    let path = path.to_owned();
    places.into_iter().filter(move |place| *place != path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        /// A key pair in files of these names.
        fn new(private: &str, public: &str) -> Self {
            let folder = Folder(tempfile::tempdir().unwrap());
            let key = PrivateKey::generate().unwrap();
            key.save(&folder.path(private)).unwrap();
            key.public().save(&folder.path(public)).unwrap();
            folder
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }
    }

    /// The text of an error, without the folder.
    fn told<T: std::fmt::Debug>(folder: &Folder, outcome: anyhow::Result<T>) -> String {
        let error = outcome.unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
        let folder = format!("{}/", folder.0.path().display());
        smol_cli::error::render(&error, false).replace(&folder, "")
    }

    #[test]
    fn a_public_key_that_is_to_sign_leads_to_its_private_key() {
        for (private, public) in [("me.key", "me.pub"), ("id", "id.pub")] {
            let folder = Folder::new(private, public);
            let text = told(&folder, load_private(&folder.path(public)));
            let expected = format!(
                "error: {public}: this is a public key; signing needs the private key\n  hint: its private key is {private}\n"
            );
            assert_eq!(text, expected);
            // Another one's is not named.
            fs::remove_file(folder.path(private)).unwrap();
            PrivateKey::generate()
                .unwrap()
                .save(&folder.path(private))
                .unwrap();
            let text = told(&folder, load_private(&folder.path(public)));
            assert!(!text.contains("hint"), "{text}");
        }
    }

    #[test]
    fn a_private_key_that_is_to_verify_leads_to_its_public_key() {
        let folder = Folder::new("me.key", "me.pub");
        let text = told(&folder, load_public(&folder.path("me.key")));
        assert!(
            text.ends_with("  hint: its public key is me.pub\n"),
            "{text}"
        );
        fs::remove_file(folder.path("me.pub")).unwrap();
        let text = told(&folder, load_public(&folder.path("me.key")));
        assert!(text.contains("openssl pkey -in "), "{text}");
    }

    #[test]
    fn a_key_that_is_not_there_can_be_made_and_rubbish_has_no_advice() {
        let folder = Folder::new("me.key", "me.pub");
        let text = told(&folder, load_private(&folder.path("you.key")));
        assert!(text.contains("smolbuild keygen -o "), "{text}");
        fs::write(folder.path("you.key"), "rubbish").unwrap();
        let text = told(&folder, load_private(&folder.path("you.key")));
        assert!(
            text.contains("not a PEM file") && !text.contains("hint"),
            "{text}"
        );
        let text = told(&folder, load_public(&folder.path("you.key")));
        assert!(
            text.contains("not a PEM file") && !text.contains("hint"),
            "{text}"
        );
    }
}
