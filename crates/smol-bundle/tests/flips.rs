//! Every change of a bundle is found: each byte flipped, each length, each byte added.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use common::*;
use smol_bundle::{Bundle, ImageKind, PrivateKey, sign};

/// A small signed bundle with every part.
fn signed(work: &Work) -> PathBuf {
    let path = work.bundle();
    for _ in 0..2 {
        sign(&path, &PrivateKey::generate().unwrap(), &path).unwrap();
    }
    verify(&fs::read(&path).unwrap()).unwrap();
    path
}

fn small() -> Work {
    let mut images = Images::sample();
    images.kernel.truncate(PAGE + 10);
    Work::with(images)
}

#[test]
fn a_flipped_bit_at_any_byte_of_the_file_is_found() {
    let bytes = fs::read(signed(&small())).unwrap();
    // Each thread has a copy of its own and flips every n-th byte.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for first in 0..threads {
            let mut copy = bytes.clone();
            scope.spawn(move || {
                for at in (first..copy.len()).step_by(threads) {
                    let bit = 1 << (at % 8);
                    copy[at] ^= bit;
                    let error = verify(&copy).expect_err(&format!("bit {} of byte {at}", at % 8));
                    assert!(error.is_verification_failure(), "byte {at}: {error}");
                    copy[at] ^= bit;
                }
                verify(&copy).unwrap();
            });
        }
    });
}

#[test]
fn a_truncated_bundle_is_refused_at_every_length() {
    let bytes = fs::read(signed(&small())).unwrap();
    for len in 0..bytes.len() {
        let error = open(&bytes[..len]).expect_err(&format!("{len} bytes"));
        assert!(error.is_verification_failure(), "{len} bytes: {error}");
    }
}

#[test]
fn bytes_after_the_end_are_refused() {
    let bytes = fs::read(signed(&small())).unwrap();
    for more in [&[0u8][..], &[1], &[0; 512], &bytes] {
        let longer = [&bytes, more].concat();
        assert!(open(&longer).unwrap_err().is_verification_failure());
    }
}

#[test]
fn a_frame_changed_after_opening_is_found_when_it_is_read_and_its_pages_are_not_written() {
    let work = small();
    let path = signed(&work);
    let bundle = Bundle::open(&path).unwrap();
    let blob = bundle
        .layout()
        .into_iter()
        .find(|b| b.media_type == ImageKind::Rootfs.media_type());
    let offset = blob.unwrap().offset;
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset + 20).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset + 20).unwrap();
    let out = tempfile::tempfile().unwrap();
    let error = bundle
        .extract(ImageKind::Rootfs, &out, 1, &mut |_, _| {})
        .unwrap_err();
    assert!(error.is_verification_failure());
    let message = error.to_string();
    assert!(message.contains("frame 0 of the rootfs image"), "{message}");
    let mut page = [0; PAGE];
    out.read_exact_at(&mut page, 0).unwrap();
    assert_eq!(page, [0; PAGE]);
    // Memory refers to pages in the same frame.
    assert!(bundle.read_image(ImageKind::Memory, 1 << 20).is_err());
    assert!(bundle.read_image(ImageKind::Kernel, 1 << 20).is_ok());
}
