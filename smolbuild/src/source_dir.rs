//! The folder of a Smolfile, to which its paths are relative, and what in it is ignored.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use smol_cli::{ErrorExt, ExitKind};
use smol_rootfs::Ignore;
use smol_rootfs::ignore::{BrokenPattern, Patterns};
use toml::Spanned;

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

impl SourceDir {
    /// The folder `path`, without its ignore file.
    pub fn bare(path: impl Into<PathBuf>) -> Self {
        let none = Arc::new(Patterns::new([]).expect("there is none that is broken"));
        Self {
            path: path.into(),
            never: none.clone(),
            ignored: none,
        }
    }

    /// The folder `path`, with its ignore file if there is one. `lock` is the name of the lock file.
    ///
    /// # Errors
    /// An ignore file that cannot be read, or has a line that is no pattern (of kind Usage).
    pub fn open(path: impl Into<PathBuf>, lock: &str) -> Result<Self> {
        let path = path.into();
        let file = path.join(IGNORE_FILE);
        let text = read(&file)
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
            path,
            never: Arc::new(never.map_err(broken)?),
            ignored: Arc::new(ignored.map_err(broken)?),
        })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The place on this host of a path of the Smolfile.
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
    /// A folder that cannot be read.
    pub fn hidden(&self, src: &str, exclude: &[Spanned<String>]) -> Result<Option<Hidden>> {
        let ignore = self.ignore(src, exclude)?;
        let place = self.join(src);
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

/// The text of the ignore file; empty if there is none.
fn read(file: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    match File::open(file) {
        Ok(open) => open.take(MAX_SIZE + 1).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error.into()),
    };
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
        let dir = SourceDir::open(scratch.path(), "Smolfile.lock").unwrap();
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
                "because: line 2: \"!\" is not a pattern: it names nothing",
            ),
            (b"ok\n\xff\n", "because: line 2 is not UTF-8 text"),
            (
                &[b'x'; MAX_SIZE as usize + 1],
                "because: it is larger than 256 KiB",
            ),
        ] {
            let scratch = tempfile::tempdir().unwrap();
            fs::write(scratch.path().join(IGNORE_FILE), bytes).unwrap();
            let error = SourceDir::open(scratch.path(), "Smolfile.lock").unwrap_err();
            assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
            let text = smol_cli::error::render(&error, false);
            assert!(
                text.contains(expected) && text.contains(IGNORE_FILE),
                "{text}"
            );
        }
    }
}
