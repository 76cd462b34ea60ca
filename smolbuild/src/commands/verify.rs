//! `smolbuild verify`: every byte of a bundle, then who answers for it.

use anyhow::{Context, Result};
use smol_cli::{ErrorExt, ExitKind};

use super::{keys, open_bundle};
use crate::cli::Verify;
use crate::error::ResultExt;

/// Exits with 4, and why, for any changed bit and for a signature that is missing or wrong.
pub fn run(args: &Verify) -> Result<()> {
    let trusted = args
        .key
        .iter()
        .map(|p| keys::load_public(p))
        .collect::<Result<Vec<_>>>()?;
    let bundle = open_bundle(&args.bundle)?;
    bundle.verify_all(&mut |_, _| {}).classify()?;
    if args.insecure_unsigned {
        smol_cli::print(&format!(
            "{} is intact; its signature was not checked\n",
            bundle.digest()
        ))?;
        return Ok(());
    }
    let signer = bundle
        .verify_signature(&trusted)
        .with_context(|| {
            format!(
                "{} is intact, but nobody trusted answers for it",
                args.bundle.display()
            )
        })
        .kind(ExitKind::Verification)?;
    smol_cli::print(&format!(
        "{} is intact and signed by {signer}\n",
        bundle.digest()
    ))?;
    Ok(())
}
