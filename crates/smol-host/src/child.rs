//! Child processes, and how their lives are tied to this program's.
//!
//! | the child | by |
//! |---|---|
//! | is killed when this program ends, even by SIGKILL | [`kill_with_parent`] |
//! | the same, with all that it starts | [`guarded`] |
//! | is killed with its process group when an operation is given up | [`ProcessGroup`] |
//! | is killed when this program ends, not when the thread that starts it does | [`spawn_on_keeper`] |
//! | lives on without this program | [`in_new_session`] |
//! | inherits descriptors | [`inherit`] |

use std::ffi::OsStr;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, kill_process_group, pidfd_open,
    set_parent_process_death_signal, setsid,
};

/// Has the kernel kill the child (SIGKILL) when the *thread* that spawns it ends. Use it where that
/// thread waits for the child, else [`spawn_on_keeper`].
///
/// The signal reaches the child only: what the child itself has started lives on, unless it ends
/// when the child does. It is lost if the child is a set-user-ID program.
pub fn kill_with_parent(command: &mut Command) -> &mut Command {
    kill_with(command, Some(getpid()))
}

fn kill_with(command: &mut Command, parent: Option<Pid>) -> &mut Command {
    let ask = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // A parent that ended before that call sends no signal; then there is a new parent already.
        match getppid() == parent {
            true => Ok(()),
            false => Err(Errno::SRCH.into()),
        }
    };
    // SAFETY: between fork and exec only prctl(2) and getppid(2) are called, which are
    // async-signal-safe; nothing is allocated, and no memory of other threads is touched.
    unsafe { command.pre_exec(ask) }
}

/// Keeps these descriptors open in the child. They must be open until it is spawned.
pub fn inherit(command: &mut Command, descriptors: &[RawFd]) {
    let descriptors = descriptors.to_vec();
    let keep = move || {
        for &fd in &descriptors {
            // SAFETY: F_SETFD on a descriptor's number changes a table of this process and no memory.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec only fcntl(2) is called, which is async-signal-safe; nothing is
    // allocated or freed.
    unsafe { command.pre_exec(keep) };
}

/// Gives the child a session of its own: it has no terminal, and no signal from there ends it.
pub fn in_new_session(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only setsid(2) is called, which is async-signal-safe and touches
    // no memory.
    unsafe { command.pre_exec(|| Ok(setsid().map(drop)?)) }
}

// ---- A child with its descendants --------------------------------------------------------------

/// Runs its arguments as a command, with a watcher beside it that reads from stdin, a pipe of which
/// the parent holds the other end. When the parent ends, the kernel closes the pipe, and the watcher
/// kills the process group. The pipe is moved to descriptor 3, because a shell gives its background
/// commands /dev/null as stdin.
const GUARD: &str = r#"
exec 3<&0
{ read -r _; kill -s KILL 0; } <&3 >/dev/null 2>&1 &
"$@" 3<&- </dev/null
status=$?
kill $! && wait $! 2>/dev/null
exit $status"#;

/// A command to be spawned as a [`ProcessGroup`], which is killed with all that it has started when this
/// program ends. (A parent death signal would reach the child only: a `make` that is killed leaves
/// its sub-makes at work for minutes.) Arguments, environment and folder can be added; its stdin is
/// empty.
pub fn guarded(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", GUARD, "sh"])
        .arg(program)
        .stdin(Stdio::piped())
        // The watcher kills the group that it is in.
        .process_group(0);
    command
}

/// A child that leads a process group of its own. Dropped before the child has been waited for, it
/// kills the group.
#[derive(Debug)]
pub struct ProcessGroup {
    leader: Child,
    /// Kept apart from the child: [`Child::wait`] closes its stdin, which ends a [`guarded`] command.
    _stdin: Option<ChildStdin>,
}

impl ProcessGroup {
    /// Spawns the command as the leader of a new group.
    ///
    /// # Errors
    /// Those of [`Command::spawn`].
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut leader = command.process_group(0).spawn()?;
        let stdin = leader.stdin.take();
        Ok(Self {
            leader,
            _stdin: stdin,
        })
    }

    /// Takes the pipe from the leader's stdout, if there is one.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.leader.stdout.take()
    }

    /// Takes the pipe from the leader's stderr, if there is one.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.leader.stderr.take()
    }

    /// Sends SIGTERM to the leader, unless it has been waited for.
    pub fn terminate(&self) {
        if let Some(leader) = Pid::from_raw(self.leader.id().cast_signed()) {
            let _ = rustix::process::kill_process(leader, Signal::TERM);
        }
    }

    /// Waits for the leader's end.
    ///
    /// # Errors
    /// Those of waitpid(2).
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.leader.wait()
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // As long as the leader was not waited for, no other process has its number.
        if let Ok(None) = self.leader.try_wait() {
            if let Some(group) = Pid::from_raw(self.leader.id().cast_signed()) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = self.leader.wait();
        }
    }
}

