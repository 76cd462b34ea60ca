//! Running machines: each has a folder, which is locked by the process that runs it.
//!
//! ```text
//! <runtime>/instances/<name>/   locked (see smol_host::lock_dir) as long as the machine runs
//!   instance.json               what it is; appears whole
//!   log                         the service's output
//!   control.sock                takes control requests (see crate::host::control)
//! ```
//! Every smolrun that lists the folders removes those that are no longer locked.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use smol_cli::{ErrorExt, ExitKind, Failure};
use smol_host::lock_dir::LockDir;

use crate::host::control::ControlSocket;
use crate::run::output::Log;
use crate::run::publish::Publish;

const RECORD: &str = "instance.json";
const LOG: &str = "log";
const SOCKET: &str = "control.sock";
/// Longest name of an instance, bytes.
const MAX_NAME: usize = 64;

/// What is known of a running machine.
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
    /// The process that runs it.
    pub pid: u32,
    /// When that process was started, in the kernel's clock ticks since boot: tells it from later
    /// processes with the same id.
    pub pid_started: u64,
    /// Seconds since the Unix epoch.
    pub started: u64,
    /// `starting`, then `running`.
    pub state: State,
    /// `kvm` or `emulated`.
    pub accel: String,
    /// Forwarded ports.
    pub ports: Vec<Publish>,
}

/// How far a machine has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its service does not run yet.
    Starting,
    /// Its service runs.
    Running,
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
            started: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |t| t.as_secs()),
            state: State::Starting,
            accel: accel.to_owned(),
            ports: Vec::new(),
        }
    }

    /// Whether its process still runs.
    pub fn process_runs(&self) -> bool {
        start_time(self.pid) == Some(self.pid_started)
    }
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

/// The folder of all instances, created when absent.
///
/// # Errors
/// If it cannot be created or is not ours alone.
pub fn root() -> anyhow::Result<PathBuf> {
    let root = smol_cli::paths::runtime_dir()?.join("instances");
    let created = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&root);
    created
        .with_context(|| format!("cannot create {}", root.display()))
        .kind(ExitKind::Host)?;
    Ok(root)
}

/// Refuses what cannot be the name of an instance: it is a folder's name and is typed by people.
///
/// # Errors
/// In words.
pub fn check_name(name: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let begins = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    if begins && name.len() <= MAX_NAME && name.bytes().all(good) {
        return Ok(name.to_owned());
    }
    Err(format!(
        "a name has 1 to {MAX_NAME} letters, digits, '.', '_' and '-' and begins with a letter or digit"
    ))
}

/// Returns a free name for an instance of this machine: the machine's and six hexadecimal digits,
/// which are enough for instances that are started at the same moment to get different ones.
///
/// # Errors
/// If there is none, or nothing to draw it from.
pub fn invent_name(root: &Path, machine: &str) -> anyhow::Result<String> {
    draw_name(root, machine, crate::run::identity::random)
}

fn draw_name(
    root: &Path,
    machine: &str,
    mut draw: impl FnMut() -> anyhow::Result<[u8; 3]>,
) -> anyhow::Result<String> {
    const TRIES: usize = 100;
    // A machine's name has ASCII only, so every byte is a place to cut.
    let machine = &machine[..machine.len().min(MAX_NAME - 7)];
    for _ in 0..TRIES {
        let name = format!("{machine}-{}", hex::encode(draw()?));
        if check_free(root, &name).is_ok() {
            return Ok(name);
        }
    }
    let message = format!("{TRIES} names for the machine were drawn, and all are in use");
    Err(Failure::new(ExitKind::Failed, message)
        .hint("name it yourself: --name NAME")
        .into())
}

/// A machine of this process.
pub struct Instance {
    /// Removed on drop.
    dir: Option<LockDir>,
    record: Mutex<Record>,
}

