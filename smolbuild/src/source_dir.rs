//! The folder of a Smolfile, to which its paths are relative, and what in it is ignored.
//!
//! What a Smolfile names stays in its folder, or in a wider one that the user gives (the build
//! context), also behind symbolic links: a project from elsewhere must not be able to take files of
//! whoever builds it. [`SourceDir::place`] finds out where a path leads, and all that reads a file of
//! the Smolfile goes through it; what is opened then follows no link any more.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, fs, io};

use anyhow::{Context, Result};
use smol_cli::{ErrorExt, ExitKind, Failure};
use smol_rootfs::ignore::{BrokenPattern, Patterns};
use smol_rootfs::{Ignore, host};
use toml::Spanned;

use crate::hash;

/// The file with patterns of what is ignored, beside the Smolfile.
pub const IGNORE_FILE: &str = ".smolignore";
/// Largest ignore file, in bytes.
const MAX_SIZE: u64 = 256 * 1024;

/// Ignored unless the ignore file takes it in again: what a build leaves in its folder.
const BUNDLES: &str = "*.smolmachine";

/// The folder of a Smolfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceDir {
    path: PathBuf,
    /// The build context, if it is a wider folder.
    context: Option<PathBuf>,
    /// What is never taken: the ignore file, and the lock file, which could not hold its own digest.
    never: Arc<Patterns>,
    /// What the ignore file leaves out.
    ignored: Arc<Patterns>,
}

/// Why something is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hidden {
    /// By this line of the ignore file, and the pattern in it.
    Line(usize, String),
    /// By the pattern with this number in `exclude`; from 0.
    Excluded(usize),
    /// By a rule that always holds.
    Always,
}

/// Why there is no place on this host for a path of a Smolfile.
#[derive(Debug)]
pub enum NoPlace {
    /// It cannot be found.
    Io(io::Error),
    /// A symbolic link leads out of the folder of the Smolfile, or of the build context if `widened`.
    Outside {
        /// The link, relative to the folder of the Smolfile.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
        /// Whether the user gave a build context.
        widened: bool,
    },
}

impl NoPlace {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Io(_) => None,
            Self::Outside { widened: false, .. } => Some(
                "put it into the folder; or, if all of a wider folder may be read, build with `--context DIR`",
            ),
            Self::Outside { widened: true, .. } => {
                Some("put it into the folder that `--context` names, or name a wider one")
            }
        }
    }

    /// As an error of kind Usage.
    fn failure(&self, what: String) -> Failure {
        let failure = Failure::new(ExitKind::Usage, what);
        match self.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Outside { link, target, .. } => {
                let (link, target) = (link.display(), target.display());
                write!(f, "{link} is a symbolic link, and leads to {target}")
            }
        }
    }
}

impl SourceDir {
    /// The folder `path`, without its ignore file.
    pub fn bare(path: impl Into<PathBuf>) -> Self {
        let none = Arc::new(Patterns::new([]).expect("there is none that is broken"));
        Self {
            path: path.into(),
            context: None,
            never: none.clone(),
            ignored: none,
        }
    }

    /// The folder `path`, with its ignore file if there is one. `lock` is the name of the lock file,
    /// `context` the build context, if it is wider.
    ///
    /// # Errors
    /// A build context that does not hold the folder; an ignore file that cannot be read, leads out of
    /// it, or has a line that is no pattern (of kind Usage).
    pub fn open(path: impl Into<PathBuf>, lock: &str, context: Option<&Path>) -> Result<Self> {
        let bare = Self {
            context: context.map(Path::to_owned),
            ..Self::bare(path)
        };
        bare.require_context()?;
        let file = bare.join(IGNORE_FILE);
        let text = bare
            .ignore_text()
            .with_context(|| format!("cannot read {}", file.display()))
            .kind(ExitKind::Usage)?;
        let broken = |error: BrokenPattern| {
            anyhow::Error::new(error).context(format!("{} cannot be used", file.display()))
        };
        // A line of its own in front keeps the numbers of the others, with 0 for itself.
        let user = Patterns::parse(&text)
            .map_err(broken)
            .kind(ExitKind::Usage)?;
        let ignored = Patterns::new([(0, BUNDLES)].into_iter().chain(user.lines()));
        let lock: String = lock.chars().flat_map(|c| ['\\', c]).collect();
        let never = Patterns::new([(0, IGNORE_FILE), (0, lock.as_str())]);
        Ok(Self {
            never: Arc::new(never.map_err(broken)?),
            ignored: Arc::new(ignored.map_err(broken)?),
            ..bare
        })
    }

    /// A build context holds the folder.
    fn require_context(&self) -> Result<()> {
        let Some(context) = &self.context else {
            return Ok(());
        };
        let cannot = |error: io::Error| {
            let what = format!(
                "cannot use the build context {}: {error}",
                context.display()
            );
            Failure::new(ExitKind::Usage, what).hint("--context names a folder")
        };
        let wide = fs::canonicalize(context).map_err(cannot)?;
        if fs::canonicalize(&self.path)
            .map_err(cannot)?
            .starts_with(wide)
        {
            return Ok(());
        }
        let what = format!(
            "the folder of the Smolfile, {}, is not in the build context {}",
            self.path.display(),
            context.display()
        );
        let hint = "--context names a folder above that of the Smolfile";
        Err(Failure::new(ExitKind::Usage, what).hint(hint).into())
    }

