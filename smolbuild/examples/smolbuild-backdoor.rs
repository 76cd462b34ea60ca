//! smolbuild with a deliberate hole, for tests: see `crates/smol-sandbox/src/backdoor.rs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    smolbuild::main()
}
