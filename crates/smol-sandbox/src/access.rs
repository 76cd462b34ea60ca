//! Files, programs and TCP ports that a process may use, as a Landlock ruleset.

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};

use crate::mode::Mode;
use crate::support::failed;

/// The newest version of Landlock's interface whose rights are handled here; an older kernel
/// handles those that it knows.
const NEWEST: ABI = ABI::V6;

/// What a process may use; everything else is denied: other files, programs and TCP ports, and
/// signals and abstract sockets of processes that were not started from here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    execute: Vec<PathBuf>,
    bind: Vec<u16>,
    connect: bool,
}

impl Access {
    /// Returns access to nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// Returns access to what a monitor uses of any host: KVM, userfaultfd(2), random numbers, and what
    /// the kernel tells of itself.
    pub fn of_monitor() -> Self {
        let mut access = Self::none();
        for path in ["/proc", "/sys", "/dev/random", "/dev/urandom"] {
            access = access.read(path);
        }
        for device in ["/dev/kvm", "/dev/userfaultfd", "/dev/null"] {
            access = access.write(device);
        }
        access
    }

    /// Adds a file, or a folder with all that is in it, to be read. What does not exist when access
    /// is restricted stays out of reach.
    pub fn read(mut self, path: impl AsRef<Path>) -> Self {
        self.read.push(path.as_ref().to_owned());
        self
    }

    /// Adds a file or folder to be read and changed; in a folder files can be made and removed, but
    /// no device nodes.
    pub fn write(mut self, path: impl AsRef<Path>) -> Self {
        self.write.push(path.as_ref().to_owned());
        self
    }

    /// Adds a program, or a folder of programs and their libraries, to be read and executed.
    pub fn execute(mut self, path: impl AsRef<Path>) -> Self {
        self.execute.push(path.as_ref().to_owned());
        self
    }

    /// Adds a TCP port to listen on; 0 stands for one that the kernel chooses.
    pub fn bind(mut self, port: u16) -> Self {
        self.bind.push(port);
        self
    }

    /// Adds connections to all TCP ports.
    pub fn connect(mut self) -> Self {
        self.connect = true;
        self
    }

    /// Adds all that the other has.
    pub fn and(mut self, other: Self) -> Self {
        self.read.extend(other.read);
        self.write.extend(other.write);
        self.execute.extend(other.execute);
        self.bind.extend(other.bind);
        self.connect |= other.connect;
        self
    }

    /// Restricts the calling thread, and all threads and programs that it starts from here on, to
    /// this. Restrictions add up: what an earlier one denies stays denied.
    ///
    /// # Errors
    /// Those of the kernel; not its lack of Landlock ([`crate::missing`]).
    pub fn restrict_thread(&self, mode: Mode) -> io::Result<()> {
        if mode != Mode::On {
            return Ok(());
        }
        self.ruleset().map_err(|e| failed("Landlock", e))
    }

    fn ruleset(&self) -> Result<(), RulesetError> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let execute = read | AccessFs::Execute;
        let nodes: BitFlags<AccessFs> = AccessFs::MakeChar | AccessFs::MakeBlock;
        let write = (read | AccessFs::from_write(NEWEST)) & !nodes;
        let ports = self
            .bind
            .iter()
            .map(|port| Ok(NetPort::new(*port, AccessNet::BindTcp)));
        let net = match self.connect {
            true => AccessNet::from_all(NEWEST) & !BitFlags::from(AccessNet::ConnectTcp),
            false => AccessNet::from_all(NEWEST),
        };
        Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(net)?
            .scope(Scope::from_all(NEWEST))?
            .create()?
            .add_rules(beneath(&self.read, read))?
            .add_rules(beneath(&self.write, write))?
            .add_rules(beneath(&self.execute, execute))?
            .add_rules(ports.collect::<Vec<Result<_, RulesetError>>>())?
            .restrict_self()
            .map(drop)
    }
}

/// Returns the rules for those of the paths that exist. Rights to folders mean nothing for files.
fn beneath(
    paths: &[PathBuf],
    rights: BitFlags<AccessFs>,
) -> impl Iterator<Item = Result<PathBeneath<PathFd>, RulesetError>> {
    let existing = paths.iter().filter_map(|path| PathFd::new(path).ok());
    existing.map(move |file| Ok(PathBeneath::new(file, rights)))
}
