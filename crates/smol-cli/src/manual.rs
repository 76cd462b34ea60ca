//! Man pages and completions for shells, generated from a program's command line.

use std::io;
use std::path::Path;

use clap::Command;
pub use clap_complete::Shell;

/// Returns the script that completes the command line of the program `name` in `shell`.
pub fn completions(name: &'static str, command: &Command, shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(name, command), name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Returns the command without its hidden subcommands, which the generators do not leave out.
fn visible(name: &'static str, command: &Command) -> Command {
    let subcommands = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    Command::new(name)
        .version("") // there is an option that prints it
        .args(command.get_arguments())
        .subcommands(subcommands.cloned())
}

/// Writes the man pages of the program and of its subcommands into the folder: `NAME.1` and
/// `NAME-SUBCOMMAND.1`.
///
/// # Errors
/// If the folder cannot be written.
pub fn man_pages(command: Command, folder: &Path) -> io::Result<()> {
    clap_mangen::generate_to(command, folder)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Arg;

    use super::*;

    fn command() -> Command {
        Command::new("tool")
            .about("Does it")
            .version("1")
            .arg(Arg::new("output").long("output"))
            .subcommand(Command::new("list").about("Lists it"))
            .subcommand(Command::new("internal-job").hide(true))
    }

    #[test]
    fn every_shell_gets_a_script_with_the_subcommands() {
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            let script = completions("tool", &command(), shell);
            for word in ["tool", "list", "output", "version"] {
                assert!(script.contains(word), "{word}: {script}");
            }
            assert!(!script.contains("internal"), "{script}");
        }
    }

    #[test]
    fn a_man_page_is_written_for_each_command_that_is_not_hidden() {
        let folder = tempfile::tempdir().unwrap();
        man_pages(command(), folder.path()).unwrap();
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["tool-list.1", "tool.1"]);
        let page = fs::read_to_string(folder.path().join("tool.1")).unwrap();
        assert!(
            page.contains("Does it") && !page.contains("internal"),
            "{page}"
        );
    }
}
