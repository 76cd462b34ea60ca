//! Adds a signature to a bundle.

use std::io::{self, Read, Seek};
use std::path::Path;

use crate::format::limits::MAX_SIGNATURES;
use crate::format::oci::{self, Descriptor, Manifest};
use crate::write::archive::ArchiveWriter;
use crate::write::output::Output;
use crate::{Bundle, Digest, Error, PrivateKey, Result, Signature};

/// Adds a signature by `key` to the bundle at `bundle` and writes the result to `out`, which may be
/// the same path and is replaced when the new file is complete. Returns the bundle's digest, which
/// signing does not change.
///
/// The whole bundle is verified first: broken bytes are not to be signed.
pub fn sign(bundle: &Path, key: &PrivateKey, out: &Path) -> Result<Digest> {
    let bundle = Bundle::open(bundle)?;
    bundle.verify_all(&mut |_, _| {})?;
    let new = Signature::new(key, &bundle.digest());
    let mut signatures = bundle.signatures().to_vec();
    signatures.retain(|s| s.public_key != new.public_key);
    signatures.push(new);
    if signatures.len() > MAX_SIGNATURES {
        return Err(Error::InvalidSpec(format!(
            "{MAX_SIGNATURES} signatures is the most that a bundle holds"
        )));
    }
    write_signed(&bundle, signatures, out)?;
    Ok(bundle.digest())
}

/// Copies the bundle up to and including its manifest and puts `signatures` behind it.
fn write_signed(bundle: &Bundle, mut signatures: Vec<Signature>, out: &Path) -> Result<()> {
    signatures.sort_by_key(|s| *s.public_key.as_bytes());
    let machine = bundle.machine_entries();
    let output = Output::create(out)?;
    let end = machine.last().map_or(0, |e| e.end());
    let mut source = bundle.source().source();
    let copy = source
        .rewind()
        .and_then(|()| io::copy(&mut source.take(end), &mut output.file()));
    let copied = copy.map_err(|e| Error::io("copy the bundle to", out, e))?;
    if copied != end {
        let reason = io::Error::from(io::ErrorKind::UnexpectedEof);
        return Err(Error::io("read", bundle.path(), reason));
    }
    let mut archive = ArchiveWriter::resume(output.file(), out, machine);
    let mut manifests = Vec::new();
    for signature in &signatures {
        let blob = signature.to_blob();
        let manifest = Manifest::signature(
            bundle.descriptor(),
            Descriptor::of(oci::SIGNATURE_JSON, &blob),
        );
        let manifest = oci::bytes(&manifest);
        archive.blob(oci::EMPTY_BLOB)?;
        archive.blob(&blob)?;
        archive.blob(&manifest)?;
        manifests.push(Descriptor::of(oci::OCI_MANIFEST, &manifest));
    }
    archive.file(
        "index.json",
        &oci::bytes(&oci::Index::new(bundle.descriptor(), &manifests)),
    )?;
    archive.finish()?;
    output.publish()
}
