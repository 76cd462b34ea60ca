//! The lines of a Dockerfile: instructions, with their continuations, here-documents and comments
//! (Dockerfile reference, "Format", "Parser directives", "Here-Documents").

use smol_cli::{ExitKind, Failure};

/// Longest Dockerfile, in bytes.
pub const MAX_SIZE: usize = 256 * 1024;
/// Most instructions.
const MAX_INSTRUCTIONS: usize = 1000;

/// An instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instruction {
    /// Number of its first line, from 1.
    pub line: usize,
    /// Its first word, in capitals.
    pub word: String,
    /// Options: `--name=value`, without the dashes.
    pub options: Vec<(String, String)>,
    /// What follows them, on one line.
    pub rest: String,
    /// The here-documents that follow.
    pub documents: Vec<Document>,
    /// All of it, on one line.
    pub text: String,
}

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Document {
    /// As it stands in the instruction: `<<-"EOF"`
    pub word: String,
    /// `EOF`
    pub name: String,
    /// Whether tabs before its lines do not count.
    pub tabs: bool,
    /// Its lines, each with its end.
    pub text: String,
    /// Whether its end was found.
    pub is_whole: bool,
}

impl Instruction {
    /// The value of an option.
    pub fn option(&self, name: &str) -> Option<&str> {
        let mut options = self.options.iter();
        let (_, value) = options.find(|(key, _)| key == name)?;
        Some(value)
    }
}

/// What was read.
pub(super) struct Dockerfile {
    /// The instructions, in their order.
    pub instructions: Vec<Instruction>,
    /// The character that takes the meaning of the next one.
    pub escape: char,
}

/// Reads a Dockerfile.
///
/// # Errors
/// Of kind Usage: it is too long.
pub(super) fn read(text: &str) -> Result<Dockerfile, Failure> {
    let too = |what: String| Failure::new(ExitKind::Usage, what).hint("write a Smolfile by hand");
    if text.len() > MAX_SIZE {
        let most = MAX_SIZE / 1024;
        return Err(too(format!("a Dockerfile has at most {most} KiB here")));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let escape = escape_character(text);
    let mut lines = (1..).zip(text.lines());
    let mut instructions = Vec::new();
    while let Some((line, first)) = lines.next() {
        if is_comment(first) || first.trim().is_empty() {
            continue;
        }
        if instructions.len() == MAX_INSTRUCTIONS {
            let most = MAX_INSTRUCTIONS;
            return Err(too(format!(
                "a Dockerfile has at most {most} instructions here"
            )));
        }
        let whole = joined(first, &mut lines, escape);
        let whole = whole.trim();
        let end = whole.find(char::is_whitespace).unwrap_or(whole.len());
        let word = whole[..end].to_ascii_uppercase();
        let (options, rest) = options(whole[end..].trim_start(), &word);
        let mut documents = match word.as_str() {
            "RUN" | "COPY" | "ADD" => documents(rest),
            _ => Vec::new(),
        };
        for document in &mut documents {
            document.read(&mut lines);
        }
        instructions.push(Instruction {
            line,
            word,
            options,
            rest: rest.to_owned(),
            documents,
            text: whole.to_owned(),
        });
    }
    Ok(Dockerfile {
        instructions,
        escape,
    })
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// That of the directive `# escape=`, which stands before all else but other directives.
fn escape_character(text: &str) -> char {
    let directive = |line: &str| {
        let (name, value) = line.trim().strip_prefix('#')?.split_once('=')?;
        let name = name.trim().to_ascii_lowercase();
        let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric());
        plain.then(|| (name, value.trim().to_owned()))
    };
    let mut directives = text.lines().map_while(directive);
    match directives.find(|(name, _)| name == "escape") {
        Some((_, value)) if value == "`" => '`',
        _ => '\\',
    }
}

/// A line with those that continue it. Comments and empty lines between them do not count.
fn joined<'a>(
    first: &str,
    lines: &mut impl Iterator<Item = (usize, &'a str)>,
    escape: char,
) -> String {
    let mut whole = String::new();
    let mut next = first;
    loop {
        let Some(head) = next.trim_end().strip_suffix(escape) else {
            whole += next;
            return whole;
        };
        whole += head;
        let is_part = |line: &&str| !is_comment(line) && !line.trim().is_empty();
        match lines.map(|(_, line)| line).find(is_part) {
            Some(line) => next = line,
            None => return whole,
        }
    }
}

/// The options at the beginning of `rest`, of the instructions that have some, and what follows them.
fn options<'a>(mut rest: &'a str, word: &str) -> (Vec<(String, String)>, &'a str) {
    let mut options = Vec::new();
    if !["FROM", "RUN", "COPY", "ADD", "HEALTHCHECK"].contains(&word) {
        return (options, rest);
    }
    while let Some(option) = rest.strip_prefix("--") {
        let end = option.find(char::is_whitespace).unwrap_or(option.len());
        let (name, value) = option[..end]
            .split_once('=')
            .unwrap_or((&option[..end], ""));
        options.push((name.to_owned(), value.to_owned()));
        rest = option[end..].trim_start();
    }
    (options, rest)
}

/// The here-documents that follow, without their lines: `<<EOF`, `<<-"EOF"`.
fn documents(rest: &str) -> Vec<Document> {
    let document = |whole: &str| {
        let word = whole.trim_start_matches(|c: char| c.is_ascii_digit());
        let word = word.strip_prefix("<<")?;
        let (word, tabs) = match word.strip_prefix('-') {
            Some(word) => (word, true),
            None => (word, false),
        };
        let name = word.trim_matches(['"', '\'']);
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        (!name.is_empty() && name.chars().all(plain)).then(|| Document {
            word: whole.to_owned(),
            name: name.to_owned(),
            tabs,
            text: String::new(),
            is_whole: false,
        })
    };
    rest.split_whitespace().filter_map(document).collect()
}

impl Document {
    /// Reads its lines, and the one that ends it.
    fn read<'a>(&mut self, lines: &mut impl Iterator<Item = (usize, &'a str)>) {
        for (_, line) in lines {
            let end = if self.tabs {
                line.trim_start_matches('\t')
            } else {
                line
            };
            if end == self.name {
                self.is_whole = true;
                return;
            }
            self.text += line;
            self.text.push('\n');
        }
    }
}
