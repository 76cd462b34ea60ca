//! `smolrun ps`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use smol_cli::human;

use crate::host::instance::{self, Record, State};

/// Lists the running machines.
///
/// # Errors
/// If the runtime folder cannot be used.
pub fn ps(json: bool) -> anyhow::Result<ExitCode> {
    let records = instance::list(&instance::root()?);
    if json {
        return super::print(&(serde_json::to_string_pretty(&records)? + "\n"));
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |t| t.as_secs());
    super::print(&table(&records, now))
}

/// Columns as wide as they must be.
fn table(records: &[Record], now: u64) -> String {
    let head = ["NAME", "MACHINE", "STATE", "ACCEL", "PID", "UP", "PORTS"].map(String::from);
    let rows: Vec<_> = std::iter::once(head)
        .chain(records.iter().map(|r| row(r, now)))
        .collect();
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn row(record: &Record, now: u64) -> [String; 7] {
    let ports: Vec<_> = record
        .ports
        .iter()
        .map(|p| format!("{}->{}", p.host, p.guest))
        .collect();
    let state = match record.state {
        State::Starting => "starting",
        State::Running => "running",
    };
    [
        record.name.clone(),
        record.machine.clone(),
        state.to_owned(),
        record.accel.clone(),
        record.pid.to_string(),
        human::duration(Duration::from_secs(now.saturating_sub(record.started))),
        ports.join(", "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn columns_stand_below_each_other() {
        let mut record = Record::new("r", "redis", Path::new("/b"), "sha256:0", "kvm");
        (record.pid, record.started, record.state) = (42, 100, State::Running);
        record.ports = vec!["16379:6379".parse().unwrap()];
        let text = table(&[record], 192);
        assert_eq!(
            text,
            "NAME  MACHINE  STATE    ACCEL  PID  UP          PORTS\n\
             r     redis    running  kvm    42   1 min 32 s  127.0.0.1:16379->6379\n"
        );
        assert_eq!(
            table(&[], 0),
            "NAME  MACHINE  STATE  ACCEL  PID  UP  PORTS\n"
        );
    }
}
