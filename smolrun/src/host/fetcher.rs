//! The kernel of the emulated host, for a smolrun that has given up the network.
//!
//! Only once a bundle is trusted it is known that the kernel is needed, and by then this process must
//! not download anything any more ([`crate::host::confine`]). So where the kernel is not in the cache,
//! a process is started before, which waits for the word and then downloads it.

use std::io::{self, Read, Write};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::Context as _;
use smol_cli::{Failure, paths};
use smol_host::child;
use smol_host::emulated::kernel::HostKernel;

use crate::host::messages::{Message, failure};

/// Name of the hidden command that the process is started with.
pub const COMMAND: &str = "internal-fetch-kernel";

/// A process that can download the kernel. It ends with this one.
pub struct Fetcher(Child);

impl Fetcher {
    /// Starts one, if the kernel is not in the cache.
    ///
    /// # Errors
    /// If there can be no process.
    pub fn if_needed() -> anyhow::Result<Option<Self>> {
        if HostKernel::cached(&paths::cache_dir()?).is_some() {
            return Ok(None);
        }
        let mut command = Command::new("/proc/self/exe");
        command
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let spawned = child::kill_with_parent(&mut command).spawn();
        let child = spawned.context("cannot start the process that downloads a kernel")?;
        Ok(Some(Self(child)))
    }

    /// Has the kernel downloaded.
    ///
    /// # Errors
    /// Those of [`HostKernel::obtain`].
    pub fn fetch(mut self) -> anyhow::Result<()> {
        let what = "the process that downloads a kernel has died";
        // Dropped at once: one byte is the word, and nothing follows.
        let mut input = self.0.stdin.take().context(what)?;
        input.write_all(b"!").context(what)?;
        drop(input);
        let mut answer = Vec::new();
        let mut output = self.0.stdout.take().context(what)?;
        output.read_to_end(&mut answer).context(what)?;
        match serde_json::from_slice(&answer).context(what)? {
            Message::Failed(code, report) => Err(failure(code, report)),
            _ => Ok(()),
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        // Without the word it ends.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Waits for the word, and downloads the kernel: the process itself.
///
/// # Errors
/// If nobody waits for it.
pub fn main() -> anyhow::Result<ExitCode> {
    if io::stdin().read(&mut [0]).unwrap_or(0) == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let outcome = HostKernel::obtain(&paths::cache_dir()?);
    smol_cli::print_json_line(&match outcome {
        Ok(_) => Message::Ended(Some(0)),
        Err(error) => Message::failed(&Failure::from(error).into()),
    })?;
    Ok(ExitCode::SUCCESS)
}
