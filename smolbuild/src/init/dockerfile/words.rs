//! The words of an instruction, and the variables in them (Dockerfile reference, "Environment
//! replacement").

use std::collections::{BTreeMap, BTreeSet};

/// Most bytes that all words together may come to, when their variables are replaced.
const MAX_REPLACED: usize = 1 << 20;

/// Variables with their values.
pub(super) struct Variables {
    values: BTreeMap<String, String>,
    /// Those that ENV has set, which win over ARG.
    fixed: BTreeSet<String>,
    escape: char,
    /// Bytes that words may still come to.
    left: usize,
}

impl Variables {
    /// None, in a Dockerfile with this escape character.
    pub fn new(escape: char) -> Self {
        Self {
            values: BTreeMap::new(),
            fixed: BTreeSet::new(),
            escape,
            left: MAX_REPLACED,
        }
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Those that ARG has set, and ENV has not, with their values.
    pub fn arguments(&self) -> impl Iterator<Item = (&str, &str)> {
        let of_arg = |(name, _): &(&String, &String)| !self.fixed.contains(*name);
        let all = self.values.iter().filter(of_arg);
        all.map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// All that have a value.
    pub fn into_values(self) -> BTreeMap<String, String> {
        self.values
    }

    /// Sets one, as ARG does; without a value it is not known.
    pub fn argument(&mut self, name: &str, value: Option<String>) {
        if !self.fixed.contains(name) {
            match value {
                Some(value) => drop(self.values.insert(name.to_owned(), value)),
                None => drop(self.values.remove(name)),
            }
        }
    }

    /// Sets one, as ENV does.
    pub fn environment(&mut self, name: &str, value: String) {
        self.values.insert(name.to_owned(), value);
        self.fixed.insert(name.to_owned());
    }

    /// Forgets one that ENV sets to what is not known.
    pub fn forget(&mut self, name: &str) {
        self.values.remove(name);
        self.fixed.insert(name.to_owned());
    }

    /// Forgets what ARG has set: it is known in its stage alone.
    pub fn end_stage(&mut self) {
        let fixed = &self.fixed;
        self.values.retain(|name, _| fixed.contains(name));
    }

    /// A word without its quotes, and with the values of its variables.
    ///
    /// # Errors
    /// Why it cannot be known.
    pub fn word(&mut self, raw: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = raw.chars();
        let (mut single, mut double) = (false, false);
        while let Some(c) = rest.next() {
            match c {
                '\'' if !double => single = !single,
                _ if single => out.push(c),
                '"' => double = !double,
                c if c == self.escape => match rest.next() {
                    Some(next) => {
                        if double && next != '"' && next != '$' && next != self.escape {
                            out.push(c);
                        }
                        out.push(next);
                    }
                    None => out.push(c),
                },
                '$' => {
                    let (value, behind) = self.variable(rest.as_str())?;
                    out += &value;
                    rest = behind.chars();
                }
                c => out.push(c),
            }
            if out.len() > self.left {
                return Err("the values of its variables are too long".to_owned());
            }
        }
        self.left -= out.len();
        Ok(out)
    }

    /// What stands for the text behind a `$`, and what follows that.
    fn variable<'a>(&self, text: &'a str) -> Result<(String, &'a str), String> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let split = |text: &'a str| text.split_at(text.find(|c| !is_name(c)).unwrap_or(text.len()));
        let unknown = |name: &str| format!("`{name}` has no value in the Dockerfile");
        let Some(inner) = text.strip_prefix('{') else {
            let (name, behind) = split(text);
            if name.is_empty() {
                return Ok(("$".to_owned(), text));
            }
            let value = self.get(name).ok_or_else(|| unknown(name))?;
            return Ok((value.to_owned(), behind));
        };
        let involved = || "its variables are not replaced here".to_owned();
        let (inner, behind) = inner.split_once('}').ok_or_else(involved)?;
        let (name, modifier) = split(inner);
        let value = self.get(name);
        let (operator, word) = match modifier.strip_prefix(':').unwrap_or(modifier) {
            "" if modifier.is_empty() => {
                let value = value.ok_or_else(|| unknown(name))?;
                return Ok((value.to_owned(), behind));
            }
            rest if rest.starts_with(['-', '+']) => rest.split_at(1),
            _ => return Err(involved()),
        };
        if name.is_empty() || word.contains(['$', '\'', '"', self.escape]) {
            return Err(involved());
        }
        let is_set = value.is_some_and(|value| !modifier.starts_with(':') || !value.is_empty());
        let chosen = match (operator, is_set) {
            ("-", true) => value.unwrap_or_default(),
            ("-", false) | ("+", true) => word,
            _ => "",
        };
        Ok((chosen.to_owned(), behind))
    }

    /// The words of a text, with their quotes.
    pub fn split<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let (mut words, mut begin) = (Vec::new(), None);
        let (mut quote, mut escaped) = (None, false);
        for (at, c) in text.char_indices() {
            if c.is_whitespace() && quote.is_none() && !escaped {
                words.extend(begin.take().map(|begin| &text[begin..at]));
                continue;
            }
            begin.get_or_insert(at);
            match (c, quote) {
                _ if escaped => escaped = false,
                (c, None | Some('"')) if c == self.escape => escaped = true,
                (c, Some(open)) if c == open => quote = None,
                ('"' | '\'', None) => quote = Some(c),
                _ => {}
            }
        }
        words.extend(begin.map(|begin| &text[begin..]));
        words
    }
}
