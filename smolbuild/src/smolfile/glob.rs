//! Patterns of `[[copy]] src`: as those of COPY in a Dockerfile (the syntax of Go's filepath.Match), and `**`
//! for any number of folders. Each part of a path is matched by the crate globset, byte by byte.

use std::ffi::OsStr;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};
use smol_rootfs::ignore::literal_braces;

/// What begins a wildcard, unless a backslash stands before it.
const WILDCARDS: [char; 3] = ['*', '?', '['];

/// A pattern, in its parts.
#[derive(Debug, Clone)]
pub(super) struct Glob {
    pub(super) parts: Vec<Part>,
}

/// A part of a pattern, between two slashes.
#[derive(Debug, Clone)]
pub(super) enum Part {
    /// A name.
    Name(String),
    /// Names that match.
    Wild(GlobMatcher),
    /// Any number of folders, none included.
    Folders,
}

impl Part {
    /// Whether this is one of the names that it stands for.
    pub(super) fn matches(&self, name: &OsStr) -> bool {
        match self {
            Part::Name(own) => name == own.as_str(),
            Part::Wild(matcher) => matcher.is_match(Path::new(name)),
            Part::Folders => true,
        }
    }
}

/// A path, or a pattern for paths.
pub(super) enum Source {
    /// A path, without backslashes that escape.
    Path(String),
    /// A pattern.
    Pattern(Glob),
}

/// Reads a source, a relative path in its shortest form.
///
/// # Errors
/// It is no pattern: why, in words for people.
pub(super) fn parse(text: &str) -> Result<Source, String> {
    let parts: Vec<Part> = text.split('/').map(part).collect::<Result<_, _>>()?;
    if matches!(parts.last(), Some(Part::Folders)) {
        return Err("`**` at the end would put all files into one folder; name the folder".into());
    }
    let names = parts.iter().map(|part| match part {
        Part::Name(name) => Some(name.as_str()),
        _ => None,
    });
    Ok(match names.collect::<Option<Vec<_>>>() {
        Some(names) => Source::Path(names.join("/")),
        None => Source::Pattern(Glob { parts }),
    })
}

fn part(text: &str) -> Result<Part, String> {
    let (mut name, mut is_wild) = (String::new(), false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        is_wild |= WILDCARDS.contains(&c);
        name.push(match c {
            '\\' => chars.next().ok_or("a backslash at the end of a name")?,
            c => c,
        });
    }
    if !is_wild {
        // What is left could have become a way out of the folder.
        return match name.as_str() {
            "." | ".." => Err(format!("`{text}` is no name")),
            _ => Ok(Part::Name(name)),
        };
    }
    if text == "**" {
        return Ok(Part::Folders);
    }
    if text.contains("**") {
        return Err("`**` stands for whole folders: it is between two slashes".into());
    }
    let glob = GlobBuilder::new(&literal_braces(text))
        .literal_separator(true)
        .backslash_escape(true)
        .build();
    let glob = glob.map_err(|error| error.kind().to_string())?;
    Ok(Part::Wild(glob.compile_matcher()))
}

impl Glob {
    /// Whether it matches a path.
    pub(super) fn matches(&self, path: &str) -> bool {
        let names: Vec<&str> = path.split('/').collect();
        // Whether the parts so far match so many names: any number of `**` takes no longer than that.
        let mut matched = vec![false; names.len() + 1];
        matched[0] = true;
        for part in &self.parts {
            let mut next = vec![false; names.len() + 1];
            match part {
                Part::Folders => {
                    let first = matched.iter().position(|is_match| *is_match);
                    if let Some(first) = first {
                        next[first..].fill(true);
                    }
                }
                _ => {
                    for (at, name) in names.iter().enumerate() {
                        next[at + 1] = matched[at] && part.matches(OsStr::new(name));
                    }
                }
            }
            matched = next;
        }
        matched[names.len()]
    }
}

/// Returns a path as a pattern that matches it alone.
pub(super) fn escaped(path: &str) -> String {
    let mut text = String::new();
    for c in path.chars() {
        if WILDCARDS.contains(&c) || c == '\\' {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glob(text: &str) -> Glob {
        match parse(text) {
            Ok(Source::Pattern(glob)) => glob,
            Ok(Source::Path(path)) => panic!("{text} is the path {path}"),
            Err(why) => panic!("{text}: {why}"),
        }
    }

    #[test]
    fn a_pattern_matches_as_in_a_dockerfile() {
        // The first of these are examples of Go's path/filepath/match_test.go.
        for (pattern, path, expected) in [
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*", "ab/c", false),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b*", "a*bc", true),
            ("a\\*b*", "axbc", false),
            ("a???b", "abcdb", true),
            ("a?b", "a/b", false),
            ("[]a]*", "]", true),
            ("\\[a\\]*", "[a]x", true),
            ("*.js", ".js", true),
            ("*", ".hidden", true),
            // Of ours.
            ("*.{js,css}", "a.js", false),
            ("*.{js,css}", "a.{js,css}", true),
            ("**/*.js", "a.js", true),
            ("**/*.js", "x/y/a.js", true),
            ("x/**/a?", "x/ab", true),
            ("x/**/a?", "x/y/z/ab", true),
            ("x/**/a?", "y/ab", false),
            ("x/**/y/*", "x/y/y/b", true),
        ] {
            assert_eq!(glob(pattern).matches(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn many_wildcards_take_no_longer_than_their_number() {
        let pattern = "**/a/".repeat(500) + "**/b*";
        let path = "a/".repeat(2000) + "a";
        assert!(!glob(&pattern).matches(&path));
        assert!(glob(&pattern).matches(&(path + "/bb")));
        let stars = "*a".repeat(500) + "*b";
        assert!(!glob(&stars).matches(&"a".repeat(4000)));
    }

    #[test]
    fn a_backslash_takes_the_meaning_of_what_follows() {
        for (text, path) in [
            ("a.conf", "a.conf"),
            ("a\\*b/\\[c\\]", "a*b/[c]"),
            ("a\\\\b", "a\\b"),
        ] {
            assert!(matches!(parse(text), Ok(Source::Path(own)) if own == path));
        }
        for path in ["a*b", "[x]", "a\\b", "what?", "plain"] {
            assert!(matches!(parse(&escaped(path)), Ok(Source::Path(own)) if own == path));
        }
    }

    #[test]
    fn what_is_no_pattern_is_told() {
        for (text, why) in [
            ("a[b", "unclosed character class; missing ']'"),
            ("a[b/c]", "unclosed character class; missing ']'"),
            ("a*\\", "a backslash at the end of a name"),
            ("x\\/y", "a backslash at the end of a name"),
            ("\\.\\./x", "`\\.\\.` is no name"),
            (
                "a**b",
                "`**` stands for whole folders: it is between two slashes",
            ),
            (
                "x/**",
                "`**` at the end would put all files into one folder; name the folder",
            ),
        ] {
            assert_eq!(parse(text).err().as_deref(), Some(why), "{text}");
        }
    }
}
