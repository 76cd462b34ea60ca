//! Taking keys out of a spanned TOML table, one typed value at a time.
//!
//! Every method reports what is wrong and then goes on with `None` or a default, so that one pass
//! finds all mistakes; [`super::parse()`] returns no value once anything was reported.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::diagnostic::{Diagnostic, Span};
use super::keys;

/// The mistakes found so far.
#[derive(Default)]
pub(super) struct Errors(pub(super) Vec<Diagnostic>);

impl Errors {
    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }
}

/// A table whose keys are taken one after the other; what is left at the end is unknown.
pub(super) struct Table<'i> {
    /// Its name in the Smolfile: `ready`, or empty for the top.
    pub(super) name: &'static str,
    /// The header, the inline table, or the whole file.
    pub(super) span: Span,
    entries: Vec<Entry<'i>>,
}

/// A key with its value.
pub(super) struct Entry<'i> {
    pub(super) key: Spanned<Cow<'i, str>>,
    pub(super) value: Spanned<DeValue<'i>>,
}

impl<'i> Table<'i> {
    pub(super) fn new(name: &'static str, span: Span, table: DeTable<'i>) -> Self {
        let entries = table
            .into_iter()
            .map(|(key, value)| Entry { key, value })
            .collect();
        Self {
            name,
            span,
            entries,
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.key_span(key).is_some()
    }

    /// Where the key stands, if it is there and was not taken.
    pub(super) fn key_span(&self, key: &str) -> Option<Span> {
        self.entries
            .iter()
            .find(|entry| entry.key.get_ref() == key)
            .map(|entry| entry.key.span())
    }

    /// Whether the key has a table as its value, in which there is this other key.
    pub(super) fn holds(&self, key: &str, inner: &str) -> bool {
        self.entries.iter().any(|entry| {
            entry.key.get_ref() == key
                && matches!(entry.value.get_ref(), DeValue::Table(table) if table.keys().any(|k| k.get_ref() == inner))
        })
    }

    /// Where the value of the key stands.
    pub(super) fn value_span(&self, key: &str) -> Option<Span> {
        let mut entries = self.entries.iter();
        let entry = entries.find(|entry| entry.key.get_ref() == key)?;
        Some(entry.value.span())
    }

    /// The value of the key.
    pub(super) fn value(&self, key: &str) -> Option<&DeValue<'i>> {
        let mut entries = self.entries.iter();
        let entry = entries.find(|entry| entry.key.get_ref() == key)?;
        Some(entry.value.get_ref())
    }

    /// The list that the key has as its value.
    pub(super) fn list(&self, key: &str) -> Option<&[Spanned<DeValue<'i>>]> {
        let mut entries = self.entries.iter();
        let entry = entries.find(|entry| entry.key.get_ref() == key)?;
        match entry.value.get_ref() {
            DeValue::Array(list) => Some(list),
            _ => None,
        }
    }

