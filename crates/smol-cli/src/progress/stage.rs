//! A stage, as the code that does its work sees it.

use std::sync::Mutex;
use std::time::Instant;

use super::lines::{Event, Lines};
use super::tree::{Id, State, Unit};
use super::{Display, Progress, lock};
use crate::human;

/// A piece of work under way. Dropping it unfinished records it as such: that is what happens
/// when an error returns through it.
pub struct Stage {
    progress: Progress,
    id: Id,
    begin: Instant,
    /// When a count was printed, or the stage began.
    last_count: Mutex<Instant>,
}

impl Stage {
    pub(super) fn start(
        progress: &Progress,
        parent: Option<Id>,
        name: &str,
        message: &str,
    ) -> Stage {
        let begin = Instant::now();
        let id = lock(&progress.0.tree).start(parent, name, message, begin);
        let stage = Stage {
            progress: progress.clone(),
            id,
            begin,
            last_count: Mutex::new(begin),
        };
        match stage.display() {
            Display::Tree(screen) => screen.changed(),
            Display::Lines(lines) => stage.event(lines, &Event::Start),
        }
        stage
    }

    /// Begins a stage that is a part of this one: a layer of an image, a command of several. `name` tells
    /// it from the other parts.
    pub fn child(&self, name: &str, message: &str) -> Stage {
        Stage::start(&self.progress, Some(self.id), name, message)
    }

    /// One line that the stage's program printed; it may be hostile. On a terminal the last lines are
    /// shown while the stage runs, and more of them stay if it fails.
    pub fn output(&self, line: &str) {
        lock(&self.progress.0.tree).output(self.id, line, false);
        if let Display::Lines(lines) = self.display() {
            self.event(lines, &Event::Output(line, self.begin.elapsed()));
        }
    }

    /// One line that is shown on a terminal alone, as [`output`](Self::output) does, and only while the
    /// stage runs: of many that say little more than that it gets on, or that an error will repeat.
    pub fn window(&self, line: &str) {
        if let Display::Tree(_) = self.display() {
            lock(&self.progress.0.tree).output(self.id, line, true);
        }
    }

    /// As [`output`](Self::output), of a stage whose error has the last lines if it fails: on a terminal
    /// none of them stays.
    pub fn output_of_error(&self, line: &str) {
        match self.display() {
            Display::Tree(_) => self.window(line),
            Display::Lines(_) => self.output(line),
        }
    }

    /// Whether every line of output is printed for people as it comes, so that an error need not repeat
    /// the last ones.
    pub fn prints_output(&self) -> bool {
        match self.display() {
            Display::Tree(_) => false,
            Display::Lines(lines) => lines.is_for_people(),
        }
    }

    /// Shows that `done` of `total` units are ready.
    pub fn set(&self, done: u64, total: u64) {
        self.count(Unit::Steps, done, total);
    }

    /// Shows that `done` of `total` bytes are ready, and how fast that goes.
    pub fn set_bytes(&self, done: u64, total: u64) {
        self.count(Unit::Bytes, done, total);
    }

    fn count(&self, unit: Unit, done: u64, total: u64) {
        let now = Instant::now();
        let count = lock(&self.progress.0.tree).count(self.id, unit, done, total);
        let (Some(count), Display::Lines(lines)) = (count, self.display()) else {
            return;
        };
        let mut last = lock(&self.last_count);
        if now.saturating_duration_since(*last) >= lines.interval() {
            *last = now;
            self.event(lines, &Event::Count(count));
        }
    }

    /// Something worth a line: an event that stays visible.
    pub fn note(&self, text: &str) {
        match self.display() {
            Display::Tree(screen) => {
                let line =
                    super::lines::text(&lock(&self.progress.0.tree), self.id, &Event::Note(text));
                screen.above(line.unwrap_or_default().trim_end());
            }
            Display::Lines(lines) => self.event(lines, &Event::Note(text)),
        }
    }

    /// Ends the stage with success. `result` is one short fact, or empty.
    pub fn finish(self, result: &str) {
        let text = if result.is_empty() { "done" } else { result };
        self.end(State::Done, result, text);
    }

    /// Ends the stage with success, as [`finish`](Self::finish) does: what it makes was there already.
    pub fn cached(self, result: &str) {
        let text = match result {
            "" => "cached".to_owned(),
            result => format!("cached: {result}"),
        };
        self.end(State::Cached, &text, &text);
    }

    /// Ends the stage without success. `reason` is one short fact, or empty: the error says more.
    pub fn fail(self, reason: &str) {
        let text = match reason {
            "" => "failed".to_owned(),
            reason => format!("failed: {reason}"),
        };
        self.end(State::Failed, reason, &text);
    }

    /// `result` is what programs are told, `text` what people are.
    fn end(&self, state: State, result: &str, text: &str) {
        let shared = &self.progress.0;
        let shown = match state {
            State::Done => result,
            _ => text,
        };
        let Some(took) = lock(&shared.tree).end(self.id, state, shown, Instant::now()) else {
            return;
        };
        match self.display() {
            Display::Tree(screen) => screen.changed(),
            Display::Lines(lines) => {
                let time = human::duration(took);
                let text = match (state, result) {
                    (State::Failed, _) => text.to_owned(),
                    (_, "") => format!("{text} in {time}"),
                    _ => format!("{text} ({time})"),
                };
                let end = Event::End {
                    state,
                    text: &text,
                    result,
                    took,
                };
                self.event(lines, &end);
            }
        }
    }

    fn display(&self) -> &Display {
        &self.progress.0.display
    }

    fn event(&self, lines: &Lines, event: &Event) {
        lines.event(&self.progress.0.tree, self.id, event);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.end(State::Failed, "", "not finished");
    }
}
