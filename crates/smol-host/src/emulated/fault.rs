//! What is kept of an emulated host that died or hung by itself, for whoever looks into it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Folder of the reports in the cache.
pub const FOLDER: &str = crate::cache::HOST_FAULTS;
/// Reports that are kept; of more, the oldest go.
const MAX_REPORTS: usize = 8;
/// Bytes of a log's end that are kept.
const MAX_LOG_BYTES: usize = 1 << 20;

/// Writes a report into the cache, and returns where it is: what was seen, QEMU's output, and the console
/// of the emulated host.
///
/// # Errors
/// Those of the file system.
pub(super) fn keep(cache: &Path, what: &str, qemu: &str, console: &str) -> io::Result<PathBuf> {
    let folder = cache.join(FOLDER);
    smol_cli::paths::create_in_cache(&folder)?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    // By their names they are in the order of their times.
    let name = format!("{:020}-{}.txt", now.as_nanos(), std::process::id());
    let path = folder.join(name);
    let mut file = File::create_new(&path)?;
    write!(file, "{what}\n\n== QEMU ==\n{}", end(qemu))?;
    write!(file, "\n\n== console ==\n{}\n", end(console))?;
    // Another program may be at the same.
    let _ = remove_oldest(&folder);
    Ok(path)
}

fn remove_oldest(folder: &Path) -> io::Result<()> {
    let mut reports: Vec<_> = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    reports.sort();
    let many = reports.len().saturating_sub(MAX_REPORTS);
    reports.iter().take(many).try_for_each(fs::remove_file)
}

fn end(text: &str) -> &str {
    let from = text.len().saturating_sub(MAX_LOG_BYTES);
    &text[text.ceil_char_boundary(from)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reports_are_kept_with_all_that_was_said() {
        let cache = tempfile::tempdir().unwrap();
        let said = |n| keep(cache.path(), &format!("fault {n}"), "qemu's", "console's").unwrap();
        let paths: Vec<PathBuf> = (0..MAX_REPORTS + 2).map(said).collect();
        assert!(!paths[0].exists() && !paths[1].exists());
        assert!(paths[2..].iter().all(|path| path.exists()));
        let text = fs::read_to_string(&paths[9]).unwrap();
        assert!(text.starts_with("fault 9\n"), "{text}");
        assert!(text.contains("qemu's") && text.contains("console's"));
    }

    #[test]
    fn of_a_long_log_the_end_is_kept() {
        let log = format!("{}the end", "ß".repeat(MAX_LOG_BYTES));
        assert!(end(&log).len() <= MAX_LOG_BYTES && end(&log).ends_with("the end"));
        assert_eq!(end("short"), "short");
    }
}
