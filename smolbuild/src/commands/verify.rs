//! `smolbuild verify`: every byte of a bundle, then its signature.

use std::path::PathBuf;

use anyhow::Result;
use smol_cli::{Interrupt, Mode, Session};
use smol_trust::{Keyring, Purpose};

use super::{only_read, open_bundle, trust_folder};
use crate::cli::Verify;
use crate::error::ResultExt;

const VERIFY: Purpose = Purpose {
    refused: "is not verified",
    unsigned: INTACT,
    unknown: Some(INTACT),
};
const INTACT: &str = "its bytes are intact; --insecure-unsigned checks no more than that";

/// Exits with 4, and why, for any changed bit and for a signature that is missing or wrong.
pub fn run(args: &Verify, interrupt: &Interrupt) -> Result<()> {
    let keys = args.key.iter().cloned().chain(trust_folder());
    let files: Vec<_> = keys.chain([args.bundle.clone()]).collect();
    only_read(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>(), &[])?;
    let session = Session::new(Mode::Auto, interrupt.clone());
    let keyring = Keyring::of_user(&args.key, |text| session.note(text))?;
    let bundle = open_bundle(&args.bundle)?;
    let verified = bundle.verify_while(&mut |_, _| interrupt.go_on());
    interrupt.check()?;
    verified.classify()?;
    let signer = keyring.check(&bundle, args.insecure_unsigned, VERIFY)?;
    let digest = bundle.digest();
    let text = match signer {
        Some(signer) => format!("{digest} is intact and signed by {signer}\n"),
        None => format!("{digest} is intact; it is not signed by a trusted key\n"),
    };
    Ok(smol_cli::print(&text)?)
}
