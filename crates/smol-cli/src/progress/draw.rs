//! The tree of stages as lines of a terminal. Pure: the time and the size of the screen are arguments.
//!
//! ```text
//! [+] Building 12.3s (2/4)
//!  ✔ kernel       kernel smol-6.1: cached                                     0.1s
//!  ✘ lock         asking for the image: not finished                          0.4s
//!  ⠹ pull         downloading alpine:3.20            [=========>      ]  62%  4.1s
//!    ✔ 2 parts are done
//!    ⠹ 9824c27679d3                  12.0 MiB / 29.0 MiB  3.0 MiB/s  5s left  2.9s
//!  ⠹ boot         booting the machine                                         4.2s
//!      | the last lines that it has printed
//! ```

use std::time::{Duration, Instant};

use console::{measure_text_width, truncate_str};
use indicatif::HumanDuration;

use super::tree::{Count, Id, Pace, State, Step, Tree, Unit};
use crate::human;

/// Most lines of a running stage's output that are shown.
const WINDOW: usize = 6;
/// Most finished parts of a running stage that are shown.
const RECENT_PARTS: usize = 3;
/// Cells of a bar.
const BAR: usize = 16;
/// Columns that a screen must have for the time that is left, for bars, and for times.
const WIDEST: usize = 80;
const WIDE: usize = 70;
const NARROW: usize = 24;
/// A longer time until all is done is not shown: it is no estimate, but a stall.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// How long the spinner shows one of its characters, ms.
pub(super) const TICK: u64 = 100;

/// What the terminal can show.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) colour: bool,
    /// Characters beyond ASCII.
    pub(super) unicode: bool,
}

impl Look {
    fn spinner(self, elapsed: Duration) -> char {
        let characters: &[char] = match self.unicode {
            true => &['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'],
            false => &['|', '/', '-', '\\'],
        };
        let at = elapsed.as_millis() / u128::from(TICK) % characters.len() as u128;
        characters[at as usize]
    }

    /// The mark of a stage, and the colour of it.
    fn mark(self, state: State, elapsed: Duration) -> (char, &'static str) {
        match (state, self.unicode) {
            (State::Running, _) => (self.spinner(elapsed), CYAN),
            (State::Failed, true) => ('✘', RED),
            (State::Failed, false) => ('x', RED),
            (State::Done, true) => ('✔', GREEN),
            (State::Done, false) => ('+', GREEN),
            (State::Cached, true) => ('✔', BLUE),
            (State::Cached, false) => ('=', BLUE),
        }
    }

    fn cut_mark(self) -> &'static str {
        if self.unicode { "…" } else { "..." }
    }
}

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const BLUE: &str = "\x1b[34m";
const CYAN: &str = "\x1b[36m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// A line of the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// With its colours.
    pub(super) text: String,
    /// Columns that it takes.
    pub(super) width: usize,
}

/// Draws a tree for a screen.
pub(super) struct Drawing<'a> {
    pub(super) tree: &'a Tree,
    /// What the heading says is being done; none, no heading.
    pub(super) title: Option<&'a str>,
    /// So many of the first stages are left out: they have been drawn for good.
    pub(super) skip: usize,
    pub(super) now: Instant,
    pub(super) columns: usize,
    pub(super) look: Look,
    /// How fast a count goes.
    pub(super) pace: fn(&Count) -> Option<Pace>,
}

