//! Kernels that a release carries, so that its users compile none.
//!
//! `share/smol/kernels/<recipe>/` beside the folder of the program holds `vmlinux.zst` and
//! `kernel.json`, which tells what it was made of, its size and its digest. Its `key` covers the
//! recipe's part of the inputs ([`super::inputs::recipe_key`]) and no compiler: whoever uses a release
//! wants its kernel, whatever compiler this host has, or none. Which one compiled it is recorded, and
//! is what locks pin.
//!
//! Nothing is taken from a file that is not what `kernel.json` says, and nothing of it is read beyond
//! the limits below.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use smol_cli::{ErrorExt, ExitKind, Failure};
use zstd::stream::{read::Decoder, write::Encoder};

use super::inputs::Toolchain;
use crate::hash;
use crate::lock::rules;

const PACKED: &str = "vmlinux.zst";
const DESCRIPTION: &str = "kernel.json";
/// Longest `kernel.json`, in bytes.
const MAX_DESCRIPTION: u64 = 64 << 10;
/// Largest vmlinux, in bytes. Ours has some ten million.
const MAX_VMLINUX: u64 = 256 << 20;
/// The best that compresses with the window below.
const LEVEL: i32 = 19;
/// Memory that decompression may take: 2 to the power of this, in bytes.
const WINDOW_LOG: u32 = 23;

/// `kernel.json` of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Digest of the recipe's files, the source and the arguments of the tools.
    pub key: String,
    /// The source, for people.
    pub source: String,
    /// What compiled it.
    pub toolchain: Toolchain,
    /// Bytes of vmlinux.
    pub size: u64,
    /// SHA-256 of vmlinux.
    pub sha256: String,
}

impl Description {
    /// What comes out of it goes into locks and commands.
    fn check(&self) -> Result<()> {
        let lines = [&self.source, &self.toolchain.gcc, &self.toolchain.ld];
        ensure!(
            lines.iter().all(|text| rules::is_line(text)),
            "source and toolchain must be lines of text"
        );
        ensure!(
            rules::is_sha256(&self.sha256),
            "sha256 is not a SHA-256 digest"
        );
        ensure!(
            (1..=MAX_VMLINUX).contains(&self.size),
            "size is not between 1 and {MAX_VMLINUX} bytes"
        );
        Ok(())
    }
}

/// The kernel of a recipe in a release.
#[derive(Clone, Debug)]
pub struct Prebuilt {
    folder: PathBuf,
    /// What it says of itself.
    pub description: Description,
}

impl Prebuilt {
    /// The kernel of the recipe `name` in a release's folder of kernels; nothing if there is none.
    ///
    /// # Errors
    /// It does not tell what it is (exit kind Verification).
    pub fn open(kernels: &Path, name: &str) -> Result<Option<Prebuilt>> {
        let folder = kernels.join(name);
        let file = folder.join(DESCRIPTION);
        let read = || -> io::Result<Vec<u8>> {
            let mut json = Vec::new();
            File::open(&file)?
                .take(MAX_DESCRIPTION + 1)
                .read_to_end(&mut json)?;
            Ok(json)
        };
        let json = match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| refused(&file, error.into()))?,
        };
        let parse = || -> Result<Description> {
            ensure!(json.len() as u64 <= MAX_DESCRIPTION, "it is too long");
            let description: Description = serde_json::from_slice(&json)?;
            description.check()?;
            Ok(description)
        };
        let description = parse().map_err(|error| refused(&file, error))?;
        Ok(Some(Prebuilt {
            folder,
            description,
        }))
    }

    /// Decompresses it into `out`, all that was told and no byte more.
    ///
    /// # Errors
    /// It is not what its description says (exit kind Verification); `out` cannot be written.
    pub fn unpack(&self, out: &mut dyn Write) -> Result<()> {
        let packed = self.folder.join(PACKED);
        let refused = |error| refused(&packed, error);
        let open = || -> io::Result<_> {
            let mut decoder = Decoder::new(File::open(&packed)?)?;
            decoder.window_log_max(WINDOW_LOG)?;
            Ok(decoder)
        };
        let mut decoder = open().map_err(|error| refused(error.into()))?;
        let Description { size, sha256, .. } = &self.description;
        let (mut total, mut chunk) = (0, vec![0; 1 << 20]);
        let mut unwritten = Ok(());
        let found = hash::sha256_of(|hasher| {
            while total <= *size {
                let read = decoder.read(&mut chunk)?;
                if read == 0 {
                    break;
                }
                total += read as u64;
                hasher.write_all(&chunk[..read])?;
                if unwritten.is_ok() {
                    unwritten = out.write_all(&chunk[..read]);
                }
            }
            Ok(())
        });
        let found = found.map_err(|error| refused(error.into()))?;
        if total != *size || found != *sha256 {
            let what = format!("it does not hold the {size} bytes with the SHA-256 {sha256}");
            return Err(refused(anyhow::Error::msg(what)));
        }
        unwritten.context("cannot write the kernel")
    }
}