// ---- A child on a thread of its own ------------------------------------------------------------

/// A child that [`spawn_on_keeper`] has spawned.
#[derive(Debug)]
pub struct Kept {
    /// Its pidfd: readable when it has ended.
    pub process: OwnedFd,
    /// Receives how it ended.
    pub ended: mpsc::Receiver<ExitStatus>,
}

/// Spawns `command` with [`kill_with_parent`] on a thread that lives as long as the child and waits
/// for it. Before that, `confine` restricts the thread, and with it the child. `keep` is dropped once
/// the child has been spawned.
///
/// # Errors
/// Those of [`Command::spawn`], of starting a thread, and of `confine`.
pub fn spawn_on_keeper(
    name: &str,
    mut command: Command,
    confine: impl FnOnce() -> io::Result<()> + Send + 'static,
    keep: impl Send + 'static,
) -> io::Result<Kept> {
    kill_with_parent(&mut command);
    let (send_process, process) = mpsc::channel();
    let (send_status, ended) = mpsc::channel();
    let keeper = move || {
        let spawned = confine().and_then(|()| command.spawn());
        let spawned = spawned.and_then(|child| {
            let pid = Pid::from_raw(child.id().cast_signed()).ok_or(io::ErrorKind::NotFound)?;
            Ok((child, pidfd_open(pid, PidfdFlags::empty())?))
        });
        // The command holds copies of the files that are the child's output.
        drop((command, keep));
        match spawned {
            Ok((mut child, process)) => {
                let _ = send_process.send(Ok(process));
                if let Ok(status) = child.wait() {
                    let _ = send_status.send(status);
                }
            }
            Err(error) => drop(send_process.send(Err(error))),
        }
    };
    thread::Builder::new().name(name.into()).spawn(keeper)?;
    let process = process
        .recv()
        .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
    Ok(Kept { process, ended })
}

#[cfg(test)]
mod tests {
    use smol_testing::{ends, runs};
    use std::io::{BufRead, BufReader, Read};

    use super::*;

