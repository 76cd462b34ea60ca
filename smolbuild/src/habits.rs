//! What smolbuild answers to those who know docker, cargo or uv: a table, and what a word may be that
//! is no Smolfile.

use std::fs::File;
use std::io::Read as _;
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

/// How a Dockerfile is written as a Smolfile.
const FROM_DOCKERFILE: &str =
    "begin with `smolbuild init --from Dockerfile`; in a Smolfile (docs/smolfile.md)
FROM                      is image in [rootfs], or debian with packages
COPY, RUN                 are [[copy]] and [[run]], in the same order
ADD of a URL              is [[fetch]]
CMD, ENTRYPOINT           are cmd and entrypoint of [service]
ENV, USER, WORKDIR        are its env, user and workdir
EXPOSE                    is ports
HEALTHCHECK               is [ready]
COPY --from               is not possible: build the image with docker, save it,
                          and name it: image = \"docker-archive:app.tar\"";

#[rustfmt::skip] // an entry is a few lines that can be read as a table
const TABLE: &[Habit] = &[
    // Commands.
    habit(&["run", "start", "create"],
        "there is no command `{word}`: smolbuild builds bundles, smolrun runs them",
        "smolrun {rest|BUNDLE}"),
    habit(&["ps", "logs", "stop", "exec"],
        "there is no command `{word}`: running machines are smolrun's",
        "smolrun --help"),
    habit(&["pull", "login", "logout"],
        "there is no command `{word}`: images come out of registries while a machine is built, by the logins of docker and podman",
        "name the image in the Smolfile: [rootfs] image = \"docker.io/library/nginx:1.27\""),
    habit(&["push", "publish", "search"],
        "{word} is not possible yet: smolbuild cannot put anything into registries",
        "a bundle is a file: copy it as any other; it is an OCI archive, which skopeo can copy, too, without its signatures"),
    habit(&["new"],
        "there is no command `{word}`",
        "write a first Smolfile: smolbuild init"),
    habit(&["image", "images", "ls", "list"],
        "there is no command `{word}`: bundles are files, of which no list is kept",
        "ls *.smolmachine; what is in one: smolbuild inspect BUNDLE"),
    habit(&["rmi", "rm"],
        "there is no command `{word}`: a bundle is a file",
        "rm {rest|FILE}"),
    habit(&["tag"],
        "there is no command `tag`: a bundle is a file, with the `name` and the `version` of its Smolfile",
        "cp {rest|FILE FILE}"),
    habit(&["save", "export", "load", "import"],
        "there is no command `{word}`: a bundle is a file already",
        "smolrun BUNDLE"),
    habit(&["history", "show"],
        "there is no command `{word}`",
        "smolbuild inspect {rest|BUNDLE}"),
    habit(&["prune", "clean", "system", "gc", "builder"],
        "there is no command `{word}`: what smol keeps on the disk is its cache",
        "smolbuild cache info, prune or clean"),
    habit(&["update", "upgrade"],
        "there is no command `{word}`",
        "the newest packages, and all inputs as they are now: smolbuild lock"),
    habit(&["add", "install"],
        "there is no command `{word}`",
        "name the package in the Smolfile, and build: packages = [...] in [rootfs] debian"),
    habit(&["validate", "lint"],
        "there is no command `{word}`",
        "the mistakes of a Smolfile, and no build: smolbuild check"),
    habit(&["info"],
        "there is no command `info`",
        "smolbuild doctor"),
    habit(&["version"],
        "there is no command `version`",
        "smolbuild --version"),

    // Options of building.
    habit(&["-t", "--tag", "-n", "--name"],
        "there is no option {word}: a bundle has the `name` and the `version` of its Smolfile",
        "name the file to write: -o FILE"),
    habit(&["-f", "--file"],
        "there is no option {word}: the Smolfile is the argument",
        "smolbuild FILE"),
    habit(&["--build-arg", "--arg", "--build-context"],
        "there is no option {word}: a Smolfile has no variables",
        "write the values into the Smolfile, or one Smolfile for each"),
    habit(&["--platform", "--arch"],
        "{word} is not possible yet: machines are x86-64 Linux",
        "leave it out; which instructions the machine has is set in the Smolfile: cpu"),
    habit(&["--push"],
        "--push is not possible yet: smolbuild cannot put anything into registries",
        "name the file to write, and copy it: -o FILE"),
    habit(&["--load", "--rm", "--force-rm", "--squash"],
        "there is no option {word}: a build leaves nothing but the bundle, which is a file",
        "leave it out"),
    habit(&["-q", "--quiet"],
        "there is no option {word}: results go to stdout, all else to stderr",
        "2>/dev/null, or for programs --progress json"),
    habit(&["--target"],
        "there is no option --target: a Smolfile has no stages",
        "write a Smolfile for each, and build one on the other: [base] bundle"),
    habit(&["--pull", "-U", "--upgrade"],
        "there is no option {word}: a build takes the packages that the lock file pins",
        "the newest ones, before the build: smolbuild lock --only packages"),
    habit(&["--frozen"],
        "there is no option --frozen",
        "--locked --offline"),
    habit(&["lock --check", "lock --locked"],
        "there is no option {word} of lock",
        "a build checks that the lock file fits: smolbuild --locked"),
    habit(&["--network"],
        "there is no option --network: each [[run]] of the Smolfile says what it may reach",
        "network = [\"packages.example.org:443\"] in that [[run]], or true; files by digest: [[fetch]]"),
    habit(&["--add-host"],
        "--add-host is not possible yet: while a command runs, /etc/hosts is its machine's own",
        "name the address to reach: network = [\"192.0.2.7:443\"] in [[run]]"),
    habit(&["--dry-run", "--just-print"],
        "there is no option {word}",
        "what a build would do, and no build: smolbuild plan"),
    habit(&["--secret", "--ssh"],
        "{word} is not possible yet: what a machine holds in memory, and what a [[run]] writes, is in the bundle",
        "what each machine must have for itself is made by [[restore]]"),
    habit(&["--cache-from", "--cache-to"],
        "there is no option {word}: the cache is a folder",
        "set SMOL_CACHE_DIR, and keep what it names"),
    habit(&["--iidfile", "--json"],
        "there is no option {word} of a build",
        "digest and other facts: --metadata-file FILE; progress and errors: --progress json"),
    habit(&["--label", "--annotation", "--attest", "--provenance", "--sbom"],
        "{word} is not possible yet",
        "the bundle carries its Smolfile and its lock, which has all inputs: smolbuild inspect BUNDLE --json"),
    habit(&["-m", "--memory"],
        "there is no option {word}",
        "set it in the Smolfile: memory = \"512m\""),
    habit(&["-c", "--cpus"],
        "there is no option {word}",
        "set it in the Smolfile: cpus = 2"),
    habit(&["-e", "--env"],
        "there is no option {word}",
        "set it in the Smolfile: env in [service]"),
    habit(&["-p", "--publish", "-d", "--detach"],
        "there is no option {word}: it is one of smolrun",
        "build first, and then: smolrun BUNDLE {word}"),
    habit(&["-v A:B", "--volume"],
        "{word} is not possible yet: a machine has no volumes and no folders of the host",
        "put files into the image: [[copy]] in the Smolfile"),
    habit(&["--key"],
        "there is no option --key of a build",
        "--sign KEY signs the bundle"),

    // `smolbuild Smolfile .`
    habit(&[ARGUMENT],
        "unexpected argument `{word}`: a build takes one Smolfile, or the folder that it is in",
        "smolbuild FILE or smolbuild DIR"),
];

