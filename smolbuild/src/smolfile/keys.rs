//! The one table of keys: it explains them in docs/smolfile.md (a test keeps the two equal) and
//! helps with keys that do not exist.

use super::diagnostic::{Diagnostic, Span};

/// One key of a Smolfile.
pub struct Key {
    /// The table it stands in; empty for the top of the file.
    pub table: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What may be written.
    pub kind: &'static str,
    /// What is taken when it is absent.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

const fn key(
    table: &'static str,
    name: &'static str,
    kind: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Key {
    Key {
        table,
        name,
        kind,
        default,
        meaning,
    }
}

/// Every key, in the order of the documentation.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("", "name", "string", "required", "Name of the machine, and its host name: lower-case letters, digits, `.`, `_` and `-`, beginning with a letter or digit, at most 63."),
    key("", "version", "string", "none", "Version of what is inside; one word."),
    key("", "cpus", "integer, 1 to 8", "`1`", "Most vCPUs the machine can run with. The build uses one."),
    key("", "cpu", "`\"x86-64-v2\"` or `\"x86-64-v3\"`", "`\"x86-64-v3\"`", "The instructions that the machine's CPU has: [CPU levels](#the-cpu)."),
    key("", "memory", "size, or integer in MiB", "`\"256MiB\"`", "Guest memory: 64 MiB to 64 GiB, a multiple of 1 MiB. `\"512m\"` and `\"1G\"` do as well: powers of 1024."),
    key("", "ports", "list of ports", "the image's, or `[]`", "TCP ports that the service answers on."),
    key("", "kernel", "table", "the recipe `smol-6.1`", "The kernel: `[kernel]`."),
    key("", "rootfs", "table", "none", "The root file system: `[rootfs]`. Without it and `[base]` the machine is just a kernel."),
    key("", "base", "table", "none", "Another bundle to build on, in place of `[rootfs]`: `[base]`."),
    key("", "copy", "array of tables", "none", "Files to put over the root file system: `[[copy]]`. All [steps](#steps) are done in the order of the file."),
    key("", "fetch", "array of tables", "none", "Files to download into the root file system: `[[fetch]]`."),
    key("", "run", "array of tables", "none", "Commands that change the root file system: `[[run]]`."),
    key("", "service", "table", "the image's, or required with `[rootfs]` or `[base]`", "The program that the machine runs: `[service]`."),
    key("", "ready", "table", "[the image's](#container-images), or required", "How to tell that the machine is ready: `[ready]`."),
    key("", "warm", "array of tables", "none", "Commands to run between ready and the snapshot, in this order: `[[warm]]`."),
    key("", "restore", "array of tables", "none", "Commands to run in each restored machine before its service runs on, in this order: `[[restore]]`."),
    key("", "warm_restore", "array of tables", "none", "Requests that the build makes of the restored machine, in this order, to see what they touch: `[[warm_restore]]`."),
    key("", "snapshot", "table", "defaults", "How the snapshot is taken: `[snapshot]`."),
    key("kernel", "recipe", "string", "`\"smol-6.1\"`", "Name of a kernel that smolbuild builds itself."),
    key("kernel", "path", "path", "none", "An ELF kernel of your own (`vmlinux`), instead of a recipe."),
    key("kernel", "cmdline", "string", "`\"\"`", "Parameters to add to the kernel command line: at most 1024 bytes of printable ASCII."),
    key("rootfs", "debian", "table", "none", "A Debian system: `{ suite, packages }`."),
    key("rootfs", "image", "image", "none", "A container image: [its name](#container-images)."),
    key("rootfs", "tar", "path", "none", "A tar archive of a root file system, plain or compressed with gzip, zstd or xz."),
    key("rootfs", "dir", "path", "none", "A folder that holds a root file system. Owners are kept when root builds, else all belongs to root."),
    key("rootfs", "slim", "boolean", "`false`", "Leave out of a `debian` system what its packages do not need: [slim systems](#slim-systems)."),
    key("rootfs", "without", "list of strings", "`[]`", "Packages that a `slim` system does without, although others depend on them."),
    key("rootfs.debian", "suite", "string", "required", "Code name of the release, such as `bookworm`."),
    key("rootfs.debian", "packages", "list of strings", "`[]`", "Packages to install besides the essential ones."),
    key("base", "bundle", "path", "required", "A `.smolmachine` whose root file system this machine has, too: before its machine ran, and with the `[[copy]]`s over it."),
    key("copy", "src", "path or pattern, or list of them", "required", "File to copy, or folder whose content is copied; [several of them](#several-sources)."),
    key("copy", "dest", "guest path", "required", "Where it goes. A file gets this path, or goes into it if a folder is there or it ends with `/`; what a folder holds goes into it."),
    key("copy", "mode", "file mode", "`0o755` for folders and executable files, else `0o644`", "Permissions of what is copied; folders can also be entered by whoever may read them."),
    key("copy", "owner", "user", "`\"root:root\"`", "Who owns the copy."),
    key("copy", "exclude", "list of strings", "`[]`", "What of the folder is left out: patterns relative to it, as in [`.smolignore`](#what-is-not-copied)."),
    key("fetch", "url", "download URL", "required", "Where the file is, for anybody to download."),
    key("fetch", "sha256", "string", "required", "SHA-256 of the file: 64 hexadecimal digits."),
    key("fetch", "dest", "guest path", "required", "Where it goes: this path, or into it under the last name of the URL if a folder is there or it ends with `/`."),
    key("fetch", "mode", "file mode", "`0o644`", "Permissions of the file."),
    key("fetch", "owner", "user", "`\"root:root\"`", "Who owns it."),
    key("run", "cmd", "command", "required", "The command; the build fails unless it exits with 0."),
    key("run", "env", "table of strings", "`{}`", "Environment variables, over those of an image and `SOURCE_DATE_EPOCH`."),
    key("run", "user", "user", "`\"root\"`", "Who runs it."),
    key("run", "workdir", "guest path", "the image's, or `\"/\"`", "Where it runs."),
    key("run", "memory", "size, or integer in MiB", "`\"2GiB\"`", "Memory of its machine, which also holds the files that it writes."),
    key("run", "network", "`true`, or list of names and addresses", "`false`", "What it may reach: [the network](#steps)."),
    key("run", "timeout", "duration", "`\"1h\"`", "How long it may take, on the clock of its machine: 1 ms to 24 h."),
    key("service", "cmd", "command", "the image's, or required", "The program and its arguments. It stays in the foreground. Of an image, these words follow its entrypoint."),
    key("service", "entrypoint", "command", "the image's", "For an image alone: the first words of the command, in place of its own; its `cmd` is then left out, too."),
    key("service", "env", "table of strings", "`{}`", "Environment variables; over those of an image."),
    key("service", "user", "user", "the image's, or `\"root\"`", "Who runs it."),
    key("service", "workdir", "guest path", "the image's, or `\"/\"`", "Where it runs."),
    key("service", "stop_signal", "signal", "the image's, or `\"SIGTERM\"`", "What asks it to stop: a name such as `\"SIGINT\"`, or a number. The default is sent to its process group, another signal to its process; an [init](#an-init-as-the-service) has a default of its own."),
    key("service", "init", "boolean", "by its program", "Whether the command is an init such as systemd, which runs as PID 1: [inits](#an-init-as-the-service)."),
    key("ready", "exec", "command", "none", "Ready when this command, run as the service's user, exits with 0."),
    key("ready", "tcp", "port", "none", "Ready when the service accepts a connection on this port."),
    key("ready", "http", "URL, or table", "none", "Ready when the service answers a GET request: `\"http://:8080/health\"`, or `{ port, path, status, body }`."),
    key("ready", "log", "pattern", "none", "Ready when a line of the service's output matches (for just a kernel: a line of the console)."),
    key("ready", "file", "guest path", "none", "Ready when this file exists."),
    key("ready", "notify", "`true`", "none", "Ready when the service says so with sd_notify(3): `READY=1`."),
    key("ready", "timeout", "duration", "`\"60s\"`", "How long to wait before the build fails: 1 ms to 1 h."),
    key("ready", "interval", "duration", "`\"100ms\"`", "Pause between two attempts: 1 ms to 1 min. Not for `log` and `notify`, which are events."),
    key("ready", "successes", "integer, 1 to 100", "`1`", "How many attempts in a row must succeed. Not for `log` and `notify`."),
    key("ready.http", "port", "port", "required", "Port of the service."),
    key("ready.http", "path", "string", "`\"/\"`", "Path to ask for, with its query."),
    key("ready.http", "status", "integer or list of integers, 100 to 599", "`200`", "Status codes that count as ready."),
    key("ready.http", "body", "pattern", "none", "What the first 64 KiB of the body must match as well."),
    key("warm", "cmd", "command", "required", "Run as the service's user and in its environment; the build fails unless it exits with 0. A [cold boot](cli.md#smolrun) runs it, too, before ports open."),
    key("warm", "timeout", "duration", "`\"60s\"`", "How long it may take: 1 ms to 1 h."),
    key("restore", "cmd", "command", "required", "Run as the service's user and in its environment, while the service stands still; the machine ends unless it exits with 0."),
    key("restore", "timeout", "duration", "`\"60s\"`", "How long it may take: 1 ms to 1 h."),
    key("warm_restore", "exec", "command", "none", "Run this command, as the service's user; it must exit with 0."),
    key("warm_restore", "tcp", "port", "none", "Connect to this port of the service."),
    key("warm_restore", "http", "URL, or table", "none", "Make a GET request: `\"http://:8080/\"`, or `{ port, path, status, body }`."),
    key("warm_restore", "timeout", "duration", "`\"60s\"`", "How long the answer may take before the build fails: 1 ms to 1 h."),
    key("warm_restore.http", "port", "port", "required", "Port of the service."),
    key("warm_restore.http", "path", "string", "`\"/\"`", "Path to ask for, with its query."),
    key("warm_restore.http", "status", "integer or list of integers, 100 to 599", "`200`", "Status codes that count as the answer."),
    key("warm_restore.http", "body", "pattern", "none", "What the first 64 KiB of the body must match as well."),
    key("snapshot", "drop_caches", "boolean", "`true`", "Drop the page cache before the snapshot, so that the bundle is smaller."),
];

/// How a table is written: `[ready]`, `[[warm]]`, or `http` in `[ready]`.
pub(super) fn heading(table: &str) -> String {
    match (table, table.split_once('.')) {
        ("copy" | "fetch" | "run" | "warm" | "restore" | "warm_restore", _) => {
            format!("[[{table}]]")
        }
        (_, Some((outer, inner))) => format!("`{inner}` of {}", heading(outer)),
        _ => format!("[{table}]"),
    }
}

/// Keys of another tool's Smolfile that people will try, with what to write here. Those that only
/// stand in another table here are found through [`KEYS`].
#[rustfmt::skip]
const FOREIGN: &[(&str, &str)] = &[
    ("image", CONTAINER_IMAGE),
    ("entrypoint", "write the whole command as `cmd` in [service]"),
    ("init", "write commands that change files as [[run]], and those that need the running service as [[warm]]: they run once, after ready and before the snapshot"),
    ("net", NETWORK),
    ("network", NETWORK),
    ("healthcheck", "write the check as [ready]: it decides when the snapshot is taken"),
    ("from", CONTAINER_IMAGE),
    ("FROM", CONTAINER_IMAGE),
    ("build", CONTAINER_IMAGE),
    ("RUN", "write [[run]] with the command: cmd = \"make install\""),
    ("users", "[users] is not possible yet: Debian packages make their users; else write a number, user = \"1000\", or copy an /etc/passwd of your own with [[copy]]"),
    ("expose", "write ports = [80]"),
    ("hostname", "the host name is the machine's `name`"),
    ("packages", "write them into [rootfs]: debian = { suite = \"bookworm\", packages = [...] }"),
    ("depends_on", "remove it: a Smolfile describes one machine"),
    ("health", "write the check as [ready]: it decides when the snapshot is taken"),
    ("secrets", "secrets are not supported yet; do not put them into [service] `env`, for a snapshot holds all memory"),
    ("volumes", "put the files into the machine with [[copy]]"),
    ("auth", "remove it: a machine takes nothing over from the host"),
    ("restart", "remove it: smolrun ends with the service and passes its exit code on"),
    ("storage", "remove it: what the service writes is kept in memory"),
    ("overlay", "remove it: what the service writes is kept in memory"),
    ("gpu", "remove it: a machine has no GPU"),
    ("cuda", "remove it: a machine has no GPU"),
    ("docker_socket", "remove it: a machine takes nothing over from the host"),
    ("dev", "remove it: there is one way to build a machine"),
];

const NETWORK: &str = "commands of the build have a network if their [[run]] says so, by its own `network`; running machines have none of their own yet: `smolrun -p` forwards the `ports` to the service";

const CONTAINER_IMAGE: &str = "write the image into [rootfs]: image = \"docker.io/library/nginx:1.27\"; commands of a Dockerfile are [[run]] (`smolbuild init --from Dockerfile`); what it builds comes from a registry, or from an archive of `docker save`: image = \"docker-archive:app.tar\"";

/// What other tools call a key of a table, and what to write here.
#[rustfmt::skip]
const OTHER_NAMES: &[(&str, &[&str], &str)] = &[
    ("service", &["command", "run", "exec", "entrypoint", "args", "start", "ExecStart"], "write `cmd`, with all arguments"),
    ("service", &["systemd", "pid1", "use_init"], "write `init`"),
    ("service", &["stopsignal", "kill_signal", "signal"], "write `stop_signal`"),
    ("service", &["environment", "environ"], "write `env`"),
    ("service", &["working_dir", "workingdir", "cwd", "dir", "directory"], "write `workdir`"),
    ("service", &["ports", "expose"], "`ports` stands at the top of the file, before any [table]"),
    ("service", &["uid", "runas"], "write `user`"),
    ("service", &["healthcheck", "health"], "write the check as [ready]"),
    ("copy", &["chmod", "permissions", "perms"], "write `mode`"),
    ("copy", &["chown", "user", "uid"], "write `owner`"),
    ("copy", &["from", "source", "path", "file"], "write `src`"),
    ("copy", &["to", "target", "destination", "dst", "into"], "write `dest`"),
    ("copy", &["ignore", "excludes", "except"], "write `exclude`"),
    ("fetch", &["src", "source", "uri", "from"], "write `url`"),
    ("fetch", &["digest", "checksum", "hash", "sha256sum"], "write `sha256`"),
    ("fetch", &["to", "target", "destination", "dst", "into", "path"], "write `dest`"),
    ("fetch", &["chmod", "permissions"], "write `mode`"),
    ("fetch", &["chown", "user"], "write `owner`"),
    ("run", &["command", "run", "exec", "script", "shell"], "write `cmd`"),
    ("run", &["environment", "environ"], "write `env`"),
    ("run", &["net", "allow", "allow_net"], "write `network`"),
    ("run", &["working_dir", "workingdir", "cwd", "dir", "directory"], "write `workdir`"),
    ("ready", &["url"], "write `http`"),
    ("ready", &["port"], "write `tcp`"),
    ("ready", &["cmd", "command", "test"], "write `exec`"),
    ("ready", &["retries", "start_period"], "write `timeout`: attempts are made until then"),
    ("warm", &["command", "run", "exec"], "write `cmd`"),
    ("restore", &["command", "run", "exec"], "write `cmd`"),
    ("rootfs", &["from", "docker", "oci", "container"], "write `image`"),
    ("rootfs", &["path", "folder"], "write `dir`, or `tar` for an archive"),
    ("rootfs", &["packages", "suite"], "it stands in `debian`: { suite = \"bookworm\", packages = [...] }"),
];

/// What to write for a key that other tools know by this name.
fn other_name(table: &str, name: &str) -> Option<&'static str> {
    let mut all = OTHER_NAMES.iter();
    let found = all.find(|(of, names, _)| *of == table && names.contains(&name));
    found.map(|(.., help)| *help)
}

