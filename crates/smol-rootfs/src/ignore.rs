//! What of a host directory is left out: patterns with the syntax and the meaning of a
//! `.dockerignore` file, matched by the crate `ignore`.
//!
//! That crate knows `.gitignore` files, whose patterns mean something else in these points, so each
//! pattern is translated:
//!
//! | | `.dockerignore`, and here | `.gitignore` |
//! |---|---|---|
//! | `x` | only at the top | at any depth |
//! | `x/` | a file as well | only a directory |
//! | `!x/y` after `x` | takes `x/y` in again | has no effect |
//! | `{a,b}` | literally this | `a` or `b` |

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::ignore::gitignore::{Gitignore, GitignoreBuilder};
use ::ignore::{Error, Match};

use crate::limits::{MAX_PATH, MAX_PATTERNS};
use crate::path::below;

/// Patterns, of which the last that matches decides.
#[derive(Clone)]
pub struct Patterns {
    list: Vec<Pattern>,
    matcher: Gitignore,
}

/// One pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Number of its line, or of its place in a list; from 1.
    pub line: usize,
    /// As it was written.
    pub text: String,
    /// Takes in again what an earlier pattern leaves out.
    negated: bool,
    /// The components of the path that it matches.
    parts: Vec<String>,
}

/// A pattern that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenPattern {
    /// Number of its line.
    pub line: usize,
    /// As it was written.
    pub text: String,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for BrokenPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {}: pattern {:?}: {}",
            self.line, self.text, self.why
        )
    }
}

impl std::error::Error for BrokenPattern {}

impl Patterns {
    /// Reads the text of an ignore file: a pattern a line, with empty lines and `#` comments.
    ///
    /// # Errors
    /// The first line that is no pattern.
    pub fn parse(text: &str) -> Result<Self, BrokenPattern> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().zip(1..);
        let patterns = lines.filter(|(line, _)| !line.starts_with('#'));
        let patterns = patterns.map(|(line, number)| (number, line));
        Self::new(patterns.filter(|(_, line)| !line.trim().is_empty()))
    }

    /// The patterns of a list, each with its number; 0 for those that are always there, which do not
    /// count as the list's.
    ///
    /// # Errors
    /// The first one that is no pattern.
    pub fn new<'a>(
        patterns: impl IntoIterator<Item = (usize, &'a str)>,
    ) -> Result<Self, BrokenPattern> {
        let mut builder = GitignoreBuilder::new("");
        builder.allow_unclosed_class(false);
        let (mut list, mut given) = (Vec::new(), 0);
        for (line, text) in patterns {
            let broken = |why: String| BrokenPattern {
                line,
                text: text.to_owned(),
                why,
            };
            let Some(pattern) = Pattern::parse(line, text).map_err(broken)? else {
                continue;
            };
            given += usize::from(line > 0);
            if given > MAX_PATTERNS {
                return Err(broken(format!(
                    "one more than the maximum of {MAX_PATTERNS}"
                )));
            }
            for translated in pattern.translated() {
                let added = builder.add_line(None, &translated);
                added.map_err(|error| broken(reason(error)))?;
            }
            list.push(pattern);
        }
        let matcher = builder.build().map_err(|error| BrokenPattern {
            line: list.len(),
            text: String::new(),
            why: reason(error),
        })?;
        Ok(Self { list, matcher })
    }

    /// The patterns with their numbers, as [`Patterns::new`] takes them.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let patterns = self.list.iter();
        patterns.map(|pattern| (pattern.line, pattern.text.as_str()))
    }

    /// The pattern that leaves this path out, if one does.
    fn ignoring(&self, path: &Path) -> Option<&Pattern> {
        // Translated patterns match files and directories alike.
        let Match::Ignore(glob) = self.matcher.matched(path, false) else {
            return None;
        };
        let is_it = |pattern: &&Pattern| pattern.translated().iter().any(|t| t == glob.original());
        self.list.iter().rev().find(is_it)
    }

    /// Whether something below this path could be taken in again.
    fn reaches_below(&self, path: &Path) -> bool {
        let path: Vec<_> = path.iter().collect();
        let negated = self.list.iter().filter(|pattern| pattern.negated);
        let mut fixed = negated.map(Pattern::fixed_parts);
        // One of the two begins with the other.
        fixed.any(|fixed| {
            fixed
                .iter()
                .zip(&path)
                .all(|(a, b)| a.as_bytes() == b.as_bytes())
        })
    }
}

impl fmt::Debug for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.list).finish()
    }
}

impl PartialEq for Patterns {
    fn eq(&self, other: &Self) -> bool {
        self.list == other.list
    }
}

impl Eq for Patterns {}

fn reason(error: Error) -> String {
    match error {
        Error::Glob { err, .. } => err,
        other => other.to_string(),
    }
}

