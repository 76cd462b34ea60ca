//! `[[copy]]`s with several sources and with patterns, as `[[copy]]`s of one source each: out of the folder of the
//! Smolfile when it is loaded, or by a lock. What comes after that knows sources alone.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use smol_rootfs::Ignore;
use toml::Spanned;

use super::glob::{self, Glob, Part, Source};
use super::{CopyStep, Diagnostic, Step};
use crate::lock::CopySource;
use crate::source_dir::{NoPlace, SourceDir, excluded};

/// Most names that are looked at for one pattern.
const MAX_NAMES: usize = 1_000_000;
/// Most files and folders that a pattern stands for.
const MAX_MATCHES: usize = 10_000;

/// Replaces each step with a pattern by one for each match in `base_dir`, in the order of their names. The
/// mistakes are in the result.
///
/// # Errors
/// A folder that cannot be read.
pub(super) fn on_host(
    steps: &mut Vec<Step>,
    base_dir: &SourceDir,
) -> anyhow::Result<Vec<Diagnostic>> {
    let mut mistakes = Vec::new();
    let mut expanded = Vec::new();
    for step in steps.drain(..) {
        match step.copy().and_then(|copy| Some((copy, pattern(copy)?))) {
            None => expanded.push(step),
            Some((copy, glob)) => match matches(&glob, copy, base_dir)? {
                Ok(found) => {
                    let found = found.into_iter().map(|path| Step::Copy(of(copy, path)));
                    expanded.extend(found);
                }
                Err(mistake) => mistakes.push(mistake),
            },
        }
    }
    // `exclude` is about folders. Of one source that is a file it is a mistake, which is told elsewhere.
    let is_folder = |step: &CopyStep| {
        let place = base_dir.place(step.src.get_ref());
        place.is_ok_and(|place| place.is_dir())
    };
    let with_folder: BTreeSet<usize> = expanded
        .iter()
        .filter_map(Step::copy)
        .filter(|step| step.glob || is_folder(step))
        .map(|step| step.number)
        .collect();
    for step in &mut expanded {
        let Step::Copy(step) = step else { continue };
        if with_folder.contains(&step.number) && !is_folder(step) {
            step.exclude.clear();
        }
        step.glob = false;
    }
    *steps = expanded;
    Ok(mistakes)
}

/// Returns the steps with the sources that a lock has for their patterns. What a pattern matched is among all
/// that was copied, for it matches whatever is there.
pub fn by_lock<'a>(
    copies: impl Iterator<Item = &'a CopyStep>,
    locked: &[CopySource],
) -> Vec<CopyStep> {
    let steps = copies.flat_map(|step| match pattern(step) {
        None => vec![step.clone()],
        Some(glob) => {
            let exclusion = exclusion(step);
            let found = locked
                .iter()
                .filter(|source| glob.matches(&source.src) && !leaves_out_all(&exclusion, source));
            let names: BTreeSet<&str> = found.map(|source| source.src.as_str()).collect();
            let steps = names.into_iter().map(|name| of(step, name.to_owned()));
            steps.collect()
        }
    });
    steps.collect()
}

fn pattern(step: &CopyStep) -> Option<Glob> {
    match glob::parse(step.src.get_ref()) {
        Ok(Source::Pattern(glob)) if step.glob => Some(glob),
        _ => None,
    }
}

/// The step with a match in place of its pattern.
fn of(step: &CopyStep, path: String) -> CopyStep {
    CopyStep {
        src: Spanned::new(step.src.span(), path),
        ..step.clone()
    }
}

/// What the step excludes.
fn exclusion(step: &CopyStep) -> Ignore {
    match excluded(&step.exclude) {
        Ok(patterns) => Ignore::default().and(Arc::new(patterns), ""),
        // Those of a Smolfile that was parsed are patterns.
        Err(_) => Ignore::default(),
    }
}

/// Whether a file is excluded, by its name.
fn leaves_out(exclusion: &Ignore, path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    exclusion.ignoring(Path::new(name)).is_some()
}

/// Whether a file is excluded, or all of what a lock has of a folder.
fn leaves_out_all(exclusion: &Ignore, source: &CopySource) -> bool {
    if source.is_file() {
        return leaves_out(exclusion, &source.src);
    }
    let mut names = source.contents.iter().map(|entry| Path::new(&entry.path));
    !source.contents.is_empty() && names.all(|name| exclusion.ignoring(name).is_some())
}

