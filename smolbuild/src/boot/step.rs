//! Runs a build step in a machine, wherever it can run.

use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Result;
use smol_cli::progress::Stage;
use smol_cli::{ExitKind, Failure, Interrupt, human};
use smol_host::Backend;
use smol_protocol::{ExitStatus, GuestFailure};
use smol_sandbox::Mode;

use super::stages::{ended_silently, illegal_instruction_hint, run};
use super::{BootJob, Failed, Message, Stepped};

/// Where, and how, the machines of build steps run.
#[derive(Clone, Copy, Debug)]
pub struct StepMachine<'a> {
    /// The hypervisor.
    pub backend: Backend,
    /// Folder of the emulated host's kernel.
    pub host_cache: &'a Path,
    /// Seconds after which a guest that never pauses gets a tick.
    pub watchdog: u64,
    /// Whether the machine's process is confined.
    pub sandbox: Mode,
    /// Whether the console is shown.
    pub verbose: bool,
}

/// Runs the step of `job`, whose command is at `place` in the Smolfile (`Smolfile:9:7`). Its layer is then
/// in the job's folder. The packets of its guest go through the socket `network`, if it has one.
///
/// # Errors
/// The machine cannot be started, or the command fails; the interrupt.
pub fn run_step(
    job: &BootJob,
    machine: &StepMachine,
    place: &str,
    network: Option<UnixStream>,
    stage: &Stage,
    interrupt: &Interrupt,
) -> Result<Stepped> {
    let mut outcome = None;
    let report = |message| match message {
        Message::Log(line) => stage.output_of_error(&line),
        Message::Console(line) if machine.verbose => stage.note(&format!("console | {line}")),
        Message::Guest(smol_protocol::Event::Warning { reason, .. }) => {
            stage.note(&format!("warning: {reason}"));
        }
        Message::Stepped(stepped) => outcome = Some(Ok(stepped)),
        Message::Failed(failed) => outcome = Some(Err(failed)),
        _ => {}
    };
    let (backend, cache) = (machine.backend, machine.host_cache);
    run(job, backend, cache, interrupt, network, report)?;
    match outcome {
        Some(Ok(stepped)) => Ok(stepped),
        Some(Err(failed)) => {
            let printed = stage.prints_output();
            Err(step_error(&failed, job, place, printed, interrupt))
        }
        None => Err(ended_silently()),
    }
}

/// The error of a step; its output is in it, unless it was `printed` already.
fn step_error(
    failed: &Failed,
    job: &BootJob,
    place: &str,
    printed: bool,
    interrupt: &Interrupt,
) -> anyhow::Error {
    if failed.interrupted
        && let Err(stopped) = interrupt.check()
    {
        return stopped.into();
    }
    let mut failure =
        Failure::new(ExitKind::Failed, failed.reason.clone()).detail(format!("in {place}"));
    let guest = failed.guest.as_ref();
    let shows_console = guest.is_none_or(GuestFailure::is_on_console);
    for (title, lines, is_shown) in [
        ("the last lines of its output:", &failed.log, !printed),
        (
            "the last lines of the console:",
            &failed.console,
            shows_console,
        ),
    ] {
        if is_shown && !lines.is_empty() {
            let lines = lines.iter().map(|line| format!("\n  {line}"));
            failure = failure.detail(
                std::iter::once(title.to_owned())
                    .chain(lines)
                    .collect::<String>(),
            );
        }
    }
    match guest.and_then(|guest| hint(guest, failed, job)) {
        Some(hint) => failure.hint(hint).into(),
        None => failure.into(),
    }
}

