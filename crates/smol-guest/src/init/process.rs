//! Starting a process of the service: user, groups, cgroup, session, environment. When it
//! cannot be started the error says which step failed, on which path, and why.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal};
use rustix::thread::{Gid, Uid};

use super::cgroup::Cgroup;
use super::container::{self, Console, Container, Kind, Namespaces};
use super::users::{self, User};
use smol_protocol::{DEFAULT_PATH, Service};

/// Everything that the service, its probes and its warm commands have in common.
#[derive(Debug)]
pub struct World {
    /// Who they run as; `None` leaves the ids of the caller, in tests.
    pub user: Option<User>,
    /// Their whole environment.
    pub env: BTreeMap<String, String>,
    /// Their working directory.
    pub workdir: PathBuf,
    /// What asks the service to stop, instead of SIGTERM.
    pub stop_signal: Option<Signal>,
    /// What a service that is an init has for itself; the others run in it, too.
    pub(super) container: Option<Rc<Container>>,
    /// The cgroup they are in; `None` leaves them in the caller's, in tests.
    pub cgroup: Option<Cgroup>,
}

impl World {
    /// The world of a service, in the root file system that is now `/`.
    pub fn new(service: &Service, cgroup: Cgroup) -> Result<Self, String> {
        let user =
            users::find(service.user.as_deref()).map_err(|e| format!("service.user: {e}"))?;
        let mut env = BTreeMap::from([
            ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
            ("HOME".to_owned(), user.home.clone()),
            ("USER".to_owned(), user.name.clone()),
        ]);
        let kind = container_kind(service);
        if kind.is_some() {
            let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
            env.extend(container::ENVIRONMENT.map(owned));
        }
        env.extend(service.env.clone());
        let workdir = PathBuf::from(service.workdir.as_deref().unwrap_or("/"));
        let stop_signal = service.stop_signal.or(kind.and_then(Kind::stop_signal));
        Ok(World {
            user: Some(user),
            env,
            workdir,
            stop_signal: stop_signal.and_then(signal),
            container: kind.map(|kind| Rc::new(Container::of(kind))),
            cgroup: Some(cgroup),
        })
    }

    /// The same world outside of the service's cgroup: for what runs while the service is frozen.
    pub fn beside(&self) -> Self {
        World {
            user: self.user.clone(),
            env: self.env.clone(),
            workdir: self.workdir.clone(),
            stop_signal: self.stop_signal,
            container: self.container.clone(),
            cgroup: None,
        }
    }

    /// Starts the service itself.
    pub(super) fn spawn_service(&self, cmd: &[String], output: Output) -> Result<Spawned, String> {
        let (Some(container), Some(cgroup)) = (&self.container, &self.cgroup) else {
            return self.spawn_at(cmd, output, &Place::Machine);
        };
        let console = container.prepare(cgroup)?;
        let start = || self.spawn_at(cmd, output, &Place::NewContainer);
        let spawned = container::in_new_pid_namespace(start)?;
        container.started(spawned.pid)?;
        Ok(Spawned {
            console: Some(console),
            ..spawned
        })
    }

    /// Starts a command in this world: own session, no signal blocked or ignored, no input.
    pub fn spawn(&self, cmd: &[String], output: Output) -> Result<Spawned, String> {
        match self.namespaces() {
            Some(namespaces) => {
                let place = Place::Container(namespaces);
                namespaces.spawn(|| self.spawn_at(cmd, output, &place))
            }
            None => self.spawn_at(cmd, output, &Place::Machine),
        }
    }

    /// The namespaces of a service that is an init, and runs.
    pub(super) fn namespaces(&self) -> Option<&Namespaces> {
        self.container.as_ref()?.namespaces()
    }

