//! How long each stage took.

use std::time::Duration;

use serde::Serialize;

use crate::human;

/// How long a stage took. Times serialise as seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Lap {
    /// Short name of the stage: `kernel`.
    pub name: String,
    /// From the making of the [`Progress`](super::Progress) to the start of the stage.
    #[serde(serialize_with = "seconds")]
    pub start: Duration,
    /// From start to end.
    #[serde(serialize_with = "seconds")]
    pub duration: Duration,
    /// Whether the stage was finished, not dropped on the way.
    pub finished: bool,
    /// Whether what it makes was there already.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cached: bool,
    /// The parts of the stage that have ended, by start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Lap>,
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
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

    #[test]
    fn the_waterfall_draws_bars_over_time() {
        let lap = |name: &str, start, duration, finished| Lap {
            name: name.to_owned(),
            start: Duration::from_secs(start),
            duration: Duration::from_secs(duration),
            finished,
            ..Lap::default()
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
}
