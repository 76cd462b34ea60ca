//! What is going on, on stderr: a tree of stages on a terminal, one line an event elsewhere, or JSON
//! lines for programs. Also the record of how long each stage took.
//!
//! | module | what it holds |
//! |---|---|
//! | `tree` | the stages and their parts, as a value |
//! | `stage` | a stage, as the code that does its work sees it |
//! | `draw` | the tree as lines of a screen of some size; pure |
//! | `screen` | the terminal, where these lines are drawn over in place |
//! | `lines` | plain lines, and JSON |
//! | `laps` | how long each stage took |
//!
//! ```no_run
//! # use smol_cli::{Mode, Progress};
//! let progress = Progress::new(Mode::Auto);
//! let stage = progress.stage("kernel", "building kernel smol-6.1");
//! stage.output("  CC      init/main.o");
//! stage.set(3, 120);
//! let part = stage.child("modules", "no modules");
//! part.cached("");
//! stage.finish("14.0 MiB");
//! smol_cli::print_error(&smol_cli::progress::render_waterfall(&progress.waterfall(), 60));
//! ```

mod draw;
mod laps;
mod lines;
mod screen;
mod stage;
mod tree;

use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use console::Term;

use self::draw::Look;
pub use self::laps::{Lap, render_waterfall};
use self::lines::Lines;
pub(crate) use self::screen::aside;
use self::screen::{Screen, Terminal};
pub use self::stage::Stage;
use self::tree::Tree;
use crate::human;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// [`Mode::Tty`] when stderr is a terminal that can move its cursor, else [`Mode::Plain`].
    #[default]
    Auto,
    /// A tree of stages, drawn over in place; plain lines where stderr is no such terminal.
    Tty,
    /// One line an event.
    Plain,
    /// One JSON object a line.
    Json,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "tty" => Ok(Self::Tty),
            "plain" => Ok(Self::Plain),
            "json" => Ok(Self::Json),
            _ => Err("expected auto, tty, plain or json".to_owned()),
        }
    }
}

/// The progress of one run of a command. Clones share one display.
#[derive(Clone)]
pub struct Progress(Arc<Shared>);

struct Shared {
    display: Display,
    tree: Arc<Mutex<Tree>>,
}

enum Display {
    Tree(Arc<Screen>),
    Lines(Lines),
}

impl Progress {
    /// Shows progress on stderr. Starts the clock of the waterfall.
    pub fn new(mode: Mode) -> Self {
        Self::of_mode(mode, None)
    }

    /// Shows progress on stderr, on a terminal under a heading: `title` says what the whole is, as in
    /// `Building`. What has ended stays below it until the end.
    pub fn titled(mode: Mode, title: &'static str) -> Self {
        Self::of_mode(mode, Some(title))
    }

    fn of_mode(mode: Mode, title: Option<&'static str>) -> Self {
        match mode {
            Mode::Auto | Mode::Tty if can_move_its_cursor() => {
                let stderr = Box::new(Term::buffered_stderr());
                let progress = Self::on_terminal(stderr, Look::of_stderr(), title);
                if let Display::Tree(screen) = &progress.0.display {
                    screen.make_way();
                }
                progress
            }
            Mode::Auto | Mode::Tty | Mode::Plain => Self::in_lines(Lines::plain(io::stderr())),
            Mode::Json => Self::in_lines(Lines::json(io::stderr())),
        }
    }

    /// Returns progress that is not shown: of work in the background.
    pub fn silent() -> Self {
        Self::in_lines(Lines::nowhere())
    }

    fn in_lines(lines: Lines) -> Self {
        Self(Arc::new(Shared {
            display: Display::Lines(lines),
            tree: Arc::new(Mutex::new(Tree::new(Instant::now()))),
        }))
    }

    fn on_terminal(terminal: Box<dyn Terminal>, look: Look, title: Option<&'static str>) -> Self {
        let tree = Arc::new(Mutex::new(Tree::new(Instant::now())));
        let screen = Screen::new(terminal, look, title, tree.clone());
        Self(Arc::new(Shared {
            display: Display::Tree(screen),
            tree,
        }))
    }

    /// Begins a stage. `name` is short and stable (`kernel`), `message` says what is done.
    pub fn stage(&self, name: &str, message: &str) -> Stage {
        Stage::start(self, None, name, message)
    }

    /// Says something that belongs to no stage, in one line: a fall-back that was taken, a warning.
    pub fn note(&self, text: &str) {
        match &self.0.display {
            Display::Tree(screen) => screen.above(&human::one_line(text)),
            Display::Lines(lines) => lines.note(text),
        }
    }

    /// Returns the ended stages by start.
    pub fn waterfall(&self) -> Vec<Lap> {
        lock(&self.0.tree).laps()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Display::Tree(screen) = &self.display {
            screen.leave();
        }
    }
}

/// Whether stderr is a terminal on which lines can be drawn over.
fn can_move_its_cursor() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stderr().is_terminal() && !dumb
}

impl Look {
    fn of_stderr() -> Self {
        // The first of them that is set counts: locale(7).
        let variables = ["LC_ALL", "LC_CTYPE", "LANG"].map(std::env::var);
        let locale = variables
            .into_iter()
            .flatten()
            .find(|name| !name.is_empty());
        let locale = locale.unwrap_or_default().to_ascii_lowercase();
        Self {
            colour: crate::colour_on_stderr(),
            unicode: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }
}

/// Locks, also after a panic of another thread that held the lock.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
