//! Filters of system calls, by what a process does.

use std::io;

use seccompiler::{BpfProgram, SeccompAction};

use crate::calls;
use crate::mode::Mode;
use crate::program::Table;
use crate::support::{Support, failed};

/// System calls that a process may make. The first three list what is allowed; any other call kills
/// the process at once, before it does anything. That of the network lists likewise, and other calls fail.
/// The last one lists what is forbidden, which fails (EPERM): it is inherited by programs that are not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// A machine that runs: its vCPUs, its devices, its ports, and its bundle, which may be being
    /// unpacked. It opens files, and cannot open sockets, start programs, make executable memory,
    /// signal or trace others, or change its machine.
    Machine,
    /// A machine that is built: also makes machines, and captures them.
    Build,
    /// Reads files and writes others: parsing and unpacking. It has no sockets, no programs, and no
    /// devices.
    Files,
    /// Carries a guest's packets, on one thread of a program that does much else: it makes connections over
    /// IP, and has no other sockets, no programs, no files but to read, and no threads. What it may not do
    /// fails (EPERM), and so does its work, with an error. To kill it would harm the whole process, which
    /// goes on: a thread that is killed releases none of the locks that it holds, of the heap for one, and
    /// whoever takes them next hangs.
    Network,
    /// A program that is yet to start a machine, or a helper that does so: it may do what it likes
    /// but connect to others, trace or inspect them, and reconfigure the host.
    Local,
}

impl Filter {
    /// Restricts the calling thread, and all threads and programs that it starts from here on.
    ///
    /// # Errors
    /// Those of the kernel; not its lack of seccomp ([`crate::missing`]).
    pub fn restrict_thread(self, mode: Mode) -> io::Result<()> {
        let prepared = self.prepare(mode)?;
        prepared.install(|program| seccompiler::apply_filter(program))
    }

    /// Restricts all threads of this process, and all that they start from here on.
    ///
    /// # Errors
    /// As for [`Filter::restrict_thread`]; or if a thread has a filter of its own.
    pub fn restrict_process(self, mode: Mode) -> io::Result<()> {
        self.prepare(mode)?.restrict_process()
    }

    /// Makes what [`Prepared::restrict_process`] needs, which takes memory and time.
    ///
    /// # Errors
    /// None that is known of.
    pub fn prepare(self, mode: Mode) -> io::Result<Prepared> {
        let forbidden = match (mode, self) {
            (Mode::On, Filter::Local | Filter::Network) => errno(libc::EPERM),
            (Mode::On, _) => SeccompAction::KillProcess,
            (Mode::Log, _) => SeccompAction::Log,
            (Mode::Off, _) => return Ok(Prepared(None)),
        };
        if !Support::here().seccomp {
            return Ok(Prepared(None));
        }
        let program = self.program(forbidden).map_err(|e| failed("seccomp", e))?;
        Ok(Prepared(Some(program)))
    }

    fn program(self, forbidden: SeccompAction) -> Result<BpfProgram, seccompiler::BackendError> {
        let calls = match self {
            Filter::Machine => calls::machine(),
            Filter::Build => calls::build(),
            Filter::Files => calls::files(),
            Filter::Network => calls::network(),
            Filter::Local => {
                let table = Table::new(SeccompAction::Allow);
                let remote = calls::REMOTE.iter().copied();
                return Ok(table.answer(remote, forbidden).program());
            }
        };
        Table::new(forbidden.clone())
            .answer(calls.any, SeccompAction::Allow)
            // The C library then calls clone, whose flags a filter can see.
            .answer([libc::SYS_clone3], errno(libc::ENOSYS))
            .with_rules(calls.rules, forbidden)
    }
}

/// A filter that is not in force yet; none, if there is to be none.
pub struct Prepared(Option<BpfProgram>);

impl Prepared {
    /// Restricts all threads of this process, and all that they start from here on. Allocates nothing.
    ///
    /// # Errors
    /// As for [`Filter::restrict_process`].
    pub fn restrict_process(&self) -> io::Result<()> {
        self.install(|program| seccompiler::apply_filter_all_threads(program))
    }

    fn install(&self, apply: impl Fn(&BpfProgram) -> seccompiler::Result<()>) -> io::Result<()> {
        let applied = self.0.as_ref().map_or(Ok(()), apply);
        applied.map_err(|e| failed("seccomp", e))
    }
}

fn errno(number: i32) -> SeccompAction {
    SeccompAction::Errno(number.unsigned_abs())
}
