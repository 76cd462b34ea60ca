//! A file that appears whole or not at all.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use tempfile::{Builder, TempPath};

use crate::{Error, Result};

/// Copies the bundle at `from` to `out`, which is replaced when the copy is complete and on the
/// disk. Nothing is verified. Where the file system can, the two share their blocks.
pub fn copy(from: &Path, out: &Path) -> Result<()> {
    let source = File::open(from).map_err(|e| Error::io("open", from, e))?;
    let output = Output::create(out)?;
    io::copy(&mut &source, &mut output.file())
        .map_err(|e| Error::io("copy the bundle to", out, e))?;
    output.publish()
}

/// An output under way. Dropped before [`Output::publish`], it leaves nothing behind.
pub(crate) struct Output {
    file: File,
    /// The name until it is published; none where the file system can make files without a name,
    /// so that even a killed process leaves nothing.
    temporary: Option<TempPath>,
    path: PathBuf,
}

impl Output {
    /// Creates an empty file in the folder of `path`.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let folder = folder(path);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let (file, temporary) = match rustix::fs::open(folder, flags, Mode::from_raw_mode(0o666)) {
            Ok(fd) => (File::from(fd), None),
            // No O_TMPFILE here (overlay, network and FUSE file systems), or a real fault that
            // the second way meets, too, and reports.
            Err(_) => {
                let named = builder().tempfile_in(folder);
                let named = named.map_err(|e| Error::io("create a file in", folder, e))?;
                let (file, temporary) = named.into_parts();
                (file, Some(temporary))
            }
        };
        Ok(Output {
            file,
            temporary,
            path: path.to_owned(),
        })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Syncs the file and renames it to its place, over what is there.
    pub(crate) fn publish(self) -> Result<()> {
        let io = |e| Error::io("write", &self.path, e);
        self.file.sync_all().map_err(io)?;
        let folder = folder(&self.path);
        let temporary = match self.temporary {
            Some(temporary) => temporary,
            // Linking cannot replace an existing file, renaming can.
            None => builder()
                .make_in(folder, |name| link(&self.file, name))
                .map_err(io)?
                .into_temp_path(),
        };
        temporary.persist(&self.path).map_err(|e| io(e.error))?;
        // The rename itself is safe only with its folder. Some file systems cannot sync a folder.
        let _ = File::open(folder).and_then(|f| f.sync_all());
        Ok(())
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn builder() -> Builder<'static, 'static> {
    use std::os::unix::fs::PermissionsExt;
    let mut builder = Builder::new();
    builder
        .prefix(".smol-")
        .suffix(".tmp")
        .permissions(PermissionsExt::from_mode(0o666));
    builder
}

/// Gives a nameless file a name, open(2) under O_TMPFILE.
fn link(file: &File, name: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(
        CWD,
        source,
        CWD,
        name,
        AtFlags::SYMLINK_FOLLOW,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(folder: &Path) -> Vec<std::ffi::OsString> {
        std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    #[test]
    fn a_published_file_replaces_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for content in ["old", "new"] {
            let output = Output::create(&path).unwrap();
            output.file().write_all(content.as_bytes()).unwrap();
            output.publish().unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(names(dir.path()), ["x"]);
    }

    #[test]
    fn an_abandoned_output_leaves_the_folder_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "old").unwrap();
        let output = Output::create(&path).unwrap();
        output.file().write_all(b"half").unwrap();
        drop(output);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(dir.path()), ["x"]);
    }

    #[test]
    fn a_copy_replaces_what_is_there_and_is_a_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&from, "new").unwrap();
        std::fs::write(&to, "older").unwrap();
        copy(&from, &to).unwrap();
        std::fs::write(&from, "newer").unwrap();
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "new");
        assert!(copy(&dir.path().join("c"), &to).is_err());
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "new");
        assert_eq!(names(dir.path()), ["a", "b"]);
    }

    #[test]
    fn a_folder_that_is_absent_is_named_in_the_error() {
        let error = Output::create(Path::new("/nonexistent/x")).err().unwrap();
        assert!(error.to_string().contains("/nonexistent"), "{error}");
    }
}