/// What of the folder matches, without what is ignored; sorted.
fn matches(
    glob: &Glob,
    step: &CopyStep,
    base_dir: &SourceDir,
) -> anyhow::Result<Result<Vec<String>, Diagnostic>> {
    let mistake = |title: String| Diagnostic::new(step.src.span(), title);
    let mut search = Search {
        base_dir,
        found: BTreeSet::new(),
        seen: 0,
    };
    match search.walk("", &glob.parts) {
        Ok(()) => {}
        Err(Stop::Mistake(title, hint)) => {
            let mistake = mistake(title);
            return Ok(Err(match hint {
                Some(hint) => mistake.help(hint),
                None => mistake,
            }));
        }
        Err(Stop::Io(error, path)) => {
            return Err(error)
                .with_context(|| format!("cannot read {}", base_dir.join(&path).display()));
        }
    }
    let exclusion = exclusion(step);
    let (mut taken, found) = (Vec::new(), search.found.len());
    for path in search.found {
        // A link that leads nowhere, or out of the folder, is told as such where files are looked at.
        let Ok(place) = base_dir.place(&path) else {
            taken.push(path);
            continue;
        };
        let is_left = match place.is_dir() {
            true => base_dir.hidden(&path, &step.exclude)?.is_some(),
            false => leaves_out(&exclusion, &path) || base_dir.hidden(&path, &[])?.is_some(),
        };
        if !is_left {
            taken.push(path);
        }
    }
    if taken.len() > MAX_MATCHES {
        let title = format!("this pattern matches more than {MAX_MATCHES} files and folders");
        return Ok(Err(mistake(title).help("copy a folder")));
    }
    if !taken.is_empty() {
        return Ok(Ok(taken));
    }
    Ok(Err(none(step, base_dir, found)))
}

/// The mistake that nothing is taken, although so many match.
fn none(step: &CopyStep, base_dir: &SourceDir, found: usize) -> Diagnostic {
    let literally = step.src.get_ref();
    let diagnostic = Diagnostic::new(step.src.span(), "nothing matches this pattern");
    if found > 0 {
        diagnostic.label(format!("all {found} that do are ignored or excluded"))
    } else if base_dir.place(literally).is_ok() {
        let escaped = glob::escaped(literally);
        diagnostic.help(format!(
            "for the file with exactly this name, write '{escaped}', in single quotes"
        ))
    } else {
        diagnostic.label(base_dir.join(literally).display().to_string())
    }
}

/// Why a search ends before its end.
enum Stop {
    /// Something is wrong with the pattern, or what it leads to; and what to do.
    Mistake(String, Option<&'static str>),
    /// A folder that cannot be read.
    Io(io::Error, String),
}

/// The search for what matches.
struct Search<'a> {
    base_dir: &'a SourceDir,
    found: BTreeSet<String>,
    /// Number of names that were looked at.
    seen: usize,
}

