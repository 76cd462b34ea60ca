//! HEALTHCHECK.

use std::time::Duration;

use super::read::Instruction;
use super::taken::{Health, Place, Taken};
use crate::init::accepted;
use crate::init::page::quoted;

/// What a Dockerfile has without the options (Dockerfile reference, "HEALTHCHECK").
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const RETRIES: u32 = 3;

impl Taken {
    /// Takes over HEALTHCHECK.
    pub(super) fn healthcheck(&mut self, it: &Instruction) {
        let end = it.rest.find(char::is_whitespace).unwrap_or(it.rest.len());
        let (kind, rest) = it.rest.split_at(end);
        if kind.eq_ignore_ascii_case("none") {
            self.health = None;
            return;
        }
        let command = self.parse_command(rest.trim_start());
        let why = match kind.eq_ignore_ascii_case("cmd") {
            true => accepted(&format!("ready.exec = {}", command.toml())).err(),
            false => Some("CMD or NONE is missing".to_owned()),
        };
        if let Some(why) = why {
            return self.lose(it, Place::Ready, &format!("not taken over ({why})"));
        }
        let times = self.times(it);
        self.health = Some(Health { command, times });
    }

    /// How often and how long docker would try before it called the container unhealthy.
    fn times(&mut self, it: &Instruction) -> Vec<(&'static str, String)> {
        let mut times = Vec::new();
        if it.options.is_empty() {
            return times;
        }
        let mut wrong = None;
        let mut time = |name: &str| {
            let text = it.option(name)?;
            let time = duration(text);
            if time.is_none() {
                wrong = Some(format!("--{name}"));
            }
            time
        };
        let [interval, timeout] = ["interval", "timeout"].map(&mut time);
        let [start, pause] = ["start-period", "start-interval"].map(&mut time);
        let retries = it.option("retries").map(str::parse::<u32>);
        if matches!(retries, Some(Err(_))) {
            wrong = Some("--retries".to_owned());
        }
        if let Some(option) = wrong {
            let why = format!("options left out ({option} is not understood)");
            self.lose(it, Place::Ready, &why);
            return times;
        }
        let retries = retries.and_then(Result::ok).filter(|it| *it > 0);
        let each = interval
            .unwrap_or(INTERVAL)
            .checked_add(timeout.unwrap_or(TIMEOUT));
        let all = each.and_then(|each| each.checked_mul(retries.unwrap_or(RETRIES)));
        let all = all.and_then(|all| all.checked_add(start.unwrap_or_default()));
        let pause = pause.or(interval);
        let wanted = [("interval", pause), ("timeout", all)];
        for (key, time) in wanted {
            let Some(time) = time else { continue };
            let value = quoted(&as_smolfile(time));
            match accepted(&format!("ready.exec = [\"a\"]\nready.{key} = {value}")) {
                Ok(()) => times.push((key, value)),
                Err(why) => {
                    let why = format!("options not all taken over ({why})");
                    self.lose(it, Place::Ready, &why);
                }
            }
        }
        times
    }
}

/// A duration as Go writes it, in whole milliseconds: `1m30s`, `1.5s`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let behind = &rest[end..];
        let end = behind
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(behind.len());
        total += number
            * match &behind[..end] {
                "ms" => 1.0,
                "s" => 1000.0,
                "m" => 60_000.0,
                "h" => 3_600_000.0,
                _ => return None,
            };
        rest = &behind[end..];
    }
    let limit = 1e12; // some 30 years
    ((1.0..limit).contains(&total)).then(|| Duration::from_millis(total as u64))
}

/// A duration as a Smolfile has it.
fn as_smolfile(time: Duration) -> String {
    let milliseconds = time.as_millis();
    match (milliseconds % 1000, milliseconds % 60_000) {
        (_, 0) => format!("{}min", milliseconds / 60_000),
        (0, _) => format!("{}s", milliseconds / 1000),
        _ => format!("{milliseconds}ms"),
    }
}
