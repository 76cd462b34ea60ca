//! A deliberate hole, for tests of the confinement (feature `backdoor`, in no other build): what a
//! guest prints commands the process that runs it, as a guest would that has broken out of its machine.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

/// How a command begins.
const MARK: &str = "backdoor ";

/// Makes the attempt that the line commands, and returns what it was and how it ended: `done`, or the
/// error. `None` for all other lines.
pub fn obey(line: &str) -> Option<String> {
    let command = line.trim().strip_prefix(MARK)?;
    let (what, argument) = command.split_once(' ').unwrap_or((command, ""));
    let outcome = match attempt(what, argument) {
        Ok(()) => "done".to_owned(),
        Err(error) => error.to_string(),
    };
    Some(format!("{what}: {outcome}"))
}

fn attempt(what: &str, argument: &str) -> io::Result<()> {
    let number = || argument.parse().map_err(io::Error::other);
    match what {
        "read" => fs::read(argument).map(drop),
        "write" => fs::write(argument, "x"),
        "execute" => Command::new(argument).status().map(drop),
        "connect" => TcpStream::connect(argument).map(drop),
        "listen" => TcpListener::bind(argument).map(drop),
        "signal" => {
            let process = Pid::from_raw(number()?).ok_or(io::ErrorKind::NotFound)?;
            Ok(kill_process(process, Signal::URG)?)
        }
        // What ptrace(2) may do; opening it is checked as a PTRACE_ATTACH is.
        "trace" => {
            let maps = fs::read_to_string(format!("/proc/{argument}/maps"))?;
            let address = maps.split('-').next().unwrap_or_default();
            let address = u64::from_str_radix(address, 16).map_err(io::Error::other)?;
            let mut memory = File::open(format!("/proc/{argument}/mem"))?;
            memory.seek(SeekFrom::Start(address))?;
            memory.read_exact(&mut [0; 16])
        }
        other => Err(io::Error::other(format!("no such attempt: {other}"))),
    }
}
