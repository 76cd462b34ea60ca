//! A file that appears whole or not at all, where there can be one.
//!
//! Whatever a user names as an output goes through here. What is at that path decides:
//!
//! | at the path | what happens |
//! |---|---|
//! | nothing, or a regular file | a new file is written in its folder and renamed to it |
//! | a symbolic link | it stays, and the same happens to what it leads to |
//! | a named pipe, a terminal, `/dev/null` | all is written into it when it is complete |
//! | a folder, a disk, a socket | an error |

use std::fs::{self, File};
use std::io::{self, ErrorKind, Seek};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use tempfile::{Builder, TempPath};

use crate::{Error, Result};

/// Symbolic links that are followed until they count as a loop, as in Linux.
const MAX_LINKS: usize = 40;

/// Copies the bundle at `from` to `out`, which is replaced when the copy is complete and on the
/// disk. Nothing is verified. Where the file system can, the two share their blocks.
pub fn copy(from: &Path, out: &Path) -> Result<()> {
    let source = File::open(from).map_err(|e| Error::io("open", from, e))?;
    let output = Output::create(out)?;
    io::copy(&mut &source, &mut output.file())
        .map_err(|e| Error::io("copy the bundle to", out, e))?;
    output.publish()
}

/// Finds out whether [`Output::create`] could succeed for `path`, and changes nothing: a pipe is not
/// opened, for whoever reads from it would see its end.
///
/// # Errors
/// Those of [`Output::create`].
pub fn check(path: &Path) -> Result<()> {
    match Target::of(path)? {
        Target::File(place) => tempfile::tempfile_in(folder(&place))
            .map(drop)
            .map_err(|e| Error::io("write", path, e)),
        Target::Stream => rustix::fs::access(path, Access::WRITE_OK)
            .map_err(|e| Error::io("write", path, e.into())),
    }
}

/// An output under way. Dropped before [`Output::publish`], it leaves nothing behind.
pub struct Output {
    file: File,
    /// The name until it is published; none where the file system can make files without a name,
    /// so that even a killed process leaves nothing.
    temporary: Option<TempPath>,
    mode: u32,
    destination: Destination,
    path: PathBuf,
}

enum Destination {
    /// Renamed to this path.
    Rename(PathBuf),
    /// Copied into this pipe or device.
    Stream(File),
}

/// What an output goes to.
enum Target {
    /// A regular file, which may be there.
    File(PathBuf),
    /// Something to write into.
    Stream,
}

impl Target {
    fn of(path: &Path) -> Result<Target> {
        let refused = |reason| {
            let path = path.to_owned();
            Err(Error::Output { path, reason })
        };
        // Follows links, as far as the system lets us.
        let kind = match fs::metadata(path) {
            Ok(found) => found.file_type(),
            Err(e) if e.kind() == ErrorKind::NotFound => return file(path),
            Err(e) => return Err(Error::io("write", path, e)),
        };
        match kind {
            _ if kind.is_file() => file(path),
            _ if kind.is_dir() => refused("it is a folder"),
            _ if kind.is_block_device() => refused("it is a disk"),
            _ if kind.is_socket() => refused("it is a socket"),
            _ => Ok(Target::Stream),
        }
    }
}

/// The place of a regular file: where links lead.
///
/// # Errors
/// A link that somebody else put into a folder that all may write to, such as `/tmp`: it decides which
/// file is replaced. (Linux refuses to follow it, too, unless fs.protected_symlinks is 0.)
fn file(path: &Path) -> Result<Target> {
    let mut place = path.to_owned();
    for _ in 0..MAX_LINKS {
        let link = match fs::symlink_metadata(&place) {
            Ok(found) if found.is_symlink() => found,
            _ => return Ok(Target::File(place)),
        };
        let io = |e| Error::io("write", path, e);
        let parent = fs::metadata(folder(&place)).map_err(io)?;
        let shared = parent.mode() & 0o1002 == 0o1002;
        let ours = rustix::process::geteuid().as_raw();
        if shared && link.uid() != ours && link.uid() != parent.uid() {
            return Err(io(Errno::ACCESS.into()));
        }
        let target = fs::read_link(&place).map_err(io)?;
        place = folder(&place).join(target);
    }
    Err(Error::io("write", path, Errno::LOOP.into()))
}

