//! The text of a Smolfile while it is written.

use smol_cli::human;

/// Longest line with a value that was not asked for; a longer one is told in part.
const LONGEST_HINT: usize = 300;

/// A text that grows. Whatever is put into it stays in its line.
pub(super) struct Page(String);

impl Page {
    /// Begins with an explanation.
    pub fn new(head: &str) -> Self {
        let mut page = Self(String::new());
        page.comment(head);
        page
    }

    /// An explanation.
    pub fn comment(&mut self, text: &str) {
        self.0 += &format!("# {}\n", human::one_line(text));
    }

    /// A key with its value, which is TOML.
    pub fn value(&mut self, key: &str, value: &str) {
        self.0 += &format!("{key} = {value}\n");
    }

    /// A key that can be taken in by removing the `#`. One that would be too long is explained instead.
    pub fn hint(&mut self, key: &str, value: &str) {
        match value.len() <= LONGEST_HINT {
            true => self.0 += &format!("#{key} = {value}\n"),
            false => self.comment(&format!("{key}: {}", human::excerpt(value, LONGEST_HINT))),
        }
    }

    /// The heading of a table, behind an empty line.
    pub fn table(&mut self, heading: &str) {
        self.blank();
        self.heading(heading);
    }

    /// The heading of a table, with no empty line before it.
    pub fn heading(&mut self, heading: &str) {
        self.0 += &format!("{heading}\n");
    }

    /// The heading of a table that can be taken in by removing the `#`.
    pub fn hint_table(&mut self, heading: &str) {
        self.0 += &format!("#{heading}\n");
    }

    /// An empty line; never two.
    pub fn blank(&mut self) {
        if !self.0.ends_with("\n\n") {
            self.0.push('\n');
        }
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0.trim_end().to_owned() + "\n"
    }
}

/// A string as TOML has it, in one line of visible characters.
pub(super) fn quoted(text: &str) -> String {
    let is_hidden = |c: char| {
        let alone = String::from(c);
        c == '\t' || human::one_line(&alone) != alone
    };
    if !text.contains(is_hidden) {
        return toml::Value::from(text).to_string();
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out += "\\n",
            '\t' => out += "\\t",
            '\r' => out += "\\r",
            c if is_hidden(c) => out += &format!("\\U{:08X}", u32::from(c)),
            c => out.push(c),
        }
    }
    out + "\""
}

/// A string as TOML has it: of several lines in as many, if none of them can be taken for a line of the
/// Smolfile, else as [`quoted`].
pub(super) fn text(text: &str) -> String {
    let is_plain = |line: &str| {
        let is_table = line.trim_start().starts_with('[');
        !is_table && !line.contains('\t') && human::one_line(line) == line
    };
    let fits = text.contains('\n') && !text.contains("'''") && !text.ends_with('\'');
    match fits && text.split('\n').all(is_plain) {
        true => format!("'''\n{text}'''"),
        false => quoted(text),
    }
}

/// A list of strings as TOML has it, in one line.
pub(super) fn list<T: AsRef<str>>(words: &[T]) -> String {
    let words: Vec<String> = words.iter().map(|word| quoted(word.as_ref())).collect();
    format!("[{}]", words.join(", "))
}

/// A list of ports as TOML has it.
pub(super) fn ports(ports: &[u16]) -> String {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!("[{}]", ports.join(", "))
}
