//! Failures as people and scripts see them: a message, its causes, hints what to do next, and an
//! exit code by kind.
//!
//! A [`Failure`] is an ordinary error that carries a kind and hints. It travels in an
//! [`anyhow::Error`] chain, and [`report`] finds it at any depth.

pub mod json;
mod report;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::error::Error as StdError;
use std::fmt;
use std::process::ExitCode;

use crate::human::printable;

pub use report::ErrorReport;

/// Kinds of failure; the number is the exit code of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitKind {
    /// The build or the run failed.
    Failed = 1,
    /// The command line or an input file is wrong.
    Usage = 2,
    /// The lock file does not match the Smolfile.
    LockStale = 3,
    /// A digest, signature or format check failed.
    Verification = 4,
    /// This host cannot do what was asked.
    Host = 5,
    /// A bug in smol.
    Internal = 70,
    /// Stopped by SIGINT (128 + 2, as shells count).
    Interrupted = 130,
    /// Stopped by SIGTERM (128 + 15).
    Terminated = 143,
}

impl ExitKind {
    /// Returns the exit code.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Returns the kind with this exit code; [`Failed`](Self::Failed) for a code that is none's.
    pub fn of_code(code: u8) -> Self {
        let kinds = [
            Self::Usage,
            Self::LockStale,
            Self::Verification,
            Self::Host,
            Self::Internal,
            Self::Interrupted,
            Self::Terminated,
        ];
        let found = kinds.into_iter().find(|kind| kind.code() == code);
        found.unwrap_or(Self::Failed)
    }

    /// Returns the name that it has in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::LockStale => "lock-stale",
            Self::Verification => "verification",
            Self::Host => "host",
            Self::Internal => "internal",
            Self::Interrupted => "interrupted",
            Self::Terminated => "terminated",
        }
    }
}

impl From<ExitKind> for ExitCode {
    fn from(kind: ExitKind) -> Self {
        ExitCode::from(kind.code())
    }
}

/// An error with a kind and hints: a message of its own, or a wrapper around another error that
/// adds no text (made by [`ErrorExt`]).
#[derive(Debug)]
pub struct Failure {
    kind: Option<ExitKind>,
    details: Vec<String>,
    hints: Vec<String>,
    what: What,
}

#[derive(Debug)]
enum What {
    Message(String),
    /// Mistakes in an input file, which `text` draws with `error:` headings of its own.
    Mistakes {
        text: String,
        mistakes: Vec<Mistake>,
    },
    /// An error of another process.
    Reported(Box<ErrorReport>),
    /// Nothing to add to the wrapped error but kind and hints.
    Wrapped(anyhow::Error),
}

/// A mistake in an input file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// What is wrong.
    pub message: String,
    /// More about it, if there is more to say.
    pub cause: Option<String>,
    /// What to do about it.
    pub hints: Vec<String>,
    /// The file, as the user knows it.
    pub file: String,
    /// Line in the file, from 1.
    pub line: usize,
    /// Column in the line, in characters, from 1.
    pub column: usize,
}

impl Failure {
    /// Returns a failure of this kind.
    pub fn new(kind: ExitKind, message: impl Into<String>) -> Self {
        Self {
            kind: Some(kind),
            details: Vec::new(),
            hints: Vec::new(),
            what: What::Message(message.into()),
        }
    }

    /// Returns a failure that consists of mistakes in an input file, which `text` draws: [`report`] prints
    /// it as it is.
    pub fn mistakes(kind: ExitKind, text: impl Into<String>, mistakes: Vec<Mistake>) -> Self {
        Self {
            what: What::Mistakes {
                text: text.into(),
                mistakes,
            },
            ..Self::new(kind, "")
        }
    }

    /// Returns the failure that another process has reported.
    pub fn reported(kind: ExitKind, report: ErrorReport) -> Self {
        Self {
            what: What::Reported(Box::new(report)),
            ..Self::new(kind, "")
        }
    }

