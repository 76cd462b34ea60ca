//! `-d`: the machine in a process of its own, with a session of its own.
//!
//! The parent has verified the bundle and, unless the machine can run meanwhile, unpacked it; it
//! starts this program again, hands over the spec on stdin, and reads messages from the child's
//! stdout until the service runs or will not.
//! After that the child has nobody: its stdout is closed, its stderr is the instance's log.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process, setsid};
use smol_cli::{ExitKind, Failure, Interrupt};

use crate::host::messages::{Lines, Message, failure};
use crate::host::process::{self, Standard};
use crate::host::terminal::Terminal;
use crate::images::{Images, Source};
use crate::run::metrics::Metrics;
use crate::run::report::{Report, Up};
use crate::run::spec::RunSpec;

/// How often the parent looks for Ctrl-C.
const GLANCE: Duration = Duration::from_millis(100);

/// The parent: starts the child and stays until its service runs. Prints the instance's name.
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
    let (send, messages) = mpsc::channel();
    let output = child.stdout.take().context("the child has no stdout")?;
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = send.send(serde_json::from_str::<Message>(&line));
        }
    });
    let mut told = false;
    loop {
        match messages.recv_timeout(GLANCE) {
            Ok(Ok(Message::Note(text))) => terminal.note(&text),
            Ok(Ok(Message::Up(up))) => {
                println!("{}", spec.name);
                terminal.up(&up)?;
                return Ok(ExitCode::SUCCESS);
            }
            Ok(Ok(Message::Metrics(_))) => {}
            Ok(Ok(Message::Failed(code, text))) => {
                let _ = child.wait();
                interrupt.check()?;
                return Err(failure(code, text));
            }
            Ok(Ok(Message::Ended(code))) => {
                let _ = child.wait();
                interrupt.check()?;
                let how = code.map_or("it was stopped".into(), |code| format!("exit code {code}"));
                let message = format!("the service ended before it was up ({how})");
                return Err(Failure::new(ExitKind::Failed, message).into());
            }
            Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => {
                let status = child
                    .wait()
                    .context("cannot wait for the machine's process")?;
                interrupt.check()?;
                let message = format!("the machine's process died ({status})");
                return Err(Failure::new(ExitKind::Failed, message).into());
            }
            Err(RecvTimeoutError::Timeout) => {
                if interrupt.is_set() && !told {
                    told = true;
                    let child = Pid::from_raw(child.id().cast_signed());
                    // It cannot be gone: nobody has waited for it yet.
                    let _ = child.map(|child| kill_process(child, Signal::TERM));
                }
            }
        }
    }
}

fn spawn() -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("internal-detached")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    // SAFETY: setsid is one system call, async-signal-safe, and touches no memory.
    unsafe { command.pre_exec(|| Ok(setsid().map(drop)?)) };
    command.spawn()
}

/// The child.
///
/// # Errors
/// If there is no parent.
pub fn main() -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::install().context("cannot catch signals")?;
    let (spec, images): (RunSpec, Source) = serde_json::from_reader(io::stdin().lock())
        .map_err(|_| Failure::new(ExitKind::Usage, "this command is smolrun's own, for -d"))?;
    let parent = Arc::new(Parent {
        lines: Lines::new(io::stdout()),
        waits: AtomicBool::new(true),
        metrics_file: spec.metrics_file.clone(),
    });
    let outcome = Images::open(&images, &spec.bundle, &spec.digest, spec.has, &interrupt)
        .and_then(|images| process::run(&spec, images, Standard::Log, parent.clone(), &interrupt));
    if !parent.waits.load(Ordering::SeqCst) {
        return outcome.map(|end| end.exit_code());
    }
    let message = match &outcome {
        Ok(end) => Message::ended(*end),
        Err(error) => Message::failed(error),
    };
    parent
        .lines
        .send(&message)
        .context("the smolrun that started this machine is gone")?;
    Ok(ExitCode::SUCCESS)
}

/// The smolrun that waits for us.
struct Parent {
    lines: Lines,
    waits: AtomicBool,
    metrics_file: Option<PathBuf>,
}

impl Report for Parent {
    fn note(&self, text: &str) {
        match self.waits.load(Ordering::SeqCst) {
            true => self.lines.note(text),
            false => eprintln!("smolrun: {text}"),
        }
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
            self.note(&format!("cannot write {}: {error}", file.display()));
        }
    }
}
