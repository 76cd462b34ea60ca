//! What smolrun answers to those who know docker or podman: a table, and what a word may be that is
//! no bundle.

use std::path::Path;

use clap::CommandFactory;
use smol_cli::habits::{self, ARGUMENT, Habit};
use smol_cli::{ExitKind, Failure};

use crate::cli::Cli;

/// Reads the command line of this process.
///
/// # Errors
/// As [`habits::parse`].
pub fn parse() -> Result<Cli, Failure> {
    habits::parse(TABLE)
}

const fn habit(words: &'static [&'static str], message: &'static str, hint: &'static str) -> Habit {
    Habit {
        words,
        message,
        hint,
    }
}

/// Where a bundle comes from, if not from a file that is here.
const FILES: &str = "a bundle is a file: copy it as any other, or build it by smolbuild";

#[rustfmt::skip] // an entry is a few lines that can be read as a table
const TABLE: &[Habit] = &[
    // Commands.
    habit(&["run"],
        "there is no command `run`: smolrun runs the bundle that it is given",
        "smolrun {rest|BUNDLE}"),
    habit(&["create", "start", "restart"],
        "there is no command `{word}`: each start restores a new machine from its bundle",
        "smolrun BUNDLE -d --name {rest|NAME}"),
    habit(&["exec"],
        "there is no command `{word}` yet: no command can be started in a running machine",
        "reach its service by its ports (-p), and see what it writes: smolrun logs NAME"),
    habit(&["attach"],
        "there is no command `{word}` yet: nothing can be sent to a service's stdin",
        "follow what it writes: smolrun logs -f {rest|NAME}"),
    habit(&["cp"],
        "there is no command `{word}` yet: files cannot be copied into or out of a running machine",
        "put files into the image: [[copy]] in the Smolfile"),
    habit(&["kill"],
        "there is no command `kill`",
        "smolrun stop --time 0 {rest|NAME}"),
    habit(&["pause", "unpause"],
        "there is no command `{word}` yet: a running machine cannot be paused",
        "stop it, and restore it again later: smolrun stop NAME"),
    habit(&["commit", "save", "export", "checkpoint"],
        "there is no command `{word}` yet: a running machine cannot be saved",
        "put its state into the bundle: [[warm]] in the Smolfile"),
    habit(&["pull", "push", "login", "logout", "search"],
        "there is no command `{word}` yet: smolrun cannot use registries",
        FILES),
    habit(&["load", "import"],
        "there is no command `{word}`: bundles need not be imported",
        "smolrun BUNDLE"),
    habit(&["image", "images"],
        "there is no command `{word}`: bundles are files, of which no list is kept",
        "ls *.smolmachine; what is in one: smolbuild inspect BUNDLE"),
    habit(&["rmi"],
        "there is no command `rmi`: a bundle is a file",
        "it is removed as any other: rm BUNDLE"),
    habit(&["tag"],
        "there is no command `tag`: a bundle is a file",
        "it is copied as any other: cp BUNDLE COPY"),
    habit(&["build"],
        "there is no command `build`: smolrun runs bundles, smolbuild builds them",
        "smolbuild {rest|.}"),
    habit(&["inspect"],
        "there is no command `inspect`",
        "of a machine: smolrun ps -a --json; of a bundle: smolbuild inspect BUNDLE"),
    habit(&["diff", "verify", "sign"],
        "there is no command `{word}`: it is one of smolbuild's",
        "smolbuild {word} {rest|BUNDLE}"),
    habit(&["history"],
        "there is no command `history`",
        "what a bundle is made of: smolbuild inspect {rest|BUNDLE}"),
    habit(&["top", "stats"],
        "there is no command `{word}` yet: what runs in a machine cannot be seen from outside",
        "the machine as a whole is one process, whose number is in: smolrun ps"),
    habit(&["port"],
        "there is no command `port`",
        "forwarded ports are in: smolrun ps"),
    habit(&["ls", "list"],
        "there is no command `{word}`",
        "smolrun ps"),
    habit(&["container"],
        "there is no command `container`",
        "the commands about machines are: smolrun ps, logs, stop, wait, rm"),
    habit(&["prune", "system"],
        "there is no command `{word}`",
        "machines that have ended: smolrun rm --all; the cache: smolbuild cache prune"),
    habit(&["compose", "up", "down"],
        "there is no command `{word}` yet: smolrun runs one machine at a time",
        "start each in the background: smolrun BUNDLE -d"),
    habit(&["network", "volume"],
        "there is no command `{word}` yet: machines have neither networks nor volumes",
        "ports come in by -p"),
    habit(&["info"],
        "there is no command `info`",
        "smolrun doctor"),
    habit(&["version"],
        "there is no command `version`",
        "smolrun --version"),
    habit(&["rename", "update"],
        "there is no command `{word}`: a machine stays as it was started",
        "start another one: smolrun BUNDLE -d --name NAME"),

    // Options of running.
    habit(&["-v A:B"],
        "there are no volumes yet, and no folders of the host in a machine; -v is --verbose here",
        "put files into the image: [[copy]] in the Smolfile"),
    habit(&["--volume", "--mount", "--tmpfs"],
        "there is no option {word} yet: a machine has no volumes and no folders of the host",
        "put files into the image: [[copy]] in the Smolfile"),
    habit(&["-e", "--env", "--env-file"],
        "there is no option {word} yet: a restored machine has the environment of its build",
        "set it in the Smolfile, and build again: env in [service]"),
    habit(&["-i", "--interactive", "-t", "--tty"],
        "there is no option {word} yet: a service has no stdin and no terminal",
        "leave it out: what the service writes comes out all the same"),
    habit(&["--network", "--net", "--dns", "--add-host", "--link"],
        "there is no option {word} yet: a machine has no network but its loopback",
        "ports come in by -p; nothing goes out"),
    habit(&["-P", "--publish-all"],
        "there is no option {word}",
        "name the ports: -p HOST:GUEST"),
    habit(&["--expose"],
        "there is no option --expose",
        "declare ports in the Smolfile, `ports = [...]`; open them by -p"),
    habit(&["-m", "--memory", "--memory-swap"],
        "there is no option {word}: the memory of a machine is part of its snapshot",
        "set it in the Smolfile, and build again: memory = \"512MiB\""),
    habit(&["-c", "--cpus", "--cpu-shares", "--cpuset-cpus"],
        "there is no option {word}: the number of vCPUs is part of the snapshot",
        "set it in the Smolfile, and build again: cpus = 2"),
    habit(&["--entrypoint", "-w", "--workdir", "-u", "--user"],
        "there is no option {word}: in a restored machine the service runs already",
        "set it in the Smolfile, and build again: cmd, workdir and user in [service]"),
    habit(&["--hostname"],
        "there is no option {word} yet: the host name is the machine's name",
        "set it in the Smolfile, and build again: name"),
    habit(&["--restart"],
        "there is no option {word} yet: a machine that has ended is not started again",
        "let a service manager start it, in the foreground: smolrun BUNDLE"),
    habit(&["--platform", "--pull"],
        "there is no option {word}: a bundle is a file for one kind of processor",
        "leave it out"),
    habit(&["--privileged", "--cap-add", "--cap-drop", "--security-opt", "--device", "--gpus"],
        "there is no option {word}: a machine has a kernel of its own, in which root may do all",
        "leave it out"),
    habit(&["--read-only"],
        "there is no option --read-only",
        "leave it out: what a machine writes is gone with it"),
    habit(&["--init"],
        "there is no option --init",
        "leave it out: smol-guest is the init of each machine"),
    habit(&["-l", "--label", "--cidfile"],
        "there is no option {word}",
        "name the machine: --name NAME"),
    habit(&["--stop-timeout", "--stop-signal"],
        "there is no option {word}",
        "the time between SIGTERM and SIGKILL is an option of: smolrun stop --time SECS"),

    // Options of other commands.
    habit(&["logs --tail", "logs -n"],
        "there is no option {word}",
        "smolrun logs NAME | tail -n {rest|10}"),
    habit(&["logs --since", "logs --until", "logs --timestamps", "logs -t"],
        "there is no option {word}: a log has no times",
        "smolrun logs NAME"),
    habit(&["ps --format", "ps --filter", "ps -f", "ps -n", "ps -l"],
        "there is no option {word}",
        "smolrun ps --all --json, for jq and other programs"),
    habit(&["rm --volumes", "rm -v"],
        "there is no option {word}: a machine has no volumes",
        "leave it out"),
    habit(&["stop --signal", "stop -s"],
        "there is no option {word}: a service is asked by SIGTERM, then ended by SIGKILL",
        "smolrun stop --time SECS NAME"),

    // `smolrun BUNDLE sh`, `smolrun BUNDLE -- sh`
    habit(&[ARGUMENT],
        "unexpected argument `{word}`: smolrun takes one bundle, with the command in it; no other can be run yet",
        "the command is set in the Smolfile, before the build: cmd in [service]"),
];

