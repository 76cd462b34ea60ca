//! The init's own messages: terse lines on the kernel's console.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::OnceLock;

static CONSOLE: OnceLock<File> = OnceLock::new();

/// Opens the console for [`say!`]. Without one, messages go to the kernel's log.
pub(super) fn open(path: &Path) {
    let open = |path: &Path| OpenOptions::new().write(true).open(path);
    if let Ok(file) = open(path).or_else(|_| open(Path::new("/dev/kmsg"))) {
        // A second call changes nothing: the first console stays.
        let _ = CONSOLE.set(file);
    }
}

/// Writes one line, prefixed with `smol-guest: `.
pub(super) fn print(message: fmt::Arguments<'_>) {
    if let Some(mut console) = CONSOLE.get() {
        // One write, so that lines of the kernel do not cut ours. Nobody to tell if it fails.
        let _ = console.write_all(format!("smol-guest: {message}\n").as_bytes());
    }
}

/// Shows output of the service that could not go to the log stream.
pub(super) fn show(bytes: &[u8]) {
    if let Some(mut console) = CONSOLE.get() {
        let _ = console.write_all(bytes);
    }
}

/// [`print()`] with format arguments.
macro_rules! say {
    ($($message:tt)*) => { $crate::init::console::print(format_args!($($message)*)) };
}
pub(super) use say;