    /// Adds a fact about the failure that is neither its cause nor what to do: `probe: tcp 80`. Further
    /// lines of it are shown below it.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.details.push(detail.into());
        self
    }

    /// Adds what the user can do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Message(text) | What::Mistakes { text, .. } => f.write_str(text),
            What::Reported(report) => f.write_str(&report.message),
            What::Wrapped(error) => write!(f, "{error}"),
        }
    }
}

impl StdError for Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.what {
            What::Wrapped(error) => Some(error.as_ref()),
            _ => None,
        }
    }
}

/// Gives a kind and hints to an error, or to the error of a `Result`.
pub trait ErrorExt {
    /// An [`anyhow::Error`], or an [`anyhow::Result`].
    type Annotated;
    /// Sets the kind, and with it the exit code; the outermost kind counts.
    fn kind(self, kind: ExitKind) -> Self::Annotated;
    /// Adds what the user can do next.
    fn hint(self, hint: impl Into<String>) -> Self::Annotated;
}

impl ErrorExt for anyhow::Error {
    type Annotated = Self;

    fn kind(self, kind: ExitKind) -> Self {
        annotate(self, |failure| failure.kind = Some(kind))
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        annotate(self, |failure| failure.hints.push(hint.into()))
    }
}

impl<T, E: Into<anyhow::Error>> ErrorExt for Result<T, E> {
    type Annotated = anyhow::Result<T>;

    fn kind(self, kind: ExitKind) -> anyhow::Result<T> {
        self.map_err(|error| error.into().kind(kind))
    }

    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| error.into().hint(hint))
    }
}

/// Changes the outermost error when it is a [`Failure`], else wraps it in one.
fn annotate(error: anyhow::Error, change: impl FnOnce(&mut Failure)) -> anyhow::Error {
    // A Failure deeper in the chain stays as it is: the outer one adds to it.
    let outermost = error.chain().next().is_some_and(|e| e.is::<Failure>());
    let wrap = |error| Failure {
        kind: None,
        details: Vec::new(),
        hints: Vec::new(),
        what: What::Wrapped(error),
    };
    let mut failure = if outermost {
        error.downcast().unwrap_or_else(wrap)
    } else {
        wrap(error)
    };
    change(&mut failure);
    failure.into()
}

/// Returns the exit kind of a chain: that of the outermost [`Failure`] that has one, else
/// [`ExitKind::Failed`].
pub fn exit_kind(error: &anyhow::Error) -> ExitKind {
    failures(error)
        .find_map(|failure| failure.kind)
        .unwrap_or(ExitKind::Failed)
}

fn failures(error: &anyhow::Error) -> impl Iterator<Item = &Failure> {
    error.chain().filter_map(|e| e.downcast_ref::<Failure>())
}

/// Prints the error with its causes and hints on stderr, as text or with `--progress json` as JSON, and
/// returns the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let text = match json::is_wanted() {
        true => json::lines(error),
        false => render(error, crate::colour_on_stderr()),
    };
    crate::print_error(&text);
    exit_kind(error).into()
}

/// Returns the text that [`report`] prints:
///
/// ```text
/// error: cannot read the Smolfile
///   because: No such file or directory (os error 2)
///   hint: name a Smolfile or a folder that holds one
/// ```
pub fn render(error: &anyhow::Error, colour: bool) -> String {
    let mut out = String::new();
    let report = ErrorReport::of(error);
    match drawn(error) {
        Some(text) => {
            out.push_str(text.trim_end_matches('\n'));
            out.push('\n');
        }
        None => labelled(&mut out, "", "error", RED, &report.message, colour),
    }
    for detail in &report.details {
        paragraph(&mut out, "  ", &printable(detail));
    }
    for cause in &report.causes {
        labelled(&mut out, "  ", "because", RED, cause, colour);
    }
    for hint in &report.hints {
        labelled(&mut out, "  ", "hint", CYAN, hint, colour);
    }
    out
}