/// What to do about a command that failed.
fn hint(guest: &GuestFailure, failed: &Failed, job: &BootJob) -> Option<String> {
    /// What programs say that look for the network.
    const NO_NETWORK: [&str; 6] = [
        "Temporary failure in name resolution",
        "Could not resolve host",
        "could not resolve host",
        "Temporary failure resolving",
        "Network is unreachable",
        "EAI_AGAIN",
    ];
    /// What they say of a certificate by somebody whom they do not know.
    const UNKNOWN_ISSUER: [&str; 5] = [
        "CERTIFICATE_VERIFY_FAILED",
        "SELF_SIGNED_CERT_IN_CHAIN",
        "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
        "unable to get local issuer certificate",
        "certificate signed by unknown authority",
    ];
    if guest.is_illegal_instruction() {
        return Some(illegal_instruction_hint(job.cpu));
    }
    if guest.status == Some(ExitStatus::KILLED) || guest.reason.contains("filled the memory") {
        let size = human::bytes(job.memory);
        return Some(format!(
            "its machine has {size} of memory, which also holds the files that it writes; give it more: memory = \"8GiB\""
        ));
    }
    let says = |any: &[&str]| {
        let mut lines = failed.log.iter();
        lines.any(|line| any.iter().any(|words| line.contains(words)))
    };
    if says(&UNKNOWN_ISSUER) {
        let advice = "a [[run]] knows the certificates that are in its files: those of the package ca-certificates; \
                      [[copy]] that of a CA of your own, and name it as the program wants it \
                      (SSL_CERT_FILE, NODE_EXTRA_CA_CERTS, PIP_CERT)";
        return Some(advice.to_owned());
    }
    let advice = match job.purpose.has_network() {
        true => {
            "a [[run]] reaches what its `network` names, and nothing of the host and its private networks that is not named"
        }
        false => {
            "a [[run]] has no network unless it asks for one: network = [\"packages.example.org:443\"], or true; \
             better is a [[fetch]] of each file, or packages in [rootfs] debian"
        }
    };
    says(&NO_NETWORK).then(|| advice.to_owned())
}

#[cfg(test)]
mod tests {
    use smol_protocol::Stage as GuestStage;

    use super::*;
    use crate::boot::Purpose;

    fn job(network: bool) -> BootJob {
        BootJob {
            kernel: "/k".into(),
            initramfs: None,
            rootfs: None,
            cmdline: String::new(),
            cpu: Default::default(),
            memory: 2 << 30,
            vcpus: 1,
            epoch: 0,
            seed: String::new(),
            kernel_seed: String::new(),
            purpose: Purpose::Step {
                network,
                timeout_ms: 1000,
                step: "[[run]] command 1 (make)".into(),
            },
            watchdog: 1,
            limit: 1,
            sandbox: Mode::Off,
            out: "/out".into(),
        }
    }

    fn told(reason: &str, status: Option<ExitStatus>, log: &[&str]) -> String {
        told_of(&job(false), reason, status, log, false)
    }

    fn told_of(
        job: &BootJob,
        reason: &str,
        status: Option<ExitStatus>,
        log: &[&str],
        printed: bool,
    ) -> String {
        let failed = Failed {
            log: log.iter().map(|line| line.to_string()).collect(),
            ..Failed::of_guest(GuestFailure {
                status,
                ..GuestFailure::at(GuestStage::Step, reason.into())
            })
        };
        let interrupt = Interrupt::detached().unwrap();
        let error = step_error(&failed, job, "Smolfile:9:7", printed, &interrupt);
        smol_cli::error::render(&error, false)
    }

    #[test]
    fn a_command_that_fails_is_told_with_its_place_and_its_output() {
        let reason = "[[run]] command 1 (make) ended with exit code 2";
        let text = told(
            reason,
            Some(ExitStatus::Exited(2)),
            &["cc -c x.c", "x.c:1: error"],
        );
        assert_eq!(
            text,
            "error: [[run]] command 1 (make) ended with exit code 2\n  in Smolfile:9:7\n  \
             the last lines of its output:\n    cc -c x.c\n    x.c:1: error\n"
        );
        let status = Some(ExitStatus::Exited(2));
        assert_eq!(
            told_of(&job(false), reason, status, &["cc -c x.c"], true),
            "error: [[run]] command 1 (make) ended with exit code 2\n  in Smolfile:9:7\n"
        );
    }

    #[test]
    fn what_was_short_is_named() {
        let killed = told("ended with signal 9", Some(ExitStatus::KILLED), &[]);
        assert!(killed.contains("has 2.0 GiB of memory"), "{killed}");
        let unknown = |network| {
            told_of(
                &job(network),
                "ended with exit code 6",
                Some(ExitStatus::Exited(6)),
                &["curl: (6) Could not resolve host: example.org"],
                false,
            )
        };
        assert!(unknown(false).contains("network = [\"packages.example.org:443\"], or true"));
        assert!(unknown(true).contains("reaches what its `network` names"));
        let stranger = told(
            "ended with exit code 1",
            Some(ExitStatus::Exited(1)),
            &["npm ERR! code SELF_SIGNED_CERT_IN_CHAIN"],
        );
        assert!(
            stranger.contains("[[copy]] that of a CA of your own"),
            "{stranger}"
        );
    }
}
