//! The stages of a run and their parts, as a value: what is drawn, printed and measured is read from it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::laps::Lap;
use crate::human;

/// Lines of output that are kept of a stage: so many are shown of one that has failed.
pub(super) const TAIL: usize = 20;
/// Longest line of output that is kept, in characters: more than any terminal shows of it.
const LONGEST: usize = 1000;

/// Number of a stage: 1 for the first one.
pub(super) type Id = usize;

/// How far a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Done,
    Cached,
    Failed,
}

impl State {
    /// The name in JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Cached => "cached",
            Self::Failed => "failed",
        }
    }
}

/// What a stage counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Steps,
    Bytes,
}

/// How much of it is done.
#[derive(Clone, Debug)]
pub(super) struct Count {
    pub(super) unit: Unit,
    pub(super) done: u64,
    pub(super) total: u64,
    /// What was done at the first count: it was there before, so it is no part of the speed.
    first: u64,
    /// Measures the speed. It draws nothing.
    bar: ProgressBar,
}

/// How fast a count goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// Units a second.
    pub(super) rate: u64,
    /// Time until all is done.
    pub(super) left: Duration,
}

/// A speed is shown only once a stage has counted for so long.
const MEASURED: Duration = Duration::from_secs(1);

impl Count {
    pub(super) fn percent(&self) -> u64 {
        let done = u128::from(self.done.min(self.total));
        let percent = (done * 100).checked_div(u128::from(self.total));
        percent.unwrap_or(0) as u64
    }

    /// How fast it goes, smoothed over the last seconds; none before that can be told. It is of the
    /// real clock, which indicatif reads by itself: tests of what is drawn have their own.
    pub(super) fn pace(&self) -> Option<Pace> {
        if self.bar.elapsed() < MEASURED || self.done <= self.first {
            return None;
        }
        // Casts of floats saturate.
        let rate = self.bar.per_sec() as u64;
        let left = self.bar.eta();
        (rate > 0).then_some(Pace { rate, left })
    }

    fn update(&mut self, unit: Unit, done: u64, total: u64) {
        (self.unit, self.done, self.total) = (unit, done, total);
        self.bar.set_length(total.saturating_sub(self.first));
        self.bar.set_position(done.saturating_sub(self.first));
    }
}

/// A line of a stage's output.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) text: String,
    /// Shown while the stage runs, and no longer.
    pub(super) passing: bool,
}

/// A stage. All texts are in one line and drive no terminal.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) parent: Option<Id>,
    pub(super) name: String,
    pub(super) message: String,
    pub(super) state: State,
    /// What came out of it, once it has ended.
    pub(super) result: String,
    pub(super) count: Option<Count>,
    pub(super) output: VecDeque<Output>,
    pub(super) begin: Instant,
    end: Option<Instant>,
}

impl Step {
    /// How long it took, or has taken so far.
    pub(super) fn took(&self, now: Instant) -> Duration {
        let end = self.end.unwrap_or(now);
        end.saturating_duration_since(self.begin)
    }

    pub(super) fn is_running(&self) -> bool {
        self.state == State::Running
    }
}

/// All stages of a run.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) begin: Instant,
    steps: Vec<Step>,
    running: usize,
}

impl Tree {
    pub(super) fn new(begin: Instant) -> Self {
        Self {
            begin,
            steps: Vec::new(),
            running: 0,
        }
    }

    pub(super) fn start(
        &mut self,
        parent: Option<Id>,
        name: &str,
        message: &str,
        now: Instant,
    ) -> Id {
        self.running += 1;
        self.steps.push(Step {
            parent,
            name: human::one_line(name),
            message: human::one_line(message),
            state: State::Running,
            result: String::new(),
            count: None,
            output: VecDeque::new(),
            begin: now,
            end: None,
        });
        self.steps.len()
    }

    /// Ends a stage, unless it has ended: returns how long it took.
    pub(super) fn end(
        &mut self,
        id: Id,
        state: State,
        result: &str,
        now: Instant,
    ) -> Option<Duration> {
        let step = self.get_mut(id).filter(|step| step.is_running())?;
        step.state = state;
        step.result = human::one_line(result);
        step.end = Some(now);
        match state {
            State::Failed => step.output.retain(|line| !line.passing),
            _ => step.output.clear(),
        }
        let took = step.took(now);
        self.running -= 1;
        Some(took)
    }

