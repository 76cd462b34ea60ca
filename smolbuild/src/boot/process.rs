//! The process that runs a [`BootJob`]: this program again, confined to the job's files. It prints its
//! messages as JSON lines on stdout, and leaves the results in the job's folder.
//!
//! A build has programs to start and packages to fetch; the machine that it boots, with a service that
//! nobody has looked at, runs in a process that can do neither.

use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use smol_cli::error::ErrorReport;
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt, human};
use smol_host::child::{self, ProcessGroup};
use smol_sandbox::{Access, Filter, MODE_VARIABLE};

use super::{BootJob, GRACE, Message, local};

/// Name of the hidden command that the process is started with.
pub const COMMAND: &str = "boot-job";
/// Name of the job's description in its folder.
pub const JOB_FILE: &str = "job.json";

/// Writes the job's description into its folder, as seen by the process that is to run it.
pub(super) fn write_job(job: &BootJob, folder: &Path) -> Result<PathBuf> {
    let (file, text) = (folder.join(JOB_FILE), serde_json::to_vec(job)?);
    std::fs::write(&file, text).context("cannot write the job description")?;
    Ok(file)
}

/// Boots the job's machine on this host's KVM, in a process of its own. As [`local::run`] otherwise. The
/// packets of its guest, if it has a network, go through the socket `network`.
///
/// # Errors
/// As [`local::run`]; or the process dies.
pub fn run(
    job: &BootJob,
    interrupt: &Interrupt,
    network: Option<UnixStream>,
    report: impl FnMut(Message),
) -> Result<()> {
    let file = write_job(job, &job.out)?;
    let outcome = run_job(&file, interrupt, network, report);
    let _ = std::fs::remove_file(&file);
    outcome.and_then(|()| require_files(&job.out))
}

fn run_job(
    file: &Path,
    interrupt: &Interrupt,
    network: Option<UnixStream>,
    mut report: impl FnMut(Message),
) -> Result<()> {
    let (mut output, writer) = io::pipe().context("cannot create a pipe")?;
    let (mut errors, error_writer) = io::pipe().context("cannot create a pipe")?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(COMMAND)
        .arg(file)
        .stdin(network.map_or_else(Stdio::null, |socket| OwnedFd::from(socket).into()))
        .stdout(writer)
        .stderr(error_writer);
    let started = ProcessGroup::spawn(child::kill_with_parent(&mut command));
    let mut process = started.context("cannot start the process that is to run the machine")?;
    drop(command); // it holds the writing ends, and the output would never end
    let words = std::thread::spawn(move || {
        let mut words = Vec::new();
        let _ = errors
            .by_ref()
            .take(MAX_OUTPUT as u64)
            .read_to_end(&mut words);
        let _ = io::copy(&mut errors, &mut io::sink());
        words
    });
    follow(&mut output, &process, interrupt, &mut report)?;
    let status = process
        .wait()
        .context("cannot wait for the machine's process")?;
    if status.success() {
        return Ok(());
    }
    interrupt.check()?;
    let words = words.join().unwrap_or_default();
    Err(died(
        &format!("the machine's process died ({status})"),
        &words,
    ))
}

/// Most bytes of a message of the process, and of what it says on stderr.
pub(super) const MAX_OUTPUT: usize = 1 << 20;

/// Passes the process's messages on, up to the end of its output. After an interrupt it has a while to
/// come to its end by itself.
fn follow(
    output: &mut PipeReader,
    process: &ProcessGroup,
    interrupt: &Interrupt,
    report: &mut impl FnMut(Message),
) -> Result<()> {
    let mut lines = Messages::default();
    let mut buffer = [0; 64 << 10];
    let mut stopping = false;
    loop {
        if interrupt.is_set() && !stopping {
            stopping = true;
            process.terminate();
        }
        let mut fds = vec![PollFd::new(&*output, PollFlags::IN)];
        if !stopping {
            fds.push(PollFd::from_borrowed_fd(
                std::os::fd::AsFd::as_fd(interrupt),
                PollFlags::IN,
            ));
        }
        let limit = Timespec::try_from(GRACE).ok().filter(|_| stopping);
        match poll(&mut fds, limit.as_ref()) {
            Ok(0) => return interrupt.check().map_err(Into::into),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error).context("cannot wait for the machine's process"),
        }
        if fds[0].revents().is_empty() {
            continue;
        }
        match output.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => lines
                .push(&buffer[..n])
                .into_iter()
                .try_for_each(|message| deliver(message?, report))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("cannot read from the machine's process"),
        }
    }
}