    fn spawn_at(
        &self,
        cmd: &[String],
        output: Output,
        place: &Place<'_>,
    ) -> Result<Spawned, String> {
        let (name, arguments) = cmd.split_first().ok_or("the command is empty")?;
        let path = self.find_program(name)?;
        let mut command = Command::new(&path);
        command
            .arg0(name)
            .args(arguments)
            .env_clear()
            .envs(&self.env)
            .stdin(Stdio::null());

        let (stdout, to_stdout) = output_pipe()?;
        let stderr = match output {
            Output::Joined => {
                let copy = to_stdout
                    .try_clone()
                    .map_err(|e| format!("cannot copy a pipe: {e}"))?;
                command.stderr(copy);
                None
            }
            Output::Separate => {
                let (stderr, to_stderr) = output_pipe()?;
                command.stderr(to_stderr);
                Some(stderr)
            }
        };
        command.stdout(to_stdout);

        let (failed_step, report_step) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|e| format!("cannot make a pipe: {e}"))?;
        self.prepare_child(&mut command, place, File::from(report_step))?;
        let child = command.spawn().map_err(|e| {
            // The parent's copy of the writing end is gone only with the command, but the
            // pipe does not block, and holds at most the one byte.
            let mut step = [0];
            let step = match File::from(failed_step).read(&mut step) {
                Ok(1) => Step::from_byte(step[0]),
                _ => Step::Exec,
            };
            self.explain(step, &path, &e)
        })?;
        // A process id is positive: the cast keeps it.
        let pid = Pid::from_raw(child.id() as i32).ok_or("the kernel gave process id 0")?;
        Ok(Spawned {
            pid,
            stdout,
            stderr,
            console: None,
        })
    }

    /// Arranges what is done in the child between fork and exec.
    fn prepare_child(
        &self,
        command: &mut Command,
        place: &Place<'_>,
        mut report: File,
    ) -> Result<(), String> {
        let procs = match (&self.cgroup, place) {
            (Some(cgroup), Place::Container(_)) => Some(cgroup.commands()),
            (Some(cgroup), _) => Some(cgroup.procs.try_clone()),
            (None, _) => None,
        };
        let procs = procs.transpose();
        let mut procs = procs.map_err(|e| format!("cannot open the service's cgroup: {e}"))?;
        let enter = place
            .enter()
            .map_err(|e| format!("cannot copy a file: {e}"))?;
        let workdir = self.workdir.clone();
        let ids = self.user.as_ref().map(|user| {
            let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            (groups, Gid::from_raw(user.gid), Uid::from_raw(user.uid))
        });
        let mut steps = move || -> Result<(), (Step, io::Error)> {
            if let Some(procs) = &mut procs {
                procs.write_all(b"0").map_err(|e| (Step::Cgroup, e))?;
            }
            rustix::process::setsid().map_err(|e| (Step::Session, e.into()))?;
            default_signals();
            enter.run().map_err(|e| (Step::Namespaces, e.into()))?;
            if let Some((groups, gid, uid)) = &ids {
                rustix::thread::set_thread_groups(groups).map_err(|e| (Step::User, e.into()))?;
                rustix::thread::set_thread_gid(*gid).map_err(|e| (Step::User, e.into()))?;
                rustix::thread::set_thread_uid(*uid).map_err(|e| (Step::User, e.into()))?;
            }
            rustix::process::chdir(&workdir).map_err(|e| (Step::Workdir, e.into()))
        };
        // SAFETY: the closure makes system calls only; it allocates nothing and takes no lock,
        // so it may run between fork and exec whatever other threads were doing.
        unsafe {
            command.pre_exec(move || {
                steps().map_err(|(step, error)| {
                    let _ = report.write_all(&[step as u8]);
                    error
                })
            });
        }
        Ok(())
    }

    /// Finds a program as execvp(3) would, but remembers why it could not be found.
    fn find_program(&self, name: &str) -> Result<PathBuf, String> {
        if name.contains('/') {
            return Ok(self.workdir.join(name));
        }
        let path = self.env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
        path.split(':')
            .map(|dir| self.workdir.join(dir).join(name))
            .find(|file| container::is_program(file))
            .ok_or_else(|| format!("program {name:?} is in no directory of PATH ({path})"))
    }

    fn explain(&self, step: Step, program: &Path, error: &io::Error) -> String {
        let program = program.display();
        let user = self.user.as_ref().map_or("", |user| &user.name);
        match step {
            Step::Cgroup => format!("{program}: cannot join the service's cgroup: {error}"),
            Step::Session => format!("{program}: cannot start a session: {error}"),
            Step::Namespaces => format!(
                "{program}: cannot make or enter its namespaces, with their file systems: {error}"
            ),
            Step::User => format!("{program}: cannot become user {user}: {error}"),
            Step::Workdir => format!(
                "{program}: cannot enter {} as user {user}: {error}",
                self.workdir.display()
            ),
            Step::Exec
                if error.kind() == io::ErrorKind::NotFound
                    && fs::exists(program.to_string()).is_ok_and(|y| y) =>
            {
                format!(
                    "cannot run {program}: its interpreter (the #! line, or the dynamic loader) is missing"
                )
            }
            Step::Exec => format!("cannot run {program}: {error}"),
        }
    }
}

/// The signal with this number.
fn signal(number: u8) -> Option<Signal> {
    // SAFETY: it is a signal of Linux, and none that the C library keeps to itself.
    smol_protocol::is_signal(number).then(|| unsafe { Signal::from_raw_unchecked(number.into()) })
}

/// Where a process writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// One pipe each for stdout and stderr.
    Separate,
    /// One pipe for both.
    Joined,
}

/// A started process.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id, also that of its session and process group.
    pub pid: Pid,
    /// Reads its stdout, or both; does not block.
    pub stdout: OwnedFd,
    /// Reads its stderr, unless joined; does not block.
    pub stderr: Option<OwnedFd>,
    /// The console of an init.
    pub(super) console: Option<Console>,
}

/// Where a process is started.
enum Place<'a> {
    /// In the namespaces of the machine.
    Machine,
    /// In new ones, as the init that they are for.
    NewContainer,
    /// In those of an init that runs.
    Container(&'a Namespaces),
}

impl Place<'_> {
    /// What the child does to get there, but for its PID namespace.
    fn enter(&self) -> io::Result<Enter> {
        Ok(match self {
            Place::Machine => Enter::Nothing,
            Place::NewContainer => Enter::Create,
            Place::Container(namespaces) => Enter::Existing(namespaces.rest()?),
        })
    }
}