impl Pattern {
    /// Reads a pattern. That of the directory itself has no effect, as in a `.dockerignore`.
    fn parse(line: usize, text: &str) -> Result<Option<Self>, String> {
        let text = text.trim();
        let (negated, path) = match text.strip_prefix('!') {
            Some(path) => (true, path.trim()),
            None => (false, text),
        };
        if path.is_empty() {
            return Err("it names nothing".into());
        }
        if path.len() > MAX_PATH {
            return Err(format!("it is longer than {MAX_PATH} bytes, as no path is"));
        }
        let mut parts = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." if parts.pop().is_none() => return Err("it leads out of the folder".into()),
                ".." => {}
                "**" => parts.push(part.to_owned()),
                part if part.contains("**") => {
                    return Err(format!(
                        "`**` stands for whole folders; write {:?}",
                        path.replacen("**", "**/*", 1)
                    ));
                }
                part => parts.push(literal_braces(part)),
            }
        }
        Ok((!parts.is_empty()).then(|| Self {
            line,
            text: text.to_owned(),
            negated,
            parts,
        }))
    }

    /// The same for a `.gitignore`: what it matches, and all below that.
    fn translated(&self) -> [String; 2] {
        let sign = if self.negated { "!" } else { "" };
        let path = self.parts.join("/");
        [format!("{sign}/{path}"), format!("{sign}/{path}/**")]
    }

    /// Its components up to the first with a wildcard.
    fn fixed_parts(&self) -> Vec<&str> {
        let parts = self.parts.iter().map(String::as_str);
        parts
            .take_while(|part| !part.contains(['*', '?', '[', '\\']))
            .collect()
    }
}

/// Returns a pattern with its braces escaped, which would be alternatives for the crate globset.
pub fn literal_braces(part: &str) -> String {
    let mut escaped = String::new();
    let mut chars = part.chars();
    while let Some(c) = chars.next() {
        if matches!(c, '{' | '}') {
            escaped.push('\\');
        }
        escaped.push(c);
        if c == '\\' {
            escaped.extend(chars.next());
        }
    }
    escaped
}

/// What of a directory is left out: what one of several sets of patterns ignores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignore(Vec<Set>);

/// Patterns, and where the directory is, seen from the one that they are written for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Set {
    patterns: Arc<Patterns>,
    place: PathBuf,
}

impl Set {
    /// The path of an entry as the patterns see it.
    fn path(&self, relative: &Path) -> PathBuf {
        self.place.iter().chain(relative).collect()
    }
}

/// What becomes of an entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is taken.
    Keep,
    /// It is left out, with all that is in it.
    Skip,
    /// It is left out, but something in it may be taken.
    Search,
}

impl Ignore {
    /// Ignores what `patterns` match, too. The directory is at `place`, relative to the one that the
    /// patterns are written for; empty or `.` if it is that one.
    pub fn and(mut self, patterns: Arc<Patterns>, place: &str) -> Self {
        let parts = Path::new(place).iter().filter(|part| *part != ".");
        self.0.push(Set {
            patterns,
            place: parts.collect(),
        });
        self
    }

    /// The set of patterns, by the order in which they were added, and the pattern that leaves out
    /// the entry at `relative`, if one does. The directory itself is at the empty path.
    pub fn ignoring(&self, relative: &Path) -> Option<(usize, &Pattern)> {
        self.0.iter().enumerate().find_map(|(number, set)| {
            let pattern = set.patterns.ignoring(&set.path(relative))?;
            Some((number, pattern))
        })
    }

    /// Whether an entry is taken.
    pub(crate) fn verdict(&self, relative: &[u8]) -> Verdict {
        let relative = Path::new(OsStr::from_bytes(relative));
        let mut verdict = Verdict::Keep;
        for set in &self.0 {
            let (patterns, path) = (&set.patterns, set.path(relative));
            if patterns.ignoring(&path).is_some() {
                if !patterns.reaches_below(&path) {
                    return Verdict::Skip;
                }
                verdict = Verdict::Search;
            }
        }
        verdict
    }

    /// The pattern, with its set, that leaves out the first entry of the directory `folder` of which
    /// nothing is taken at all; nothing if something is, or if it is empty.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn hiding_all(&self, folder: &Path) -> io::Result<Option<(usize, &Pattern)>> {
        let mut first = None;
        let mut todo = vec![Vec::new()];
        while let Some(directory) = todo.pop() {
            let host = folder.join(OsStr::from_bytes(&directory));
            for entry in fs::read_dir(host)? {
                let entry = entry?;
                let relative = below(&directory, entry.file_name().as_bytes());
                match self.verdict(&relative) {
                    Verdict::Keep => return Ok(None),
                    Verdict::Search if entry.file_type()?.is_dir() => todo.push(relative.clone()),
                    Verdict::Search | Verdict::Skip => {}
                }
                let path = Path::new(OsStr::from_bytes(&relative));
                first = first.or_else(|| self.ignoring(path));
            }
        }
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignores(lines: &str, path: &str) -> bool {
        let patterns = Patterns::parse(lines).unwrap();
        patterns.ignoring(Path::new(path)).is_some()
    }

