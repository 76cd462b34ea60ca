//! The archive of a release: all files below one folder, with their digests.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};

use super::content::Content;
use super::{SUMS, sums};

/// Writes `smol-VERSION-ARCH-linux.tar.gz` into the folder `out`; all files have the time `time`.
///
/// # Errors
/// If it cannot be written.
pub fn write(content: &Content, arch: &str, time: u64, out: &Path) -> Result<PathBuf> {
    let name = format!("smol-{}-{arch}-linux", env!("CARGO_PKG_VERSION"));
    let archive = out.join(format!("{name}.tar.gz"));
    let cannot = || format!("cannot write {}", archive.display());
    let file = BufWriter::new(File::create(&archive).with_context(cannot)?);
    // The gzip header holds neither a time nor a name.
    let compressed = GzBuilder::new().write(file, Compression::best());
    let mut tar = tar::Builder::new(compressed);
    let sums = sums(
        content
            .iter()
            .map(|(path, entry)| (path.as_str(), &entry.bytes[..])),
    );
    let files = content
        .iter()
        .map(|(path, entry)| (path.as_str(), &entry.bytes[..], entry.executable));
    let mut files: Vec<_> = files.chain([(SUMS, sums.as_bytes(), false)]).collect();
    files.sort();
    for (path, bytes, executable) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(if executable { 0o755 } else { 0o644 });
        header.set_mtime(time);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, Path::new(&name).join(path), bytes)
            .with_context(cannot)?;
    }
    let compressed = tar.into_inner().with_context(cannot)?;
    let mut file = compressed.finish().with_context(cannot)?;
    file.flush().with_context(cannot)?;
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::super::{DOCUMENTS, FOLDERS, tests};
    use super::*;

    fn packed() -> Vec<u8> {
        let place = tempfile::tempdir().unwrap();
        let archive = write(&tests::content(), "x86_64", 1_234_567, place.path()).unwrap();
        fs::read(archive).unwrap()
    }

    #[test]
    fn a_release_has_the_same_bytes_each_time() {
        assert!(packed() == packed());
    }

    #[test]
    fn a_release_holds_programs_pages_completions_and_digests_of_all() {
        let archive = packed();
        let mut tar = tar::Archive::new(GzDecoder::new(archive.as_slice()));
        let (mut contents, mut order) = (BTreeMap::new(), Vec::new());
        let top = format!("smol-{}-x86_64-linux/", env!("CARGO_PKG_VERSION"));
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let path = path.strip_prefix(&top).unwrap().to_owned();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            assert_eq!(header.mtime().unwrap(), 1_234_567);
            let program = path.starts_with("bin/") || path.ends_with("/start");
            let mode = if program { 0o755 } else { 0o644 };
            assert_eq!(header.mode().unwrap(), mode, "{path}");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            order.push(path.clone());
            contents.insert(path, bytes);
        }
        assert!(order.is_sorted());
        for (path, words) in [
            ("share/man/man1/smolrun.1", "page of smolrun"),
            (
                "share/bash-completion/completions/smolbuild",
                "smolbuild in bash",
            ),
            ("share/zsh/site-functions/_smolrun", "smolrun in zsh"),
            ("share/smol/kernels/smol-1/vmlinux.zst", "Linux"),
            ("LICENSE-MIT", "LICENSE-MIT"),
        ] {
            let text = String::from_utf8_lossy(&contents[path]);
            assert!(text.contains(words), "{path}: {text}");
        }
        let told = contents.remove(SUMS).unwrap();
        let expected = sums(
            contents
                .iter()
                .map(|(path, bytes)| (path.as_str(), &bytes[..])),
        );
        assert_eq!(String::from_utf8(told).unwrap(), expected);
        // The kernel has its licence, two files of it, and its recipe.
        assert_eq!(
            contents.len(),
            2 * (1 + 1 + 3) + (1 + 2 + 2) + DOCUMENTS.len() + FOLDERS.len()
        );
    }
}
