//! COPY and ADD.

use super::read::Instruction;
use super::taken::{MOST, Place, Step, Taken, Workdir};
use crate::init::accepted;
use crate::init::page::{list, quoted};

/// Endings of archives that ADD unpacks.
const ARCHIVES: &[&str] = &[
    ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst",
];

/// A `[[copy]]`: its keys with their values, which are TOML.
pub(super) struct Copy(pub Vec<(&'static str, String)>);

impl Copy {
    /// Whether this key can have this value.
    fn try_key(&mut self, key: &'static str, value: String) -> Result<(), String> {
        self.0.push((key, value));
        let lines: Vec<String> = self
            .0
            .iter()
            .map(|(key, value)| format!("{key} = {value}"))
            .collect();
        let fits = accepted(&format!("[[copy]]\n{}", lines.join("\n")));
        if fits.is_err() {
            self.0.pop();
        }
        fits
    }
}

impl Taken {
    /// Takes over COPY or ADD.
    pub(super) fn copy(&mut self, it: &Instruction) {
        let copy = not_possible(it).map_or_else(|| self.sources_and_dest(it), Err);
        let mut copy = match copy {
            Ok(copy) => copy,
            Err(why) => {
                self.needs_build |= it.option("from").is_some();
                return self.lose(it, Place::Files, &format!("not taken over ({why})"));
            }
        };
        for (option, key) in [("chmod", "mode"), ("chown", "owner")] {
            let Some(raw) = it.option(option) else {
                continue;
            };
            let value = self.variables.word(raw);
            let fits = value.and_then(|value| copy.try_key(key, quoted(&value)));
            if let Err(why) = fits {
                self.lose(it, Place::Files, &format!("--{option} left out ({why})"));
            }
        }
        let excluded = it.options.iter().filter(|(name, _)| name == "exclude");
        let excluded: Vec<&String> = excluded.map(|(_, value)| value).collect();
        if !excluded.is_empty()
            && let Err(why) = copy.try_key("exclude", list(&excluded))
        {
            self.lose(it, Place::Files, &format!("--exclude left out ({why})"));
        }
        self.steps.push(Step::Copy(copy));
    }

    fn sources_and_dest(&mut self, it: &Instruction) -> Result<Copy, String> {
        let mut words = match serde_json::from_str::<Vec<String>>(&it.rest) {
            Ok(words) if words.len() <= MOST => {
                let words = words.iter().map(|word| self.variables.word(word));
                words.collect::<Result<Vec<_>, _>>()?
            }
            _ => self.words(&it.rest)?,
        };
        let dest = words.pop().unwrap_or_default();
        if words.is_empty() || dest.is_empty() {
            return Err("a source or a destination is missing".to_owned());
        }
        if it.word == "ADD" {
            words.iter().try_for_each(|source| can_be_added(source))?;
        }
        self.sources += words.len();
        if self.sources > MOST {
            return Err(format!("more than {MOST} sources are copied"));
        }
        let sources: Vec<String> = words.iter().map(|source| source_path(source)).collect();
        let of_image = matches!(self.workdir, Workdir::OfImage) && !dest.starts_with('/');
        let dest = self.dest(&dest, &sources)?;
        let mut copy = Copy(Vec::new());
        let src = match &sources[..] {
            [source] => quoted(source),
            sources => list(sources),
        };
        copy.0.push(("src", src));
        copy.try_key("dest", quoted(&dest))?;
        if of_image {
            let why = "taken as relative to / (the image may have another WORKDIR)";
            self.lose(it, Place::Files, why);
        }
        Ok(copy)
    }

    /// Where copies go. A slash at the end says that it is a folder.
    fn dest(&self, dest: &str, sources: &[String]) -> Result<String, String> {
        let mut place = self.place(dest)?;
        let last = dest.rsplit('/').next().unwrap_or_default();
        let is_folder = matches!(last, "" | "." | "..") || sources.len() > 1;
        // Of the whole folder the content is copied in any case.
        let is_needed = is_folder && sources != ["."];
        if is_needed && !place.ends_with('/') {
            place.push('/');
        }
        Ok(place)
    }
}

/// Why an instruction as a whole cannot be a `[[copy]]`.
fn not_possible(it: &Instruction) -> Option<String> {
    let why = match () {
        () if it.option("from").is_some() => "the files of another stage or image",
        () if it.option("parents").is_some() => "--parents is not possible",
        () if it.heredoc => "put the text into a file, and copy that",
        () => return None,
    };
    Some(why.to_owned())
}

fn can_be_added(source: &str) -> Result<(), String> {
    let is_url = source.contains("://") || source.starts_with("git@");
    if is_url {
        return Err("download it, and copy it with [[copy]]".to_owned());
    }
    match ARCHIVES.iter().any(|ending| source.ends_with(ending)) {
        true => Err("unpack the archive, and copy what is in it".to_owned()),
        false => Ok(()),
    }
}

/// A source, relative to the folder of the Smolfile.
fn source_path(source: &str) -> String {
    let path = source.trim_start_matches('/');
    let path = path.strip_prefix("./").unwrap_or(path);
    match path {
        "" => ".".to_owned(),
        path => path.to_owned(),
    }
}