    /// Keeps a line that the stage has printed.
    pub(super) fn output(&mut self, id: Id, line: &str, passing: bool) {
        let Some(step) = self.get_mut(id) else { return };
        if step.output.len() == TAIL {
            step.output.pop_front();
        }
        let end = line.char_indices().nth(LONGEST).map(|(end, _)| end);
        step.output.push_back(Output {
            text: human::one_line(&line[..end.unwrap_or(line.len())]),
            passing,
        });
    }

    /// Enters how far the stage is, and returns that.
    pub(super) fn count(&mut self, id: Id, unit: Unit, done: u64, total: u64) -> Option<Count> {
        let step = self.get_mut(id)?;
        let count = step.count.get_or_insert_with(|| Count {
            unit,
            done,
            total,
            first: done,
            bar: ProgressBar::hidden(),
        });
        count.update(unit, done, total);
        Some(count.clone())
    }

    pub(super) fn get(&self, id: Id) -> Option<&Step> {
        self.steps.get(id.checked_sub(1)?)
    }

    fn get_mut(&mut self, id: Id) -> Option<&mut Step> {
        self.steps.get_mut(id.checked_sub(1)?)
    }

    /// Number of stages so far.
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether no stage is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.running == 0
    }

    /// The parts of a stage, or those that are of none, with their numbers, beyond the first `skip`
    /// stages.
    pub(super) fn children(
        &self,
        parent: Option<Id>,
        skip: usize,
    ) -> impl Iterator<Item = (Id, &Step)> {
        let numbered = self.steps.iter().enumerate().skip(skip);
        let numbered = numbered.map(|(at, step)| (at + 1, step));
        numbered.filter(move |(_, step)| step.parent == parent)
    }

    /// What a line of a stage begins with: its name, or that of the stage that it is a part of and then
    /// its own.
    pub(super) fn label(&self, id: Id) -> String {
        let (mut names, mut at) = (Vec::new(), Some(id));
        while let Some(step) = at.and_then(|id| self.get(id)) {
            names.push(step.name.as_str());
            at = step.parent;
        }
        let first = names.pop().unwrap_or_default();
        let parts: String = names.iter().rev().map(|name| format!(" {name}:")).collect();
        format!("{first:<12}{parts}")
    }

    /// The stages that have ended, by start, each with its parts.
    pub(super) fn laps(&self) -> Vec<Lap> {
        self.laps_of(None)
    }

    fn laps_of(&self, parent: Option<Id>) -> Vec<Lap> {
        let skip = parent.unwrap_or(0);
        let ended = self.children(parent, skip).filter_map(|(id, step)| {
            let duration = step.end?.saturating_duration_since(step.begin);
            Some(Lap {
                name: step.name.clone(),
                start: step.begin.saturating_duration_since(self.begin),
                duration,
                finished: step.state != State::Failed,
                cached: step.state == State::Cached,
                children: self.laps_of(Some(id)),
            })
        });
        let mut laps: Vec<Lap> = ended.collect();
        laps.sort_by_key(|lap| lap.start);
        laps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (Tree, Instant) {
        let now = Instant::now();
        (Tree::new(now), now)
    }

    #[test]
    fn laps_are_of_ended_stages_with_their_ended_parts() {
        let (mut tree, now) = tree();
        let at = |seconds| now + Duration::from_secs(seconds);
        let pull = tree.start(None, "pull", "", at(1));
        let one = tree.start(Some(pull), "one", "", at(2));
        tree.start(Some(pull), "two", "", at(2));
        tree.start(None, "boot", "", at(3));
        tree.end(one, State::Cached, "", at(5));
        assert_eq!(tree.laps(), [], "it is not over yet");
        tree.end(pull, State::Failed, "", at(7));
        let one = Lap {
            name: "one".into(),
            start: Duration::from_secs(2),
            duration: Duration::from_secs(3),
            finished: true,
            cached: true,
            ..Lap::default()
        };
        let pull = Lap {
            name: "pull".into(),
            start: Duration::from_secs(1),
            duration: Duration::from_secs(6),
            children: vec![one],
            ..Lap::default()
        };
        assert_eq!(tree.laps(), [pull]);
    }

    #[test]
    fn output_is_bounded_escaped_and_gone_with_success() {
        let (mut tree, now) = tree();
        let [good, bad] = ["good", "bad"].map(|name| tree.start(None, name, "", now));
        for id in [good, bad] {
            for n in 0..1000 {
                tree.output(id, &format!("{n}\x1b[2J\n"), false);
            }
            tree.output(id, &"\u{4e2d}".repeat(100_000), true);
        }
        let lines = |tree: &Tree, id| tree.get(id).unwrap().output.len();
        assert_eq!((lines(&tree, good), lines(&tree, bad)), (TAIL, TAIL));
        let last = &tree.get(bad).unwrap().output[TAIL - 1].text;
        assert_eq!(last.chars().count(), LONGEST);
        tree.end(good, State::Done, "", now);
        tree.end(bad, State::Failed, "", now);
        assert_eq!(lines(&tree, good), 0);
        let kept = &tree.get(bad).unwrap().output;
        assert_eq!(kept.len(), TAIL - 1, "what was only passing is not kept");
        assert_eq!(kept[0].text, "981\\u{1b}[2J\\n");
    }

    #[test]
    fn a_count_that_makes_no_sense_is_no_panic() {
        let (mut tree, now) = tree();
        let id = tree.start(None, "x", "", now);
        for (done, total, percent) in [
            (0, 0, 0),
            (9, 3, 100),
            (u64::MAX, u64::MAX, 100),
            (1, 3, 33),
        ] {
            let count = tree.count(id, Unit::Steps, done, total).unwrap();
            assert_eq!(count.percent(), percent);
            count.pace();
        }
        assert!(tree.count(99, Unit::Steps, 1, 1).is_none());
        tree.output(0, "", false);
        assert_eq!(tree.end(99, State::Done, "", now), None);
    }

    #[test]
    fn what_was_there_at_the_first_count_is_no_part_of_the_speed() {
        let (mut tree, now) = tree();
        let id = tree.start(None, "x", "", now);
        let first = tree.count(id, Unit::Bytes, 1000, 5000).unwrap();
        assert_eq!(first.pace(), None, "nothing was done yet");
        let count = tree.count(id, Unit::Bytes, 3000, 5000).unwrap();
        assert_eq!((count.done, count.total), (3000, 5000));
        assert_eq!(
            (count.bar.position(), count.bar.length()),
            (2000, Some(4000))
        );
        assert!(count.bar.is_hidden());
        // Less than before: a download that began again.
        let count = tree.count(id, Unit::Bytes, 500, 5000).unwrap();
        assert_eq!((count.bar.position(), count.pace()), (0, None));
    }

    #[test]
    fn a_bar_that_draws_nothing_measures_the_speed_of_any_count() {
        // How fast it is depends on this host; that it is found out does not.
        for total in [1 << 40, u64::MAX] {
            let mut count = Count {
                unit: Unit::Bytes,
                done: 0,
                total,
                first: 0,
                bar: ProgressBar::hidden().with_elapsed(MEASURED),
            };
            assert_eq!(count.pace(), None, "nothing was done yet");
            count.update(Unit::Bytes, total / 2, total);
            assert!(count.pace().is_some_and(|pace| pace.rate > 0));
        }
    }

    #[test]
    fn a_stage_ends_once() {
        let (mut tree, now) = tree();
        let id = tree.start(None, "x", "", now);
        let later = now + Duration::from_secs(2);
        let took = tree.end(id, State::Done, "a", later);
        assert_eq!(took, Some(Duration::from_secs(2)));
        assert_eq!(tree.end(id, State::Failed, "b", later), None);
        assert_eq!(tree.get(id).unwrap().state, State::Done);
        assert!(tree.is_idle());
    }

    #[test]
    fn the_label_of_a_part_names_what_it_is_a_part_of() {
        let (mut tree, now) = tree();
        let pull = tree.start(None, "pull", "", now);
        let layer = tree.start(Some(pull), "layer\n1", "", now);
        let piece = tree.start(Some(layer), "a", "", now);
        assert_eq!(tree.label(pull), "pull        ");
        assert_eq!(tree.label(piece), "pull         layer\\n1: a:");
    }
}
