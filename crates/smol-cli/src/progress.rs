//! What is going on, on stderr: bars on a terminal, one line an event elsewhere, or JSON lines
//! for programs. Also the record of how long each stage took.
//!
//! ```no_run
//! # use smol_cli::{Mode, Progress};
//! let progress = Progress::new(Mode::Auto);
//! let stage = progress.stage("kernel", "building kernel smol-6.1");
//! stage.set(3, 120);
//! stage.finish("14.0 MiB");
//! smol_cli::print_error(&smol_cli::progress::render_waterfall(&progress.waterfall(), 60));
//! ```

use std::io::{self, IsTerminal, Write};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use crate::error::json;
use crate::human;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// [`Mode::Tty`] when stderr is a terminal that can move its cursor, else [`Mode::Plain`].
    #[default]
    Auto,
    /// Bars and spinners.
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

/// How long a stage took. Times serialise as seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lap {
    /// Short name of the stage: `kernel`.
    pub name: String,
    /// From the making of the [`Progress`] to the start of the stage.
    #[serde(serialize_with = "seconds")]
    pub start: Duration,
    /// From start to end.
    #[serde(serialize_with = "seconds")]
    pub duration: Duration,
    /// Whether the stage was finished, not dropped on the way.
    pub finished: bool,
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// The progress of one run of a command. Clones share one display.
#[derive(Clone)]
pub struct Progress(Arc<Shared>);

struct Shared {
    display: Display,
    begin: Instant,
    /// Ids of stages that were given away: they count from 1.
    ids: AtomicU64,
    laps: Mutex<Vec<Lap>>,
}

enum Display {
    Bars(MultiProgress),
    Plain(Mutex<Box<dyn Write + Send>>),
    Json(Mutex<Box<dyn Write + Send>>),
}

/// Counts of a plain or JSON stage are printed no more often than this.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
const JSON_INTERVAL: Duration = Duration::from_millis(200);

/// A stage of unknown length, and one that counts (templates of indicatif).
const SPINNER: &str = "{spinner:.cyan} {prefix:<12} {msg} {elapsed:.dim}";
const BAR: &str = "{spinner:.cyan} {prefix:<12} {msg} [{bar:24}] {percent:>3}% {elapsed:.dim}";

impl Progress {
    /// Shows progress on stderr. Starts the clock of the waterfall.
    pub fn new(mode: Mode) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let display = match mode {
            Mode::Auto if io::stderr().is_terminal() && !dumb => Self::bars(),
            Mode::Tty => Self::bars(),
            Mode::Auto | Mode::Plain => Display::Plain(Mutex::new(Box::new(io::stderr()))),
            Mode::Json => Display::Json(Mutex::new(Box::new(io::stderr()))),
        };
        Self::with_display(display)
    }

    /// Returns progress that is not shown: of work in the background.
    pub fn silent() -> Self {
        Self::with_display(Display::Plain(Mutex::new(Box::new(io::sink()))))
    }

    fn bars() -> Display {
        Display::Bars(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
    }

    fn with_display(display: Display) -> Self {
        Self(Arc::new(Shared {
            display,
            begin: Instant::now(),
            ids: AtomicU64::new(0),
            laps: Mutex::default(),
        }))
    }

    /// Begins a stage. `name` is short and stable (`kernel`), `message` says what is done.
    pub fn stage(&self, name: &str, message: &str) -> Stage {
        self.begin(name, None, message)
    }

    fn begin(&self, name: &str, parent: Option<u64>, message: &str) -> Stage {
        let bar = match &self.0.display {
            Display::Bars(multi) => {
                let bar = multi.add(ProgressBar::new_spinner());
                bar.set_style(style(SPINNER));
                bar.set_prefix(name.to_owned());
                bar.set_message(human::one_line(message));
                bar.enable_steady_tick(Duration::from_millis(100));
                Some(bar)
            }
            _ => None,
        };
        let stage = Stage {
            progress: self.clone(),
            id: self.0.ids.fetch_add(1, Ordering::Relaxed) + 1,
            parent,
            name: name.to_owned(),
            begin: Instant::now(),
            state: Mutex::new(State {
                bar,
                counted: false,
                last_count: Instant::now(),
                over: false,
            }),
        };
        stage.event("start", message, json!({}));
        stage
    }

    /// Says something that belongs to no stage, in one line: a fall-back that was taken, a warning.
    pub fn note(&self, text: &str) {
        self.line(
            &human::one_line(text),
            || json!({ "event": "note", "message": text }),
        );
    }

    /// Prints one line above the bars, or a plain or JSON line.
    fn line(&self, plain: &str, json: impl FnOnce() -> serde_json::Value) {
        // Progress must not fail the work: errors of stderr are dropped.
        match &self.0.display {
            Display::Bars(multi) => {
                let _ = multi.println(plain);
            }
            Display::Plain(out) => {
                let _ = lock(out).write_all(format!("{plain}\n").as_bytes());
            }
            Display::Json(out) => {
                let _ = lock(out).write_all(json::line(&json()).as_bytes());
            }
        }
    }

    /// Returns the ended stages by start.
    pub fn waterfall(&self) -> Vec<Lap> {
        let mut laps = lock(&self.0.laps).clone();
        laps.sort_by_key(|lap| lap.start);
        laps
    }
}