impl Drawing<'_> {
    /// Everything, however long: for what stays on the screen.
    pub(super) fn whole(&self) -> Vec<Line> {
        let steps = self.tree.children(None, self.skip);
        let steps = steps.flat_map(|(id, step)| self.step(id, step, 0, WINDOW));
        self.heading().into_iter().chain(steps).collect()
    }

    /// What fits into so many rows, at least one: windows are closed and finished stages are left out,
    /// the oldest first, as far as needed.
    pub(super) fn fitting(&self, rows: usize) -> Vec<Line> {
        let whole = self.whole();
        if whole.len() <= rows {
            return whole;
        }
        let heading: Vec<Line> = self.heading().into_iter().collect();
        for window in [WINDOW, WINDOW / 2, 1, 0] {
            let blocks = self.tree.children(None, self.skip);
            let blocks = blocks.map(|(id, step)| Block {
                running: step.is_running(),
                lines: self.step(id, step, 0, window),
            });
            let blocks: Vec<Block> = blocks.collect();
            let running = blocks.iter().filter(|block| block.running);
            let needed: usize = running.map(|block| block.lines.len()).sum();
            // One is for the line that says how many are left out.
            if heading.len() + 1 + needed <= rows {
                return self.folded(heading, blocks, rows);
            }
        }
        // Not even the running stages have place: the last lines are those of what began last.
        let steps = self.tree.children(None, self.skip);
        let running = steps.filter(|(_, step)| step.is_running());
        let lines: Vec<Line> = running
            .flat_map(|(id, step)| self.step(id, step, 0, 0))
            .collect();
        let place = rows.saturating_sub(heading.len()).min(lines.len());
        let mut fitting = heading;
        fitting.extend_from_slice(&lines[lines.len() - place..]);
        fitting.truncate(rows);
        fitting
    }

    /// Leaves finished stages out, the oldest first, until the rest fits.
    fn folded(&self, mut lines: Vec<Line>, blocks: Vec<Block>, rows: usize) -> Vec<Line> {
        let mut place = rows - lines.len() - 1;
        let mut kept = Vec::new();
        let mut left_out = 0;
        place -= blocks
            .iter()
            .filter(|block| block.running)
            .map(|block| block.lines.len())
            .sum::<usize>();
        for block in blocks.into_iter().rev() {
            if block.running {
                kept.push(block);
            } else if left_out == 0 && block.lines.len() <= place {
                place -= block.lines.len();
                kept.push(block);
            } else {
                left_out += 1;
            }
        }
        if left_out > 0 {
            let mark = self.look.cut_mark();
            let text = format!(" {mark} {}", human_count(left_out, "stage"));
            lines.push(self.line(&format!("{text} before"), DIM));
        }
        lines.extend(kept.into_iter().rev().flat_map(|block| block.lines));
        lines
    }

    fn heading(&self) -> Option<Line> {
        let steps = || self.tree.children(None, 0).map(|(_, step)| step);
        let ended = steps().filter(|step| !step.is_running()).count();
        let took = self.now.saturating_duration_since(self.tree.begin);
        let text = format!(
            "[+] {} {} ({ended}/{})",
            self.title?,
            seconds(took),
            steps().count()
        );
        Some(self.line(&text, ""))
    }

    /// The lines of a stage: itself, its parts, and what it has printed.
    fn step(&self, id: Id, step: &Step, depth: usize, window: usize) -> Vec<Line> {
        let mut lines = vec![self.of_step(step, depth)];
        let parts: Vec<_> = self.tree.children(Some(id), id).collect();
        match step.state {
            State::Running => {
                let is_ended = |part: &&(Id, &Step)| !part.1.is_running();
                let ended = parts.iter().filter(is_ended).count();
                let mut hidden = ended.saturating_sub(RECENT_PARTS);
                if hidden > 0 {
                    lines.push(self.parts_done(hidden, depth + 1));
                }
                for (id, part) in parts {
                    if hidden > 0 && !part.is_running() {
                        hidden -= 1;
                        continue;
                    }
                    lines.extend(self.step(id, part, depth + 1, window));
                }
                let first = step.output.len().saturating_sub(window);
                let shown = step.output.iter().skip(first);
                lines.extend(shown.map(|line| self.of_output(&line.text, depth)));
            }
            State::Failed => {
                let failed = parts.iter().filter(|part| part.1.state == State::Failed);
                lines.extend(failed.flat_map(|(id, part)| self.step(*id, part, depth + 1, window)));
                let tail = step.output.iter();
                lines.extend(tail.map(|line| self.of_output(&line.text, depth)));
            }
            State::Done | State::Cached => {}
        }
        lines
    }

    fn of_step(&self, step: &Step, depth: usize) -> Line {
        let elapsed = self.now.saturating_duration_since(self.tree.begin);
        let (mark, colour) = self.look.mark(step.state, elapsed);
        let indent = " ".repeat(1 + 2 * depth);
        // Names of parts are as they are: digests, files.
        let name = match depth {
            0 => format!("{:<12}", step.name),
            _ => step.name.clone(),
        };
        let text = match (step.message.as_str(), step.result.as_str()) {
            (message, "") => message.to_owned(),
            ("", result) => result.to_owned(),
            (message, result) => format!("{message}: {result}"),
        };
        let left = format!("{name} {text}");
        let took = seconds(step.took(self.now));
        let right = match step.count.as_ref().filter(|_| step.is_running()) {
            _ if self.columns < NARROW => String::new(),
            Some(count) => format!("{}  {took}", self.of_count(count)),
            None => took,
        };
        // The mark and a space are in front of it; the last column stays free.
        let columns = self.columns().saturating_sub(indent.len() + 2);
        let text = self.justify(left.trim_end(), &right, columns);
        let width = indent.len() + 2 + measure_text_width(&text);
        let text = match (self.look.colour, step.state) {
            (false, _) => format!("{indent}{mark} {text}"),
            (true, State::Failed) => format!("{indent}{colour}{mark} {text}{PLAIN}"),
            (true, _) => format!("{indent}{colour}{mark}{PLAIN} {text}"),
        };
        Line { text, width }
    }

    /// `left`, cut where needed, and `right` at the end of the line.
    fn justify(&self, left: &str, right: &str, columns: usize) -> String {
        let right_width = measure_text_width(right);
        let left_columns = match right_width {
            0 => columns,
            width => columns.saturating_sub(width + 1),
        };
        let left = self.cut(left, left_columns);
        let gap = columns.saturating_sub(measure_text_width(&left) + right_width);
        match right {
            "" => left,
            right => self.cut(&format!("{left}{}{right}", " ".repeat(gap)), columns),
        }
    }

    fn of_count(&self, count: &Count) -> String {
        let pace = (self.pace)(count).filter(|_| self.columns >= WIDE);
        let left = pace.filter(|pace| {
            let is_shown = (Duration::from_secs(1)..LONGEST).contains(&pace.left);
            is_shown && self.columns >= WIDEST
        });
        let left = left.map(|pace| format!("  {:#} left", HumanDuration(pace.left)));
        self.of_amount(count, pace) + &left.unwrap_or_default()
    }

    /// What is done of a count, and how fast.
    fn of_amount(&self, count: &Count, pace: Option<Pace>) -> String {
        match count.unit {
            Unit::Bytes => {
                let done = human::bytes(count.done);
                let of = format!("{done} / {}", human::bytes(count.total));
                match pace {
                    Some(pace) => format!("{of}  {}/s", human::bytes(pace.rate)),
                    None => of,
                }
            }
            Unit::Steps if self.columns >= WIDE => {
                let filled = BAR * count.percent() as usize / 100;
                let bar = match filled {
                    BAR => "=".repeat(BAR),
                    filled => format!("{}>", "=".repeat(filled)),
                };
                format!("[{bar:<BAR$}] {:>3}%", count.percent())
            }
            Unit::Steps => format!("{}%", count.percent()),
        }
    }

    fn of_output(&self, text: &str, depth: usize) -> Line {
        let text = format!("{}| {text}", " ".repeat(5 + 2 * depth));
        self.line(&text, DIM)
    }

    fn parts_done(&self, count: usize, depth: usize) -> Line {
        let (mark, _) = self.look.mark(State::Done, Duration::ZERO);
        let verb = if count == 1 { "is" } else { "are" };
        let indent = " ".repeat(1 + 2 * depth);
        let text = format!("{indent}{mark} {} {verb} done", human_count(count, "part"));
        self.line(&text, DIM)
    }

    /// A line of one colour, cut to the width of the screen.
    fn line(&self, text: &str, colour: &str) -> Line {
        let text = self.cut(text, self.columns());
        let width = measure_text_width(&text);
        let text = match self.look.colour && !colour.is_empty() {
            true => format!("{colour}{text}{PLAIN}"),
            false => text,
        };
        Line { text, width }
    }

    /// The last column stays free: a terminal waits there for what comes next, to wrap the line.
    fn columns(&self) -> usize {
        self.columns.saturating_sub(1)
    }

    /// Cuts to `width` columns. Tabs have no width of their own.
    fn cut(&self, text: &str, width: usize) -> String {
        let text = text.replace('\t', "    ");
        let mark = self.look.cut_mark();
        let mark = if width > measure_text_width(mark) {
            mark
        } else {
            ""
        };
        truncate_str(&text, width, mark).into_owned()
    }
}

struct Block {
    running: bool,
    lines: Vec<Line>,
}

fn human_count(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

/// A time as it is shown while it grows: `12.3s`, `4m02s`, `1h02m`.
fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{}.{}s", time.as_secs(), time.subsec_millis() / 100),
        whole @ 60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        whole => format!("{}h{:02}m", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests;