/// Whether a key that the table does not have is probably meant to be `key`: the diagnostic for it says so.
pub(super) fn stands_for(table: &str, name: &str, key: &str) -> bool {
    match other_name(table, name) {
        Some(help) => help.contains(&format!("`{key}`")),
        None => misspelt(table, name) == Some(key),
    }
}

/// The key of the table that `name` is probably a misspelling of.
fn misspelt(table: &str, name: &str) -> Option<&'static str> {
    let keys = KEYS.iter().filter(|key| key.table == table);
    nearest(name, keys.map(|key| key.name))
}

/// The diagnostic for a key that the table does not have.
pub(super) fn unknown(table: &str, name: &str, span: Span) -> Diagnostic {
    let shown = name.escape_debug();
    let place = match table {
        "" => "a Smolfile".to_owned(),
        table => heading(table),
    };
    if table.is_empty()
        && let Some((_, help)) = FOREIGN.iter().find(|(foreign, _)| *foreign == name)
    {
        return Diagnostic::new(span, format!("`{name}` is not supported")).help(*help);
    }
    let diagnostic = Diagnostic::new(span, format!("unknown key `{shown}`"))
        .label(format!("not a key of {place}"));
    if let Some(help) = other_name(table, name) {
        return diagnostic.help(help);
    }
    if let Some(near) = misspelt(table, name) {
        return diagnostic.help(format!("did you mean `{near}`?"));
    }
    let elsewhere: Vec<String> = KEYS
        .iter()
        .filter(|key| key.name == name && key.table != table)
        .map(|key| match key.table {
            "" => "at the top of the file, before any [table]".to_owned(),
            table => format!("in {}", heading(table)),
        })
        .collect();
    if !elsewhere.is_empty() {
        return diagnostic.help(format!("`{name}` stands {}", elsewhere.join(" or ")));
    }
    let known: Vec<&str> = KEYS
        .iter()
        .filter(|key| key.table == table)
        .map(|key| key.name)
        .collect();
    diagnostic.help(format!("{place} has the keys {}", known.join(", ")))
}

/// The candidate that `name` is probably a misspelling of.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(1);
    // Long garbage is never a misspelling, and the distance costs its length squared.
    if name.len() > 32 {
        return None;
    }
    let name = name.to_ascii_lowercase();
    candidates
        .map(|candidate| (strsim::osa_distance(&name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}