/// The text of mistakes, which is drawn already.
fn drawn(error: &anyhow::Error) -> Option<&str> {
    match &report::with_text(error)
        .next()
        .and_then(report::failure)?
        .what
    {
        What::Mistakes { text, .. } => Some(text),
        _ => None,
    }
}

const BUG: &str = "this is a bug in smol: please report it with the lines above";
const RED: &str = "\x1b[1;31m";
const CYAN: &str = "\x1b[1;36m";

/// Appends `label: text`.
fn labelled(out: &mut String, indent: &str, label: &str, style: &str, text: &str, colour: bool) {
    let (on, off) = if colour { (style, "\x1b[0m") } else { ("", "") };
    paragraph(
        out,
        &format!("{indent}{on}{label}{off}: "),
        &printable(text),
    );
}

/// Appends the text behind `head`, its further lines indented so far that none of them can be taken
/// for a detail, a cause or a hint.
fn paragraph(out: &mut String, head: &str, text: &str) {
    let mut lines = text.trim_end().lines();
    out.push_str(&format!("{head}{}\n", lines.next().unwrap_or_default()));
    for line in lines {
        let line = line.strip_prefix("  ").unwrap_or(line);
        out.push_str(&format!("    {line}\n"));
    }
}

/// Makes a panic end the process with exit code 70 and a message that says it is a bug in smol.
///
/// The release binaries abort on panic, so the exit happens in the hook itself, whichever thread
/// panicked: no machine continues with one of its threads missing.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let what = if let Some(text) = info.payload().downcast_ref::<&str>() {
            text
        } else if let Some(text) = info.payload().downcast_ref::<String>() {
            text
        } else {
            "no message"
        };
        if let Some(failure) = of_threads(what) {
            let code = ExitKind::Failed.code();
            report(&failure.into());
            std::process::exit(code.into());
        }
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        if json::is_wanted() {
            crate::print_error(&json::line(&json::of_panic(what, &place)));
            std::process::exit(ExitKind::Internal.code().into());
        }
        let mut text = format!(
            "error: internal failure\n  because: {}\n  at: {place}\n  hint: {BUG}\n",
            printable(what)
        );
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            text.push_str(&format!("{backtrace}"));
        }
        crate::print_error(&text);
        std::process::exit(ExitKind::Internal.code().into());
    }));
}

