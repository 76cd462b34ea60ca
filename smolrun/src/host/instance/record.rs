//! What is known of a machine: its record, which appears whole.

use std::fs;
use std::io::{BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use smol_bundle::open_regular;
use smol_cli::human::excerpt;

use crate::run::publish::Publish;
use crate::run::report::End;

/// File name of a record, in the folder of its machine.
const FILE: &str = "instance.json";
/// How many characters of an error are kept.
const MAX_REASON: usize = 2000;
/// Most bytes that are read of one.
const MAX_RECORD: u64 = 1 << 20;

/// What is known of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Name of the instance.
    pub name: String,
    /// Name of the machine, from the bundle.
    pub machine: String,
    /// The bundle's file.
    pub bundle: PathBuf,
    /// The bundle's digest.
    pub digest: String,
    /// The process that runs it, or ran it.
    pub pid: u32,
    /// When that process was started, in the kernel's clock ticks since boot: tells it from later
    /// processes with the same id.
    pub pid_started: u64,
    /// Seconds since the Unix epoch.
    pub started: u64,
    /// `starting`, `running`, then `ended`.
    pub state: State,
    /// `kvm` or `emulated`.
    pub accel: String,
    /// Forwarded ports.
    pub ports: Vec<Publish>,
    /// Whether nothing of it is to stay when it has ended.
    #[serde(default = "as_before_there_were_ended_machines")]
    pub auto_remove: bool,
    /// How it ended, once it has.
    #[serde(flatten)]
    pub end: Option<EndRecord>,
}

fn as_before_there_were_ended_machines() -> bool {
    true
}

/// How far a machine has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its service does not run yet.
    Starting,
    /// Its service runs.
    Running,
    /// It does not run any more.
    Ended,
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndRecord {
    /// Seconds since the Unix epoch. For a machine whose process died without a word: when that
    /// was found out.
    pub ended: u64,
    /// What a smolrun in the foreground would have ended with.
    pub exit_code: u8,
    /// `exit code 3`, `stopped`, `failed: ...` or `killed`.
    pub reason: String,
}

impl EndRecord {
    /// Returns how a machine ends now that has come to this outcome; `stopped` if that was requested.
    pub fn new(outcome: &anyhow::Result<End>, stopped: bool) -> Self {
        let (exit_code, reason) = match outcome {
            Ok(end) if stopped => (end.code(), "stopped".to_owned()),
            Ok(end @ End::Exited(_)) => (end.code(), format!("exit code {}", end.code())),
            Ok(end @ End::Killed) => (end.code(), "killed".to_owned()),
            Err(error) => {
                let text = error.to_string();
                let line = text.lines().next().unwrap_or_default();
                let line = excerpt(line, MAX_REASON);
                (smol_cli::exit_kind(error).code(), format!("failed: {line}"))
            }
        };
        Self {
            ended: now(),
            exit_code,
            reason,
        }
    }

    /// Returns how a machine ended whose process died without a word.
    pub fn killed() -> Self {
        Self {
            ended: now(),
            exit_code: End::Killed.code(),
            reason: "killed".to_owned(),
        }
    }
}

impl Record {
    /// The record of a machine that this process is about to run.
    pub fn new(name: &str, machine: &str, bundle: &Path, digest: &str, accel: &str) -> Self {
        let pid = std::process::id();
        Self {
            name: name.to_owned(),
            machine: machine.to_owned(),
            bundle: bundle.to_owned(),
            digest: digest.to_owned(),
            pid,
            pid_started: start_time(pid).unwrap_or(0),
            started: now(),
            state: State::Starting,
            accel: accel.to_owned(),
            ports: Vec::new(),
            auto_remove: true,
            end: None,
        }
    }

    /// Whether its process still runs.
    pub fn process_runs(&self) -> bool {
        start_time(self.pid) == Some(self.pid_started)
    }