    /// The text of the ignore file; empty if there is none.
    fn ignore_text(&self) -> Result<String> {
        match self.open_file(IGNORE_FILE) {
            Ok((file, _)) => read(file),
            Err(NoPlace::Io(error)) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error.failure(error.to_string()).into()),
        }
    }

    /// Where a path of the Smolfile leads on this host: an absolute path in which no part is a
    /// symbolic link. Whoever opens it follows none ([`smol_rootfs::host`]), so that it stays there.
    ///
    /// # Errors
    /// It is not there; a link in it leads out of the build context.
    pub fn place(&self, path: &str) -> Result<PathBuf, NoPlace> {
        let context = self.context.as_ref().unwrap_or(&self.path);
        let context = fs::canonicalize(context).map_err(NoPlace::Io)?;
        let place = fs::canonicalize(self.join(path)).map_err(NoPlace::Io)?;
        if place.starts_with(&context) {
            return Ok(place);
        }
        let parts: Vec<&str> = path.split('/').collect();
        let mut links = (1..=parts.len()).map(|end| PathBuf::from(parts[..end].join("/")));
        let outside = |link: &PathBuf| {
            fs::canonicalize(self.path.join(link)).is_ok_and(|place| !place.starts_with(&context))
        };
        Err(NoPlace::Outside {
            link: links.find(outside).unwrap_or_else(|| path.into()),
            target: place,
            widened: self.context.is_some(),
        })
    }

    /// As [`SourceDir::place`], as an error that names the path.
    ///
    /// # Errors
    /// Those of [`SourceDir::place`], of kind Usage.
    pub fn require(&self, path: &str) -> Result<PathBuf> {
        let cannot = |error: NoPlace| error.failure(self.cannot(path, &error));
        Ok(self.place(path).map_err(cannot)?)
    }

    /// Opens a regular file that the Smolfile names; returns its place, too.
    ///
    /// # Errors
    /// Those of [`SourceDir::place`]; it cannot be opened, or is no file.
    fn open_file(&self, path: &str) -> Result<(File, PathBuf), NoPlace> {
        let place = self.place(path)?;
        let file = host::open(&place).map_err(NoPlace::Io)?;
        match file.metadata().map_err(NoPlace::Io)?.is_file() {
            true => Ok((file, place)),
            false => Err(NoPlace::Io(io::Error::other("it is not a regular file"))),
        }
    }

    /// As `open_file`, as an error that names the file.
    ///
    /// # Errors
    /// Those of [`SourceDir::place`], of kind Usage; it cannot be opened, or is no file.
    pub fn require_file(&self, path: &str) -> Result<(File, PathBuf)> {
        let cannot = |error: NoPlace| error.failure(self.cannot(path, &error));
        Ok(self.open_file(path).map_err(cannot)?)
    }

    /// SHA-256 of a file that the Smolfile names, in hexadecimal.
    ///
    /// # Errors
    /// Those of [`SourceDir::require_file`].
    pub fn sha256(&self, path: &str) -> Result<String> {
        let (file, _) = self.require_file(path)?;
        hash::sha256_file(file)
            .with_context(|| format!("cannot read {}", self.join(path).display()))
    }

    fn cannot(&self, path: &str, error: &NoPlace) -> String {
        format!("cannot read {}: {error}", self.join(path).display())
    }

    /// The build context that the user gave.
    pub fn context(&self) -> Option<&Path> {
        self.context.as_deref()
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path of the Smolfile as it is written, for messages: links in it may lead anywhere.
    pub fn join(&self, path: &str) -> PathBuf {
        self.path.join(path)
    }

    /// What is left out of the folder `src` of the Smolfile, which excludes these patterns, too.
    ///
    /// # Errors
    /// A pattern that is none; those of a Smolfile that was parsed are.
    pub fn ignore(&self, src: &str, exclude: &[Spanned<String>]) -> Result<Ignore> {
        Ok(Ignore::default()
            .and(self.never.clone(), src)
            .and(self.ignored.clone(), src)
            .and(Arc::new(excluded(exclude)?), ""))
    }

    /// Why nothing would be taken of the file or folder `src`, if so.
    ///
    /// # Errors
    /// Those of [`SourceDir::place`]; a folder that cannot be read.
    pub fn hidden(&self, src: &str, exclude: &[Spanned<String>]) -> Result<Option<Hidden>> {
        let ignore = self.ignore(src, exclude)?;
        let place = self.require(src)?;
        let found = match place.is_dir() {
            true => ignore.hiding_all(&place),
            false => Ok(ignore.ignoring(Path::new(""))),
        };
        let found = found.with_context(|| format!("cannot read {}", place.display()))?;
        Ok(found.map(|(set, pattern)| match (set, pattern.line) {
            (1, line @ 1..) => Hidden::Line(line, pattern.text.clone()),
            (2, number @ 1..) => Hidden::Excluded(number - 1),
            _ => Hidden::Always,
        }))
    }
}

