//! The Smolfile of smolvm, another program whose file has the same name and is TOML as well: without a name
//! and tables of ours, but with an image, a command and the like at the top.

use toml::de::{DeTable, DeValue};

use super::diagnostic::Diagnostic;
use super::table::Table;

/// Tables that a Smolfile of ours has at least one of.
const OURS: [&str; 11] = [
    "rootfs",
    "base",
    "kernel",
    "ready",
    "copy",
    "fetch",
    "run",
    "warm",
    "restore",
    "warm_restore",
    "snapshot",
];

/// What stands at the top of smolvm's, and not of ours.
const THEIRS: [&str; 22] = [
    "image",
    "entrypoint",
    "cmd",
    "env",
    "workdir",
    "net",
    "gpu",
    "gpu_vram",
    "cuda",
    "storage",
    "overlay",
    "volumes",
    "init",
    "artifact",
    "pack",
    "dev",
    "network",
    "health",
    "restart",
    "auth",
    "secrets",
    "docker_socket",
];

/// What none of ours is like.
const LEFT_OUT: [(&str, &str); 10] = [
    (
        "init",
        "[[run]] commands change the files, [[warm]] commands run once, before the snapshot",
    ),
    (
        "net",
        "a [[run]] has a network if it says so; machines have none but the ports that smolrun forwards",
    ),
    (
        "network",
        "a [[run]] has a network if it says so; machines have none but the ports that smolrun forwards",
    ),
    ("volumes", "[[copy]] puts files into the machine"),
    ("storage", "what the service writes is kept in memory"),
    ("overlay", "what the service writes is kept in memory"),
    ("gpu", "a machine has no GPU"),
    ("cuda", "a machine has no GPU"),
    (
        "restart",
        "smolrun ends with the service and passes its exit code on",
    ),
    ("auth", "a machine takes nothing over from the host"),
];

/// Longest value that is repeated, in characters.
const MOST_SHOWN: usize = 200;

/// Returns the one mistake of a Smolfile that is smolvm's: it says so, and what is the same in ours.
pub(super) fn of_smolvm(top: &Table<'_>) -> Option<Diagnostic> {
    let has_command = table(top.value("service")).is_some_and(|it| it.contains_key("cmd"));
    if has_command || OURS.iter().any(|key| top.has(key)) {
        return None;
    }
    let mut theirs: Vec<_> = THEIRS
        .iter()
        .filter_map(|key| Some((top.key_span(key)?, *key)))
        .collect();
    theirs.sort_by_key(|(span, _)| span.start);
    // One alone may be a mistake in ours.
    if theirs.len() < if top.has("name") { 2 } else { 1 } {
        return None;
    }
    let (span, key) = theirs.first()?.clone();
    let title = "this looks like a Smolfile of smolvm, which is another program";
    let diagnostic = Diagnostic::new(span, title)
        .label(format!("`{key}` is a key of smolvm's"))
        .help("a Smolfile of smolbuild has [rootfs], [service] and [ready]: docs/smolfile.md");
    let diagnostic = in_ours(top)
        .into_iter()
        .fold(diagnostic, |it, line| it.help(format!("write {line}")));
    let has = |key: &str| top.has(key) || in_dev(top, key).is_some();
    let mut told: Vec<&str> = Vec::new();
    for (_, why) in LEFT_OUT.into_iter().filter(|(key, _)| has(key)) {
        if !told.contains(&why) {
            told.push(why);
        }
    }
    Some(told.into_iter().fold(diagnostic, Diagnostic::help))
}

/// What is the same in ours, a line for each.
fn in_ours(top: &Table<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    if !top.has("name") {
        lines.push("name = \"my-machine\"".to_owned());
    }
    let ports = top.list("ports").map(<[_]>::iter);
    let ports = ports.or_else(|| match in_dev(top, "ports")? {
        DeValue::Array(list) => Some(list.iter()),
        _ => None,
    });
    let ports: Vec<u16> = ports
        .into_iter()
        .flatten()
        .filter_map(|port| guest_port(port.get_ref()))
        .collect();
    if !ports.is_empty() {
        lines.push(format!("ports = {ports:?}"));
    }
    match top.value("image") {
        Some(DeValue::String(image)) => lines.push(format!("rootfs.image = {}", quoted(image))),
        _ => lines.push(
            "rootfs.debian = { suite = \"bookworm\", packages = [...] }, or another [rootfs]"
                .to_owned(),
        ),
    }
    let words = |key| top.list(key).unwrap_or_default().iter();
    let cmd = words("entrypoint").chain(words("cmd"));
    let cmd: Vec<_> = cmd.filter_map(|word| text(word.get_ref())).collect();
    match cmd.is_empty() {
        true => lines.push("service.cmd = [...], the program and its arguments".to_owned()),
        false => lines.push(format!("service.cmd = [{}]", list(&cmd))),
    }
    let env: Vec<_> = words("env")
        .filter_map(|it| variable(it.get_ref()))
        .collect();
    if !env.is_empty() {
        lines.push(cut(format!("service.env = {{ {} }}", env.join(", "))));
    }
    if let Some(DeValue::String(folder)) = top.value("workdir") {
        lines.push(format!("service.workdir = {}", quoted(folder)));
    }
    lines.push(match ports.first() {
        Some(port) => format!("ready.tcp = {port}, or another way to tell that it is ready"),
        None => "ready.log = \"...\", or another way to tell that it is ready".to_owned(),
    });
    lines
}