    /// Whether the key has a string as its value.
    pub(super) fn is_string(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| {
            entry.key.get_ref() == key && matches!(entry.value.get_ref(), DeValue::String(_))
        })
    }

    pub(super) fn take(&mut self, key: &str) -> Option<Entry<'i>> {
        let index = self
            .entries
            .iter()
            .position(|entry| entry.key.get_ref() == key)?;
        Some(self.entries.swap_remove(index))
    }

    /// The remaining entries, for tables whose keys are data.
    pub(super) fn take_all(&mut self) -> Vec<Entry<'i>> {
        std::mem::take(&mut self.entries)
    }

    /// Reports a key that has to be there; but not if another one stands for it, which is reported itself.
    pub(super) fn require(&self, key: &str, example: &str, errors: &mut Errors) {
        let stands_for_it = |entry: &Entry| keys::stands_for(self.name, entry.key.get_ref(), key);
        if !self.has(key) && !self.entries.iter().any(stands_for_it) {
            let title = match self.name {
                "" => format!("`{key}` is missing"),
                name => format!("`{key}` is missing in {}", keys::heading(name)),
            };
            errors
                .push(Diagnostic::new(self.span.clone(), title).help(format!("write `{example}`")));
        }
    }

    pub(super) fn string(&mut self, key: &str, errors: &mut Errors) -> Option<Spanned<String>> {
        as_string(self.take(key)?.value, errors)
    }

    /// A string that `parse` understands; its diagnostic is moved to the value.
    pub(super) fn parsed<T>(
        &mut self,
        key: &str,
        errors: &mut Errors,
        parse: impl FnOnce(&str) -> Result<T, Diagnostic>,
    ) -> Option<Spanned<T>> {
        let text = self.string(key, errors)?;
        parsed(text, errors, parse)
    }

    pub(super) fn boolean(&mut self, key: &str, errors: &mut Errors) -> Option<bool> {
        let value = self.take(key)?.value;
        match value.get_ref() {
            DeValue::Boolean(yes) => Some(*yes),
            other => {
                errors.push(mismatch(value.span(), other, "true or false"));
                None
            }
        }
    }

    pub(super) fn integer(
        &mut self,
        key: &str,
        range: RangeInclusive<u64>,
        errors: &mut Errors,
    ) -> Option<Spanned<u64>> {
        as_integer(self.take(key)?.value, key, range, errors)
    }

    pub(super) fn array(
        &mut self,
        key: &str,
        what: &str,
        errors: &mut Errors,
    ) -> Vec<Spanned<DeValue<'i>>> {
        let Some(entry) = self.take(key) else {
            return Vec::new();
        };
        let span = entry.value.span();
        match entry.value.into_inner() {
            DeValue::Array(array) => array.into_iter().collect(),
            other => {
                errors.push(mismatch(span, &other, what));
                Vec::new()
            }
        }
    }

    pub(super) fn table(
        &mut self,
        key: &str,
        name: &'static str,
        errors: &mut Errors,
    ) -> Option<Table<'i>> {
        let value = self.take(key)?.value;
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(table) => Some(Table::new(name, span, table)),
            other => {
                errors.push(mismatch(
                    span,
                    &other,
                    &format!("a table: {}", keys::heading(name)),
                ));
                None
            }
        }
    }

    /// `[[name]]`, in the order written.
    pub(super) fn tables(&mut self, name: &'static str, errors: &mut Errors) -> Vec<Table<'i>> {
        let Some(entry) = self.take(name) else {
            return Vec::new();
        };
        let what = format!("an array of tables: {}", keys::heading(name));
        let span = entry.value.span();
        let values: Vec<_> = match entry.value.into_inner() {
            DeValue::Array(array) => array.into_iter().collect(),
            other @ DeValue::Table(_) => {
                let wrong = mismatch(span, &other, &what);
                errors.push(wrong.help(format!("write `[[{name}]]` with two pairs of brackets")));
                Vec::new()
            }
            other => {
                errors.push(mismatch(span, &other, &what));
                Vec::new()
            }
        };
        let mut tables = Vec::new();
        for value in values {
            let span = value.span();
            match value.into_inner() {
                DeValue::Table(table) => tables.push(Table::new(name, span, table)),
                other => errors.push(mismatch(span, &other, &what)),
            }
        }
        tables
    }

    /// Reports every key that was not taken.
    pub(super) fn finish(self, errors: &mut Errors) {
        for entry in self.entries {
            errors.push(keys::unknown(
                self.name,
                entry.key.get_ref(),
                entry.key.span(),
            ));
        }
    }
}

/// `value` is not `expected`.
pub(super) fn mismatch(span: Span, value: &DeValue<'_>, expected: &str) -> Diagnostic {
    let found = match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    };
    Diagnostic::new(span, format!("expected {expected}, found {found}"))
}

pub(super) fn as_string(
    value: Spanned<DeValue<'_>>,
    errors: &mut Errors,
) -> Option<Spanned<String>> {
    let span = value.span();
    match value.into_inner() {
        DeValue::String(text) if text.contains('\0') => {
            errors.push(Diagnostic::new(span, "a NUL character cannot be used here"));
            None
        }
        DeValue::String(text) => Some(Spanned::new(span, text.into_owned())),
        other => {
            let wrong = mismatch(span, &other, "a string");
            errors.push(match other {
                DeValue::Integer(number) => wrong.help(format!("write \"{number}\" in quotes")),
                DeValue::Boolean(yes) => wrong.help(format!("write \"{yes}\" in quotes")),
                _ => wrong,
            });
            None
        }
    }
}

/// `parse` applied to a string; its diagnostic is moved to the string.
pub(super) fn parsed<T>(
    text: Spanned<String>,
    errors: &mut Errors,
    parse: impl FnOnce(&str) -> Result<T, Diagnostic>,
) -> Option<Spanned<T>> {
    match parse(text.get_ref()) {
        Ok(value) => Some(Spanned::new(text.span(), value)),
        Err(diagnostic) => {
            errors.push(Diagnostic {
                span: text.span(),
                ..diagnostic
            });
            None
        }
    }
}

pub(super) fn as_integer(
    value: Spanned<DeValue<'_>>,
    what: &str,
    range: RangeInclusive<u64>,
    errors: &mut Errors,
) -> Option<Spanned<u64>> {
    let span = value.span();
    match value.get_ref() {
        DeValue::Integer(number) => match to_u64(number).filter(|number| range.contains(number)) {
            Some(number) => Some(Spanned::new(span, number)),
            None => {
                let (min, max) = range.into_inner();
                errors.push(
                    Diagnostic::new(span, format!("`{what}` is out of range"))
                        .label(format!("must be {min} to {max}")),
                );
                None
            }
        },
        other => {
            let wrong = mismatch(span, other, "an integer");
            errors.push(match other {
                DeValue::String(text) if text.parse::<u64>().is_ok() => {
                    wrong.help(format!("write {text} without quotes"))
                }
                _ => wrong,
            });
            None
        }
    }
}

/// The value of a TOML integer; `None` when negative or larger than 64 bits.
pub(super) fn to_u64(number: &DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}