/// The failure behind a panic of Rust's library or of rayon, which hashes with all CPUs: they panic where
/// the system gives no thread, for lack of memory or by a limit, and that is no bug.
fn of_threads(what: &str) -> Option<Failure> {
    let panics = ["failed to spawn thread: ", "ThreadPoolBuildError "];
    let is_one = panics.iter().any(|panic| what.contains(panic));
    is_one.then(|| {
        let message = "the system gives this program no more threads";
        Failure::new(ExitKind::Failed, message)
            .hint("free memory, or raise the limits: ulimit -u, and pids.max of the control group")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    fn no_file() -> Result<(), std::io::Error> {
        Err(std::io::Error::from_raw_os_error(2))
    }

    #[test]
    fn a_report_names_the_failure_its_causes_and_the_next_step() {
        let error = no_file()
            .hint("name a Smolfile")
            .context("cannot read Smolfile")
            .kind(ExitKind::Usage)
            .unwrap_err();
        assert_eq!(
            render(&error, false),
            "error: cannot read Smolfile\n  because: No such file or directory (os error 2)\n  hint: name a Smolfile\n"
        );
        assert_eq!(exit_kind(&error), ExitKind::Usage);
    }

    #[test]
    fn details_stand_between_the_message_and_the_hints_each_line_indented() {
        let error = Failure::new(ExitKind::Failed, "not ready")
            .detail("probe: tcp 80")
            .detail("last lines:\n  one")
            .hint("listen");
        assert_eq!(
            render(&error.into(), false),
            "error: not ready\n  probe: tcp 80\n  last lines:\n    one\n  hint: listen\n"
        );
    }

    #[test]
    fn the_outermost_kind_gives_the_exit_code_and_none_means_failed() {
        let error = no_file().kind(ExitKind::Host).context("outer").unwrap_err();
        assert_eq!(exit_kind(&error).code(), 5);
        let error = error.kind(ExitKind::Verification);
        assert_eq!(exit_kind(&error).code(), 4);
        assert_eq!(exit_kind(&no_file().unwrap_err().into()).code(), 1);
    }

    #[test]
    fn hints_of_every_depth_are_printed_once_each() {
        let error = no_file()
            .hint("deep")
            .context("middle")
            .hint("outer")
            .hint("deep")
            .context("top")
            .unwrap_err();
        let text = render(&error, false);
        assert_eq!(
            text,
            "error: top\n  because: middle\n  because: No such file or directory (os error 2)\n  hint: outer\n  hint: deep\n"
        );
    }

    #[test]
    fn an_error_takes_kind_and_hint_as_the_result_with_it_does() {
        let error = anyhow::Error::from(no_file().unwrap_err());
        let error = error.context("outer").kind(ExitKind::Usage).hint("h");
        let result = no_file().context("outer").kind(ExitKind::Usage).hint("h");
        let of_result = result.unwrap_err();
        assert_eq!(render(&error, false), render(&of_result, false));
        assert_eq!(exit_kind(&error), exit_kind(&of_result));
        assert_eq!(error.chain().count(), of_result.chain().count());
    }

    #[test]
    fn the_wrapped_error_can_still_be_found_in_the_chain() {
        let error = no_file().hint("x").unwrap_err();
        assert!(error.chain().any(|e| e.is::<std::io::Error>()));
    }

    #[test]
    fn a_cause_that_its_outer_error_already_repeats_is_left_out() {
        #[derive(Debug)]
        struct Outer(std::io::Error);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "open failed: {}", self.0)
            }
        }
        impl StdError for Outer {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                Some(&self.0)
            }
        }
        let error = anyhow::Error::new(Outer(no_file().unwrap_err()));
        assert_eq!(
            render(&error, false),
            "error: open failed: No such file or directory (os error 2)\n"
        );
    }

    #[test]
    fn text_that_is_already_drawn_is_printed_as_it_is() {
        let error: anyhow::Error =
            Failure::mistakes(ExitKind::Usage, "error: a\n --> f:1:1\n\n", Vec::new()).into();
        assert_eq!(render(&error, true), "error: a\n --> f:1:1\n");
        assert_eq!(exit_kind(&error), ExitKind::Usage);
    }

    #[test]
    fn escape_sequences_in_a_message_do_not_reach_the_terminal() {
        let error = anyhow::anyhow!("console said \x1b]0;owned\x07\nand more");
        assert_eq!(
            render(&error, false),
            "error: console said \\u{1b}]0;owned\\u{7}\n    and more\n"
        );
    }

    #[test]
    fn no_line_of_foreign_text_passes_for_a_line_of_the_report() {
        let forged = "x\nerror: y\n  hint: run this\rhint: or this\n  because: z";
        let error = Failure::new(ExitKind::Failed, forged)
            .detail(forged)
            .hint(forged);
        let text = render(&error.into(), false);
        let of_ours: Vec<_> = text
            .lines()
            .filter(|line| !line.starts_with("    "))
            .collect();
        assert_eq!(of_ours, ["error: x", "  x", "  hint: x"], "{text}");
    }

    #[test]
    fn an_internal_failure_asks_for_a_report() {
        let error: anyhow::Error =
            Failure::new(ExitKind::Internal, "page index out of order").into();
        assert!(
            render(&error, false)
                .ends_with("hint: this is a bug in smol: please report it with the lines above\n")
        );
        assert_eq!(exit_kind(&error).code(), 70);
    }

    #[test]
    fn colour_marks_the_labels_only_when_asked() {
        let error = no_file().hint("h").unwrap_err();
        assert!(!render(&error, false).contains('\x1b'));
        assert!(render(&error, true).starts_with("\x1b[1;31merror\x1b[0m: No such"));
    }
}