/// An empty file in the folder of `place`, and its name if it has one.
fn temporary(place: &Path, mode: u32) -> Result<(File, Option<TempPath>)> {
    let folder = folder(place);
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::from_raw_mode(mode)) {
        Ok(fd) => Ok((File::from(fd), None)),
        // No O_TMPFILE here (overlay, network and FUSE file systems), or a real fault that
        // the second way meets, too, and reports.
        Err(_) => {
            let named = builder(mode).tempfile_in(folder);
            let named = named.map_err(|e| Error::io("create a file in", folder, e))?;
            let (file, temporary) = named.into_parts();
            Ok((file, Some(temporary)))
        }
    }
}

impl Output {
    /// Begins an output to `path`. For a file, an empty one is made in its folder; a pipe or device is
    /// opened.
    ///
    /// # Errors
    /// [`Error::Output`] where nothing can be written to; a pipe from which nobody reads; those of the
    /// file system.
    pub fn create(path: &Path) -> Result<Self> {
        Self::create_with_mode(path, 0o666)
    }

    /// Like [`Output::create`]; a file gets the permissions `mode`, less the umask.
    ///
    /// # Errors
    /// Those of [`Output::create`].
    pub fn create_with_mode(path: &Path, mode: u32) -> Result<Self> {
        let (file, temporary, destination) = match Target::of(path)? {
            Target::File(place) => {
                let (file, name) = temporary(&place, mode)?;
                (file, name, Destination::Rename(place))
            }
            Target::Stream => {
                let stream = open_stream(path)?;
                let file = tempfile::tempfile();
                let file = file.map_err(|e| Error::io("create a temporary file for", path, e))?;
                (file, None, Destination::Stream(stream))
            }
        };
        Ok(Output {
            file,
            temporary,
            mode,
            destination,
            path: path.to_owned(),
        })
    }

    /// The file to write into; it can be read, too.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Syncs the file and renames it to its place, over what is there; or copies it into its stream.
    ///
    /// # Errors
    /// Those of the file system. Then the path has what it had; a stream may have got a part.
    pub fn publish(mut self) -> Result<()> {
        let io = |e| Error::io("write", &self.path, e);
        let place = match &mut self.destination {
            Destination::Rename(place) => place,
            Destination::Stream(stream) => {
                self.file.rewind().map_err(io)?;
                return io::copy(&mut self.file, stream).map(drop).map_err(io);
            }
        };
        self.file.sync_all().map_err(io)?;
        let folder = folder(place);
        let temporary = match self.temporary {
            Some(temporary) => temporary,
            // Linking cannot replace an existing file, renaming can.
            None => builder(self.mode)
                .make_in(folder, |name| link(&self.file, name))
                .map_err(io)?
                .into_temp_path(),
        };
        temporary.persist(&place).map_err(|e| io(e.error))?;
        // The rename itself is safe only with its folder. Some file systems cannot sync a folder.
        let _ = File::open(folder).and_then(|f| f.sync_all());
        Ok(())
    }
}

