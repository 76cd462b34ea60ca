//! A bundle in a source whose reads fail, or that changes: errors that say where, and never a byte
//! that was not verified.

mod common;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use smol_bundle::{Bundle, Digest, Error, ImageKind, PrivateKey, ReadAt, Result, sign};

/// Bytes in memory of which one read fails as a broken disk does.
#[derive(Debug)]
struct Failing<'b> {
    bytes: &'b [u8],
    reads: AtomicUsize,
    /// Number of the read that fails.
    fails: usize,
}

impl<'b> Failing<'b> {
    fn new(bytes: &'b [u8], fails: usize) -> Self {
        let reads = AtomicUsize::new(0);
        Failing {
            bytes,
            reads,
            fails,
        }
    }
}

impl ReadAt for Failing<'_> {
    fn size(&self) -> io::Result<u64> {
        self.bytes.size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.reads.fetch_add(1, Ordering::SeqCst) == self.fails {
            // What was read until then.
            buffer.fill(0xee);
            return Err(io::Error::from_raw_os_error(5));
        }
        ReadAt::read_exact_at(self.bytes, buffer, offset)
    }
}

/// A signed bundle of a small machine.
fn signed() -> Vec<u8> {
    let work = Work::new();
    let path = work.bundle();
    sign(&path, &PrivateKey::generate().unwrap(), &path).unwrap();
    fs::read(path).unwrap()
}

/// Checks that the error says which bundle could not be read, where and why, and does not accuse
/// the bundle.
#[track_caller]
fn says_where(error: &Error, len: usize) {
    let Error::Read { offset, source, .. } = error else {
        panic!("another error: {error}");
    };
    assert_eq!(source.raw_os_error(), Some(5));
    assert!(*offset < len as u64);
    let expected = format!("cannot read registry.example/sample at byte {offset}");
    assert_eq!(error.to_string(), expected);
    assert!(!error.is_verification_failure());
}

fn from_failing(bytes: &[u8], fails: usize) -> Result<Bundle<Failing<'_>>> {
    Bundle::from_source(Failing::new(bytes, fails), "registry.example/sample")
}

/// How often a bundle is read while it is opened.
fn reads_to_open(bytes: &[u8]) -> usize {
    let source = Failing::new(bytes, usize::MAX);
    Bundle::from_source(&source, "x").unwrap();
    source.reads.into_inner()
}

#[test]
fn each_read_that_fails_while_a_bundle_is_opened_and_verified_is_told_with_its_place() {
    let bytes = signed();
    let all = |source: &Failing<'_>| -> Result<Digest> {
        let bundle = Bundle::from_source(source, "registry.example/sample")?;
        bundle.verify_all(&mut |_, _| {})?;
        Ok(bundle.digest())
    };
    let whole = Failing::new(&bytes, usize::MAX);
    let digest = all(&whole).unwrap();
    assert_eq!(digest, open(&bytes).unwrap().digest());
    let reads = whole.reads.into_inner();
    assert!(reads > 50, "{reads} reads");
    for fails in 0..reads {
        let error = all(&Failing::new(&bytes, fails)).expect_err(&format!("read {fails}"));
        says_where(&error, bytes.len());
    }
}

#[test]
fn an_image_is_written_no_further_than_its_frames_can_be_read() {
    let bytes = signed();
    let opening = reads_to_open(&bytes);
    let image = Work::new().images.memory;
    for frame in 0.. {
        let bundle = from_failing(&bytes, opening + frame).unwrap();
        let out = tempfile::tempfile().unwrap();
        let done = bundle.extract(ImageKind::Memory, &out, 1, &mut |_, _| {});
        let mut written = vec![0; image.len()];
        FileExt::read_exact_at(&out, &mut written, 0).unwrap();
        let Err(error) = done else {
            assert!(frame > 2, "memory is in {frame} frames");
            assert!(written == image);
            break;
        };
        says_where(&error, bytes.len());
        assert!(written != image);
        for (found, expected) in written.chunks(PAGE).zip(image.chunks(PAGE)) {
            assert!(found == expected || found.iter().all(|byte| *byte == 0));
        }
        // Only one read fails: the open bundle can still be used.
        assert!(bundle.read_image(ImageKind::Memory, 1 << 20).unwrap() == image);
    }
}

