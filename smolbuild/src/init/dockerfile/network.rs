//! Which commands are in need of the network, as far as their names show it.

/// What ends a command of a shell, where it is not in quotes.
const SEPARATORS: [char; 8] = [';', '&', '|', '\n', '(', ')', '{', '}'];

/// Words before a command that are no part of it.
const BEFORE: &[&str] = &[
    "!", "command", "do", "else", "elif", "env", "exec", "if", "nice", "nohup", "sudo", "then",
    "time", "until", "while",
];

/// Options with which a command does without the network.
const OFFLINE: &[&str] = &["--no-index", "--offline", "-mod=vendor", "--no-download"];

/// Any argument will do.
const ANY: &[&str] = &[];

/// Programs, and those of their first arguments that need the network.
#[rustfmt::skip] // one line a kind of program
const TABLE: &[(&[&str], &[&str])] = &[
    (&["apt-get", "apt", "aptitude"], &["update", "install", "reinstall", "upgrade", "dist-upgrade", "full-upgrade", "build-dep", "source", "download"]),
    (&["add-apt-repository"], ANY),
    (&["apk"], &["add", "update", "upgrade", "fetch"]),
    (&["dnf", "dnf5", "yum", "microdnf", "tdnf", "zypper"], &["install", "in", "update", "up", "upgrade", "groupinstall", "builddep", "makecache", "refresh", "ref", "swap", "download"]),
    (&["pacman"], &["-S", "-Sy", "-Syu", "-Syyu", "-Su"]),
    (&["pip", "pip3", "pipx"], &["install", "download", "wheel", "upgrade"]),
    (&["uv"], &["sync", "add", "lock", "pip", "tool", "python", "run", "build"]),
    (&["poetry", "pipenv", "pdm"], &["install", "add", "update", "lock", "sync"]),
    (&["conda", "mamba", "micromamba"], &["install", "create", "update", "env"]),
    (&["npm"], &["ci", "clean-install", "install", "i", "add", "update", "exec", "init"]),
    (&["pnpm", "bun"], &["install", "i", "add", "fetch", "update", "dlx", "x"]),
    (&["yarn"], &["install", "add", "upgrade", "up", "dlx", "global", "workspaces"]),
    (&["npx", "corepack"], ANY),
    (&["go"], &["build", "install", "get", "mod", "test", "run", "generate"]),
    (&["cargo"], &["build", "b", "install", "fetch", "run", "test", "check", "chef", "update", "vendor", "binstall", "rustc"]),
    (&["rustup", "rustup-init"], ANY),
    (&["gem"], &["install", "update", "fetch"]),
    (&["bundle"], &["install", "update", "package", "cache"]),
    (&["composer", "composer.phar"], &["install", "i", "require", "update", "create-project", "global"]),
    (&["pecl", "pear"], &["install", "upgrade"]),
    (&["mvn", "mvnw", "gradle", "gradlew", "sbt", "lein"], ANY),
    (&["dotnet"], &["restore", "build", "publish", "test", "tool", "add"]),
    (&["mix"], &["deps.get", "local.hex", "local.rebar", "archive.install", "setup"]),
    (&["cabal", "stack", "opam", "luarocks", "cpan", "cpanm", "nix-env", "nix-build", "nix"], ANY),
    (&["git"], &["clone", "fetch", "pull", "submodule", "ls-remote"]),
    (&["svn", "hg"], &["checkout", "co", "export", "clone", "pull", "update"]),
    (&["curl", "wget", "aria2c", "ftp", "scp", "rsync", "ssh-keyscan"], ANY),
];

/// Whether a line of a shell needs the network.
pub(super) fn line_needs(line: &str) -> bool {
    is_needed_by_line(line, true)
}

/// Whether a command needs the network.
pub(super) fn words_need<T: AsRef<str>>(words: &[T]) -> bool {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    is_needed(&words, true)
}

/// As [`line_needs`]. `is_outer`: whether a line for another shell inside of it is looked at, too.
fn is_needed_by_line(line: &str, is_outer: bool) -> bool {
    commands(line).iter().any(|words| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        is_needed(&words, is_outer)
    })
}

