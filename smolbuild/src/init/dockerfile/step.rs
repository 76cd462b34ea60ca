//! A step of the Smolfile: `[[copy]]`, `[[fetch]]` or `[[run]]`.

use crate::init::accepted;

/// A step: its keys with their values, which are TOML.
#[derive(Debug)]
pub(super) struct Table {
    /// `[[copy]]`
    pub heading: &'static str,
    /// Explanations, a line each.
    pub comments: Vec<String>,
    pub keys: Vec<(&'static str, String)>,
}

impl Table {
    /// One without keys.
    pub fn new(heading: &'static str) -> Self {
        Self {
            heading,
            comments: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// Adds a key.
    pub fn key(&mut self, key: &'static str, value: String) {
        self.keys.push((key, value));
    }

    /// Adds a key with this value, if the step can have it.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn try_key(&mut self, key: &'static str, value: String) -> Result<(), String> {
        self.key(key, value);
        let fits = self.check();
        if fits.is_err() {
            self.keys.pop();
        }
        fits
    }

    /// Whether a Smolfile can have this step.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn check(&self) -> Result<(), String> {
        let keys = self.keys.iter();
        let lines: Vec<String> = keys
            .map(|(key, value)| format!("{key} = {value}"))
            .collect();
        accepted(&format!("{}\n{}", self.heading, lines.join("\n")))
    }
}
