//! `smolrun ps`.

use std::process::ExitCode;
use std::time::Duration;

use smol_cli::human::{self, one_line};

use crate::host::instance::{self, Record, State};

/// What is shown of each machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A line of a table.
    Row,
    /// The name.
    Name,
    /// All, as JSON.
    Json,
}

impl Shown {
    /// Returns what these options ask for.
    pub fn of(quiet: bool, json: bool) -> Self {
        match (quiet, json) {
            (_, true) => Shown::Json,
            (true, _) => Shown::Name,
            _ => Shown::Row,
        }
    }
}

/// Lists the running machines; with `all`, those that have ended, too.
///
/// # Errors
/// If the runtime folder cannot be used.
pub fn ps(all: bool, shown: Shown) -> anyhow::Result<ExitCode> {
    let mut records = instance::list(&instance::root()?);
    records.retain(|record| all || record.end.is_none());
    match shown {
        Shown::Json => smol_cli::print_json(&records)?,
        Shown::Name => {
            let names = records.iter().map(|r| one_line(&r.name) + "\n");
            smol_cli::print(&names.collect::<String>())?;
        }
        Shown::Row => smol_cli::print(&table(&records, instance::now(), all))?,
    }
    Ok(ExitCode::SUCCESS)
}

const HEAD: [&str; 10] = [
    "NAME", "MACHINE", "STATE", "ACCEL", "PID", "UP", "PORTS", "EXIT", "ENDED", "WHY",
];
/// How many columns there are without those about ends.
const RUNNING: usize = 7;

/// Columns as wide as they must be.
fn table(records: &[Record], now: u64, all: bool) -> String {
    let count = if all { HEAD.len() } else { RUNNING };
    let rows: Vec<_> = std::iter::once(HEAD.map(String::from))
        .chain(records.iter().map(|r| row(r, now)))
        .collect();
    let mut widths = [0; HEAD.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row
            .iter()
            .zip(widths)
            .take(count)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn row(record: &Record, now: u64) -> [String; HEAD.len()] {
    let ports: Vec<_> = record
        .ports
        .iter()
        .map(|p| format!("{}->{}", p.host, p.guest))
        .collect();
    let state = match record.state {
        State::Starting => "starting",
        State::Running => "running",
        State::Ended => "ended",
    };
    let (pid, until, [code, ended, why]) = match &record.end {
        None => (record.pid.to_string(), now, Default::default()),
        Some(end) => {
            let ended = format!("{} ago", since(end.ended, now));
            let about = [end.exit_code.to_string(), ended, one_line(&end.reason)];
            ("-".to_owned(), end.ended, about)
        }
    };
    [
        one_line(&record.name),
        one_line(&record.machine),
        state.to_owned(),
        record.accel.clone(),
        pid,
        since(record.started, until),
        ports.join(", "),
        code,
        ended,
        why,
    ]
}

/// The time between two moments, both in whole seconds.
fn since(then: u64, now: u64) -> String {
    match now.saturating_sub(then) {
        seconds @ ..60 => format!("{seconds} s"),
        seconds => human::duration(Duration::from_secs(seconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::instance::EndRecord;
    use std::path::Path;

    #[test]
    fn columns_stand_below_each_other() {
        let mut record = Record::new("r", "redis", Path::new("/b"), "sha256:0", "kvm");
        (record.pid, record.started, record.state) = (42, 100, State::Running);
        record.ports = vec!["16379:6379".parse().unwrap()];
        let end = EndRecord {
            ended: 103,
            exit_code: 1,
            reason: "failed: \x1b\n".into(),
        };
        let ended = Record::new("old", "redis", Path::new("/b"), "sha256:0", "emulated");
        let ended = Record {
            started: 100,
            ..ended.ended(end)
        };
        assert_eq!(
            table(&[record.clone()], 192, false),
            "NAME  MACHINE  STATE    ACCEL  PID  UP          PORTS\n\
             r     redis    running  kvm    42   1 min 32 s  127.0.0.1:16379->6379\n"
        );
        assert_eq!(
            table(&[ended, record], 192, true),
            "NAME  MACHINE  STATE    ACCEL     PID  UP          PORTS                  EXIT  ENDED           WHY\n\
             old   redis    ended    emulated  -    3 s                                1     1 min 29 s ago  failed: \\u{1b}\\n\n\
             r     redis    running  kvm       42   1 min 32 s  127.0.0.1:16379->6379\n"
        );
        assert_eq!(
            table(&[], 0, false),
            "NAME  MACHINE  STATE  ACCEL  PID  UP  PORTS\n"
        );
    }
}
