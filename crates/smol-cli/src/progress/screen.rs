//! Where the tree is drawn: the last lines of a terminal, which are overwritten in place.
//!
//! Why not indicatif: it fills each line up with spaces to the full width, and counts what it has to
//! overwrite by the width at that time. When a window is made narrower the terminal breaks those lines
//! into more, and what is above is overwritten and fragments of lines stay.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use console::Term;

use super::draw::{Drawing, Line, Look, TICK};
use super::lock;
use super::tree::{Count, Tree};

/// Where a frame starts: to the left, nothing is wrapped. A character that the terminal shows wider than
/// it is counted must not make a line two.
const BEGIN: &str = "\r\x1b[?7l";
const END: &str = "\x1b[?7h";
const TO_END_OF_LINE: &str = "\x1b[K\r\n";
const TO_END_OF_SCREEN: &str = "\x1b[J";
/// Rows and columns of a terminal that does not tell.
const USUAL_SIZE: (u16, u16) = (24, 80);

/// A terminal that can move its cursor.
pub(super) trait Terminal: Send + Sync {
    /// Rows and columns.
    fn size(&self) -> Option<(u16, u16)>;
    /// Writes all of it at once.
    fn write(&self, text: &str) -> io::Result<()>;
}

impl Terminal for Term {
    fn size(&self) -> Option<(u16, u16)> {
        self.size_checked()
    }

    fn write(&self, text: &str) -> io::Result<()> {
        self.write_str(text)?;
        self.flush()
    }
}

/// The part of a terminal that shows a tree.
pub(super) struct Screen {
    terminal: Box<dyn Terminal>,
    look: Look,
    title: Option<&'static str>,
    tree: Arc<Mutex<Tree>>,
    painted: Mutex<Painted>,
    /// A panic is reported: nothing is drawn any more.
    stopped: AtomicBool,
    ticker: Mutex<Option<Ticker>>,
}

/// What is on the screen.
#[derive(Default)]
struct Painted {
    /// Columns of each line, which are above the cursor.
    widths: Vec<usize>,
    /// So many stages were drawn for good.
    kept: usize,
}

/// A thread that draws again and again, for the times and what was printed.
struct Ticker {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

/// The screens of this process, for what else is printed.
static SCREENS: Mutex<Vec<Weak<Screen>>> = Mutex::new(Vec::new());

impl Screen {
    /// Shows a tree on a terminal. With a title there is a heading, and what has ended stays in the tree;
    /// without, it is left on the screen as soon as nothing is under way.
    pub(super) fn new(
        terminal: Box<dyn Terminal>,
        look: Look,
        title: Option<&'static str>,
        tree: Arc<Mutex<Tree>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            terminal,
            look,
            title,
            tree,
            painted: Mutex::default(),
            stopped: AtomicBool::new(false),
            ticker: Mutex::default(),
        })
    }

    /// Is off the terminal from now on while something else is printed ([`aside`]).
    pub(super) fn make_way(self: &Arc<Self>) {
        let mut screens = lock(&SCREENS);
        screens.retain(|screen| screen.strong_count() > 0);
        screens.push(Arc::downgrade(self));
    }

    /// Shows that a stage has begun or ended.
    pub(super) fn changed(self: &Arc<Self>) {
        let mut ticker = lock(&self.ticker);
        let idle = lock(&self.tree).is_idle();
        if idle {
            if let Some(Ticker { stop, thread }) = ticker.take() {
                drop(stop);
                let _ = thread.join();
            }
        } else if ticker.is_none() {
            *ticker = Ticker::start(self);
        }
        drop(ticker);
        let mut painted = lock(&self.painted);
        match idle && self.title.is_none() {
            true => self.keep(&mut painted),
            false => self.paint(&mut painted, ""),
        }
    }

    /// Prints a line above the tree.
    pub(super) fn above(&self, line: &str) {
        self.paint(&mut lock(&self.painted), line);
    }

    /// Leaves what is drawn on the screen, for good, and goes on below it, unless a stage is under way.
    pub(super) fn leave(&self) {
        self.keep(&mut lock(&self.painted));
    }

    fn draw(&self) {
        self.paint(&mut lock(&self.painted), "");
    }

    /// Rows and columns, at least one of each.
    fn size(&self) -> (usize, usize) {
        let (rows, columns) = self.terminal.size().unwrap_or(USUAL_SIZE);
        (usize::from(rows.max(1)), usize::from(columns.max(1)))
    }

    /// Draws over what was drawn before; with a line above it that stays.
    fn paint(&self, painted: &mut Painted, above: &str) {
        if self.is_stopped() {
            return;
        }
        let (rows, columns) = self.size();
        // The row of the cursor stays free.
        let lines = self.lines(painted, columns, Some(rows.saturating_sub(1).max(1)));
        if lines.is_empty() && painted.widths.is_empty() {
            if !above.is_empty() {
                let _ = self.terminal.write(&format!("{above}\r\n"));
            }
            return;
        }
        let back = back(&painted.widths, (rows, columns));
        let above = match above {
            "" => String::new(),
            // It is wrapped where it is longer than a line.
            line => format!("{END}{TO_END_OF_SCREEN}{line}\r\n\x1b[?7l"),
        };
        let text: String = lines
            .iter()
            .map(|line| format!("{}{TO_END_OF_LINE}", line.text))
            .collect();
        // Progress must not fail the work: errors of the terminal are dropped.
        let _ = self.terminal.write(&format!(
            "{BEGIN}{back}{above}{text}{TO_END_OF_SCREEN}{END}"
        ));
        painted.widths = lines.iter().map(|line| line.width).collect();
    }

    fn keep(&self, painted: &mut Painted) {
        let has_all = |tree: &Tree| tree.len() == painted.kept;
        if self.is_stopped() || !lock(&self.tree).is_idle() || has_all(&lock(&self.tree)) {
            return;
        }
        let size = self.size();
        let back = back(&painted.widths, size);
        let lines = self.lines(painted, size.1, None);
        let text: String = lines
            .iter()
            .map(|line| format!("{}{TO_END_OF_LINE}", line.text))
            .collect();
        let _ = self
            .terminal
            .write(&format!("{BEGIN}{back}{text}{TO_END_OF_SCREEN}{END}"));
        painted.widths.clear();
        painted.kept = lock(&self.tree).len();
    }

    /// Draws no more: what is on the screen stays as it is. A thread that panics may hold any of the
    /// locks, and waits for none; but another one that is drawing is given the time to end that.
    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        for _ in 0..100 {
            if self.painted.try_lock().is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// The lines to draw: those that fit into so many rows, or all.
    fn lines(&self, painted: &Painted, columns: usize, rows: Option<usize>) -> Vec<Line> {
        let tree = lock(&self.tree);
        if tree.len() == painted.kept {
            return Vec::new();
        }
        let drawing = Drawing {
            tree: &tree,
            title: self.title,
            skip: painted.kept,
            now: Instant::now(),
            columns,
            look: self.look,
            pace: Count::pace,
        };
        match rows {
            Some(rows) => drawing.fitting(rows),
            None => drawing.whole(),
        }
    }
}

