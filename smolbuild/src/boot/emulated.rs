//! Runs a [`BootJob`] inside an emulated host: the same program, with the job's files shared.
//!
//! The inner program prints its messages as JSON lines on stdout and leaves the results in the
//! job's folder, which both sides see under the same name.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use smol_cli::Interrupt;
use smol_host::emulated::{EmulatedHost, Event, JobStatus, RunningHost, SELF};

use super::process::{self, MAX_OUTPUT, Messages};
use super::{BootJob, GRACE, Message, uplink};
use crate::error::{LibraryError, ResultExt};

/// Where the inner program sees the results folder and the images.
const OUT: &str = "/job/out";

/// Boots the job in an emulated host. As [`super::local::run`] otherwise.
///
/// # Errors
/// When there is no emulated host to be had, with the command that fixes it.
pub fn run(
    job: &BootJob,
    cache: &Path,
    interrupt: &Interrupt,
    network: Option<UnixStream>,
    mut report: impl FnMut(Message),
) -> Result<()> {
    let (inner, mut host) = translate(job, EmulatedHost::new(cache).sandbox(job.sandbox))?;
    let file = process::write_job(&inner, &job.out)?;
    let guest_mib = u32::try_from(job.memory >> 20).context("guest memory")?;
    host = host.memory(guest_mib).share(&job.out, OUT, false).job([
        SELF,
        process::COMMAND,
        &format!("{OUT}/{}", process::JOB_FILE),
    ]);
    let mut running = host.spawn().classify()?;
    running.controller().stop_on(interrupt.clone(), GRACE);
    let network = match network {
        Some(guest) => Some(uplink::into_emulated_host(guest, running.controller())?),
        None => None,
    };
    let (status, stderr) = follow(&mut running, network, interrupt, &mut report)?;
    // From here on nobody writes to the results any more.
    drop(running);
    let _ = std::fs::remove_file(file);
    process::require_files(&job.out)?;
    if status.shell_code() == 0 {
        return Ok(());
    }
    interrupt.check()?;
    Err(process::died(
        &format!(
            "the build inside the emulated host failed (exit {})",
            status.shell_code()
        ),
        &stderr,
    ))
}

/// Passes the inner program's messages on, and the packets of its guest, up to its end. Returns how it
/// ended, and what it said on stderr.
fn follow(
    running: &mut RunningHost,
    mut network: Option<UnixStream>,
    interrupt: &Interrupt,
    report: &mut impl FnMut(Message),
) -> Result<(JobStatus, Vec<u8>)> {
    let mut messages = Messages::default();
    let mut stderr = Vec::new();
    loop {
        let event = running.next_event().map_err(|error| {
            // An emulated host that was stopped by the user ends in an error, too.
            let stopped = interrupt.check().err().map(anyhow::Error::from);
            stopped.unwrap_or_else(|| error.classified())
        })?;
        match event {
            Event::Stdout(bytes) => {
                messages
                    .push(&bytes)
                    .into_iter()
                    .try_for_each(|message| process::deliver(message?, report))?;
            }
            Event::Stderr(bytes) => {
                let left = MAX_OUTPUT.saturating_sub(stderr.len());
                stderr.extend(&bytes[..bytes.len().min(left)]);
            }
            Event::Channel(bytes) => {
                // Once the network is gone, the guest is told by the end of its stream.
                if let Some(socket) = &mut network
                    && socket.write_all(&bytes).is_err()
                {
                    network = None;
                }
            }
            Event::Started => {}
            Event::Exited(status) => return Ok((status, stderr)),
        }
    }
}

/// The job as the inner program sees it. Every image gets its folder shared read-only.
fn translate(job: &BootJob, mut host: EmulatedHost) -> Result<(BootJob, EmulatedHost)> {
    let mut count = 0;
    let mut share = |path: &PathBuf| -> Result<PathBuf> {
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot find {}", path.display()))?;
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            bail!("{} is not a file", path.display());
        };
        let target = format!("/job/in{count}");
        count += 1;
        host = host.clone().share(folder, target.clone(), true);
        Ok(Path::new(&target).join(name))
    };
    let inner = BootJob {
        kernel: share(&job.kernel)?,
        initramfs: job.initramfs.as_ref().map(&mut share).transpose()?,
        rootfs: job.rootfs.as_ref().map(&mut share).transpose()?,
        out: OUT.into(),
        ..job.clone()
    };
    Ok((inner, host))
}
