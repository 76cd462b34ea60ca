//! Archives unpacked into plain ones, within limits.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::compression::Compression;
use crate::limits::Watch;
#[cfg(doc)]
use crate::limits::{MAX_ENTRIES, MAX_WINDOW_LOG, MAX_XZ_MEMORY};
use crate::tar::Counter;

/// What is unpacked at a time, bytes: few enough to be in the processor's cache until they are written. The
/// zeros of a whole piece become a hole.
const PIECE: usize = 256 << 10;
/// Pieces that may wait until they are written.
const WAITING: usize = 4;

/// Unpacks a tar archive into an empty file, which can be read, too. Long runs of zeros take no place in it; one that
/// is not compressed is copied. `see` gets to see the content, piece by piece, and `watch` is asked now and then.
/// The memory that it takes has a bound that the archive cannot move: [`MAX_WINDOW_LOG`],
/// [`MAX_XZ_MEMORY`].
///
/// Seeing and writing is done by a thread of its own, while this one goes on: a digest takes nearly half of
/// the time that inflating does.
///
/// # Errors
/// The archive is damaged, takes more memory, or holds more than `most` bytes or [`MAX_ENTRIES`] names; the file
/// cannot be written; the error of `watch`; there can be no thread.
pub fn unpack(
    compression: Option<Compression>,
    archive: impl Read,
    to: &mut File,
    most: u64,
    see: &mut (dyn FnMut(&[u8]) + Send),
    watch: &Watch,
) -> Result<()> {
    let (full, pieces) = sync_channel(WAITING);
    let (spent, empty) = channel();
    thread::scope(|scope| {
        let writer = thread::Builder::new().name("unpacked".into());
        let writer = writer.spawn_scoped(scope, move || write(&pieces, &spent, to, see));
        let writer = writer.context("cannot start a thread")?;
        let next = || empty.try_recv().unwrap_or_else(|_| vec![0; PIECE]);
        // The writer gives up only where it fails, which is told below.
        let put = |piece| full.send(piece).is_ok();
        let read = read(compression, archive, most, watch, next, put);
        drop(full);
        let written = writer.join();
        written.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        read
    })
}

/// Unpacks into pieces that `next` gives, and has each `put`, as long as it returns true.
fn read(
    compression: Option<Compression>,
    archive: impl Read,
    most: u64,
    watch: &Watch,
    mut next: impl FnMut() -> Vec<u8>,
    mut put: impl FnMut(Vec<u8>) -> bool,
) -> Result<()> {
    let (how, packed) = match compression.map(Compression::name) {
        Some(name) => (
            format!("unpacked as {name}"),
            format!("is packed with {name} and "),
        ),
        None => ("read".to_owned(), String::new()),
    };
    let mut content: Box<dyn Read> = match compression {
        Some(compression) => compression.reader(archive)?,
        None => Box::new(archive),
    };
    let mut len = 0;
    loop {
        watch.check()?;
        let mut piece = next();
        piece.resize(PIECE, 0);
        let count = fill(&mut content, &mut piece)
            .with_context(|| format!("it cannot be {how} at byte {len} of its content"))?;
        len += count as u64;
        ensure!(len <= most, "it {packed}holds more than {most} bytes");
        piece.truncate(count);
        if count == 0 || !put(piece) {
            return Ok(());
        }
    }
}

/// Shows, writes and counts the pieces as they come, and gives them back.
fn write(
    pieces: &Receiver<Vec<u8>>,
    spent: &Sender<Vec<u8>>,
    to: &mut File,
    see: &mut dyn FnMut(&[u8]),
) -> Result<()> {
    const CANNOT: &str = "cannot write what is unpacked";
    let mut members = Counter::new(to).context(CANNOT)?;
    let mut len = 0;
    for piece in pieces {
        len += piece.len() as u64;
        see(&piece);
        let written = match piece.iter().all(|byte| *byte == 0) {
            true => to.seek(SeekFrom::Current(piece.len() as i64)).map(drop),
            false => to.write_all(&piece),
        };
        written.context(CANNOT)?;
        members.count(len)?;
        // Whoever reads may have failed.
        let _ = spent.send(piece);
    }
    to.set_len(len).context(CANNOT)
}