/// Returns what to say of a word that stands for a bundle but is none, if anything better is known
/// than that there is no such file.
pub fn about_bundle(path: &Path) -> Option<Failure> {
    let word = path.to_string_lossy();
    let failure = |message: String| Failure::new(ExitKind::Usage, message);
    if path.is_dir() {
        let hint = format!("to build what its Smolfile says: smolbuild {word}");
        return Some(failure(format!("{word} is a folder, not a bundle")).hint(hint));
    }
    if path.exists() {
        let is_smolfile = path.file_name().is_some_and(|name| name == "Smolfile")
            || path.extension().is_some_and(|ending| ending == "toml");
        let hint = format!("to build what it says: smolbuild {word}");
        return match is_smolfile {
            true => Some(
                failure(format!(
                    "{word} is what a bundle is built from, not a bundle"
                ))
                .hint(hint),
            ),
            false => None,
        };
    }
    let with_ending = path.with_added_extension("smolmachine");
    if with_ending.is_file() {
        let hint = format!("did you mean: smolrun {}", with_ending.display());
        return Some(failure(format!("there is no file {word}")).hint(hint));
    }
    if !word.contains(['/', '.', ':'])
        && let Some(name) = habits::similar(&Cli::command(), &word)
    {
        let failure = failure(format!("there is no command and no file `{word}`"));
        return Some(failure.hint(format!("did you mean: smolrun {name}")));
    }
    let is_reference = !word.contains("smolmachine") && !word.starts_with(['.', '/']);
    let hint = "names in registries are not looked up yet: name a .smolmachine file";
    is_reference.then(|| failure(format!("there is no file {word}")).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_each_word_once_and_none_that_smolrun_knows() {
        assert_eq!(
            habits::clashes(TABLE, &Cli::command()),
            Vec::<String>::new()
        );
    }
}
