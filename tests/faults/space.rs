//! Writes that are cut short: a limit on the size of files (RLIMIT_FSIZE) makes the kernel write a part, and
//! fails the write after it.

use libtest_mimic::{Failed, Trial};

use crate::operations::{ALL, Ended, Operation};
use crate::{FIXTURE, NO_KVM, trial};

/// Bytes that a file may have. Between blocks and pages, and within them.
const LIMITS: &[u64] = &[
    0,
    1,
    100,
    511,
    513,
    1500,
    4095,
    4097,
    6000,
    8193,
    10_000,
    14_000,
    19_000,
    23_000,
    70_000,
    1 << 20,
    (64 << 20) - 1,
];

/// One for each operation.
pub fn trials() -> Vec<Trial> {
    let of = |operation: &'static Operation| {
        let name = format!("{}: a write is cut short", operation.name);
        let missing = || NO_KVM.clone().filter(|_| operation.machine);
        trial(name, missing, || try_all(operation))
    };
    ALL.iter().map(of).collect()
}

fn try_all(operation: &Operation) -> Result<(), Failed> {
    let scene = FIXTURE.scene();
    for limit in LIMITS {
        let before = operation.set_up(&scene);
        let limited = format!("trap '' XFSZ; exec prlimit --fsize={limit} \"$0\" \"$@\"");
        let by = ["sh", "-c", &limited];
        let outcome =
            scene.run(&mut scene.command_under(&by, operation.program, operation.arguments));
        let checked = operation.check(&scene, &before, &Ended::from(&outcome));
        let checked = checked.and_then(|()| operation.check_again(&scene));
        checked
            .map_err(|why| format!("files of {limit} bytes at most: {why}\n{}", outcome.stderr))?;
    }
    Ok(())
}
