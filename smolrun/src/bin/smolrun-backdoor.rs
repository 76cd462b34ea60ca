//! smolrun with a deliberate hole, for a test: see `src/run/backdoor.rs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    smolrun::main()
}