/// Returns what to say of a path that stands for a Smolfile but is none, if anything better is known
/// than that it cannot be read.
pub fn about_smolfile(path: &Path) -> Option<Failure> {
    let shown = path.display();
    let failure =
        |message: String, hint: String| Some(Failure::new(ExitKind::Usage, message).hint(hint));
    if path.is_dir() {
        if path.join("Smolfile").exists() {
            return None;
        }
        let foreign = [
            "Dockerfile",
            "Containerfile",
            "compose.yaml",
            "docker-compose.yml",
        ];
        let found = foreign.into_iter().find(|name| path.join(name).is_file())?;
        let message = format!("there is no Smolfile in {shown}, and smolbuild reads no {found}");
        return failure(message, FROM_DOCKERFILE.into());
    }
    if path.is_file() {
        if is_dockerfile(path) {
            let message = format!("{shown} is a Dockerfile, not a Smolfile");
            return failure(message, FROM_DOCKERFILE.into());
        }
        if path
            .extension()
            .is_some_and(|ending| ending == "smolmachine")
        {
            let message = format!("{shown} is a bundle, not a Smolfile");
            let hint =
                format!("to run it: smolrun {shown}; what is in it: smolbuild inspect {shown}");
            return failure(message, hint);
        }
        return None;
    }
    let name = habits::similar(&Cli::command(), &path.to_string_lossy())?;
    let message = format!("there is no command and no file `{shown}`");
    failure(message, format!("did you mean: smolbuild {name}"))
}

/// Whether a file is a Dockerfile, by its name or its first instruction.
fn is_dockerfile(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if ["Dockerfile", "Containerfile"]
        .iter()
        .any(|it| name.starts_with(it))
    {
        return true;
    }
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4096).read_to_end(&mut start));
    let text = String::from_utf8_lossy(&start);
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    read.is_ok() && first.is_some_and(|line| line.starts_with("FROM "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_each_word_once_and_none_that_a_build_knows() {
        assert_eq!(
            habits::clashes(TABLE, &Cli::command()),
            Vec::<String>::new()
        );
    }
}