/// A piece of work under way. Dropping it unfinished records it as such: that is what happens
/// when an error returns through it.
pub struct Stage {
    progress: Progress,
    id: u64,
    parent: Option<u64>,
    name: String,
    begin: Instant,
    state: Mutex<State>,
}

struct State {
    bar: Option<ProgressBar>,
    /// The bar has a length by now.
    counted: bool,
    last_count: Instant,
    over: bool,
}

impl Stage {
    /// Begins a stage that is a part of this one: a layer of an image, a command of several.
    pub fn child(&self, name: &str, message: &str) -> Stage {
        self.progress.begin(name, Some(self.id), message)
    }

    /// One line that the stage's program printed, which may be hostile.
    pub fn output(&self, line: &str) {
        self.event("output", &format!("| {line}"), json!({ "message": line }));
    }

    /// Shows that `done` of `total` units are ready.
    pub fn set(&self, done: u64, total: u64) {
        let mut state = lock(&self.state);
        if let Some(bar) = &state.bar {
            bar.set_length(total);
            bar.set_position(done);
            if !state.counted {
                bar.set_style(style(BAR));
                state.counted = true;
            }
            return;
        }
        let interval = match self.progress.0.display {
            Display::Json(_) => JSON_INTERVAL,
            _ => PLAIN_INTERVAL,
        };
        if state.last_count.elapsed() < interval {
            return;
        }
        state.last_count = Instant::now();
        drop(state);
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0);
        self.event(
            "count",
            &format!("{percent}%"),
            json!({ "done": done, "total": total }),
        );
    }

    /// Something worth a line: an event that stays visible.
    pub fn note(&self, text: &str) {
        self.event("note", text, json!({}));
    }

    /// Ends the stage with success. `result` is one short fact, or empty.
    pub fn finish(self, result: &str) {
        let took = human::duration(self.begin.elapsed());
        let text = match result {
            "" => format!("done in {took}"),
            result => format!("{result} ({took})"),
        };
        self.end(true, &text, result);
    }

    /// Ends the stage with success, as [`finish`](Self::finish) does: what it makes was there already.
    pub fn cached(self, result: &str) {
        match result {
            "" => self.finish("cached"),
            result => self.finish(&format!("cached: {result}")),
        }
    }

    /// Ends the stage without success. `reason` is one short fact.
    pub fn fail(self, reason: &str) {
        self.end(false, &format!("failed: {reason}"), reason);
    }

    fn end(&self, finished: bool, text: &str, result: &str) {
        let duration = self.begin.elapsed();
        let bar = {
            let mut state = lock(&self.state);
            if std::mem::replace(&mut state.over, true) {
                return;
            }
            state.bar.take()
        };
        let shared = &self.progress.0;
        let start = self.begin.saturating_duration_since(shared.begin);
        lock(&shared.laps).push(Lap {
            name: self.name.clone(),
            start,
            duration,
            finished,
        });
        if let (Some(bar), Display::Bars(multi)) = (bar, &shared.display) {
            bar.finish_and_clear();
            multi.remove(&bar);
        }
        let event = if finished { "finish" } else { "abandon" };
        self.event(
            event,
            text,
            json!({ "seconds": duration.as_secs_f64(), "message": result }),
        );
    }

    /// Prints one event of this stage. On a terminal the bar itself shows its start.
    fn event(&self, event: &str, text: &str, extra: serde_json::Value) {
        if event == "start" && matches!(self.progress.0.display, Display::Bars(_)) {
            return;
        }
        let plain = format!("{:<12} {}", self.name, human::one_line(text));
        self.progress.line(&plain, || {
            let mut object = json!({
                "event": event, "stage": self.name, "id": self.id, "message": text,
            });
            if let Some(parent) = self.parent {
                object["parent"] = parent.into();
            }
            if let (Some(object), serde_json::Value::Object(extra)) =
                (object.as_object_mut(), extra)
            {
                object.extend(extra);
            }
            object
        });
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.end(false, "not finished", "");
    }
}

