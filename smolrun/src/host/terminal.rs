//! Reports to the terminal, and the metrics file.

use std::io;
use std::path::PathBuf;

use smol_cli::Progress;

use crate::run::metrics::Metrics;
use crate::run::report::{Report, Up};

/// The terminal, and the metrics file.
pub struct Terminal {
    /// Name of the machine.
    pub machine: String,
    /// What to say when the service runs, below the line about that.
    pub hint: Option<String>,
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
        if let Some(hint) = &self.hint {
            self.progress.note(hint);
        }
        Ok(())
    }

    fn metrics(&self, metrics: &Metrics) {
        if let Some(file) = &self.metrics_file
            && let Err(error) = metrics.write(file)
        {
            self.note(&format!("{error:#}"));
        }
    }
}
