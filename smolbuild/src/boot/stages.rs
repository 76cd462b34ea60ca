//! Boots a machine wherever it can run, and shows its way to the snapshot as stages.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use smol_cli::progress::Stage;
use smol_cli::{ExitKind, Failure, Interrupt, Progress, human};
use smol_host::Backend;
use smol_machine::cpu::Level;
use smol_protocol::Event;

use super::{BootJob, Failed, Frozen, Message, Purpose, emulated, hints, process};
use crate::context::BuildContext;

/// Boots the machine on `backend` until it is frozen. `cache` is the folder of the emulated host's
/// kernel; console and service are shown if `verbose`.
///
/// # Errors
/// The machine cannot be started, or does not become ready; the interrupt.
pub fn freeze(
    job: &BootJob,
    backend: Backend,
    cache: &Path,
    verbose: bool,
    context: BuildContext,
) -> Result<Frozen> {
    let interrupt = &context.session.interrupt;
    let stages = Arc::new(Mutex::new(BootStages::new(
        &context.session.progress,
        verbose,
    )));
    let report = {
        let stages = stages.clone();
        move |message| stages.lock().expect("no stage panics").message(message)
    };
    run(job, backend, cache, interrupt, None, report)?;
    let outcome = stages.lock().expect("no stage panics").outcome.take();
    match outcome {
        Some(Ok(frozen)) => Ok(frozen),
        Some(Err(failed)) => Err(boot_error(&failed, job.cpu, &job.purpose, interrupt)),
        None => Err(ended_silently()),
    }
}

/// Runs the machine on `backend`. `cache` is the folder of the emulated host's kernel; `network` the socket
/// for the packets of its guest.
pub(super) fn run(
    job: &BootJob,
    backend: Backend,
    cache: &Path,
    interrupt: &Interrupt,
    network: Option<UnixStream>,
    report: impl FnMut(Message),
) -> Result<()> {
    match backend {
        Backend::Kvm => process::run(job, interrupt, network, report),
        Backend::Emulated => emulated::run(job, cache, interrupt, network, report),
    }
}

pub(super) fn ended_silently() -> anyhow::Error {
    Failure::new(ExitKind::Failed, "the machine ended without reporting why").into()
}

/// Turns the machine's messages into stages of the progress: boot, service, warm, snapshot.
struct BootStages {
    progress: Progress,
    current: Option<Stage>,
    outcome: Option<Result<Frozen, Failed>>,
    verbose: bool,
}

impl BootStages {
    fn new(progress: &Progress, verbose: bool) -> Self {
        let current = Some(progress.stage("boot", "booting the machine"));
        Self {
            progress: progress.clone(),
            current,
            outcome: None,
            verbose,
        }
    }

    fn start(&mut self, name: &str, message: &str) {
        self.current = Some(self.progress.stage(name, message));
    }

    fn finish(&mut self, result: &str) {
        if let Some(stage) = self.current.take() {
            stage.finish(result);
        }
    }

    /// Shows a line on a terminal while the stage runs. If it fails, the error has the last ones.
    fn passing(&self, line: &str) {
        if let Some(stage) = &self.current {
            stage.window(line);
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Guest(event) => self.event(&event),
            Message::Log(line) if self.verbose => self.progress.note(&format!("service | {line}")),
            Message::Console(line) if self.verbose => {
                self.progress.note(&format!("console | {line}"))
            }
            Message::Log(line) => self.passing(&format!("service | {line}")),
            Message::Console(line) => self.passing(&format!("console | {line}")),
            Message::Captured { nonzero_pages } => {
                self.finish(&format!(
                    "{} of memory in use",
                    human::bytes(nonzero_pages * 4096)
                ));
                self.start("test-restore", "recording the pages used first");
            }
            Message::Frozen(frozen) => {
                self.finish(&match &frozen.working_set {
                    Some(set) => format!(
                        "{} of memory, {} of the root file system",
                        human::bytes(set.memory_pages * 4096),
                        human::bytes(set.rootfs_pages * 4096)
                    ),
                    None => "not recorded".to_owned(),
                });
                if let Some(why) = frozen.unreproducible() {
                    self.progress
                        .note(&format!("warning: not reproducible: {why}"));
                }
                self.outcome = Some(Ok(frozen));
            }
            Message::Failed(failed) => self.outcome = Some(Err(failed)),
            // No build step is frozen; and who runs the process takes errors out of the stream.
            Message::Stepped(_) | Message::Error(..) => {}
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Booted => {
                self.finish("up");
                self.start("service", "starting the service");
            }
            Event::Ready { attempts } => self.finish(&format!("ready at attempt {attempts}")),
            Event::WarmStarted { number } => {
                self.start("warm", &format!("running warm command {number}"))
            }
            Event::WarmFinished { status, .. } => self.finish(&status.to_string()),
            Event::Quiesced => self.start("snapshot", "capturing the machine"),
            Event::Warning { reason, .. } => self.progress.note(&format!("warning: {reason}")),
            _ => {}
        }
    }
}

fn boot_error(
    failed: &Failed,
    cpu: Level,
    purpose: &Purpose,
    interrupt: &Interrupt,
) -> anyhow::Error {
    if failed.interrupted
        && let Err(stopped) = interrupt.check()
    {
        return stopped.into();
    }
    let mut failure = Failure::new(ExitKind::Failed, failed.reason.clone());
    for detail in failed.details() {
        failure = failure.detail(detail);
    }
    let hints = failed.guest.as_ref().map(|guest| {
        let of_service = match purpose {
            _ if guest.is_illegal_instruction() => Some(illegal_instruction_hint(cpu)),
            Purpose::Freeze { service, .. } => hints::of_service(guest, service),
            Purpose::Step { .. } => None,
        };
        [guest.hint().map(str::to_owned), of_service]
    });
    let hints = hints.into_iter().flatten().flatten();
    hints.fold(failure, Failure::hint).into()
}

/// What to do about a program that uses an instruction that the machine's CPU does not have.
pub(super) fn illegal_instruction_hint(cpu: Level) -> String {
    let name = cpu.name();
    let what = format!(
        "SIGILL: a program used an instruction that the machine's CPU ({name}) does not have"
    );
    match Level::ALL.into_iter().find(|level| *level > cpu) {
        Some(next) => format!("{what}; write `cpu = \"{}\"` in the Smolfile", next.name()),
        None => format!("{what}; install a build of the program for {name} or an older level"),
    }
}

#[cfg(test)]
mod tests {
    use smol_protocol::{ExitStatus, GuestFailure};

    use super::super::Service;
    use super::*;

    #[test]
    fn a_service_that_has_left_is_explained_with_its_option() {
        let reason = "the service ended before it was ready, with exit code 0";
        let failed = Failed::of_guest(GuestFailure {
            status: Some(ExitStatus::Exited(0)),
            ..GuestFailure::at(smol_protocol::Stage::Ready, reason.into())
        });
        let service = Service {
            cmd: vec!["nginx".to_owned()],
            warms_up: true,
            is_init: false,
        };
        let interrupt = Interrupt::detached().unwrap();
        let purpose = Purpose::Freeze {
            ready_line: None,
            requests: false,
            service,
        };
        let error = boot_error(&failed, Level::default(), &purpose, &interrupt);
        assert_eq!(
            smol_cli::error::render(&error, false),
            "error: the service ended before it was ready, with exit code 0\n  stage: ready\n  \
             hint: the service must stay in the foreground: the machine ends with the command that \
             starts it; write nginx -g \"daemon off;\"\n"
        );
    }
}
