//! What a machine that runs has to tell the one who started it: the terminal, the smolrun that
//! waits for a detached one, or the smolrun outside of the emulated host.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smol_cli::{ExitKind, Failure, Progress, human};

use crate::metrics::Metrics;
use crate::ports::Publish;

/// The service runs and its ports are open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Up {
    /// Whether the snapshot was restored; else the machine was booted cold.
    pub restored: bool,
    /// From the beginning of the restore or boot until the service ran, ms.
    pub took_ms: f64,
    /// Where it can be reached.
    pub ports: Vec<Publish>,
}

impl Up {
    /// The line for people: `redis: restored in 21.0 ms, 127.0.0.1:16379 -> 6379`.
    pub fn line(&self, machine: &str) -> String {
        let how = if self.restored { "restored" } else { "booted" };
        let took = human::duration(Duration::from_secs_f64(self.took_ms.max(0.0) / 1e3));
        let ports: String = self.ports.iter().map(|port| format!(", {port}")).collect();
        format!("{machine}: {how} in {took}{ports}")
    }
}

/// A line of JSON from one smolrun to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Something worth a line.
    Note(String),
    /// See [`Up`].
    Up(Up),
    /// What was measured so far.
    Metrics(Metrics),
    /// The machine has ended; the service's exit code, none if the machine was stopped by force.
    Ended(Option<i32>),
    /// It could not be run: exit code and the complete text of the report.
    Failed(u8, String),
}

impl Message {
    /// The message that carries this error.
    pub fn failed(error: &anyhow::Error) -> Self {
        Message::Failed(
            smol_cli::exit_kind(error).code(),
            smol_cli::error::render(error, false),
        )
    }
}

/// The error that [`Message::Failed`] carries.
pub fn failure(code: u8, text: String) -> anyhow::Error {
    use ExitKind::*;
    let kinds = [
        Usage,
        LockStale,
        Verification,
        Host,
        Internal,
        Interrupted,
        Terminated,
    ];
    let kind = kinds
        .into_iter()
        .find(|kind| kind.code() == code)
        .unwrap_or(Failed);
    Failure::rendered(kind, text).into()
}

/// The one who started the machine.
pub trait Report: Send + Sync {
    /// Something worth a line.
    fn note(&self, text: &str);
    /// The service runs. Once.
    ///
    /// # Errors
    /// If there is nobody left to be told: the machine then has no reason to run.
    fn up(&self, up: &Up) -> io::Result<()>;
    /// What was measured so far.
    fn metrics(&self, metrics: &Metrics);
    /// The process ends at once, with this exit code: the complete text of an error that nobody
    /// else will tell.
    fn lost(&self, _code: u8, text: &str) {
        eprint!("{text}");
    }
}

/// The terminal, and the metrics file.
pub struct Terminal {
    /// Name of the machine.
    pub machine: String,
    /// The display.
    pub progress: Progress,
    /// `--metrics-file`.
    pub metrics_file: Option<PathBuf>,
}

impl Report for Terminal {
    fn note(&self, text: &str) {
        self.progress.note(&format!("smolrun: {text}"));
    }

    fn up(&self, up: &Up) -> io::Result<()> {
        self.progress.note(&up.line(&self.machine));
        Ok(())
    }

    fn metrics(&self, metrics: &Metrics) {
        if let Some(file) = &self.metrics_file
            && let Err(error) = metrics.write(file)
        {
            self.note(&format!("cannot write {}: {error}", file.display()));
        }
    }
}

/// A stream of [`Message`] lines.
pub struct Lines(Mutex<Box<dyn Write + Send>>);

impl Lines {
    /// Lines on `stream`.
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

impl Report for Lines {
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

/// How a machine ended, when nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The service's exit code.
    Exited(i32),
    /// There was a service, and it was stopped by force.
    Killed,
}

impl End {
    /// The exit code that passes it on; force counts as SIGKILL, as shells count.
    pub fn exit_code(self) -> ExitCode {
        match self {
            // Codes have 8 bits.
            End::Exited(code) => ExitCode::from((code & 0xff) as u8),
            End::Killed => ExitCode::from(128 + 9),
        }
    }

    /// The message that says so.
    pub fn message(self) -> Message {
        Message::Ended(match self {
            End::Exited(code) => Some(code),
            End::Killed => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_machine_that_is_up_names_its_ports() {
        let up = Up {
            restored: true,
            took_ms: 21.04,
            ports: vec![
                "16379:6379".parse().unwrap(),
                "0.0.0.0:80:8080".parse().unwrap(),
            ],
        };
        let line = "redis: restored in 21.0 ms, 127.0.0.1:16379 -> 6379, 0.0.0.0:80 -> 8080";
        assert_eq!(up.line("redis"), line);
        let cold = Up {
            restored: false,
            took_ms: 1500.0,
            ports: Vec::new(),
        };
        assert_eq!(cold.line("x"), "x: booted in 1.50 s");
    }

    #[test]
    fn an_error_keeps_its_exit_code_and_text_on_its_way_to_another_process() {
        let error: anyhow::Error = Failure::new(ExitKind::Verification, "no").hint("do").into();
        let Message::Failed(code, text) = Message::failed(&error) else {
            panic!()
        };
        let back = failure(code, text);
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
