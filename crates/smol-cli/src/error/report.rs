//! What is reported of an error, as a value: it is printed as text or as JSON, and goes from one process
//! to another.

use std::error::Error as StdError;

use serde::{Deserialize, Serialize};

use super::{BUG, ExitKind, Failure, What, exit_kind, failures};

/// Everything that a user or a script is told of an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorReport {
    /// What failed.
    pub message: String,
    /// Facts that are neither causes nor hints, each of one line or more.
    pub details: Vec<String>,
    /// Why, the nearest cause first.
    pub causes: Vec<String>,
    /// What to do next.
    pub hints: Vec<String>,
}

impl ErrorReport {
    /// Returns the report of an error: the texts of its chain, and what every [`Failure`] in it adds.
    pub fn of(error: &anyhow::Error) -> Self {
        let mut report = match with_text(error).next().and_then(failure) {
            Some(Failure {
                what: What::Reported(report),
                ..
            }) => (**report).clone(),
            _ => Self::of_chain(error),
        };
        for failure in failures(error) {
            report.details.extend_from_slice(&failure.details);
            for hint in &failure.hints {
                report.add_hint(hint);
            }
        }
        if exit_kind(error) == ExitKind::Internal {
            report.add_hint(BUG);
        }
        report
    }

    /// The texts of a chain alone.
    fn of_chain(error: &anyhow::Error) -> Self {
        let mut texts = Vec::new();
        let mut above = String::new();
        for text in with_text(error).map(ToString::to_string) {
            // Many errors repeat their source's text in their own.
            if texts.is_empty() || !above.ends_with(&text) {
                texts.push(text.clone());
            }
            above = text;
        }
        let causes = texts.split_off(1.min(texts.len()));
        Self {
            message: texts.pop().unwrap_or_default(),
            causes,
            ..Self::default()
        }
    }

    /// Each hint is given once.
    fn add_hint(&mut self, hint: &str) {
        if !self.hints.iter().any(|known| known == hint) {
            self.hints.push(hint.to_owned());
        }
    }
}

/// The errors of a chain that have a text of their own, outermost first.
pub(super) fn with_text(error: &anyhow::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    error
        .chain()
        .filter(|e| !failure(*e).is_some_and(|f| matches!(f.what, What::Wrapped(_))))
}

pub(super) fn failure<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Failure> {
    error.downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorExt;
    use anyhow::Context as _;

    #[test]
    fn an_error_of_another_process_is_reported_as_it_is_there() {
        let there = Failure::new(ExitKind::Verification, "bad")
            .detail("probe: tcp 80")
            .hint("get it again");
        let there = anyhow::Error::from(there).context("cannot run x");
        let sent = serde_json::to_string(&ErrorReport::of(&there)).unwrap();
        let report: ErrorReport = serde_json::from_str(&sent).unwrap();
        let here = anyhow::Error::from(Failure::reported(ExitKind::Verification, report));
        assert_eq!(ErrorReport::of(&here), ErrorReport::of(&there));
        let more = here.hint("or build it").hint("get it again");
        assert_eq!(
            ErrorReport::of(&more).hints,
            ["get it again", "or build it"]
        );
    }

    #[test]
    fn a_cause_that_the_message_repeats_is_left_out() {
        let error = Err::<(), _>(std::io::Error::from_raw_os_error(2))
            .context("cannot open x: No such file or directory (os error 2)")
            .unwrap_err();
        assert_eq!(ErrorReport::of(&error).causes, Vec::<String>::new());
    }
}
