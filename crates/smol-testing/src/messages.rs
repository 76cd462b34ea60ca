//! Tests of what a program prints, word for word: tables of commands with their output.
//!
//! A table is a `.trycmd` file in `tests/messages` of the program's crate (the format of the crate
//! trycmd: `$ command`, `? exit code`, then stdout and stderr). To add a case, add its `$` line and
//! run `TRYCMD=overwrite cargo test --test messages`, which writes the rest; then read what it wrote.

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use trycmd::TestCases;
use trycmd::schema::Bin;

/// Set where a table runs its helper, which is the test program itself.
const HELPER: &str = "MESSAGES_HELPER";

/// Runs each table in `tests/messages` as a test. A line `$ helper ...` runs `helper` with these
/// arguments, in the folder of the table.
///
/// `programs` are the programs that the tables name, each with its path.
pub fn main(
    programs: &[(&'static str, &'static str)],
    name: &'static str,
    helper: fn(&[String]) -> ExitCode,
) -> ExitCode {
    if std::env::var_os(HELPER).is_some() {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        return helper(&arguments);
    }
    let mut tables: Vec<_> = std::fs::read_dir("tests/messages")
        .expect("tests run in the folder of their crate")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "trycmd"))
        .collect();
    tables.sort();
    let trials = tables
        .into_iter()
        .map(|table| {
            let programs = programs.to_vec();
            let title = format!("messages: {}", stem(&table));
            Trial::test(title, move || run(&table, &programs, name))
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn stem(table: &Path) -> String {
    table
        .file_stem()
        .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

/// Runs the commands of a table, with folders of its own.
fn run(table: &Path, programs: &[(&'static str, &'static str)], name: &str) -> Result<(), Failed> {
    let home = tempfile::tempdir()?;
    let cases = TestCases::new();
    cases.case(table).timeout(crate::LIMIT);
    for (program, path) in programs {
        cases.register_bin(*program, Bin::Path(path.into()));
    }
    cases.register_bin(name, Bin::Path(std::env::current_exe()?));
    for (variable, folder) in [("CACHE", "cache"), ("RUNTIME", "run"), ("CONFIG", "config")] {
        let path = home.path().join(folder);
        cases.env(format!("SMOL_{variable}_DIR"), path.to_string_lossy());
    }
    cases
        .env(HELPER, "1")
        .env("NO_COLOR", "1")
        .env("SMOL_PROGRESS", "plain")
        .insert_var("[HOME]", home.path().to_string_lossy().into_owned())?;
    // It panics with what differs.
    cases.run();
    Ok(())
}
