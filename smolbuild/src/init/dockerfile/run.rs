//! RUN.

use super::network::{line_needs, words_need};
use super::read::{Document, Instruction};
use super::step::Table;
use super::taken::{Command, Place, Step, Taken, Workdir};
use crate::init::page::{quoted, text};
use crate::smolfile::{MAX_RUNS, MAX_SIZE};

/// Folders that a `[[run]]` has mounts of its own at: it does not find what a step before has put there,
/// and nothing in them stays.
const MOUNTS: [&str; 5] = ["/dev", "/proc", "/run", "/sys", "/tmp"];

/// What a step with a network is told.
const BETTER: &str = "it may reach all of the internet; better than true is a list: network = [\"packages.example.org:443\"]";

/// Whether a path of the guest is in a folder that no step shares with another one.
pub(super) fn is_in_mount(path: &str) -> bool {
    let below = |mount: &str| {
        path.strip_prefix(mount)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    MOUNTS.into_iter().any(below)
}

impl Taken {
    /// Takes over RUN.
    pub(super) fn run(&mut self, it: &Instruction) {
        match self.run_step(it) {
            Ok(table) => self.push_run(table),
            Err(why) => {
                self.needs_build = true;
                self.lose(it, Place::Files, &format!("not taken over ({why})"));
            }
        }
    }

    /// A folder that WORKDIR would make, if nothing has made it yet.
    pub(super) fn make_workdir(&mut self) {
        let Workdir::Known(path) = &self.workdir else {
            return;
        };
        if self.is_folder(path) || is_in_mount(path) || self.runs >= MAX_RUNS {
            return;
        }
        let mut table = Table::new("[[run]]");
        table.comments.push("WORKDIR makes its folder.".to_owned());
        table.key("cmd", format!("[\"mkdir\", \"-p\", {}]", quoted(path)));
        if table.check().is_ok() {
            self.folders.push(path.clone());
            self.push_run(table);
        }
    }

    /// Whether a step has made this folder, or one in it.
    fn is_folder(&self, path: &str) -> bool {
        let is_in = |made: &String| {
            let rest = made.strip_prefix(path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        path == "/" || self.folders.iter().any(is_in)
    }

    fn push_run(&mut self, table: Table) {
        self.runs += 1;
        self.steps.push(Step::Table(table));
    }

    fn run_step(&mut self, it: &Instruction) -> Result<Table, String> {
        if self.image.is_none() {
            return Err("docker has run it in the image above".to_owned());
        }
        let (command, needs_network) = self.run_command(it)?;
        let workdir = match &self.workdir {
            Workdir::OfImage => None,
            Workdir::Known(path) if is_in_mount(path) => {
                return Err(format!("nothing stays in {path}: choose another WORKDIR"));
            }
            Workdir::Known(path) => Some(path.clone()),
            Workdir::Unknown => return Err("WORKDIR is not known".to_owned()),
        };
        let mut table = Table::new("[[run]]");
        table.key("cmd", command.toml_lines());
        let network = self.run_options(it, &mut table, needs_network)?;
        let env = self.run_environment()?;
        if !env.is_empty() {
            table.key("env", env);
        }
        if let Some(user) = &self.user {
            table.key("user", quoted(user));
        }
        if let Some(workdir) = &workdir {
            table.key("workdir", quoted(workdir));
        }
        if network {
            table.key("network", "true".to_owned());
        }
        table.check()?;
        self.make_workdir();
        if self.runs >= MAX_RUNS {
            return Err(format!("more than {MAX_RUNS} commands: join them with &&"));
        }
        Ok(table)
    }

    /// What is run, and whether that needs the network.
    fn run_command(&self, it: &Instruction) -> Result<(Command, bool), String> {
        if it.documents.is_empty() {
            let command = Command::parse(&it.rest);
            let needs = match &command {
                Command::Words(words) => words_need(words),
                Command::Line(line) => line_needs(line),
            };
            return Ok((self.by_shell(command), needs));
        }
        if it.documents.iter().any(|document| !document.is_whole) {
            return Err("the end of its here-document is missing".to_owned());
        }
        let line = match &it.documents[..] {
            [only] if it.rest.trim() == only.word => of_document(only),
            documents => {
                let texts = documents
                    .iter()
                    .map(|it| format!("\n{}{}", it.text, it.name));
                it.rest.clone() + &texts.collect::<String>()
            }
        };
        let needs = line_needs(&line);
        Ok((self.by_shell(Command::Line(line)), needs))
    }

    /// Looks at `--mount`, `--network` and the like. Returns whether the step has a network.
    fn run_options(
        &mut self,
        it: &Instruction,
        table: &mut Table,
        needs_network: bool,
    ) -> Result<bool, String> {
        let mut network = needs_network;
        let mut left_out = Vec::new();
        for (name, value) in &it.options {
            match (name.as_str(), value.as_str()) {
                ("mount", value) => {
                    let kind = value.split(',').find_map(|part| part.strip_prefix("type="));
                    match kind.unwrap_or("bind") {
                        "cache" => left_out.push("--mount=type=cache left out (a step is kept as a whole, there are no caches in it)"),
                        "tmpfs" => left_out.push("--mount=type=tmpfs left out (only /tmp and /run are not kept)"),
                        "secret" | "ssh" => return Err("secrets are not possible in a step: what needs one is copied ready-made".to_owned()),
                        _ => return Err("--mount=type=bind is not possible: copy the files with [[copy]] first".to_owned()),
                    }
                }
                ("network", "none") => network = false,
                ("network", "default") => {}
                ("network", "host") => {
                    network = true;
                    left_out.push("--network=host is the internet here (the host's own network is reached if a rule names it)");
                }
                ("network", _) => left_out.push("--network left out (it is none, default or host)"),
                ("security", "insecure") => left_out
                    .push("--security left out (the command is root in a machine of its own)"),
                ("security", _) => {}
                _ => left_out.push("an option left out (it is not known here)"),
            }
        }
        left_out.dedup();
        for why in left_out {
            self.lose(it, Place::Files, why);
        }
        if network {
            table.comments.push(format!("Line {}: {BETTER}", it.line));
        }
        Ok(network)
    }

    /// The variables that a command of docker's would see here: those of ARG, and over them those of ENV.
    fn run_environment(&mut self) -> Result<String, String> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let arguments = self.variables.arguments();
        let arguments = arguments.filter(|(name, _)| !name.is_empty() && name.chars().all(is_part));
        let of_env = self
            .env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let pairs = arguments.chain(of_env);
        let pairs = pairs.map(|(name, value)| format!("{name} = {}", quoted(value)));
        let mut env = String::new();
        for pair in pairs {
            let separator = if env.is_empty() { "" } else { ", " };
            env += separator;
            env += &pair;
            if env.len() > MAX_SIZE {
                return Err("its variables are too long".to_owned());
            }
        }
        self.run_bytes += env.len();
        // Each step has all of them.
        if self.run_bytes > MAX_SIZE / 2 {
            return Err("the variables of all steps are too long".to_owned());
        }
        Ok(match env.is_empty() {
            true => env,
            false => format!("{{ {env} }}"),
        })
    }
}

/// What a here-document alone means: a script of the shell's, or of the program that its first line names.
fn of_document(document: &Document) -> String {
    let script = match document.tabs {
        true => document
            .text
            .lines()
            .map(|line| line.trim_start_matches('\t').to_owned() + "\n")
            .collect(),
        false => document.text.clone(),
    };
    if !script.starts_with("#!") {
        return script;
    }
    let name = &document.name;
    format!(
        "cat > /tmp/script <<'{name}'\n{script}{name}\nchmod +x /tmp/script && exec /tmp/script\n"
    )
}

impl Command {
    /// As TOML has it; a script in as many lines as it has, where nothing in them can be taken for something
    /// else.
    fn toml_lines(&self) -> String {
        match self {
            Self::Line(line) => text(line),
            Self::Words(words) => {
                let words: Vec<String> = words.iter().map(|word| text(word)).collect();
                format!("[{}]", words.join(", "))
            }
        }
    }
}
