//! Runs a [`BootJob`] inside an emulated host: the same program, with the job's files shared.
//!
//! The inner program prints its messages as JSON lines on stdout and leaves the results in the
//! job's folder, which both sides see under the same name.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use smol_cli::Interrupt;
use smol_host::emulated::{EmulatedHost, Event, SELF};

use super::{BootJob, Message, local};
use crate::error::{LibraryError, ResultExt};

/// Name of the hidden command that the inner program is started with.
pub const INNER_COMMAND: &str = "boot-job";
/// BootJob description in the job's folder.
const JOB_FILE: &str = "job.json";
/// Where the inner program sees the results folder and the images.
const OUT: &str = "/job/out";
/// After an interrupt the inner program has this long to come to its end by itself.
const GRACE: Duration = Duration::from_secs(3);
/// Most bytes of a message of the inner program, and of its last words.
const MAX_OUTPUT: usize = 1 << 20;

/// Boots the job in an emulated host. As [`local::run`] otherwise.
///
/// # Errors
/// When there is no emulated host to be had, with the command that fixes it.
pub fn run(
    job: &BootJob,
    cache: &Path,
    interrupt: &Interrupt,
    mut report: impl FnMut(Message),
) -> Result<()> {
    let (inner, mut host) = translate(job, EmulatedHost::new(cache))?;
    let text = serde_json::to_vec(&inner)?;
    std::fs::write(job.out.join(JOB_FILE), text).context("cannot write the job description")?;
    let guest_mib = u32::try_from(job.memory >> 20).context("guest memory")?;
    host = host.memory(guest_mib).share(&job.out, OUT, false).job([
        SELF,
        INNER_COMMAND,
        "/job/out/job.json",
    ]);
    let mut running = host.spawn().classify()?;
    running.controller().stop_on(interrupt.clone(), GRACE);

    let mut stdout = Vec::new();
    let mut stderr = Vec::new();
    let status = loop {
        let event = running.next_event().map_err(|error| {
            // An emulated host that was stopped by the user ends in an error, too.
            let stopped = interrupt.check().err().map(anyhow::Error::from);
            stopped.unwrap_or_else(|| error.classified())
        })?;
        match event {
            Event::Stdout(bytes) => {
                stdout.extend(bytes);
                ensure!(
                    stdout.len() <= MAX_OUTPUT,
                    "the emulated host sent too long a message"
                );
                for message in complete_lines(&mut stdout)? {
                    report(message);
                }
            }
            Event::Stderr(bytes) => {
                let left = MAX_OUTPUT.saturating_sub(stderr.len());
                stderr.extend(&bytes[..bytes.len().min(left)]);
            }
            Event::Started | Event::Channel(_) => {}
            Event::Exited(status) => break status,
        }
    };
    // From here on nobody writes to the results any more.
    drop(running);
    let _ = std::fs::remove_file(job.out.join(JOB_FILE));
    require_files(&job.out)?;
    if status.shell_code() != 0 {
        interrupt.check()?;
        let words = String::from_utf8_lossy(&stderr);
        bail!(
            "the build inside the emulated host failed (exit {}): {}",
            status.shell_code(),
            words.trim()
        );
    }
    Ok(())
}

/// Checks that the results are files of their own: what happens in the emulated host must not decide
/// which files of this one become parts of a bundle.
fn require_files(out: &Path) -> Result<()> {
    let cannot = || format!("cannot read {}", out.display());
    for entry in std::fs::read_dir(out).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        let found = entry.metadata().with_context(cannot)?;
        ensure!(
            found.is_file() && found.nlink() == 1,
            "the emulated host left something else than a file of its own: {}",
            entry.file_name().display()
        );
    }
    Ok(())
}

/// The inner side: runs the job that `file` describes and prints its messages.
///
/// # Errors
/// As [`local::run`].
pub fn inner(file: &Path, interrupt: &Interrupt) -> Result<()> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let job: BootJob = serde_json::from_slice(&text).context("the job description")?;
    local::run(&job, interrupt, |message| {
        let line = serde_json::to_string(&message).expect("messages serialise");
        println!("{line}");
    })
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

fn complete_lines(buffer: &mut Vec<u8>) -> Result<Vec<Message>> {
    let Some(end) = buffer.iter().rposition(|b| *b == b'\n') else {
        return Ok(Vec::new());
    };
    let lines: Vec<u8> = buffer.drain(..=end).collect();
    lines
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| {
            serde_json::from_slice(l).with_context(|| {
                format!(
                    "message of the emulated host: {}",
                    String::from_utf8_lossy(l)
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn results_that_are_links_or_no_files_are_not_taken() {
        let scratch = tempfile::tempdir().unwrap();
        let (secret, out) = (scratch.path().join("secret"), scratch.path().join("out"));
        fs::write(&secret, "secret").unwrap();
        let make: [fn(&Path, &Path); 3] = [
            |secret, place| symlink(secret, place).unwrap(),
            |secret, place| fs::hard_link(secret, place).unwrap(),
            |_, place| fs::create_dir(place).unwrap(),
        ];
        for make in make {
            fs::create_dir(&out).unwrap();
            fs::write(out.join("state"), "{}").unwrap();
            require_files(&out).unwrap();
            make(&secret, &out.join("memory"));
            let error = require_files(&out).unwrap_err().to_string();
            assert!(error.ends_with("a file of its own: memory"), "{error}");
            fs::remove_dir_all(&out).unwrap();
        }
    }
}
