//! `-d`: the machine in a process of its own, in a session of its own.
//!
//! The parent has verified the bundle and, unless the machine can be restored lazily, unpacked it.
//! It starts this program again, sends the spec to its stdin, and reads messages from its stdout
//! until the service runs or has failed. After that nobody reads what the child says: its stdout is
//! closed, its stderr is the instance's log.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use smol_cli::human::one_line;
use smol_cli::{ExitKind, Failure, Interrupt, Progress, Session};
use smol_host::child;
use smol_protocol::LineBuffer;

use crate::host::messages::{Message, MessageLines, failure};
use crate::host::process::{self, Standard};
use crate::host::terminal::Terminal;
use crate::images::{Images, Source};
use crate::run::metrics::Metrics;
use crate::run::output::Output;
use crate::run::report::{Report, Up};
use crate::run::spec::RunSpec;

/// How many messages of the child may wait for the parent.
const MAX_WAITING: usize = 64;
/// How often the parent checks for Ctrl-C.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Runs the machine in the background: starts the child and returns when its service runs. Prints
/// the instance's name.
///
/// # Errors
/// The child's, with its exit code.
pub fn start(
    spec: &RunSpec,
    images: &Source,
    terminal: &Terminal,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
    let mut child = spawn().context("cannot start the process that is to run the machine")?;
    let input = child.stdin.take().context("the child has no stdin")?;
    serde_json::to_writer(input, &(spec, images)).context("cannot hand the machine over")?;
    let output = child.stdout.take().context("the child has no stdout")?;
    let messages = receive(output);
    let mut stopping = false;
    let error = loop {
        match messages.recv_timeout(POLL_INTERVAL) {
            Ok(Message::Note(text)) => terminal.note(&text),
            Ok(Message::Up(up)) => {
                smol_cli::print(&format!("{}\n", spec.name))?;
                terminal.up(&up)?;
                return Ok(ExitCode::SUCCESS);
            }
            Ok(Message::Metrics(_)) => {}
            Ok(Message::Failed(code, report)) => break Some(failure(code, report)),
            Ok(Message::Ended(code)) => break Some(ended_early(code)),
            Err(RecvTimeoutError::Disconnected) => break None,
            Err(RecvTimeoutError::Timeout) if interrupt.is_set() && !stopping => {
                stopping = true;
                terminate(&child);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    };
    let status = child.wait();
    interrupt.check()?;
    match error {
        Some(error) => Err(error),
        None => {
            let status = status.context("cannot wait for the machine's process")?;
            let message = format!("the machine's process died ({status})");
            Err(Failure::new(ExitKind::Failed, message).into())
        }
    }
}

/// Returns the child's messages, up to its end or to what is none.
/// A child that its guest has taken over cannot make it hold more than a line and a few messages.
fn receive(mut output: impl Read + Send + 'static) -> Receiver<Message> {
    let (send, messages) = mpsc::sync_channel(MAX_WAITING);
    thread::spawn(move || -> anyhow::Result<()> {
        let (mut lines, mut buffer) = (LineBuffer::default(), [0; 4096]);
        loop {
            match output.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(got) => lines.push(&buffer[..got]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
            while let Some(line) = lines.next_line()? {
                if send.send(serde_json::from_slice(&line)?).is_err() {
                    return Ok(());
                }
            }
        }
    });
    messages
}

fn ended_early(code: Option<i32>) -> anyhow::Error {
    let how = code.map_or("it was stopped".into(), |code| format!("exit code {code}"));
    let message = format!("the service ended before it was up ({how})");
    Failure::new(ExitKind::Failed, message).into()
}

fn terminate(child: &Child) {
    // The child has not been waited for, so the id is its own.
    if let Some(child) = Pid::from_raw(child.id().cast_signed()) {
        let _ = kill_process(child, Signal::TERM);
    }
}

fn spawn() -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("internal-detached")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    child::in_new_session(&mut command).spawn()
}

/// Runs the machine of the spec on stdin: the child.
///
/// # Errors
/// If it was not started by [`start`], or the parent has ended.
#[expect(clippy::disallowed_methods, reason = "stdout is the parent's")]
pub fn main() -> anyhow::Result<ExitCode> {
    let session = Session {
        progress: Progress::silent(),
        interrupt: Interrupt::install().context("cannot catch signals")?,
    };
    let (spec, images): (RunSpec, Source) = serde_json::from_reader(io::stdin().lock())
        .map_err(|_| Failure::new(ExitKind::Usage, "this command is smolrun's own, for -d"))?;
    let parent = Arc::new(Parent {
        lines: MessageLines::new(io::stdout()),
        waits: AtomicBool::new(true),
        output: OnceLock::new(),
        metrics_file: spec.metrics_file.clone(),
    });
    let outcome =
        Images::open(&images, &spec.bundle, &spec.digest, spec.has, &session).and_then(|images| {
            process::run(
                &spec,
                images,
                Standard::Log,
                parent.clone(),
                &session.interrupt,
            )
        });
    if !parent.waits.load(Ordering::SeqCst) {
        // Nobody sees it: the record has it, and the log has the error.
        return Ok(match outcome {
            Ok(end) => end.code().into(),
            Err(error) => smol_cli::exit_kind(&error).into(),
        });
    }
    let message = match &outcome {
        Ok(end) => Message::ended(*end),
        Err(error) => Message::failed(error),
    };
    parent
        .lines
        .send(&message)
        .context("the smolrun that started this machine has exited")?;
    Ok(ExitCode::SUCCESS)
}

/// The smolrun that has started this process, as long as it waits.
struct Parent {
    lines: MessageLines,
    waits: AtomicBool,
    /// That of the machine, with the log in which notes are when nobody waits any more.
    output: OnceLock<Arc<Output>>,
    metrics_file: Option<PathBuf>,
}

impl Report for Parent {
    fn note(&self, text: &str) {
        match self.waits.load(Ordering::SeqCst) {
            true => self.lines.note(text),
            false => {
                if let Some(output) = self.output.get() {
                    output.note(&format!("smolrun: {}", one_line(text)));
                }
            }
        }
    }

    fn attach(&self, output: &Arc<Output>) {
        let _ = self.output.set(output.clone());
    }

    fn up(&self, up: &Up) -> io::Result<()> {
        self.lines.up(up)?;
        self.waits.store(false, Ordering::SeqCst);
        rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
        Ok(())
    }

    fn metrics(&self, metrics: &Metrics) {
        if let Some(file) = &self.metrics_file
            && let Err(error) = metrics.write(file)
        {
            self.note(&format!("{error:#}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_end_ends_the_messages() {
        let said = |bytes: Vec<u8>| receive(io::Cursor::new(bytes)).into_iter().count();
        let note = b"{\"note\":\"n\"}\n";
        assert_eq!(said([&note[..], note].concat()), 2);
        assert_eq!(said([&note[..], b"no message\n", note].concat()), 1);
        let endless = vec![b'x'; 64 << 20];
        assert_eq!(said([&note[..], &endless, note].concat()), 1);
    }
}