/// Moves the cursor to the first of the lines that were drawn, which may take more rows now.
///
/// Most terminals break lines anew when their window becomes narrower; what is drawn over is counted as
/// they do.
fn back(widths: &[usize], (rows, columns): (usize, usize)) -> String {
    let taken: usize = widths
        .iter()
        .map(|width| width.div_ceil(columns).max(1))
        .sum();
    match taken.min(rows.saturating_sub(1)) {
        0 => String::new(),
        up => format!("\x1b[{up}A"),
    }
}

impl Ticker {
    /// None if there is no thread to be had: then the times stand still.
    fn start(screen: &Arc<Screen>) -> Option<Self> {
        let (stop, stopped) = mpsc::channel();
        let screen = screen.clone();
        let run = move || {
            let tick = Duration::from_millis(TICK);
            while stopped.recv_timeout(tick) == Err(RecvTimeoutError::Timeout) {
                screen.draw();
            }
        };
        let thread = thread::Builder::new().name("progress".into()).spawn(run);
        thread.ok().map(|thread| Self { stop, thread })
    }
}

/// Prints something else, by `print`: the trees of this process are off the screen meanwhile.
pub(crate) fn aside<T>(print: impl FnOnce() -> T) -> T {
    let screens = match thread::panicking() {
        false => lock(&SCREENS).clone(),
        // It may hold this lock.
        true => SCREENS.try_lock().map_or(Vec::new(), |held| held.clone()),
    };
    let screens: Vec<_> = screens.iter().filter_map(Weak::upgrade).collect();
    aside_of(&screens, print)
}

fn aside_of<T>(screens: &[Arc<Screen>], print: impl FnOnce() -> T) -> T {
    if thread::panicking() {
        screens.iter().for_each(|screen| screen.stop());
        return print();
    }
    let mut held: Vec<(&Arc<Screen>, MutexGuard<Painted>)> = screens
        .iter()
        .map(|screen| (screen, lock(&screen.painted)))
        .collect();
    for (screen, painted) in &mut held {
        screen.keep(painted);
        if !painted.widths.is_empty() {
            let back = back(&painted.widths, screen.size());
            let _ = screen
                .terminal
                .write(&format!("\r{back}{TO_END_OF_SCREEN}"));
            painted.widths.clear();
        }
    }
    let printed = print();
    for (screen, painted) in &mut held {
        screen.paint(painted, "");
    }
    printed
}

#[cfg(test)]
mod tests;