    /// Tells [`a_parent`] how to start its child.
    const HOW: &str = "CHILD_TEST_HOW";
    /// A script that prints the number of a process that it has started, and waits for it.
    const GRANDCHILD: &str = "sleep 600 & echo $!; wait";

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn guarded_shell(script: &str) -> Command {
        let mut command = guarded("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn first_line(from: impl Read) -> String {
        let mut lines = BufReader::new(from).lines();
        lines.next().expect("a line").unwrap()
    }

    fn pid(text: &str) -> u32 {
        text.trim().parse().unwrap()
    }

    /// Starts a child, prints the number of the process that is to end, and hangs.
    #[test]
    #[ignore = "run by another test"]
    fn a_parent() {
        let how = std::env::var(HOW).unwrap();
        let piped = |mut command: Command| {
            command.stdout(Stdio::piped());
            command
        };
        match how.as_str() {
            "alone" => {
                let mut command = piped(shell("echo $$; exec sleep 600"));
                let mut group = ProcessGroup::spawn(kill_with_parent(&mut command)).unwrap();
                println!("\npid {}", first_line(group.take_stdout().unwrap()));
                std::mem::forget(group);
            }
            "guarded" => {
                let mut group = ProcessGroup::spawn(&mut piped(guarded_shell(GRANDCHILD))).unwrap();
                println!("\npid {}", first_line(group.take_stdout().unwrap()));
                std::mem::forget(group);
            }
            "kept" => {
                let (read, write) = io::pipe().unwrap();
                let mut command = shell("echo $$; exec sleep 600");
                command.stdout(write);
                let kept = spawn_on_keeper("keeper", command, || Ok(()), ()).unwrap();
                println!("\npid {}", first_line(read));
                std::mem::forget(kept);
            }
            other => panic!("{other}"),
        }
        thread::sleep(smol_testing::LIMIT);
    }

    #[test]
    fn no_child_outlives_a_parent_that_is_killed() {
        for how in ["alone", "guarded", "kept"] {
            let mut parent = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "child::tests::a_parent",
                    "--ignored",
                    "--nocapture",
                ])
                .env(HOW, how)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
            let mut numbers =
                lines.filter_map(|line| Some(pid(line.unwrap().strip_prefix("pid ")?)));
            let child = numbers.next().expect("it tells");
            assert!(runs(child), "{how}");
            parent.kill().unwrap(); // SIGKILL
            parent.wait().unwrap();
            assert!(ends(child), "{how}");
        }
    }

    #[test]
    fn a_child_whose_parent_has_ended_already_is_not_started() {
        let mut command = shell("exit 0");
        // The child's parent is this process, and not its parent.
        kill_with(&mut command, getppid());
        let error = command.status().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::SRCH.raw_os_error()));
    }

    #[test]
    fn a_group_that_is_dropped_ends_with_its_descendants() {
        for mut command in [shell(GRANDCHILD), guarded_shell(GRANDCHILD)] {
            let mut group = ProcessGroup::spawn(command.stdout(Stdio::piped())).unwrap();
            let grandchild = pid(&first_line(group.take_stdout().unwrap()));
            assert!(runs(grandchild));
            drop(group);
            assert!(ends(grandchild));
        }
    }

    #[test]
    fn a_guarded_command_has_an_empty_stdin_and_its_status_comes_through() {
        let mut command = guarded_shell("cat; exit 7");
        let mut group = ProcessGroup::spawn(&mut command).unwrap();
        assert_eq!(group.wait().unwrap().code(), Some(7));
    }

    #[test]
    fn the_end_of_a_kept_child_is_told() {
        let free = || Ok(());
        let kept = spawn_on_keeper("keeper", shell("exit 3"), free, ()).unwrap();
        assert_eq!(kept.ended.recv().unwrap().code(), Some(3));
        assert!(spawn_on_keeper("keeper", Command::new("/no/such/program"), free, ()).is_err());
    }

    #[test]
    fn a_kept_child_that_cannot_be_confined_is_not_started() {
        let dir = tempfile::tempdir().unwrap();
        let started = dir.path().join("started");
        let command = shell(&format!("touch {}", started.display()));
        let refuse = || Err(io::Error::other("no"));
        let error = spawn_on_keeper("keeper", command, refuse, ()).unwrap_err();
        assert_eq!(error.to_string(), "no");
        assert!(!started.exists());
    }

    #[test]
    fn an_inherited_descriptor_is_open_in_the_child_and_no_other_is() {
        use std::os::fd::AsRawFd;
        let (read, _write) = io::pipe().unwrap();
        let fd = read.as_raw_fd();
        let there = format!("test -e /proc/self/fd/{fd}");
        assert!(!shell(&there).status().unwrap().success());
        let mut command = shell(&there);
        inherit(&mut command, &[fd]);
        assert!(command.status().unwrap().success());
    }

    #[test]
    fn a_child_in_a_new_session_leads_it() {
        let mut command = shell("cut -d' ' -f6 /proc/$$/stat; echo $$");
        let output = in_new_session(&mut command).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let numbers: Vec<&str> = text.lines().collect();
        assert_eq!(numbers[0], numbers[1], "session and process");
    }
}
