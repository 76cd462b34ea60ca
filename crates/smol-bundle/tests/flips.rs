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
    verify(&path).unwrap();
    path
}

fn small() -> Work {
    let mut images = Images::sample();
    images.kernel.truncate(PAGE + 10);
    Work::with(images)
}

#[test]
fn a_flipped_bit_at_any_byte_of_the_file_is_found() {
    let work = small();
    let path = signed(&work);
    let bytes = fs::read(&path).unwrap();
    // Each thread has a copy of its own and flips every n-th byte.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for first in 0..threads {
            let (bytes, copy) = (&bytes, work.path(&format!("copy{first}")));
            scope.spawn(move || {
                fs::write(&copy, bytes).unwrap();
                let file = File::options().write(true).open(&copy).unwrap();
                for (at, byte) in bytes.iter().enumerate().skip(first).step_by(threads) {
                    file.write_all_at(&[byte ^ 1 << (at % 8)], at as u64)
                        .unwrap();
                    let error = verify(&copy).expect_err(&format!("bit {} of byte {at}", at % 8));
                    assert!(error.is_verification_failure(), "byte {at}: {error}");
                    file.write_all_at(&[*byte], at as u64).unwrap();
                }
                verify(&copy).unwrap();
            });
        }
    });
}

#[test]
fn a_truncated_bundle_is_refused_at_every_length() {
    let work = small();
    let path = signed(&work);
    let bytes = fs::read(&path).unwrap();
    let cut = work.path("cut");
    fs::write(&cut, &bytes).unwrap();
    let file = File::options().write(true).open(&cut).unwrap();
    for len in (0..bytes.len()).rev() {
        file.set_len(len as u64).unwrap();
        let error = Bundle::open(&cut).expect_err(&format!("{len} bytes"));
        assert!(error.is_verification_failure(), "{len} bytes: {error}");
    }
}

#[test]
fn bytes_after_the_end_are_refused() {
    let work = small();
    let path = signed(&work);
    let bytes = fs::read(&path).unwrap();
    for more in [&[0u8][..], &[1], &[0; 512], &bytes] {
        fs::write(&path, [&bytes, more].concat()).unwrap();
        assert!(Bundle::open(&path).unwrap_err().is_verification_failure());
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
