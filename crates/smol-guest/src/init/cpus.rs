//! More CPUs than at build time: brought online one by one after a restore.

use std::fs;
use std::io;

/// Brings CPUs online until there are so many in all; the ones that fail are told.
pub(super) fn bring_online(total: u8) -> Vec<String> {
    (1..total)
        .filter_map(|cpu| {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
            match online(&path) {
                Ok(()) => None,
                Err(e) => Some(format!("CPU {cpu} does not come online: {path}: {e}")),
            }
        })
        .collect()
}

fn online(path: &str) -> io::Result<()> {
    if fs::read_to_string(path)?.trim_end() == "1" {
        return Ok(());
    }
    fs::write(path, "1")
}