#[test]
fn a_failure_of_one_thread_ends_all_that_read_the_same_source() {
    let bytes = signed();
    let out = tempfile::tempfile().unwrap();
    let extract =
        |bundle: &Bundle<Failing<'_>>| bundle.extract(ImageKind::Rootfs, &out, 4, &mut |_, _| {});
    extract(&from_failing(&bytes, usize::MAX).unwrap()).unwrap();
    let image = Work::new().images.rootfs;
    let mut written = vec![0; image.len()];
    FileExt::read_exact_at(&out, &mut written, 0).unwrap();
    assert!(written == image);
    let broken = from_failing(&bytes, reads_to_open(&bytes)).unwrap();
    says_where(&extract(&broken).unwrap_err(), bytes.len());
}

/// Bytes in memory of which one is another when it is read.
#[derive(Debug)]
struct Changing<'b> {
    bytes: &'b [u8],
    /// Where the byte is; beyond the end, nothing changes.
    at: AtomicUsize,
}

impl ReadAt for Changing<'_> {
    fn size(&self) -> io::Result<u64> {
        self.bytes.size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        ReadAt::read_exact_at(self.bytes, buffer, offset)?;
        let at = self.at.load(Ordering::SeqCst).checked_sub(offset as usize);
        if let Some(byte) = at.and_then(|at| buffer.get_mut(at)) {
            *byte ^= 0x10;
        }
        Ok(())
    }
}

#[test]
fn what_changes_after_opening_is_refused_or_read_as_it_was() {
    let bytes = signed();
    let source = Changing {
        bytes: &bytes,
        at: AtomicUsize::new(usize::MAX),
    };
    let bundle = Bundle::from_source(&source, "x").unwrap();
    let read = || -> Vec<Result<Vec<u8>>> {
        let images = ImageKind::ALL.map(|kind| bundle.read_image(kind, 1 << 20));
        let texts = [bundle.state(), bundle.smolfile(), bundle.lock()];
        let texts = texts.map(|text| text.map(Option::unwrap));
        images.into_iter().chain(texts).collect()
    };
    let before: Vec<Vec<u8>> = read().into_iter().map(Result::unwrap).collect();
    let mut refused = 0;
    for blob in bundle.layout() {
        let middle = (blob.offset + blob.size / 2) as usize;
        source.at.store(middle, Ordering::SeqCst);
        for (part, before) in read().into_iter().zip(&before) {
            match part {
                Ok(bytes) => assert!(bytes == *before, "{}", blob.media_type),
                Err(error) => {
                    assert!(error.is_verification_failure(), "{error}");
                    refused += 1;
                }
            }
        }
    }
    // Each part on its own account, and memory also for its pages in the root file system.
    assert!(refused > before.len(), "{refused} parts were refused");
}

#[test]
fn a_source_that_holds_less_than_it_says_is_told_as_unreadable() {
    #[derive(Debug)]
    struct Longer<'b>(&'b [u8]);
    impl ReadAt for Longer<'_> {
        fn size(&self) -> io::Result<u64> {
            Ok(self.0.len() as u64 + 1024)
        }
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            ReadAt::read_exact_at(self.0, buffer, offset)
        }
    }
    let bytes = signed();
    let error = Bundle::from_source(Longer(&bytes), "x").unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error}");
}

#[test]
fn a_file_and_memory_with_the_same_bytes_are_the_same_bundle() {
    let work = Work::new();
    let path = work.bundle();
    let bytes = fs::read(&path).unwrap();
    let (file, memory) = (Bundle::open(&path).unwrap(), open(&bytes).unwrap());
    assert_eq!(file.digest(), memory.digest());
    assert_eq!(file.layout(), memory.layout());
    assert_eq!(file.file_size(), memory.file_size());
    assert_eq!(file.path(), path);
    assert_eq!(memory.path().to_str(), Some("memory"));
    let named = Bundle::from_source(File::open(&path).unwrap(), "another").unwrap();
    assert_eq!(named.path().to_str(), Some("another"));
}