/// Locks the display, also after a panic of another thread that held it.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file, drawn by a test.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// Draws the stages as bars over time, `width` columns for the whole:
///
/// ```text
/// kernel   ##########                    5.20 s
/// rootfs   ####                          2.10 s
/// boot               ################    8.40 s
/// ```
pub fn render_waterfall(laps: &[Lap], width: usize) -> String {
    let end = laps
        .iter()
        .map(|lap| lap.start + lap.duration)
        .max()
        .unwrap_or_default();
    let names = laps
        .iter()
        .map(|lap| lap.name.chars().count())
        .max()
        .unwrap_or(0);
    let column = |time: Duration| {
        if end.is_zero() {
            0
        } else {
            (time.as_secs_f64() / end.as_secs_f64() * width as f64) as usize
        }
    };
    let mut out = String::new();
    for lap in laps {
        let from = column(lap.start).min(width.saturating_sub(1));
        let to = column(lap.start + lap.duration).clamp(from + 1, width.max(from + 1));
        let bar = format!("{}{}", " ".repeat(from), "#".repeat(to - from));
        let mark = if lap.finished { "" } else { "  (not finished)" };
        let took = human::duration(lap.duration);
        out.push_str(&format!(
            "{:<names$}  {bar:<width$}  {took:>10}{mark}\n",
            lap.name
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(lock(&self.0).clone()).unwrap()
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn plain_progress_is_one_line_an_event() {
        let sink = Sink::default();
        let progress = Progress::with_display(Display::Plain(Mutex::new(Box::new(sink.clone()))));
        let stage = progress.stage("kernel", "building kernel smol-6.1");
        stage.set(1, 2);
        stage.note("compiling\x1b[2J\nerror: forged");
        stage.finish("14.0 MiB");
        progress.note("no /dev/kvm: using the emulated host");
        let text = sink.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "kernel       building kernel smol-6.1");
        assert_eq!(lines[1], "kernel       compiling\\u{1b}[2J\\nerror: forged");
        assert!(lines[2].starts_with("kernel       14.0 MiB ("), "{text}");
        assert_eq!(lines[3], "no /dev/kvm: using the emulated host");
        assert_eq!(lines.len(), 4, "{text}");
    }

    #[test]
    fn json_progress_is_one_object_a_line() {
        let sink = Sink::default();
        let progress = Progress::with_display(Display::Json(Mutex::new(Box::new(sink.clone()))));
        progress.stage("boot", "booting").finish("ready");
        drop(progress.stage("pack", "packing"));
        let events: Vec<serde_json::Value> = sink
            .text()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let names: Vec<_> = events
            .iter()
            .map(|event| event["event"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["start", "finish", "start", "abandon"]);
        assert_eq!(events[1]["message"], "ready");
        assert!(events[1]["seconds"].is_f64());
    }

    #[test]
    fn the_waterfall_records_stages_in_order_and_tells_the_unfinished_ones() {
        let progress = Progress::with_display(Display::Plain(Mutex::new(Box::new(io::sink()))));
        let outer = progress.stage("a", "");
        drop(progress.stage("b", ""));
        outer.finish("");
        let laps = progress.waterfall();
        assert_eq!(
            laps.iter()
                .map(|lap| (&*lap.name, lap.finished))
                .collect::<Vec<_>>(),
            [("a", true), ("b", false)]
        );
        assert!(laps[0].start <= laps[1].start && laps[0].duration >= laps[1].duration);
    }

    #[test]
    fn the_waterfall_draws_bars_over_time() {
        let lap = |name: &str, start, duration, finished| Lap {
            name: name.to_owned(),
            start: Duration::from_secs(start),
            duration: Duration::from_secs(duration),
            finished,
        };
        let laps = [
            lap("kernel", 0, 5, true),
            lap("boot", 5, 5, true),
            lap("sync", 10, 0, false),
        ];
        assert_eq!(
            render_waterfall(&laps, 10),
            "kernel  #####           5.00 s\n\
             boot         #####      5.00 s\n\
             sync             #        0 µs  (not finished)\n"
        );
        assert_eq!(render_waterfall(&[], 10), "");
    }

    #[test]
    fn every_bar_template_is_valid() {
        let progress = Progress::with_display(Display::Bars(MultiProgress::with_draw_target(
            ProgressDrawTarget::hidden(),
        )));
        let stage = progress.stage("kernel", "m");
        stage.set(1, 2);
        stage.finish("");
        for template in [SPINNER, BAR] {
            ProgressStyle::with_template(template).unwrap();
        }
    }

    #[test]
    fn a_mode_that_does_not_exist_is_refused() {
        assert_eq!("plain".parse(), Ok(Mode::Plain));
        assert_eq!(
            "fancy".parse::<Mode>(),
            Err("expected auto, tty, plain or json".to_owned())
        );
    }
}
