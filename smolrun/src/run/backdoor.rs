//! A deliberate hole, for a test (feature `backdoor`, in no other build): what the guest prints on a
//! console commands the monitor, as a guest would that has broken out of its machine.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process};

/// How a command begins; it ends with the line.
const MARK: &str = "backdoor ";

/// Does what the guest prints, once a line is complete.
pub fn obey(bytes: &[u8]) {
    static LINE: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    let mut line = LINE.lock().unwrap_or_else(PoisonError::into_inner);
    for &byte in bytes {
        if byte != b'\n' {
            line.push(byte);
            continue;
        }
        let text = String::from_utf8_lossy(&std::mem::take(&mut *line)).into_owned();
        let Some(command) = text.trim().strip_prefix(MARK) else {
            continue;
        };
        let (what, argument) = command.split_once(' ').unwrap_or((command, ""));
        let outcome = match attempt(what, argument) {
            Ok(()) => "done".to_owned(),
            Err(error) => error.to_string(),
        };
        let _ = smol_cli::print(&format!("{what}: {outcome}\n"));
    }
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