fn is_needed(words: &[&str], is_outer: bool) -> bool {
    let is_before = |word: &&&str| BEFORE.contains(*word) || is_assignment(word);
    let skipped = words.iter().take_while(is_before).count();
    let Some((program, arguments)) = words[skipped..].split_first() else {
        return false;
    };
    let program = program.rsplit('/').next().unwrap_or_default();
    match (program, arguments) {
        ("sh" | "bash" | "dash" | "ash" | "zsh", _) => {
            let mut behind = arguments.iter().skip_while(|word| !is_shell_line(word));
            let line = behind.nth(1).filter(|_| is_outer);
            line.is_some_and(|line| is_needed_by_line(line, false))
        }
        ("python" | "python3", ["-m", module @ ("pip" | "pipx"), rest @ ..]) => {
            program_needs(module, rest)
        }
        // Alone, these two install what the project names.
        ("yarn" | "bundle", []) => true,
        _ => program_needs(program, arguments),
    }
}

fn program_needs(program: &str, arguments: &[&str]) -> bool {
    if arguments.iter().any(|word| OFFLINE.contains(word)) {
        return false;
    }
    let found = TABLE.iter().find(|(names, _)| names.contains(&program));
    found.is_some_and(|(_, subcommands)| {
        // Behind options, which may have a value each.
        let mut first = arguments.iter().take(8);
        subcommands.is_empty() || first.any(|word| subcommands.contains(word))
    })
}

/// `-c`, also joined with others: `-ec`.
fn is_shell_line(word: &str) -> bool {
    word.starts_with('-') && !word.starts_with("--") && word.ends_with('c')
}

/// `NAME=value`
fn is_assignment(word: &str) -> bool {
    let name = word.split_once('=').map(|(name, _)| name);
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.is_some_and(|name| !name.is_empty() && name.chars().all(is_part))
}

/// The commands of a line, and their words, roughly as a shell splits them.
fn commands(line: &str) -> Vec<Vec<String>> {
    let (mut all, mut words, mut word) = (Vec::new(), Vec::new(), String::new());
    let (mut quote, mut escaped) = (None, false);
    for c in line.chars() {
        match (c, quote) {
            _ if escaped => {
                word.push(c);
                escaped = false;
            }
            ('\\', None | Some('"')) => escaped = true,
            (c, Some(open)) if c == open => quote = None,
            (_, Some(_)) => word.push(c),
            ('"' | '\'', None) => quote = Some(c),
            (c, None) if SEPARATORS.contains(&c) || c.is_whitespace() || c == '`' => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                if !c.is_whitespace() || c == '\n' {
                    all.push(std::mem::take(&mut words));
                }
            }
            (c, None) => word.push(c),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    all.push(words);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_load_from_the_network_are_known_wherever_they_stand_in_a_line() {
        for line in [
            "apt-get update && apt-get install -y x",
            "set -eux; DEBIAN_FRONTEND=noninteractive apt-get -y -o A=b install x",
            "if ! test -e /x; then curl -fsSL https://example.org | sh; fi",
            "make && (cd x && npm ci)",
            "x=$(wget -qO- https://example.org)",
            "/usr/bin/python3 -m pip install x",
            "sudo /usr/local/bin/pip3 install --no-cache-dir x",
            "bash -ec 'yarn'",
            "yarn",
            "./gradlew build",
            "git -C x clone https://example.org/x",
            "set -e\ncargo build --release",
            "RUN=1 exec go build ./...",
        ] {
            assert!(line_needs(line), "{line}");
        }
        assert!(words_need(&["/bin/sh", "-c", "apk add x"]));
        assert!(words_need(&["composer", "install"]));
    }

    #[test]
    fn other_commands_get_no_network() {
        for line in [
            "",
            "echo 'apt-get install x' && make",
            "echo apt-get install",
            "rm -rf /var/lib/apt/lists/* && apt-get clean",
            "pip install --no-index --find-links /wheels x",
            "cargo build --offline",
            "npm run build",
            "yarn build",
            "git config --global x y",
            "python3 -m compileall .",
            "bash -c 'bash -c bash'",
            "FOO=curl",
        ] {
            assert!(!line_needs(line), "{line}");
        }
        assert!(!words_need::<&str>(&[]));
    }
}
