//! Why a guest cannot go on, and how that is told to people.

use serde::{Deserialize, Serialize};

use crate::{ExitStatus, Probe, Stage};

/// Why a guest cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestFailure {
    /// Where.
    pub stage: Stage,
    /// What, and why.
    pub reason: String,
    /// The probe, when it was about readiness or a request of a test restore.
    #[serde(default)]
    pub probe: Option<Probe>,
    /// What the probe last saw, or the last output of the command that failed.
    #[serde(default)]
    pub last_saw: Option<String>,
    /// How the service, or the command that failed, ended, if it did. The reason says which it was.
    #[serde(default)]
    pub status: Option<ExitStatus>,
}

impl GuestFailure {
    /// Returns a failure without more to tell than its reason.
    pub fn at(stage: Stage, reason: String) -> Self {
        Self {
            stage,
            reason,
            probe: None,
            last_saw: None,
            status: None,
        }
    }

    /// Returns what belongs below the reason, one fact a line.
    pub fn facts(&self) -> Vec<String> {
        let mut facts = vec![format!("stage: {}", self.stage)];
        facts.extend(self.probe.as_ref().map(|probe| format!("probe: {probe}")));
        let what = match self.stage {
            Stage::Warm | Stage::Restore | Stage::Step => "its last output",
            _ => "it last saw",
        };
        let saw = self.last_saw.as_deref().map(str::trim_end);
        facts.extend(
            saw.filter(|saw| !saw.is_empty())
                .map(|saw| format!("{what}: {saw}")),
        );
        facts
    }

    /// Returns whether the kernel's console may explain it: what the service and commands did wrong, they
    /// say themselves, unless they were killed, as the kernel does when memory is short.
    pub fn is_on_console(&self) -> bool {
        match (self.stage, self.status) {
            (_, Some(ExitStatus::KILLED)) => true,
            (Stage::Boot | Stage::Quiesce | Stage::Serve, _) => true,
            (
                Stage::Service
                | Stage::Ready
                | Stage::Warm
                | Stage::Step
                | Stage::Restore
                | Stage::TestRestore,
                _,
            ) => false,
        }
    }

    /// Returns whether a program executed an instruction that the CPU does not have.
    pub fn is_illegal_instruction(&self) -> bool {
        let illegal = ExitStatus::ILLEGAL_INSTRUCTION;
        let told = |text: &str| text.contains(&illegal.to_string());
        self.status == Some(illegal)
            || told(&self.reason)
            || self.last_saw.as_deref().is_some_and(told)
    }

    /// Returns what to do about it, where the guest's stage alone says so.
    pub fn hint(&self) -> Option<&'static str> {
        let timed_out = self.status.is_none() && self.last_saw.is_some();
        match self.stage {
            Stage::Restore if timed_out => Some(
                "the service stands still while [[restore]] commands run: one that asks it something \
                 waits for ever. Ask it in [[warm]]; in [[restore]], write what each machine must have for \
                 itself into a file, and send the service a signal if it must notice",
            ),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_probe_saw_and_what_a_command_printed_are_told_apart() {
        let mut failure = GuestFailure {
            probe: Some(Probe::Tcp { port: 80 }),
            last_saw: Some("connection refused\n".into()),
            ..GuestFailure::at(Stage::Ready, "not ready within 2 s".into())
        };
        assert_eq!(
            failure.facts(),
            [
                "stage: ready",
                "probe: tcp 80",
                "it last saw: connection refused"
            ]
        );
        (failure.stage, failure.probe) = (Stage::Warm, None);
        assert_eq!(
            failure.facts(),
            ["stage: warm", "its last output: connection refused"]
        );
        failure.last_saw = Some(String::new());
        assert_eq!(failure.facts(), ["stage: warm"]);
    }

    #[test]
    fn the_console_explains_what_was_killed_and_what_is_not_the_services() {
        let mut failure = GuestFailure::at(Stage::Ready, String::new());
        failure.status = Some(ExitStatus::Exited(1));
        assert!(!failure.is_on_console());
        failure.status = Some(ExitStatus::ILLEGAL_INSTRUCTION);
        assert!(!failure.is_on_console());
        failure.status = Some(ExitStatus::KILLED);
        assert!(
            failure.is_on_console(),
            "the kernel tells who had no memory"
        );
        assert!(GuestFailure::at(Stage::Boot, String::new()).is_on_console());
    }

    #[test]
    fn a_restore_command_that_hangs_gets_a_hint_and_one_that_fails_does_not() {
        let mut failure = GuestFailure {
            last_saw: Some(String::new()),
            ..GuestFailure::at(Stage::Restore, "did not end".into())
        };
        assert!(failure.hint().is_some());
        failure.status = Some(ExitStatus::Exited(1));
        assert_eq!(failure.hint(), None);
    }
}