/// Reads until the piece is full or the end is met; returns how much.
fn fill(content: &mut dyn Read, piece: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < piece.len() {
        match content.read(&mut piece[count..]) {
            Ok(0) => break,
            Ok(n) => count += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use flate2::write::GzEncoder;

    use super::*;

    const ALL: [Compression; 3] = [Compression::Gzip, Compression::Zstd, Compression::Xz];

    fn pack(compression: Compression, content: &[u8]) -> Vec<u8> {
        match compression {
            Compression::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(content).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Zstd => zstd::encode_all(content, 1).unwrap(),
            Compression::Xz => {
                let mut packed = Vec::new();
                let mut encoder = liblzma::read::XzEncoder::new(content, 1);
                encoder.read_to_end(&mut packed).unwrap();
                packed
            }
        }
    }

    fn unpacked(archive: &[u8], most: u64) -> Result<(Vec<u8>, File)> {
        let compression = Compression::of(archive).context("not compressed")?;
        let mut file = tempfile::tempfile()?;
        let mut seen = Vec::new();
        let see = &mut |piece: &[u8]| seen.extend_from_slice(piece);
        unpack(
            Some(compression),
            archive,
            &mut file,
            most,
            see,
            &Watch::default(),
        )?;
        let mut content = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut content)?;
        assert!(content == seen);
        Ok((content, file))
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut sum = flate2::Crc::new();
        sum.update(bytes);
        sum.sum()
    }

    fn refused(archive: &[u8]) -> String {
        format!("{:#}", unpacked(archive, 1 << 30).unwrap_err())
    }

    #[test]
    fn all_parts_of_an_archive_are_unpacked() {
        for compression in ALL {
            let parts = [&b"one "[..], b"", b"two"].map(|part| pack(compression, part));
            assert_eq!(unpacked(&parts.concat(), 7).unwrap().0, b"one two");
        }
        // A frame to be skipped, before and between.
        let skipped = [0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let frame = pack(Compression::Zstd, b"x");
        let archive = [&skipped[..], &frame, &skipped, &frame].concat();
        assert_eq!(unpacked(&archive, 2).unwrap().0, b"xx");
    }

    #[test]
    fn what_is_cut_short_changed_or_followed_by_something_else_is_refused() {
        let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        for compression in ALL {
            let packed = pack(compression, &content);
            let expected = format!("it cannot be unpacked as {}", compression.name());
            for cut in [packed.len() - 1, packed.len() / 2, 7] {
                assert!(
                    refused(&packed[..cut]).contains(&expected),
                    "{compression:?} {cut}"
                );
            }
            let followed = [&packed[..], b"something"].concat();
            assert!(refused(&followed).contains(&expected), "{compression:?}");
            let mut changed = packed.clone();
            let middle = packed.len() / 2;
            changed[middle] ^= 1;
            // zstd frames may be without a checksum; then the content differs.
            match unpacked(&changed, 1 << 30) {
                Ok((found, _)) => {
                    assert!(compression == Compression::Zstd && found != content);
                }
                Err(error) => assert!(format!("{error:#}").contains(&expected)),
            }
        }
    }

    #[test]
    fn an_archive_that_holds_too_much_is_refused_and_its_zeros_take_no_place() {
        let zeros = vec![0; 16 << 20];
        for compression in ALL {
            let bomb = pack(compression, &zeros);
            assert!(bomb.len() < 1 << 18);
            let error = unpacked(&bomb, (16 << 20) - 1).unwrap_err().to_string();
            let expected = "and holds more than 16777215 bytes";
            assert!(error.ends_with(expected), "{error}");
            let (content, file) = unpacked(&bomb, 16 << 20).unwrap();
            assert!(content == zeros);
            assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20);
        }
    }

    #[test]
    fn unpacking_ends_when_nothing_can_be_written_or_the_watch_says_so() {
        // More than may wait: whoever unpacks notices that nobody writes.
        let content: Vec<u8> = (0..2 * (WAITING * PIECE) as u32)
            .map(|i| (i >> 8) as u8 | 1)
            .collect();
        let packed = pack(Compression::Gzip, &content);
        let file = tempfile::NamedTempFile::new().unwrap();
        let unpack = |to: &mut File, watch: &Watch| {
            let see = &mut |_: &[u8]| {};
            let how = Some(Compression::Gzip);
            let error = unpack(how, &packed[..], to, 1 << 30, see, watch).unwrap_err();
            format!("{error:#}")
        };
        let mut unwritable = File::open(file.path()).unwrap();
        let error = unpack(&mut unwritable, &Watch::default());
        assert!(
            error.starts_with("cannot write what is unpacked: "),
            "{error}"
        );
        let asked = AtomicUsize::new(0);
        let watch = Watch::new(move || {
            ensure!(
                asked.fetch_add(1, Ordering::Relaxed) < 2 * WAITING,
                "stopped"
            );
            Ok(())
        });
        assert_eq!(unpack(&mut file.reopen().unwrap(), &watch), "stopped");
    }

    #[test]
    fn a_window_that_takes_too_much_memory_is_refused() {
        // A frame header (RFC 8878, 3.1.1.1) with a window of 2^31 bytes; the block behind it is empty.
        let wide = [0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0];
        assert!(
            refused(&wide).contains("requires too much memory"),
            "{}",
            refused(&wide)
        );
        // A block header that asks for a dictionary of 4 GiB (xz file format 1.2, 3.1 and 5.3.1).
        let mut packed = pack(Compression::Xz, b"x");
        let header = 12..24;
        let at = header.start + 4;
        assert_eq!(
            packed[at - 2..at],
            [0x21, 1],
            "LZMA2, with one byte of properties"
        );
        packed[at] = 40;
        let sum = crc32(&packed[header.start..header.end - 4]);
        packed[header.end - 4..header.end].copy_from_slice(&sum.to_le_bytes());
        assert!(refused(&packed).contains("memory"), "{}", refused(&packed));
    }

    #[test]
    fn a_compression_is_told_by_its_first_bytes() {
        for compression in ALL {
            let packed = pack(compression, b"x");
            assert_eq!(Compression::of(&packed), Some(compression));
            assert_eq!(Compression::of(&packed[..1]), None);
        }
        assert_eq!(Compression::of(b"BZh91AY"), None);
        let mut short = tempfile::tempfile().unwrap();
        assert_eq!(Compression::of_file(&short).unwrap(), None);
        short.write_all(&pack(Compression::Xz, b"x")).unwrap();
        assert_eq!(Compression::of_file(&short).unwrap(), Some(Compression::Xz));
    }
}