/// The error for a kernel of a release that is not what it should be.
fn refused(file: &Path, error: anyhow::Error) -> anyhow::Error {
    error
        .context(format!(
            "the prebuilt kernel is damaged: {}",
            file.display()
        ))
        .kind(ExitKind::Verification)
        .hint("unpack or install the release again")
        .hint("or compile the kernel here: --no-prebuilt")
}

/// Writes the kernel `vmlinux` into a release's folder of kernels, for the recipe `name`; `about` gets
/// its size and digest. What was written is read once more.
///
/// # Errors
/// If it cannot be written, or is larger than what is read back.
pub fn write(kernels: &Path, name: &str, vmlinux: &Path, mut about: Description) -> Result<()> {
    let folder = kernels.join(name);
    let mut write = || -> Result<()> {
        fs::create_dir_all(&folder)?;
        let mut encoder = Encoder::new(File::create(folder.join(PACKED))?, LEVEL)?;
        encoder.window_log(WINDOW_LOG)?;
        encoder.include_checksum(true)?;
        about.size = io::copy(&mut File::open(vmlinux)?, &mut encoder)?;
        encoder.finish()?.sync_all()?;
        about.sha256 = hash::sha256(vmlinux)?;
        let mut json = serde_json::to_vec_pretty(&about)?;
        json.push(b'\n');
        fs::write(folder.join(DESCRIPTION), json)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", folder.display()))?;
    let written = Prebuilt::open(kernels, name)?;
    let written = written.ok_or_else(|| Failure::new(ExitKind::Internal, "it was just written"))?;
    written.unpack(&mut io::sink())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes a kernel of this content into a release's folder of kernels.
    pub fn release(kernels: &Path, key: &str, toolchain: &Toolchain, content: &[u8]) {
        let vmlinux = kernels.join("vmlinux");
        fs::create_dir_all(kernels).unwrap();
        fs::write(&vmlinux, content).unwrap();
        let about = Description {
            key: key.to_owned(),
            source: "linux-source-6.1 6.1.2-1".into(),
            toolchain: toolchain.clone(),
            size: 0,
            sha256: String::new(),
        };
        write(kernels, "test", &vmlinux, about).unwrap();
        fs::remove_file(vmlinux).unwrap();
    }

    fn toolchain() -> Toolchain {
        Toolchain {
            gcc: "gcc 12".into(),
            ld: "ld 2.40".into(),
        }
    }

    /// Bytes that compress badly.
    fn content() -> Vec<u8> {
        let mut bytes = vec![0; 3_000_000];
        blake3::Hasher::new()
            .finalize_xof()
            .fill(&mut bytes[..2_000_000]);
        bytes
    }

    /// A release's folder of kernels with one kernel, changed by `change`, which gets the folder of
    /// the kernel; and the error of whoever wants it.
    fn refusal(change: impl FnOnce(&Path)) -> String {
        let folder = tempfile::tempdir().unwrap();
        release(folder.path(), "k", &toolchain(), &content());
        change(&folder.path().join("test"));
        let unpack = || match Prebuilt::open(folder.path(), "test")? {
            Some(prebuilt) => prebuilt.unpack(&mut io::sink()),
            None => panic!("it is there"),
        };
        let error = unpack().unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Verification);
        let text = smol_cli::error::render(&error, false);
        assert!(text.contains("--no-prebuilt"), "{text}");
        text
    }

    fn describe(folder: &Path, change: impl FnOnce(&mut Description)) {
        let file = folder.join(DESCRIPTION);
        let mut about = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        change(&mut about);
        fs::write(file, serde_json::to_vec(&about).unwrap()).unwrap();
    }

    #[test]
    fn a_kernel_comes_out_as_it_went_in_and_each_time_the_same_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
        for kernels in [&a, &b] {
            release(kernels, "k", &toolchain(), &content());
            let prebuilt = Prebuilt::open(kernels, "test").unwrap().unwrap();
            assert_eq!(prebuilt.description.key, "k");
            let mut unpacked = Vec::new();
            prebuilt.unpack(&mut unpacked).unwrap();
            assert!(unpacked == content());
        }
        for file in [PACKED, DESCRIPTION] {
            let [a, b] = [&a, &b].map(|kernels| fs::read(kernels.join("test").join(file)).unwrap());
            assert!(a == b, "{file}");
        }
        assert!(Prebuilt::open(&a, "other").unwrap().is_none());
    }

    #[test]
    fn a_truncated_a_changed_and_a_missing_kernel_are_refused() {
        let change = |change: fn(&mut Vec<u8>)| {
            refusal(|folder| {
                let mut packed = fs::read(folder.join(PACKED)).unwrap();
                change(&mut packed);
                fs::write(folder.join(PACKED), packed).unwrap();
            })
        };
        for text in [
            change(|packed| packed.truncate(packed.len() / 2)),
            change(|packed| packed.clear()),
            change(|packed| packed[1_000_000] ^= 1),
            change(|packed| packed.extend_from_within(..)),
            change(|packed| packed.extend(b"more")),
            refusal(|folder| fs::remove_file(folder.join(PACKED)).unwrap()),
        ] {
            assert!(text.contains(PACKED), "{text}");
        }
    }

    #[test]
    fn a_kernel_of_another_digest_or_size_is_refused() {
        for text in [
            refusal(|folder| describe(folder, |about| about.sha256 = "ab".repeat(32))),
            refusal(|folder| describe(folder, |about| about.size -= 1)),
            refusal(|folder| describe(folder, |about| about.size += 1)),
        ] {
            assert!(text.contains("does not hold the"), "{text}");
        }
    }

    #[test]
    fn a_description_that_is_none_is_refused() {
        let write =
            |json: &str| refusal(|folder| fs::write(folder.join(DESCRIPTION), json).unwrap());
        for text in [
            write(""),
            write("{}"),
            write(&" ".repeat(MAX_DESCRIPTION as usize + 1)),
            refusal(|folder| describe(folder, |about| about.size = MAX_VMLINUX + 1)),
            refusal(|folder| describe(folder, |about| about.toolchain.gcc = "gcc\nld".into())),
            refusal(|folder| describe(folder, |about| about.sha256 = "ab".into())),
        ] {
            assert!(text.contains(DESCRIPTION), "{text}");
        }
    }

    #[test]
    fn no_more_is_unpacked_than_is_described_however_much_there_is() {
        struct Counter(u64);
        impl Write for Counter {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += bytes.len() as u64;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let folder = tempfile::tempdir().unwrap();
        release(folder.path(), "k", &toolchain(), b"small");
        // 300 MB in a few kB.
        let bomb = Encoder::new(Vec::new(), 3).and_then(|mut encoder| {
            io::copy(&mut io::repeat(0).take(300_000_000), &mut encoder)?;
            encoder.finish()
        });
        fs::write(folder.path().join("test").join(PACKED), bomb.unwrap()).unwrap();
        let prebuilt = Prebuilt::open(folder.path(), "test").unwrap().unwrap();
        let mut counter = Counter(0);
        prebuilt.unpack(&mut counter).unwrap_err();
        assert!(counter.0 <= 1 << 20, "{}", counter.0);
    }

    #[test]
    fn a_window_that_takes_much_memory_is_refused() {
        let text = refusal(|folder| {
            let mut encoder = Encoder::new(Vec::new(), 3).unwrap();
            encoder.window_log(WINDOW_LOG + 1).unwrap();
            io::copy(&mut io::repeat(0).take(30_000_000), &mut encoder).unwrap();
            fs::write(folder.join(PACKED), encoder.finish().unwrap()).unwrap();
        });
        assert!(text.contains("memory"), "{text}");
    }
}
