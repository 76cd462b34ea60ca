//! `/init` of every smol guest. See [`smol_guest::init`] for what it does.

// The standard library's start-up wants descriptors 0 to 2 or a /dev/null, and ends the
// process where it finds neither: a fresh initramfs may have neither. Our init opens the
// console itself, so the start-up is left out.
#![no_main]

use std::io::Write as _;

/// Entered by the C start-up code, as PID 1.
#[unsafe(no_mangle)]
pub extern "C" fn main(_argc: i32, _argv: *const *const u8) -> i32 {
    if !rustix::process::getpid().is_init() {
        let why = "smol-guest is the first process of a guest; it does nothing elsewhere";
        #[expect(clippy::disallowed_methods, reason = "nobody else is here to print")]
        let _ = writeln!(std::io::stderr(), "{why}");
        return 2;
    }
    smol_guest::init::run(&smol_guest::init::platform::Platform::guest())
}