    #[test]
    fn patterns_mean_what_they_mean_in_a_dockerignore() {
        // The examples of docker's reference, and where a .gitignore differs.
        for (lines, path, ignored) in [
            ("# a comment\n\n*/temp*", "somedir/temporary.txt", true),
            ("*/temp*", "temp", false),
            ("*/*/temp*", "a/b/temporary.txt", true),
            ("temp?", "tempa", true),
            ("temp?", "a/tempa", false),
            ("**/*.go", "a/b/c.go", true),
            ("**/*.go", "c.go", true),
            ("*.md\n!README.md", "README.md", false),
            (
                "*.md\n!README*.md\nREADME-secret.md",
                "README-secret.md",
                true,
            ),
            (
                "*.md\nREADME-secret.md\n!README*.md",
                "README-secret.md",
                false,
            ),
            ("x", "x", true),
            ("x", "a/x", false),
            ("x", "x/deep/inside", true),
            ("/x", "x", true),
            ("x/", "x", true),
            ("./a//b/../x", "a/x", true),
            ("a\n!a/keep", "a/keep", false),
            ("a\n!a/keep", "a/other", true),
            ("!a/keep\na", "a/keep", true),
            ("*\n!app", "app/main", false),
            ("**", "a/b", true),
            ("a/**", "a", false),
            ("a/**", "a/b/c", true),
            ("a/**/z", "a/z", true),
            ("{a,b}", "a", false),
            ("{a,b}", "{a,b}", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            (r"\*", "*", true),
            (r"\*", "x", false),
            (r"\#x", "#x", true),
            (" x \r", "x", true),
            ("\u{feff}x", "x", true),
            (".", "x", false),
            ("X", "x", false),
        ] {
            assert_eq!(ignores(lines, path), ignored, "{lines:?} of {path}");
        }
    }

    #[test]
    fn a_line_that_is_no_pattern_is_named() {
        for (lines, expected) in [
            ("ok\n!", "line 2: pattern \"!\": it names nothing"),
            (
                "../x",
                "line 1: pattern \"../x\": it leads out of the folder",
            ),
            (
                "\n# c\n[a",
                "line 3: pattern \"[a\": unclosed character class; missing ']'",
            ),
            (
                "**.pyc",
                "line 1: pattern \"**.pyc\": `**` stands for whole folders; write \"**/*.pyc\"",
            ),
            ("a\\", "line 1: pattern \"a\\\\\": dangling '\\'"),
        ] {
            assert_eq!(Patterns::parse(lines).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn patterns_have_a_number_and_a_length_that_they_cannot_pass() {
        let most = "x\n".repeat(MAX_PATTERNS);
        let with_ours = [(0, "always")].into_iter();
        let patterns = Patterns::parse(&most).unwrap();
        Patterns::new(with_ours.chain(patterns.lines())).unwrap();
        let told = |lines: &str| Patterns::parse(lines).unwrap_err().to_string();
        let expected = "line 1001: pattern \"y\": one more than the maximum of 1000";
        assert_eq!(told(&format!("{most}y")), expected);
        Patterns::parse(&"x".repeat(MAX_PATH)).unwrap();
        let long = told(&"x".repeat(MAX_PATH + 1));
        assert!(
            long.ends_with("it is longer than 4095 bytes, as no path is"),
            "{}",
            long.len()
        );
    }

    #[test]
    fn the_pattern_that_decides_is_told() {
        let patterns = Arc::new(Patterns::parse("*.o\n!keep.o\nbuild/**/*.o").unwrap());
        let other = Arc::new(Patterns::new([(1, "x")]).unwrap());
        let ignore = Ignore::default().and(patterns, "build").and(other, "");
        let told = |path: &str| {
            let found = ignore.ignoring(Path::new(path));
            found.map(|(set, pattern)| (set, pattern.line, pattern.text.as_str()))
        };
        assert_eq!(told("a/b.o"), Some((0, 3, "build/**/*.o")));
        assert_eq!(told("x/y"), Some((1, 1, "x")));
        assert_eq!(told("a/b.c"), None);
    }

    #[test]
    fn a_directory_is_searched_only_where_something_is_taken_in_again() {
        let patterns = Patterns::parse("a\nb\nc\n!a/x/keep\n!c/*/y").unwrap();
        let ignore = Ignore::default().and(Arc::new(patterns), "");
        for (path, verdict) in [
            ("a", Verdict::Search),
            ("a/x", Verdict::Search),
            ("a/x/keep", Verdict::Keep),
            ("a/y", Verdict::Skip),
            ("b", Verdict::Skip),
            ("c/1", Verdict::Search),
            ("d", Verdict::Keep),
        ] {
            assert_eq!(ignore.verdict(path.as_bytes()), verdict, "{path}");
        }
    }
}