/// [`Place::enter`]; makes system calls only.
enum Enter {
    Nothing,
    Create,
    Existing(container::Rest),
}

impl Enter {
    fn run(&self) -> rustix::io::Result<()> {
        match self {
            Enter::Nothing => Ok(()),
            Enter::Create => container::create(),
            Enter::Existing(rest) => rest.enter(),
        }
    }
}

/// Which init a service is, if it is one.
pub(super) fn container_kind(service: &Service) -> Option<Kind> {
    let path = service.env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    container::kind(service, path)
}

/// What the child was doing when it failed; a byte on the report pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Cgroup = 1,
    Session,
    Namespaces,
    User,
    Workdir,
    Exec,
}

impl Step {
    fn from_byte(byte: u8) -> Self {
        let steps = [
            Step::Cgroup,
            Step::Session,
            Step::Namespaces,
            Step::User,
            Step::Workdir,
        ];
        let mut steps = steps.into_iter();
        steps.find(|step| *step as u8 == byte).unwrap_or(Step::Exec)
    }
}

/// Our end does not block, the child's does as programs expect.
fn output_pipe() -> Result<(OwnedFd, OwnedFd), String> {
    let make = || -> io::Result<_> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(ours.as_fd(), true)?;
        Ok((ours, theirs))
    };
    make().map_err(|e| format!("cannot make a pipe: {e}"))
}

/// Undoes what the init did to its own signals: exec keeps ignored and blocked ones.
fn default_signals() {
    // SAFETY: both calls only touch the calling process's signal state; SIGKILL and SIGSTOP
    // are refused by the kernel, harmlessly. They are async-signal-safe (signal-safety(7)).
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A world for tests: this very user and cgroup.
    pub(crate) fn here() -> World {
        let env = BTreeMap::from([("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
        World {
            user: None,
            env,
            workdir: "/".into(),
            stop_signal: None,
            container: None,
            cgroup: None,
        }
    }

    fn words(cmd: &[&str]) -> Vec<String> {
        cmd.iter().map(|w| (*w).to_owned()).collect()
    }

    fn why(world: &World, cmd: &[&str]) -> String {
        world
            .spawn(&words(cmd), Output::Joined)
            .map(|s| s.pid)
            .unwrap_err()
    }

    #[test]
    fn signals_are_those_that_a_process_can_be_sent() {
        assert_eq!(signal(3), Some(Signal::QUIT));
        let real_time = signal(37).map(Signal::as_raw);
        assert_eq!(real_time, Some(libc::SIGRTMIN() + 3));
        assert_eq!([0, 32, 33, 65].map(signal), [None; 4]);
    }

    #[test]
    fn a_program_that_is_nowhere_is_named_with_the_path_that_was_searched() {
        let why = why(&here(), &["no-such-program"]);
        assert!(
            why.contains("\"no-such-program\"") && why.contains("/usr/local/sbin"),
            "{why}"
        );
    }

    #[test]
    fn a_file_that_cannot_be_run_is_named_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("data");
        fs::write(&file, "no program").unwrap();
        let why_denied = why(&here(), &[file.to_str().unwrap()]);
        assert!(
            why_denied.contains("data: Permission denied"),
            "{why_denied}"
        );
        fs::write(&file, "#!/no/such/interpreter\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        let why_missing = why(&here(), &[file.to_str().unwrap()]);
        assert!(why_missing.contains("interpreter"), "{why_missing}");
        let why_absent = why(&here(), &["/no/such/file"]);
        assert!(
            why_absent.contains("cannot run /no/such/file: No such file"),
            "{why_absent}"
        );
    }

    #[test]
    fn a_missing_working_directory_is_not_mistaken_for_a_missing_program() {
        let world = World {
            workdir: "/no/such/dir".into(),
            ..here()
        };
        let why = why(&world, &["true"]);
        assert!(why.contains("cannot enter /no/such/dir"), "{why}");
    }

    #[test]
    fn a_process_starts_with_default_signals_its_environment_and_a_session() {
        let mut world = here();
        world.env.insert("COLOUR".into(), "blue".into());
        let script =
            "grep -E '^Sig(Blk|Ign)' /proc/self/status; echo $COLOUR; ps -o sid= -p $$; echo $$";
        let spawned = world
            .spawn(&words(&["sh", "-c", script]), Output::Joined)
            .unwrap();
        rustix::process::waitpid(Some(spawned.pid), rustix::process::WaitOptions::empty()).unwrap();
        let mut text = String::new();
        File::from(spawned.stdout)
            .read_to_string(&mut text)
            .unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        let pid = spawned.pid.as_raw_nonzero().to_string();
        assert_eq!(words[..3], ["SigBlk:", "0000000000000000", "SigIgn:"]);
        // Signals 32 and 33 are glibc's own: whoever runs the tests may have ignored them.
        assert_eq!(
            u64::from_str_radix(words[3], 16).unwrap() & !(0b11 << 31),
            0
        );
        assert_eq!(words[4..], ["blue", &pid, &pid]);
    }
}
