//! COPY and ADD.

use super::read::Instruction;
use super::run::is_in_mount;
use super::step::Table;
use super::taken::{MOST, Place, Step, Taken, Workdir};
use crate::init::page::{list, quoted};

/// Endings of archives that ADD unpacks.
const ARCHIVES: &[&str] = &[
    ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst",
];

impl Taken {
    /// Takes over COPY or ADD.
    pub(super) fn copy(&mut self, it: &Instruction) {
        let copy = not_possible(it).map_or_else(|| self.copy_or_fetch(it), Err);
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
        self.steps.push(Step::Table(copy));
    }

    fn copy_or_fetch(&mut self, it: &Instruction) -> Result<Table, String> {
        let (sources, dest) = self.sources_and_dest(it)?;
        let of_image = matches!(self.workdir, Workdir::OfImage) && !dest.starts_with('/');
        let table = match &sources[..] {
            [url] if it.word == "ADD" && is_url(url) => self.fetch(it, url, &dest)?,
            sources => self.copies(it, sources, &dest)?,
        };
        if of_image {
            let why = "taken as relative to / (the image may have another WORKDIR)";
            self.lose(it, Place::Files, why);
        }
        Ok(table)
    }

    fn sources_and_dest(&mut self, it: &Instruction) -> Result<(Vec<String>, String), String> {
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
        self.sources += words.len();
        if self.sources > MOST {
            return Err(format!("more than {MOST} sources are copied"));
        }
        Ok((words, dest))
    }

    /// `[[copy]]` of files in the Smolfile's folder.
    fn copies(&mut self, it: &Instruction, words: &[String], dest: &str) -> Result<Table, String> {
        if it.word == "ADD" {
            words.iter().try_for_each(|source| can_be_added(source))?;
        }
        let sources: Vec<String> = words.iter().map(|source| source_path(source)).collect();
        let dest = self.dest(dest, &sources)?;
        let mut copy = Table::new("[[copy]]");
        let src = match &sources[..] {
            [source] => quoted(source),
            sources => list(sources),
        };
        copy.key("src", src);
        copy.try_key("dest", quoted(&dest))?;
        self.goes_to(it, &dest, sources == ["."]);
        Ok(copy)
    }

    /// `[[fetch]]` of a URL whose digest is known.
    fn fetch(&mut self, it: &Instruction, url: &str, dest: &str) -> Result<Table, String> {
        let Some(sum) = it.option("checksum") else {
            let why = "a download is known by its digest: add --checksum=sha256:..., by curl -L URL | sha256sum";
            return Err(why.to_owned());
        };
        if it.option("unpack").is_some_and(|value| value != "false") {
            return Err("unpack the archive, and copy what is in it".to_owned());
        }
        let dest = self.dest(dest, &[])?;
        let sum = self.variables.word(sum)?;
        let mut fetch = Table::new("[[fetch]]");
        fetch.key("url", quoted(url));
        fetch.key(
            "sha256",
            quoted(sum.strip_prefix("sha256:").unwrap_or(&sum)),
        );
        fetch.try_key("dest", quoted(&dest))?;
        if it.option("chmod").is_none() {
            // As ADD does (Dockerfile reference, "ADD").
            fetch.key("mode", "0o600".to_owned());
        }
        self.goes_to(it, &dest, false);
        Ok(fetch)
    }

    /// Notes that files go there, for the steps that follow.
    fn goes_to(&mut self, it: &Instruction, dest: &str, is_folder: bool) {
        if is_in_mount(dest) {
            let why = "not there for [[run]] (each has a /dev, /proc, /run, /sys and /tmp of its own: copy it elsewhere)";
            self.lose(it, Place::Files, why);
        }
        let folder = match is_folder {
            true => dest,
            false => dest.rsplit_once('/').map_or("", |(folder, _)| folder),
        };
        self.folders.push(folder.trim_end_matches('/').to_owned());
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
        () if !it.documents.is_empty() => "put the text into a file, and copy that",
        () => return None,
    };
    Some(why.to_owned())
}

fn can_be_added(source: &str) -> Result<(), String> {
    if is_url(source) {
        return Err("write a [[fetch]] for each URL".to_owned());
    }
    if source.starts_with("git@") {
        return Err("clone it with [[run]]".to_owned());
    }
    match ARCHIVES.iter().any(|ending| source.ends_with(ending)) {
        true => Err("unpack the archive, and copy what is in it".to_owned()),
        false => Ok(()),
    }
}

fn is_url(source: &str) -> bool {
    source.contains("://")
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