/// What smolvm's `[dev]` has under a key.
fn in_dev<'a>(top: &'a Table<'_>, key: &str) -> Option<&'a DeValue<'a>> {
    Some(table(top.value("dev"))?.get(key)?.get_ref())
}

fn table<'a>(value: Option<&'a DeValue<'_>>) -> Option<&'a DeTable<'a>> {
    match value? {
        DeValue::Table(table) => Some(table),
        _ => None,
    }
}

fn text<'a>(value: &'a DeValue<'_>) -> Option<&'a str> {
    match value {
        DeValue::String(text) => Some(text),
        _ => None,
    }
}

/// The guest's port of `HOST:GUEST`.
fn guest_port(value: &DeValue<'_>) -> Option<u16> {
    let port = text(value)?;
    let guest = port.rsplit(':').next().unwrap_or(port);
    guest.parse().ok().filter(|port| *port != 0)
}

/// `KEY = "VALUE"` of `KEY=VALUE`.
fn variable(value: &DeValue<'_>) -> Option<String> {
    let (name, value) = text(value)?.split_once('=')?;
    Some(format!("{name} = {}", quoted(value)))
}

fn list(words: &[&str]) -> String {
    let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
    cut(words.join(", "))
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    cut(toml::Value::from(text).to_string())
}

fn cut(text: String) -> String {
    smol_cli::human::excerpt(&text, MOST_SHOWN)
}

#[cfg(test)]
mod tests {
    use super::super::{parse, render};

    fn text(source: &str) -> String {
        render(&parse(source).unwrap_err(), "Smolfile", source, false)
    }

    #[test]
    fn a_smolfile_of_smolvm_is_one_mistake_with_the_same_in_ours() {
        let source = "# A server\n\nimage = \"node:22-alpine\"\nentrypoint = [\"node\"]\ncmd = [\"server.js\"]\n\
                      env = [\"PORT=3000\", \"GREETING=\\\"hi\\\"\"]\nworkdir = \"/app\"\ncpus = 2\nmemory = 512\nnet = true\n\n\
                      [dev]\nports = [\"8080:3000\"]\ninit = [\"npm install\"]\nvolumes = [\"./src:/app\"]\n";
        assert_eq!(
            text(source),
            r#"error: this looks like a Smolfile of smolvm, which is another program
 --> Smolfile:3:1
  |
3 | image = "node:22-alpine"
  | ^^^^^ `image` is a key of smolvm's
  |
  = help: a Smolfile of smolbuild has [rootfs], [service] and [ready]: docs/smolfile.md
  = help: write name = "my-machine"
  = help: write ports = [3000]
  = help: write rootfs.image = "node:22-alpine"
  = help: write service.cmd = ["node", "server.js"]
  = help: write service.env = { PORT = "3000", GREETING = '"hi"' }
  = help: write service.workdir = "/app"
  = help: write ready.tcp = 3000, or another way to tell that it is ready
  = help: [[run]] commands change the files, [[warm]] commands run once, before the snapshot
  = help: a [[run]] has a network if it says so; machines have none but the ports that smolrun forwards
  = help: [[copy]] puts files into the machine
"#
        );
    }

    #[test]
    fn each_of_its_keys_alone_is_enough_where_none_of_ours_is() {
        for source in [
            "net = true\n",
            "cpus = 2\nmemory = 1024\ninit = [\"apk add git\"]\n",
            "[dev]\nports = [\"0:0\", \"x\", 3]\n[service]\nport = 80\n",
            "cmd = 3\nimage = 4\nenv = [\"X\", 3]\nworkdir = []\n",
        ] {
            let told = text(source);
            assert!(
                told.starts_with("error: this looks like a Smolfile of smolvm"),
                "{told}"
            );
            assert_eq!(told.matches("error: ").count(), 1, "{told}");
            assert!(told.contains("write rootfs.debian") && told.contains("write ready.log"));
        }
    }

    #[test]
    fn mistakes_in_a_smolfile_of_ours_are_told_as_such() {
        for source in [
            "",
            "name = \"app\"\nimage = \"debian\"\n",
            "image = \"debian\"\n[ready]\ntcp = 80\n",
            "env = { A = \"b\" }\n[service]\ncmd = [\"app\"]\n",
            "net = true\nrootfs.dir = \"root\"\n",
            "memory = 3\n",
        ] {
            let told = text(source);
            assert!(!told.contains("smolvm"), "{told}");
        }
    }

    #[test]
    fn what_is_repeated_of_it_is_cut_and_shown_in_one_line() {
        let long = "x".repeat(100_000);
        let told = text(&format!("image = \"{long}\\n\"\ncmd = [\"a\\nb\"]\n"));
        assert!(told.lines().all(|line| line.len() < 500));
    }
}
