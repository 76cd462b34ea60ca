//! A layer: a tar archive, which may be compressed, and has two digests.

use std::fs::File;
use std::io::{self, Read};

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};
use smol_bundle::Digest;
use smol_rootfs::compression::Compression;
use smol_rootfs::limits::MAX_UNPACKED;
use smol_rootfs::{FileData, Watch};

/// A layer of an image that is here.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Digest of what it holds when it is unpacked.
    pub diff_id: Digest,
    /// Digest of the blob as it is stored, where the image has one.
    pub digest: Option<Digest>,
    /// The blob.
    pub blob: FileData,
}

/// Unpacks a layer into an empty file: a plain tar archive, whose digest is the layer's `diff_id`. How
/// it is compressed is told by its first bytes; media types are often wrong.
///
/// # Errors
/// It is damaged or too large ([`smol_rootfs::unpack`]); one of the digests differs.
pub fn unpack(layer: &Layer, to: &mut File, watch: &Watch) -> Result<()> {
    let context = || format!("layer {}", layer.digest.unwrap_or(layer.diff_id));
    unpack_verified(layer, to, watch).with_context(context)
}

fn unpack_verified(layer: &Layer, to: &mut File, watch: &Watch) -> Result<()> {
    let mut mark = Vec::new();
    layer.blob.open()?.take(8).read_to_end(&mut mark)?;
    ensure!(
        !mark.starts_with(b"BZh"),
        "it is compressed with bzip2, which no image may be"
    );
    let how = Compression::of(&mark);
    // A blob that is not compressed is what it holds.
    let own = layer
        .digest
        .filter(|own| how.is_some() || *own != layer.diff_id);
    let mut blob = Hashing {
        of: layer.blob.open()?,
        sha256: own.map(|_| Sha256::new()),
    };
    let mut content = Sha256::new();
    smol_rootfs::unpack(
        how,
        &mut blob,
        to,
        MAX_UNPACKED,
        &mut |piece| content.update(piece),
        watch,
    )?;
    // What a decoder has not read is no part of its stream, but of the blob.
    io::copy(&mut blob, &mut io::sink())?;
    if let (Some(sha256), Some(expected)) = (blob.sha256, own) {
        let found = Digest::finish(sha256);
        ensure!(
            found == expected,
            "its bytes have the digest {found}: the image is damaged"
        );
    }
    let found = Digest::finish(content);
    ensure!(
        found == layer.diff_id || layer.digest != Some(layer.diff_id),
        "its bytes have the digest {found}: the image is damaged"
    );
    ensure!(
        found == layer.diff_id,
        "what it holds has the digest {found}, and the image's configuration says {}",
        layer.diff_id
    );
    Ok(())
}

/// Digests what is read.
struct Hashing<R> {
    of: R,
    sha256: Option<Sha256>,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.of.read(bytes)?;
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(&bytes[..count]);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(blob: Vec<u8>, digest: Option<Digest>, diff_id: Digest) -> Result<Vec<u8>> {
        let layer = Layer {
            diff_id,
            digest,
            blob: FileData::from(blob),
        };
        let file = tempfile::NamedTempFile::new()?;
        unpack(&layer, &mut file.reopen()?, &Watch::default())?;
        Ok(std::fs::read(file.path())?)
    }

    #[test]
    fn a_layer_is_unpacked_when_both_digests_are_right() {
        let diff_id = Digest::of(b"content");
        let two = [gzip(b"con"), gzip(b"tent")].concat();
        for blob in [b"content".to_vec(), gzip(b"content"), two] {
            let digest = Digest::of(&blob);
            assert_eq!(
                unpacked(blob.clone(), Some(digest), diff_id).unwrap(),
                b"content"
            );
            assert_eq!(unpacked(blob.clone(), None, diff_id).unwrap(), b"content");
            if digest != diff_id {
                assert!(unpacked(blob, Some(diff_id), digest).is_err());
            }
        }
    }

    #[test]
    fn a_layer_with_another_digest_or_more_behind_it_is_refused() {
        let diff_id = Digest::of(b"content");
        let refused = |blob: Vec<u8>, digest, diff_id| {
            format!("{:#}", unpacked(blob, digest, diff_id).unwrap_err())
        };
        let other = Some(Digest::of(b"other"));
        assert!(refused(gzip(b"content"), other, diff_id).contains("the image is damaged"));
        // Of what is not compressed, both digests are one.
        assert!(refused(b"content".to_vec(), other, diff_id).contains("the image is damaged"));
        assert!(refused(b"changed".to_vec(), Some(diff_id), diff_id).contains("image is damaged"));
        assert!(refused(gzip(b"x"), None, diff_id).contains("configuration says"));
        let followed = [gzip(b"content"), b"more".to_vec()].concat();
        assert!(refused(followed, None, diff_id).contains("cannot be unpacked as gzip"));
        assert!(refused(b"BZh91AY&SY".to_vec(), None, diff_id).contains("bzip2"));
    }
}