impl Instance {
    /// Takes the name, with the folder and its record.
    ///
    /// # Errors
    /// Of kind [`ExitKind::Usage`] if a running machine has it.
    pub fn claim(root: &Path, record: Record) -> anyhow::Result<Self> {
        let path = root.join(&record.name);
        let what = || format!("cannot make {}", path.display());
        let mut dir = None;
        // A smolrun that checks whether the folder is abandoned locks it for a moment.
        for _ in 0..20 {
            dir = LockDir::try_claim(&path).with_context(what)?;
            if dir.is_some() || path.join(RECORD).exists() {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let dir = dir.ok_or_else(|| in_use(&record.name))?;
        dir.clear().with_context(what)?;
        let instance = Self {
            dir: Some(dir),
            record: Mutex::new(record),
        };
        instance.save().with_context(what)?;
        Ok(instance)
    }

    fn dir(&self) -> &LockDir {
        self.dir.as_ref().expect("it is taken by drop alone")
    }

    fn save(&self) -> anyhow::Result<()> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = tempfile::NamedTempFile::new_in(self.dir().path())?;
        file.write_all(&serde_json::to_vec(&*record)?)?;
        file.persist(self.dir().path().join(RECORD))?;
        Ok(())
    }

    /// Records that the service runs, and where.
    pub fn set_running(&self, ports: &[Publish]) {
        {
            let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            record.state = State::Running;
            record.ports = ports.to_vec();
        }
        // `ps` would go on showing the machine as starting; the machine itself is well.
        let _ = self.save();
    }

    /// Its log, new.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create_log(&self) -> anyhow::Result<Log> {
        let path = self.dir().path().join(LOG);
        Log::create(&path).with_context(|| format!("cannot create {}", path.display()))
    }

    /// Creates the control socket. Connections wait until it is served.
    ///
    /// # Errors
    /// If the socket cannot be created.
    pub fn control(&self) -> anyhow::Result<ControlSocket> {
        let listener = UnixListener::bind(self.dir().short_path(SOCKET)).with_context(|| {
            format!("cannot create {}", self.dir().path().join(SOCKET).display())
        })?;
        Ok(ControlSocket::new(listener))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take() {
            // If that fails, the next smolrun that lists the folders removes it.
            let _ = dir.remove();
        }
    }
}

fn in_use(name: &str) -> Failure {
    Failure::new(
        ExitKind::Usage,
        format!("a machine named {name} is running already"),
    )
    .hint(format!(
        "choose another --name, or stop that one: smolrun stop {name}"
    ))
}

/// Fails early if a running machine has this name; [`Instance::claim`] decides.
///
/// # Errors
/// As [`Instance::claim`].
pub fn check_free(root: &Path, name: &str) -> anyhow::Result<()> {
    let folder = root.join(name);
    match folder.join(RECORD).exists() && LockDir::if_abandoned(&folder).is_none() {
        true => Err(in_use(name).into()),
        false => Ok(()),
    }
}

/// Returns the running machines by name. Removes the folders of those that have ended.
pub fn list(root: &Path) -> Vec<Record> {
    let mut records = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if let Some(left) = LockDir::if_abandoned(&entry.path()) {
            let _ = left.remove();
            continue;
        }
        let text = fs::read(entry.path().join(RECORD)).unwrap_or_default();
        // Without a record it is being started or ended.
        records.extend(serde_json::from_slice::<Record>(&text).ok());
    }
    records.sort_by(|a, b| a.name.cmp(&b.name));
    records
}

/// Removes the folders of machines that have ended: their logs take memory.
pub fn sweep(root: &Path) {
    list(root);
}

/// Returns the running machine of this name.
///
/// # Errors
/// With the names that there are.
pub fn find(root: &Path, name: &str) -> anyhow::Result<Record> {
    let records = list(root);
    if let Some(record) = records.iter().find(|record| record.name == name) {
        return Ok(record.clone());
    }
    let names: Vec<_> = records.iter().map(|record| record.name.as_str()).collect();
    let hint = match names.is_empty() {
        true => "no machine is running".to_owned(),
        false => format!("running: {}", names.join(", ")),
    };
    Err(Failure::new(
        ExitKind::Failed,
        format!("no machine named {name} is running"),
    )
    .hint(hint)
    .into())
}

/// Opens the log of a running machine.
///
/// # Errors
/// If it is gone.
pub fn open_log(root: &Path, name: &str) -> anyhow::Result<File> {
    let path = root.join(name).join(LOG);
    File::open(&path).with_context(|| format!("cannot open {}", path.display()))
}

/// Connects to the control socket of a running machine.
///
/// # Errors
/// If it is gone.
pub fn connect(root: &Path, name: &str) -> std::io::Result<UnixStream> {
    use std::os::fd::AsRawFd;
    let dir = File::open(root.join(name))?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
    UnixStream::connect(path).map_err(|e| match e.kind() {
        // The folder was removed after it was opened.
        ErrorKind::NotFound => ErrorKind::ConnectionRefused.into(),
        _ => e,
    })
}

