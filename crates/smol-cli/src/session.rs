//! One run of a command, as every step of it needs to know it.

use std::io;

use crate::{Failure, Interrupt, Mode, Progress, Stage};

/// Where a command shows its progress, and how it learns that it is to stop. Clones share both.
#[derive(Clone)]
pub struct Session {
    /// Where stages and notes are shown.
    pub progress: Progress,
    /// Whether the user wants the command to stop.
    pub interrupt: Interrupt,
}

impl Session {
    /// Returns the session of a command that stops on `interrupt` and shows its progress on stderr.
    pub fn new(mode: Mode, interrupt: Interrupt) -> Self {
        Session {
            progress: Progress::new(mode),
            interrupt,
        }
    }

    /// Returns the same with a heading on a terminal, as [`Progress::titled`] does.
    pub fn titled(mode: Mode, title: &'static str, interrupt: Interrupt) -> Self {
        Session {
            progress: Progress::titled(mode, title),
            interrupt,
        }
    }

    /// Returns a session that nobody sees and no signal stops: for tests and for library use.
    pub fn detached() -> io::Result<Self> {
        Ok(Session {
            progress: Progress::silent(),
            interrupt: Interrupt::detached()?,
        })
    }

    /// Returns the same session without its display, for work in the background.
    pub fn silent(&self) -> Self {
        Session {
            progress: Progress::silent(),
            interrupt: self.interrupt.clone(),
        }
    }

    /// Begins a stage, as [`Progress::stage`] does.
    pub fn stage(&self, name: &str, message: &str) -> Stage {
        self.progress.stage(name, message)
    }

    /// Shows a line that belongs to no stage, as [`Progress::note`] does.
    pub fn note(&self, text: &str) {
        self.progress.note(text);
    }

    /// Returns an error once the command is to stop, as [`Interrupt::check`] does.
    pub fn check(&self) -> Result<(), Failure> {
        self.interrupt.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ExitKind;

    #[test]
    fn a_command_that_is_interrupted_stops_all_of_its_steps_seen_or_not() {
        let interrupt = Interrupt::detached().unwrap();
        let session = Session::new(Mode::Plain, interrupt.clone());
        let (step, background) = (session.clone(), session.silent());
        assert!(
            [&session, &step, &background]
                .map(Session::check)
                .iter()
                .all(Result::is_ok)
        );
        interrupt.trigger();
        for session in [session, step, background] {
            let error = session.check().unwrap_err().into();
            assert_eq!(crate::exit_kind(&error), ExitKind::Terminated);
        }
    }

    #[test]
    fn stages_of_clones_are_in_one_waterfall_and_those_in_the_background_are_not() {
        let session = Session::detached().unwrap();
        session.clone().stage("kernel", "m").finish("");
        session.silent().stage("prefetch", "m").finish("");
        let laps = session.progress.waterfall();
        let names: Vec<_> = laps.iter().map(|lap| lap.name.as_str()).collect();
        assert_eq!(names, ["kernel"]);
    }

    #[test]
    fn a_detached_session_is_stopped_by_its_own_interrupt_alone() {
        let (one, other) = (Session::detached().unwrap(), Session::detached().unwrap());
        one.interrupt.trigger();
        assert!(one.check().is_err() && other.check().is_ok());
    }
}