    /// Whether this and the other are of one and the same machine.
    pub fn is_of(&self, other: &Record) -> bool {
        (&self.name, self.pid, self.pid_started) == (&other.name, other.pid, other.pid_started)
    }

    /// Returns the record of the machine that has ended so.
    pub fn ended(self, end: EndRecord) -> Self {
        Self {
            state: State::Ended,
            end: Some(end),
            ..self
        }
    }

    /// Reads the record in this folder; none if it is being started or removed.
    pub fn read(folder: &Path) -> Option<Self> {
        let file = open_regular(&folder.join(FILE)).ok()??;
        serde_json::from_reader(BufReader::new(file.take(MAX_RECORD))).ok()
    }

    /// Writes the record into this folder.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.persist(folder.join(FILE))?;
        Ok(())
    }
}

/// Seconds since the Unix epoch.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |t| t.as_secs())
}

/// Field 22 of /proc/PID/stat, proc_pid_stat(5). The name in field 2 may hold anything.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 1..]
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

/// A record for tests.
#[cfg(test)]
pub fn sample(name: &str) -> Record {
    let bundle = Path::new("/b.smolmachine");
    Record::new(name, "redis", bundle, "sha256:00", "kvm")
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol_cli::error::ErrorReport;
    use smol_cli::{ExitKind, Failure};

    #[test]
    fn a_process_id_that_was_given_to_another_process_is_noticed() {
        let mut record = sample("r");
        assert!(record.process_runs());
        record.pid_started += 1;
        assert!(!record.process_runs());
    }

    #[test]
    fn an_end_is_told_in_a_few_words() {
        let failure = || Failure::new(ExitKind::Verification, "no good\nlast lines: x");
        let inside = ErrorReport {
            message: "crashed".into(),
            hints: vec!["none".into()],
            ..ErrorReport::default()
        };
        let inside = Failure::reported(ExitKind::Failed, inside);
        for (outcome, stopped, exit_code, reason) in [
            (Ok(End::Exited(0)), false, 0, "exit code 0"),
            (Ok(End::Exited(3)), false, 3, "exit code 3"),
            (Ok(End::Exited(256 + 3)), false, 3, "exit code 3"),
            (Ok(End::Exited(143)), true, 143, "stopped"),
            (Ok(End::Killed), true, 137, "stopped"),
            (Ok(End::Killed), false, 137, "killed"),
            (Err(failure().into()), false, 4, "failed: no good"),
            (Err(failure().into()), true, 4, "failed: no good"),
            (Err(inside.into()), false, 1, "failed: crashed"),
            (
                Err(anyhow::anyhow!("cause").context("what")),
                false,
                1,
                "failed: what",
            ),
        ] {
            let end = EndRecord::new(&outcome, stopped);
            assert_eq!((end.exit_code, end.reason.as_str()), (exit_code, reason));
        }
        assert_eq!(EndRecord::killed().exit_code, 137);
    }

    #[test]
    fn a_record_survives_its_file_and_has_keys_of_its_end_once_it_has_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(dir.path()), None);
        let record = sample("r");
        record.write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()), Some(record.clone()));
        let text = serde_json::to_string(&record).unwrap();
        assert!(!text.contains("exit_code"), "{text}");
        let end = EndRecord {
            ended: 7,
            exit_code: 3,
            reason: "exit code 3".into(),
        };
        let record = record.ended(end);
        record.write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()), Some(record.clone()));
        let text = serde_json::to_string(&record).unwrap();
        let keys = r#""ended":7,"exit_code":3,"reason":"exit code 3""#;
        assert!(text.contains(keys) && text.contains(r#""state":"ended""#));
    }

    #[test]
    fn the_record_of_a_smolrun_that_kept_nothing_is_understood() {
        let text = r#"{"name":"other","machine":"m","bundle":"/b","digest":"","pid":4321,
            "pid_started":0,"started":0,"state":"running","accel":"kvm","ports":[]}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert!(record.auto_remove && record.end.is_none());
    }
}
