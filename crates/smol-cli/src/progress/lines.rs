//! Stages as lines: for people who read them later, and for programs.

use std::io::{self, Write};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::lock;
use super::tree::{Count, Id, State, Tree, Unit};
use crate::error::json;
use crate::human;

/// What happens to a stage.
pub(super) enum Event<'a> {
    Start,
    /// A line that it has printed, so long after its beginning.
    Output(&'a str, Duration),
    Count(Count),
    Note(&'a str),
    /// How it ended, after what time; `text` says so to people.
    End {
        state: State,
        text: &'a str,
        result: &'a str,
        took: Duration,
    },
}

/// Where lines go.
pub(super) struct Lines {
    out: Mutex<Box<dyn Write + Send>>,
    json: bool,
    /// Nobody reads them.
    silent: bool,
}

/// Counts of a stage are printed no more often than this.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
const JSON_INTERVAL: Duration = Duration::from_millis(200);

impl Lines {
    pub(super) fn plain(out: impl Write + Send + 'static) -> Self {
        let out: Box<dyn Write + Send> = Box::new(out);
        Self {
            out: Mutex::new(out),
            json: false,
            silent: false,
        }
    }

    pub(super) fn json(out: impl Write + Send + 'static) -> Self {
        Self {
            json: true,
            ..Self::plain(out)
        }
    }

    pub(super) fn nowhere() -> Self {
        Self {
            silent: true,
            ..Self::plain(io::sink())
        }
    }

    pub(super) fn is_for_people(&self) -> bool {
        !self.json && !self.silent
    }

    pub(super) fn interval(&self) -> Duration {
        match self.json {
            true => JSON_INTERVAL,
            false => PLAIN_INTERVAL,
        }
    }

    /// Prints a line that belongs to no stage.
    pub(super) fn note(&self, text: &str) {
        match self.json {
            true => self.write(&json::line(&json!({ "event": "note", "message": text }))),
            false => self.write(&format!("{}\n", human::one_line(text))),
        }
    }

    /// Prints what happens to a stage.
    pub(super) fn event(&self, tree: &Mutex<Tree>, id: Id, event: &Event) {
        let tree = lock(tree);
        let line = match self.json {
            true => object(&tree, id, event).map(|object| json::line(&Value::Object(object))),
            false => text(&tree, id, event),
        };
        drop(tree);
        if let Some(line) = line {
            self.write(&line);
        }
    }

    fn write(&self, line: &str) {
        // Progress must not fail the work: errors of stderr are dropped.
        let _ = lock(&self.out).write_all(line.as_bytes());
    }
}

/// An event as a line for people.
pub(super) fn text(tree: &Tree, id: Id, event: &Event) -> Option<String> {
    let step = tree.get(id)?;
    let text = match event {
        Event::Start => step.message.clone(),
        Event::Output(line, after) => {
            format!("{:.3} {}", after.as_secs_f64(), human::one_line(line))
        }
        Event::Count(count) => match count.unit {
            Unit::Steps => format!("{}%", count.percent()),
            Unit::Bytes => {
                let (done, total) = (human::bytes(count.done), human::bytes(count.total));
                format!("{done} of {total}")
            }
        },
        Event::Note(text) | Event::End { text, .. } => human::one_line(text),
    };
    Some(format!("{} {text}\n", tree.label(id)))
}

/// An event as an object; its keys are in the manual.
fn object(tree: &Tree, id: Id, event: &Event) -> Option<Map<String, Value>> {
    let step = tree.get(id)?;
    let (name, message) = match event {
        Event::Start => ("start", step.message.clone()),
        Event::Output(line, _) => ("output", (*line).to_owned()),
        Event::Count(count) => ("count", format!("{}%", count.percent())),
        Event::Note(text) => ("note", (*text).to_owned()),
        Event::End { state, result, .. } => match state {
            State::Failed => ("abandon", (*result).to_owned()),
            _ => ("finish", (*result).to_owned()),
        },
    };
    let mut object = Map::new();
    let mut set = |key: &str, value: Value| object.insert(key.to_owned(), value);
    set("event", name.into());
    set("stage", step.name.clone().into());
    set("id", id.into());
    set("message", message.into());
    if let Some(parent) = step.parent {
        set("parent", parent.into());
    }
    match event {
        Event::Output(_, after) => {
            set("seconds", after.as_secs_f64().into());
        }
        Event::Count(count) => {
            set("done", count.done.into());
            set("total", count.total.into());
            let unit = match count.unit {
                Unit::Steps => "steps",
                Unit::Bytes => "bytes",
            };
            set("unit", unit.into());
        }
        Event::End { state, took, .. } => {
            set("seconds", took.as_secs_f64().into());
            set("state", state.name().into());
        }
        Event::Start | Event::Note(_) => {}
    }
    Some(object)
}