/// Whether the machine of this record still runs.
pub fn runs(root: &Path, record: &Record) -> bool {
    list(root)
        .iter()
        .any(|other| (&other.name, other.pid) == (&record.name, record.pid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::control::{self, Answer};
    use crate::run::request::ControlRequest;
    use std::io::Read as _;

    fn record(name: &str) -> Record {
        Record::new(
            name,
            "redis",
            Path::new("/b.smolmachine"),
            "sha256:00",
            "kvm",
        )
    }

    #[test]
    fn names_are_short_readable_and_valid() {
        let root = tempfile::tempdir().unwrap();
        let name = invent_name(root.path(), "redis").unwrap();
        assert!(name.starts_with("redis-") && name.len() == 12, "{name}");
        assert_eq!(check_name(&name), Ok(name));
        let long = invent_name(root.path(), &"x".repeat(128)).unwrap();
        assert_eq!(check_name(&long), Ok(long));
    }

    #[test]
    fn a_name_that_is_in_use_is_not_invented() {
        let root = tempfile::tempdir().unwrap();
        let _other = Instance::claim(root.path(), record("r-000000")).unwrap();
        let mut drawn = 0..;
        let name = draw_name(root.path(), "r", || Ok([0, 0, drawn.next().unwrap()]));
        assert_eq!(name.unwrap(), "r-000001");
        let error = draw_name(root.path(), "r", || Ok([0; 3])).unwrap_err();
        assert!(error.to_string().contains("all are in use"), "{error}");
    }

    #[test]
    fn names_that_would_leave_the_folder_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "-x",
            ".x",
            "a b",
            "ä",
            &"x".repeat(65),
        ] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_name_in_use_is_refused_and_free_again_afterwards() {
        let root = tempfile::tempdir().unwrap();
        let first = Instance::claim(root.path(), record("r")).unwrap();
        for error in [
            Instance::claim(root.path(), record("r")).err().unwrap(),
            check_free(root.path(), "r").unwrap_err(),
        ] {
            assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
            assert!(
                error
                    .to_string()
                    .contains("a machine named r is running already"),
                "{error}"
            );
        }
        drop(first);
        check_free(root.path(), "r").unwrap();
        Instance::claim(root.path(), record("r")).unwrap();
    }

    #[test]
    fn running_machines_are_listed_and_what_ended_ones_left_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let running = Instance::claim(root.path(), record("running")).unwrap();
        fs::create_dir(root.path().join("ended")).unwrap();
        let text = serde_json::to_vec(&record("ended")).unwrap();
        fs::write(root.path().join("ended").join(RECORD), text).unwrap();
        running.set_running(&["1:2".parse().unwrap()]);
        let records = list(root.path());
        assert_eq!(records.len(), 1);
        assert_eq!(
            (records[0].name.as_str(), records[0].state),
            ("running", State::Running)
        );
        assert_eq!(records[0].ports.len(), 1);
        assert!(records[0].process_runs() && runs(root.path(), &records[0]));
        assert!(!root.path().join("ended").exists());
    }

    #[test]
    fn the_name_of_a_machine_that_has_ended_can_be_used_again() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("r")).unwrap();
        fs::write(root.path().join("r").join(LOG), "old").unwrap();
        let instance = Instance::claim(root.path(), record("r")).unwrap();
        instance.create_log().unwrap();
        let mut text = String::new();
        open_log(root.path(), "r")
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "");
    }

    #[test]
    fn a_process_id_that_was_given_to_another_process_is_noticed() {
        let mut record = record("r");
        assert!(record.process_runs());
        record.pid_started += 1;
        assert!(!record.process_runs());
    }

    #[test]
    fn an_unknown_name_is_reported_with_those_that_exist() {
        let root = tempfile::tempdir().unwrap();
        let _one = Instance::claim(root.path(), record("one")).unwrap();
        let error = find(root.path(), "two").unwrap_err();
        let text = smol_cli::error::render(&error, false);
        assert_eq!(
            text,
            "error: no machine named two is running\n  hint: running: one\n"
        );
    }

    #[test]
    fn requests_arrive_through_the_control_socket_however_long_the_path_is() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("x".repeat(120));
        fs::create_dir(&root).unwrap();
        let instance = Instance::claim(&root, record("r")).unwrap();
        let (give, given) = std::sync::mpsc::channel();
        let control = instance.control().unwrap();
        control.serve(move |request| give.send(request).unwrap());
        let request = ControlRequest::stop(Duration::from_secs(3));
        let stream = connect(&root, "r").unwrap();
        assert_eq!(control::send(&stream, request).unwrap(), Answer::Accepted);
        assert_eq!(given.recv(), Ok(request));
        let mut bad = connect(&root, "r").unwrap();
        bad.write_all(b"nonsense\n").unwrap();
        let mut answer = String::new();
        bad.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("no control request"), "{answer}");
        drop(instance);
        assert!(connect(&root, "r").is_err());
    }
}