/// The patterns of `exclude`.
///
/// # Errors
/// The first that is none.
pub fn excluded(exclude: &[Spanned<String>]) -> Result<Patterns, BrokenPattern> {
    let patterns = exclude.iter().map(|pattern| pattern.get_ref().as_str());
    Patterns::new((1..).zip(patterns))
}

/// The text of an ignore file.
fn read(file: File) -> Result<String> {
    let mut bytes = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    anyhow::ensure!(
        bytes.len() as u64 <= MAX_SIZE,
        "it is larger than {} KiB",
        MAX_SIZE / 1024
    );
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
        anyhow::anyhow!("line {line} is not UTF-8 text")
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(ignored: &str) -> (tempfile::TempDir, SourceDir) {
        let scratch = tempfile::tempdir().unwrap();
        for file in [
            "app/main",
            "app/x.pyc",
            "old.smolmachine",
            "Smolfile",
            "Smolfile.lock",
        ] {
            let file = scratch.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        fs::write(scratch.path().join(IGNORE_FILE), ignored).unwrap();
        let dir = SourceDir::open(scratch.path(), "Smolfile.lock", None).unwrap();
        (scratch, dir)
    }

    fn taken(dir: &SourceDir, src: &str, exclude: &[&str]) -> Vec<String> {
        let exclude: Vec<_> = exclude
            .iter()
            .map(|text| Spanned::new(0..0, text.to_string()))
            .collect();
        let mut tree = smol_rootfs::Tree::new();
        let options = smol_rootfs::DirOptions {
            owner: smol_rootfs::Owner::Fixed(0, 0),
            modes: smol_rootfs::Modes::Normal,
            ignore: dir.ignore(src, &exclude).unwrap(),
        };
        tree.apply_dir(&dir.join(src), "", &options).unwrap();
        let names = tree.walk().skip(1);
        names
            .map(|(path, ..)| String::from_utf8(path).unwrap())
            .collect()
    }

    #[test]
    fn the_whole_folder_is_taken_without_lock_bundles_and_the_ignore_file() {
        let (_scratch, dir) = folder("");
        assert_eq!(
            taken(&dir, ".", &[]),
            ["Smolfile", "app", "app/main", "app/x.pyc"]
        );
        let (_scratch, dir) = folder("**/*.pyc\n!old.smolmachine\n!Smolfile.lock");
        let expected = ["Smolfile", "app", "app/main", "old.smolmachine"];
        assert_eq!(taken(&dir, ".", &[]), expected);
    }

    #[test]
    fn the_ignore_file_is_relative_to_its_folder_and_exclude_to_the_source() {
        let (_scratch, dir) = folder("app/*.pyc");
        assert_eq!(taken(&dir, "app", &[]), ["main"]);
        assert_eq!(taken(&dir, "app", &["main"]), [""; 0]);
        let (_scratch, dir) = folder("*.pyc");
        assert_eq!(taken(&dir, "app", &[]), ["main", "x.pyc"]);
        assert_eq!(taken(&dir, "app", &["*.pyc"]), ["main"]);
        // Neither takes in again what the other leaves out.
        let (_scratch, dir) = folder("app/main");
        assert_eq!(taken(&dir, "app", &["*", "!main"]), [""; 0]);
    }

    #[test]
    fn a_source_of_which_nothing_is_taken_has_its_reason() {
        let (_scratch, dir) = folder("# not this\napp");
        let hidden = |src: &str| dir.hidden(src, &[]).unwrap();
        assert_eq!(hidden("app"), Some(Hidden::Line(2, "app".into())));
        assert_eq!(hidden("app/main"), Some(Hidden::Line(2, "app".into())));
        assert_eq!(hidden("."), None);
        assert_eq!(hidden("Smolfile.lock"), Some(Hidden::Always));
        let all = [
            Spanned::new(0..0, "x".to_owned()),
            Spanned::new(0..0, "*".to_owned()),
        ];
        let (_scratch, dir) = folder("");
        assert_eq!(dir.hidden("app", &all).unwrap(), Some(Hidden::Excluded(1)));
    }

    #[test]
    fn an_ignore_file_that_cannot_be_used_is_refused_with_the_line() {
        for (bytes, expected) in [
            (
                &b"ok\n!\n"[..],
                "because: line 2: pattern \"!\": it names nothing",
            ),
            (b"ok\n\xff\n", "because: line 2 is not UTF-8 text"),
            (
                &[b'x'; MAX_SIZE as usize + 1],
                "because: it is larger than 256 KiB",
            ),
        ] {
            let scratch = tempfile::tempdir().unwrap();
            fs::write(scratch.path().join(IGNORE_FILE), bytes).unwrap();
            let error = SourceDir::open(scratch.path(), "Smolfile.lock", None).unwrap_err();
            assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
            let text = smol_cli::error::render(&error, false);
            assert!(
                text.contains(expected) && text.contains(IGNORE_FILE),
                "{text}"
            );
        }
    }
}