/// Opens a pipe or device for writing. A pipe without a reader is an error and not waited for.
fn open_stream(path: &Path) -> Result<File> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty()).and_then(|fd| {
        // Writes wait.
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags - OFlags::NONBLOCK)?;
        Ok(File::from(fd))
    });
    opened.map_err(|error| match error {
        Errno::NXIO => Error::Output {
            path: path.to_owned(),
            reason: "it is a pipe, and nobody reads from it",
        },
        error => Error::io("write", path, error.into()),
    })
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn builder(mode: u32) -> Builder<'static, 'static> {
    use std::os::unix::fs::PermissionsExt;
    let mut builder = Builder::new();
    builder
        .prefix(".smol-")
        .suffix(".tmp")
        .permissions(PermissionsExt::from_mode(mode));
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

    /// What is at a path after `content` was written to it as an output.
    fn write(path: &Path, content: &str) -> Result<()> {
        let output = Output::create(path)?;
        output.file().write_all(content.as_bytes()).unwrap();
        output.publish()
    }

    #[test]
    fn a_link_stays_and_what_it_leads_to_is_replaced() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        fs::create_dir(place("far")).unwrap();
        symlink("far/file", place("link")).unwrap();
        symlink(place("link"), place("again")).unwrap();
        // The first time there is nothing yet.
        for content in ["one", "two"] {
            check(&place("again")).unwrap();
            write(&place("again"), content).unwrap();
            assert_eq!(fs::read_to_string(place("far/file")).unwrap(), content);
            assert!(place("again").is_symlink() && place("link").is_symlink());
            assert!(!place("far/file").is_symlink());
        }
        assert_eq!(names(dir.path()), ["again", "far", "link"]);
        assert_eq!(names(&place("far")), ["file"]);
        symlink("loop", place("loop")).unwrap();
        assert!(write(&place("loop"), "x").is_err());
        symlink("none/x", place("nowhere")).unwrap();
        assert!(write(&place("nowhere"), "x").is_err());
    }

    #[test]
    fn devices_and_pipes_are_written_into_and_stay() {
        use std::io::Read;
        let dir = tempfile::tempdir().unwrap();
        // By a link: were it replaced, the device would not be.
        let null = dir.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &null).unwrap();
        check(&null).unwrap();
        write(&null, "gone").unwrap();
        assert!(null.is_symlink());
        assert!(
            fs::metadata("/dev/null")
                .unwrap()
                .file_type()
                .is_char_device()
        );

        let pipe = dir.path().join("pipe");
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        check(&pipe).unwrap();
        let error = write(&pipe, "x").unwrap_err().to_string();
        assert!(
            error.ends_with("it is a pipe, and nobody reads from it"),
            "{error}"
        );
        let long = "content ".repeat(100_000);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let reader = rustix::fs::open(&pipe, flags, Mode::empty()).unwrap();
        rustix::fs::fcntl_setfl(&reader, OFlags::empty()).unwrap();
        let mut reader = File::from(reader);
        let output = Output::create(&pipe).unwrap();
        output.file().write_all(long.as_bytes()).unwrap();
        let written = std::thread::spawn(move || output.publish());
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        written.join().unwrap().unwrap();
        assert_eq!(read, long);
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
        assert_eq!(names(dir.path()), ["null", "pipe"]);
    }

    #[test]
    fn folders_and_sockets_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, why) in [(dir.path(), "a folder"), (&socket, "a socket")] {
            for result in [check(path), write(path, "x")] {
                let error = result.unwrap_err();
                assert!(matches!(error, Error::Output { .. }));
                assert!(error.to_string().ends_with(why), "{error}");
            }
        }
        assert_eq!(names(dir.path()), ["socket"]);
    }

    #[test]
    fn a_strangers_link_in_a_folder_for_all_does_not_decide_what_is_replaced() {
        use std::os::unix::fs::{PermissionsExt, lchown, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (shared, target) = (dir.path().join("shared"), dir.path().join("target"));
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, PermissionsExt::from_mode(0o1777)).unwrap();
        fs::write(&target, "old").unwrap();
        symlink(&target, shared.join("x")).unwrap();
        write(&shared.join("x"), "ours").unwrap();
        if lchown(shared.join("x"), Some(65534), None).is_err() {
            return smol_testing::left_out("only root can make a stranger's link");
        }
        assert!(write(&shared.join("x"), "new").is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "ours");
    }

    #[test]
    fn a_folder_that_is_absent_is_named_in_the_error() {
        let error = Output::create(Path::new("/nonexistent/x")).err().unwrap();
        assert!(error.to_string().contains("/nonexistent"), "{error}");
    }
}
