//! `smolrun logs`.

#![expect(clippy::disallowed_methods, reason = "the service's output, as it is")]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::SeekFrom as SeekTo;

use crate::host::instance;

/// How often a followed log is read.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Prints the log of a machine, running or ended; with `follow`, until the machine ends.
///
/// # Errors
/// If there is no such machine, or its log cannot be read.
pub fn logs(name: &str, follow: bool) -> anyhow::Result<ExitCode> {
    let root = instance::root()?;
    let record = instance::find(&root, name)?;
    let mut log = instance::open_log(&root, &record.name)?;
    // A log without a name is that of a machine that has ended and is removed.
    let follows =
        |log: &File| Ok(follow && log.metadata()?.nlink() > 0 && instance::runs(&root, &record));
    let printed = show(&mut log, follows, &mut io::stdout().lock());
    match printed {
        // The reader has closed the pipe.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        other => other.with_context(|| format!("cannot print the log of {name}"))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Copies the log as long as it is to be followed.
fn show(
    log: &mut File,
    follows: impl Fn(&File) -> io::Result<bool>,
    out: &mut impl Write,
) -> io::Result<()> {
    skip_hole(log)?;
    loop {
        // Checked before the copy, so that all that was written before the end is copied.
        let goes_on = follows(log)?;
        io::copy(log, out)?;
        out.flush()?;
        if !goes_on {
            return Ok(());
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// The beginning of a long log is a hole (see [`crate::run::output::Log`]): skips it, and the rest
/// of the line behind it.
fn skip_hole(log: &mut File) -> io::Result<()> {
    match rustix::fs::seek(&*log, SeekTo::Data(0)) {
        Ok(0) => return Ok(()),
        Ok(_) => {}
        // All of it is a hole, or the file system has no holes.
        Err(rustix::io::Errno::NXIO | rustix::io::Errno::INVAL) => {
            log.rewind()?;
            return Ok(());
        }
        Err(e) => return Err(e.into()),
    }
    let mut buffer = [0; 4096];
    loop {
        let n = log.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        if let Some(end) = buffer[..n].iter().position(|b| *b == b'\n') {
            // At most 4096, both.
            log.seek(SeekFrom::Current(end as i64 + 1 - n as i64))?;
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FallocateFlags, fallocate};

    #[test]
    fn a_short_log_is_shown_whole() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"one\ntwo").unwrap();
        let mut shown = Vec::new();
        show(&mut file, |_| Ok(false), &mut shown).unwrap();
        assert_eq!(shown, b"one\ntwo");
    }

    #[test]
    fn a_log_with_a_hole_begins_with_the_first_whole_line_behind_it() {
        let mut file = tempfile::tempfile().unwrap();
        let lines: String = (0..2000).map(|n| format!("line {n}\n")).collect();
        file.write_all(lines.as_bytes()).unwrap();
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, how, 0, 8192).unwrap();
        let mut shown = Vec::new();
        show(&mut file, |_| Ok(false), &mut shown).unwrap();
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown.starts_with("line ") && shown.ends_with("line 1999\n"));
        assert!(shown.len() > 4000 && shown.len() <= lines.len() - 8192);
    }

    #[test]
    fn following_ends_with_the_machine_and_misses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = File::create(&path).unwrap();
        let mut log = File::open(&path).unwrap();
        let end = path.clone();
        let reader = thread::spawn(move || {
            let mut shown = Vec::new();
            let runs = |_: &File| Ok(path.exists());
            show(&mut log, runs, &mut shown).unwrap();
            shown
        });
        for _ in 0..3 {
            writer.write_all(b"line\n").unwrap();
            thread::sleep(Duration::from_millis(60));
        }
        std::fs::remove_file(&end).unwrap();
        assert_eq!(reader.join().unwrap(), b"line\nline\nline\n");
    }
}
