//! `smolbuild keygen` and `smolbuild sign`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use smol_bundle::PrivateKey;
use smol_cli::{ExitKind, Failure};

use crate::cli::{Keygen, Sign};
use crate::error::ResultExt;

/// Writes a fresh key pair. Keys are never overwritten: what was signed with a lost key could not be
/// signed with it again.
pub fn keygen(args: &Keygen) -> Result<()> {
    let public_path = public_path(&args.output);
    if public_path == args.output {
        let message = format!(
            "{} is the name that the public key would get",
            args.output.display()
        );
        return Err(Failure::new(ExitKind::Usage, message)
            .hint("name the private key otherwise: me.key")
            .into());
    }
    for path in [&args.output, &public_path] {
        if path.exists() {
            let message = format!("{} exists already", path.display());
            return Err(Failure::new(ExitKind::Failed, message)
                .hint("choose another name, or remove it first")
                .into());
        }
    }
    let key = PrivateKey::generate().classify()?;
    key.save(&args.output).classify()?;
    if let Err(error) = key.public().save(&public_path).classify() {
        // Half a pair would only be in the way of the next attempt.
        let _ = std::fs::remove_file(&args.output);
        return Err(error);
    }
    smol_cli::print(&format!(
        "private key  {}   keep it secret\n",
        args.output.display()
    ))?;
    smol_cli::print(&format!(
        "public key   {}   give it to those who run your bundles\n",
        public_path.display()
    ))?;
    smol_cli::print(&format!("key id       {}\n", key.public().id()))?;
    Ok(())
}

/// `me.key` -> `me.pub`.
fn public_path(private: &Path) -> PathBuf {
    private.with_extension("pub")
}

/// Signs a bundle that is already there; one signature more, the content stays as it is.
pub fn sign(args: &Sign) -> Result<()> {
    let key = smol_trust::load_private(&args.key)?;
    let out = args.output.as_deref().unwrap_or(&args.bundle);
    let digest = smol_bundle::sign(&args.bundle, &key, out).classify()?;
    smol_cli::print(&format!("{digest} signed by {}\n", key.public().id()))?;
    Ok(())
}