impl Search<'_> {
    /// Looks for what matches these parts in the folder `folder`.
    fn walk(&mut self, folder: &str, parts: &[Part]) -> Result<(), Stop> {
        let Some((part, rest)) = parts.split_first() else {
            self.found.insert(folder.to_owned());
            return Ok(());
        };
        if let Part::Folders = part {
            self.walk(folder, rest)?;
        }
        if let Part::Name(name) = part {
            let path = below(folder, name);
            return match fs::symlink_metadata(self.base_dir.join(&path)) {
                Ok(_) => self.walk(&path, rest),
                Err(_) => Ok(()),
            };
        }
        for name in self.names(folder)? {
            if !part.matches(&name) {
                continue;
            }
            let Some(name) = name.to_str() else {
                let title = format!("a name that matches is not UTF-8: {}", name.display());
                return Err(Stop::Mistake(title, None));
            };
            let path = below(folder, name);
            match part {
                // A link may lead to a folder above it.
                Part::Folders => {
                    let found = fs::symlink_metadata(self.base_dir.join(&path));
                    if found.is_ok_and(|found| found.is_dir()) {
                        self.walk(&path, parts)?;
                    }
                }
                _ => self.walk(&path, rest)?,
            }
        }
        Ok(())
    }

    /// The names in a folder; none where there is no folder. Links on the way do not lead out of it.
    fn names(&mut self, folder: &str) -> Result<Vec<OsString>, Stop> {
        let name = if folder.is_empty() { "." } else { folder };
        let place = match self.base_dir.place(name) {
            Ok(place) => place,
            Err(NoPlace::Io(error)) if is_absence(&error) => return Ok(Vec::new()),
            Err(NoPlace::Io(error)) => return Err(Stop::Io(error, name.to_owned())),
            Err(outside) => {
                let title = format!("this leads out of the folder: {outside}");
                return Err(Stop::Mistake(title, outside.hint()));
            }
        };
        let entries = match fs::read_dir(&place) {
            Ok(entries) => entries,
            Err(error) if is_absence(&error) => return Ok(Vec::new()),
            Err(error) => return Err(Stop::Io(error, name.to_owned())),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| Stop::Io(error, name.to_owned()))?;
            self.seen += 1;
            if self.seen > MAX_NAMES {
                let title = format!("there are more than {MAX_NAMES} names to look at");
                return Err(Stop::Mistake(title, Some("write more of the path")));
            }
            names.push(entry.file_name());
        }
        Ok(names)
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn below(folder: &str, name: &str) -> String {
    match folder {
        "" => name.to_owned(),
        folder => format!("{folder}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::load;
    use super::*;

    /// A project with these files, and a Smolfile with these lines of `[[copy]]`.
    fn project(files: &[&str], lines: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files.iter().chain(&["root/x"]) {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, *file).unwrap();
        }
        let text = format!(
            "name = \"app\"\nrootfs.dir = \"root\"\nservice.cmd = [\"app\"]\nready.tcp = 80\n[[copy]]\n{lines}\n"
        );
        fs::write(folder.path().join("Smolfile"), text).unwrap();
        folder
    }

    fn steps(folder: &Path) -> Vec<CopyStep> {
        let loaded = load(folder, None).unwrap_or_else(|error| {
            panic!("{}", smol_cli::error::render(&error, false));
        });
        loaded.smolfile.copies().cloned().collect()
    }

    fn sources(files: &[&str], lines: &str) -> Vec<String> {
        let folder = project(files, lines);
        let steps = steps(folder.path());
        assert!(steps.iter().all(|step| !step.glob && step.dest == "/srv/"));
        let sources = steps.into_iter().map(|step| step.src.into_inner());
        sources.collect()
    }

    fn refused(folder: &Path) -> String {
        let error = load(folder, None).unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), smol_cli::ExitKind::Usage);
        smol_cli::error::render(&error, false)
    }

    const FILES: [&str; 8] = [
        "a.conf",
        "conf.d/z.conf",
        "conf.d/b.conf",
        "conf.d/old/c.conf",
        "conf.d/notes",
        "static/x.js",
        "b*.conf",
        ".env",
    ];

    #[test]
    fn sources_are_taken_in_the_order_of_the_list_and_matches_in_that_of_their_names() {
        let dest = "dest = \"/srv/\"";
        let lines = format!("src = [\"static\", \"conf.d/*.conf\", \"a.conf\"]\n{dest}");
        let expected = ["static", "conf.d/b.conf", "conf.d/z.conf", "a.conf"];
        assert_eq!(sources(&FILES, &lines), expected);
        for (pattern, expected) in [
            ("*.conf", &["a.conf", "b*.conf"][..]),
            ("?.conf", &["a.conf"]),
            ("b\\\\*.conf", &["b*.conf"]),
            ("[bc]*.[c]onf", &["b*.conf"]),
            (
                "**/*.conf",
                &[
                    "a.conf",
                    "b*.conf",
                    "conf.d/b.conf",
                    "conf.d/old/c.conf",
                    "conf.d/z.conf",
                ],
            ),
            ("conf.d/**/c.conf", &["conf.d/old/c.conf"]),
            ("conf.d/o*", &["conf.d/old"]),
            ("*/x.js", &["static/x.js"]),
            (".e*", &[".env"]),
            ("./conf.d/../stat*/x.js", &["static/x.js"]),
        ] {
            let lines = format!("src = \"{pattern}\"\n{dest}");
            assert_eq!(sources(&FILES, &lines), expected, "{pattern}");
        }
    }

    #[test]
    fn what_is_ignored_or_excluded_does_not_match() {
        let lines = "src = \"conf.d/*\"\ndest = \"/srv/\"\nexclude = [\"z.*\", \"*.bak\"]";
        let folder = project(&FILES, lines);
        fs::write(folder.path().join("conf.d/old/d.bak"), "").unwrap();
        fs::write(folder.path().join(".smolignore"), "conf.d/notes\n").unwrap();
        let steps = steps(folder.path());
        let told = steps
            .iter()
            .map(|step| (step.src.get_ref().as_str(), step.exclude.len()));
        // The patterns are for what is in the folder, too.
        let expected = [("conf.d/b.conf", 0), ("conf.d/old", 2)];
        assert_eq!(told.collect::<Vec<_>>(), expected);
        // The lock file, bundles and the ignore file itself are never copied.
        let folder = project(
            &["Smolfile.lock", "x.smolmachine", "a"],
            "src = \"*\"\ndest = \"/srv/\"",
        );
        fs::write(folder.path().join(".smolignore"), "root\n").unwrap();
        let text = fs::read_to_string(folder.path().join("Smolfile")).unwrap();
        let text = text.replace("rootfs.dir = \"root\"", "rootfs.tar = \"a\"");
        fs::write(folder.path().join("Smolfile"), text).unwrap();
        let steps = super::tests::steps(folder.path());
        let names: Vec<_> = steps
            .iter()
            .map(|step| step.src.get_ref().as_str())
            .collect();
        assert_eq!(names, ["Smolfile", "a"]);
    }

    #[test]
    fn what_matches_nothing_is_a_mistake_with_its_place() {
        for (files, pattern, told) in [
            (&[][..], "dist/*.js", "/dist/*.js"),
            (&["a/x.txt"], "a/*/y", "/a/*/y"),
            (&["a"], "a/*", "/a/*"),
            (
                &["x[1].js"],
                "x[1].js",
                "= help: for the file with exactly this name, write 'x\\[1].js', in single quotes",
            ),
            (
                &["y.smolmachine"],
                "*.smolmachine",
                "all 1 that do are ignored or excluded",
            ),
        ] {
            let lines = format!("src = [\"root\", \"{pattern}\"]\ndest = \"/srv/\"");
            let text = refused(project(files, &lines).path());
            assert!(
                text.starts_with("error: nothing matches this pattern\n") && text.contains(told),
                "{text}"
            );
            assert!(text.contains("Smolfile:6:16\n"), "{text}");
        }
    }

    #[test]
    fn a_pattern_follows_no_link_out_of_the_folder_and_no_circle() {
        let secret = tempfile::tempdir().unwrap();
        fs::write(secret.path().join("key"), "secret").unwrap();
        let with_link = |pattern: &str, target: &Path| {
            let lines = format!("src = \"{pattern}\"\ndest = \"/srv/\"");
            let folder = project(&["conf/own"], &lines);
            symlink(target, folder.path().join("conf/link")).unwrap();
            folder
        };
        for pattern in ["conf/*", "conf/*/key", "conf/link/*", "c*/link/key"] {
            let text = refused(with_link(pattern, secret.path()).path());
            assert!(
                text.contains("error: this leads out of the folder"),
                "{pattern}: {text}"
            );
            assert!(text.contains("Smolfile:6:7\n"), "{text}");
        }
        let folder = with_link("**/own", Path::new(".."));
        assert_eq!(steps(folder.path()).len(), 1);
        // Within it, links are followed as elsewhere.
        let folder = with_link("conf/link/o*", Path::new("."));
        assert_eq!(steps(folder.path())[0].src.get_ref(), "conf/link/own");
    }

    #[test]
    fn exclude_without_a_folder_is_a_mistake_and_beside_one_it_is_for_the_folder() {
        let lines = "src = [\"a.conf\", \".env\"]\ndest = \"/srv/\"\nexclude = [\"x\"]";
        let text = refused(project(&FILES, lines).path());
        assert!(text.contains("`exclude` is for a folder"), "{text}");
        let lines = "src = [\"a.conf\", \"static\"]\ndest = \"/srv/\"\nexclude = [\"x\"]";
        let folder = project(&FILES, lines);
        let excludes: Vec<_> = steps(folder.path())
            .iter()
            .map(|step| step.exclude.len())
            .collect();
        assert_eq!(excludes, [0, 1]);
    }

    #[test]
    fn a_lock_has_what_the_patterns_of_its_smolfile_matched() {
        let lines = "src = [\"static\", \"conf.d/*\"]\ndest = \"/srv/\"\nexclude = [\"*.conf\"]\n\
                     [[copy]]\nsrc = [\"**/*.conf\", \"conf.d/o*\"]\ndest = \"/etc/\"\n";
        let folder = project(&FILES, lines);
        let loaded = load(folder.path(), None).unwrap();
        let copies: Vec<CopyStep> = loaded.smolfile.copies().cloned().collect();
        let interrupt = smol_cli::Interrupt::detached().unwrap();
        let locked: Vec<CopySource> = copies
            .iter()
            .map(|step| {
                let (src, exclude) = (step.src.get_ref(), &step.exclude);
                let copied =
                    crate::input::files::copy(&loaded.base_dir, src, exclude, false, &interrupt);
                copied.unwrap()
            })
            .collect();
        let parsed = super::super::parse(&loaded.source).unwrap();
        let by_lock = by_lock(parsed.copies(), &locked);
        let told = |steps: &[CopyStep]| {
            let steps = steps.iter();
            let told = steps.map(|step| (step.src.get_ref().clone(), step.dest.clone()));
            told.collect::<Vec<_>>()
        };
        assert_eq!(told(&by_lock), told(&copies));
        assert!(by_lock.len() > 6, "{by_lock:?}");
    }
}