/// Checks that the results are files of their own: a process that the guest has taken over must not
/// decide which files of this host become parts of a bundle.
pub(super) fn require_files(out: &Path) -> Result<()> {
    let cannot = || format!("cannot read {}", out.display());
    for entry in std::fs::read_dir(out).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        let found = entry.metadata().with_context(cannot)?;
        ensure!(
            found.is_file() && found.nlink() == 1,
            "the machine's process left something else than a file of its own: {}",
            entry.file_name().display()
        );
    }
    Ok(())
}

/// Passes a message on.
///
/// # Errors
/// That of the process, if the message is one.
pub(super) fn deliver(message: Message, report: &mut impl FnMut(Message)) -> Result<()> {
    match message {
        Message::Error(code, error) => {
            Err(Failure::reported(ExitKind::of_code(code), error).into())
        }
        message => {
            report(message);
            Ok(())
        }
    }
}

/// Returns the error of a process that has ended without a word of why but those on stderr.
pub(super) fn died(how: &str, stderr: &[u8]) -> anyhow::Error {
    let words = String::from_utf8_lossy(stderr);
    match words.trim() {
        "" => anyhow!("{how}"),
        words => anyhow!("{how}: {}", human::printable(words)),
    }
}

/// Runs the job that `file` describes, and prints its messages: the process itself.
///
/// # Errors
/// If there is no such job.
pub fn main(file: &Path, interrupt: &Interrupt) -> Result<()> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let job: BootJob = serde_json::from_slice(&text).context("the job description")?;
    let outcome = confine(&job).and_then(|()| local::run(&job, interrupt, send));
    if let Err(error) = outcome {
        send(Message::Error(
            smol_cli::exit_kind(&error).code(),
            ErrorReport::of(&error),
        ));
    }
    Ok(())
}

fn send(message: Message) {
    // Without a reader there is nobody left to build for, and a signal is on its way.
    let _ = smol_cli::print_json_line(&message);
}

/// Restricts this process to the job's files, and to what making, running and capturing a machine
/// takes.
fn confine(job: &BootJob) -> Result<()> {
    let mut access = Access::of_monitor().write(&job.out).read(&job.kernel);
    for image in job.initramfs.iter().chain(&job.rootfs) {
        access = access.read(image);
    }
    let restricted = access.restrict_thread(job.sandbox);
    restricted
        .and_then(|()| Filter::Build.restrict_process(job.sandbox))
        .map_err(anyhow::Error::from)
        .kind(ExitKind::Host)
        .hint(format!(
            "{MODE_VARIABLE}=off builds without confinement: for Smolfiles that you trust"
        ))
}

/// Messages out of a stream of JSON lines.
#[derive(Default)]
pub(super) struct Messages(Vec<u8>);

impl Messages {
    /// Adds bytes, and returns the messages that are complete with them.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Result<Message>> {
        self.0.extend_from_slice(bytes);
        let Some(end) = self.0.iter().rposition(|b| *b == b'\n') else {
            return match self.0.len() {
                ..=MAX_OUTPUT => Vec::new(),
                _ => vec![Err(anyhow!(
                    "the machine's process sent too long a message"
                ))],
            };
        };
        let lines: Vec<u8> = self.0.drain(..=end).collect();
        let lines = lines.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        lines
            .map(|line| {
                serde_json::from_slice(line).with_context(|| {
                    format!("message of the machine: {}", String::from_utf8_lossy(line))
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn results_that_are_links_or_no_files_are_not_taken() {
        let scratch = tempfile::tempdir().unwrap();
        let (secret, out) = (scratch.path().join("secret"), scratch.path().join("out"));
        fs::write(&secret, "secret").unwrap();
        let make: [fn(&Path, &Path); 3] = [
            |secret, place| symlink(secret, place).unwrap(),
            |secret, place| fs::hard_link(secret, place).unwrap(),
            |_, place| fs::create_dir(place).unwrap(),
        ];
        for make in make {
            fs::create_dir(&out).unwrap();
            fs::write(out.join("state"), "{}").unwrap();
            require_files(&out).unwrap();
            make(&secret, &out.join("memory"));
            let error = require_files(&out).unwrap_err().to_string();
            assert!(error.ends_with("a file of its own: memory"), "{error}");
            fs::remove_dir_all(&out).unwrap();
        }
    }
}
