//! Messages from the smolrun that runs a machine to the one that the user has started: one JSON
//! object a line.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use smol_cli::error::ErrorReport;
use smol_cli::{ExitKind, Failure};

use crate::run::metrics::Metrics;
use crate::run::report::{End, Report, Up};

/// A line of JSON from one smolrun to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// A line for the user.
    Note(String),
    /// The service runs.
    Up(Up),
    /// What was measured so far.
    Metrics(Metrics),
    /// The machine has ended; the service's exit code, none if the machine was stopped by force.
    Ended(Option<i32>),
    /// The machine could not be run, or failed: the exit code, and what is told of the error.
    Failed(u8, ErrorReport),
}

impl Message {
    /// Returns the message of an error.
    pub fn failed(error: &anyhow::Error) -> Self {
        Message::Failed(smol_cli::exit_kind(error).code(), ErrorReport::of(error))
    }

    /// Returns the message of a machine that has ended.
    pub fn ended(end: End) -> Self {
        Message::Ended(match end {
            End::Exited(code) => Some(code),
            End::Killed => None,
        })
    }
}

/// Returns the error of [`Message::Failed`].
pub fn failure(code: u8, report: ErrorReport) -> anyhow::Error {
    Failure::reported(ExitKind::of_code(code), report).into()
}

/// A stream of [`Message`] lines.
pub struct MessageLines(Mutex<Box<dyn Write + Send>>);

impl MessageLines {
    /// Sends them to `stream`.
    pub fn new(stream: impl Write + Send + 'static) -> Self {
        Self(Mutex::new(Box::new(stream)))
    }

    /// Sends one message.
    ///
    /// # Errors
    /// If the other end is gone.
    pub fn send(&self, message: &Message) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(&line)?;
        stream.flush()
    }
}

impl Report for MessageLines {
    fn note(&self, text: &str) {
        let _ = self.send(&Message::Note(text.to_owned()));
    }

    fn up(&self, up: &Up) -> io::Result<()> {
        self.send(&Message::Up(up.clone()))
    }

    fn metrics(&self, metrics: &Metrics) {
        let _ = self.send(&Message::Metrics(metrics.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_exit_code_and_text_on_its_way_to_another_process() {
        let error: anyhow::Error = Failure::new(ExitKind::Verification, "no").hint("do").into();
        let Message::Failed(code, report) = Message::failed(&error) else {
            panic!()
        };
        let back = failure(code, report);
        assert_eq!(smol_cli::exit_kind(&back), ExitKind::Verification);
        let text = smol_cli::error::render(&back, false);
        assert_eq!(text, "error: no\n  hint: do\n");
    }

    #[test]
    fn messages_survive_their_lines() {
        let up = Up {
            restored: true,
            took_ms: 1.5,
            ports: vec!["1:2".parse().unwrap()],
            metrics: Metrics::default(),
        };
        for message in [
            Message::Up(up),
            Message::Note("a\nb".into()),
            Message::Ended(None),
        ] {
            let line = serde_json::to_vec(&message).unwrap();
            assert!(!line.contains(&b'\n'));
            assert_eq!(serde_json::from_slice::<Message>(&line).unwrap(), message);
        }
    }
}
