//! What the instructions of a Dockerfile mean for a machine.

use std::collections::BTreeMap;

use smol_cli::human;
use smol_image::ImageRef;

use super::read::Instruction;
use super::step::Table;
use super::words::Variables;
use crate::init::accepted;
use crate::init::page::{list, quoted};

/// Most words of an instruction, and most variables and sources of all.
pub(super) const MOST: usize = 1000;
/// Most ports.
const MOST_PORTS: usize = 100;

/// What there is instead of commands: an image that another program has built.
pub(super) const BUILD: &str = "docker build -t app . && docker save app -o app.tar";
/// The image that this makes.
pub(super) const BUILT: &str = "docker-archive:app.tar";

/// A command: words, or a line for the shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Words(Vec<String>),
    Line(String),
}

impl Command {
    /// A list in JSON, else a line.
    pub fn parse(text: &str) -> Self {
        match serde_json::from_str(text) {
            Ok(words) => Self::Words(words),
            Err(_) => Self::Line(text.to_owned()),
        }
    }

    /// As TOML has it.
    pub fn toml(&self) -> String {
        match self {
            Self::Words(words) => list(words),
            Self::Line(line) => quoted(line),
        }
    }
}

/// Where in the Smolfile something would stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Ports,
    Rootfs,
    Files,
    Service,
    Ready,
}

/// Something that is not taken over, or not as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    pub place: Place,
    line: usize,
    text: String,
    why: String,
}

impl Lost {
    /// In one line, for the Smolfile.
    pub fn comment(&self) -> String {
        format!("Line {}, {}: {}", self.line, self.why, self.text)
    }
}

/// What concerns the files, in the order of the Dockerfile.
pub(super) enum Step {
    Table(Table),
    Lost(Lost),
}

/// The working directory.
pub(super) enum Workdir {
    /// That of the image, which is not looked at.
    OfImage,
    Known(String),
    /// A variable in it has no value.
    Unknown,
}

/// A health check: the command, and the lines of `[ready]` besides.
pub(super) struct Health {
    pub command: Command,
    pub times: Vec<(&'static str, String)>,
}

/// A machine, as far as the Dockerfile says it.
pub(super) struct Taken {
    pub variables: Variables,
    globals: BTreeMap<String, String>,
    pub image: Option<String>,
    pub steps: Vec<Step>,
    /// What is lost elsewhere.
    pub lost: Vec<Lost>,
    /// Whether an image that docker builds would have more.
    pub needs_build: bool,
    pub ports: Vec<u16>,
    pub cmd: Option<Command>,
    pub entrypoint: Option<Command>,
    pub env: Vec<(String, String)>,
    pub user: Option<String>,
    pub workdir: Workdir,
    pub stop_signal: Option<String>,
    pub health: Option<Health>,
    /// The words before a line that a shell runs, if SHELL says them.
    shell: Option<Vec<String>>,
    /// Sources of all copies.
    pub sources: usize,
    /// How many commands change the files, and the bytes of their variables.
    pub runs: usize,
    pub run_bytes: usize,
    /// Folders that the steps have made.
    pub folders: Vec<String>,
}

impl Taken {
    /// Nothing yet. `globals` are the values of ARG before the first stage.
    pub fn new(escape: char, globals: BTreeMap<String, String>) -> Self {
        Self {
            variables: Variables::new(escape),
            globals,
            image: None,
            steps: Vec::new(),
            lost: Vec::new(),
            needs_build: false,
            ports: Vec::new(),
            cmd: None,
            entrypoint: None,
            env: Vec::new(),
            user: None,
            workdir: Workdir::OfImage,
            stop_signal: None,
            health: None,
            shell: None,
            sources: 0,
            runs: 0,
            run_bytes: 0,
            folders: Vec::new(),
        }
    }

    /// What the first of its stages begins from.
    pub fn from(&mut self, from: &Instruction, base: &Result<String, String>) {
        if from.option("platform").is_some() {
            let why = "--platform left out (machines are x86-64 Linux)";
            self.lose(from, Place::Rootfs, why);
        }
        let why = match base {
            Err(why) => why.clone(),
            Ok(base) if base.eq_ignore_ascii_case("scratch") => {
                "`scratch` is an image without files".to_owned()
            }
            Ok(base) => match registry_name(base) {
                Some(name) => {
                    self.image = Some(name);
                    return;
                }
                None => "not the name of an image".to_owned(),
            },
        };
        self.needs_build = true;
        self.lose(from, Place::Rootfs, &format!("not taken over ({why})"));
    }

    /// ARG is known in its stage alone.
    pub fn begin_stage(&mut self) {
        self.variables.end_stage();
    }

    /// Takes over an instruction.
    pub fn take(&mut self, it: &Instruction) {
        match it.word.as_str() {
            "ARG" => self.arguments(it),
            "ENV" => self.environment(it),
            "COPY" | "ADD" => self.copy(it),
            "CMD" | "ENTRYPOINT" => self.command(it),
            "HEALTHCHECK" => self.healthcheck(it),
            "EXPOSE" => self.expose(it),
            "USER" => self.user = self.value(it, "user").or(self.user.take()),
            "STOPSIGNAL" => {
                self.stop_signal = self.value(it, "stop_signal").or(self.stop_signal.take());
            }
            "WORKDIR" => self.workdir(it),
            "RUN" => self.run(it),
            "VOLUME" => {
                let why = "not needed (what is written stays in the machine, there are no volumes)";
                self.lose(it, Place::Service, why);
            }
            "SHELL" => self.shell(it),
            "LABEL" | "MAINTAINER" => {
                self.lose(
                    it,
                    Place::Service,
                    "not taken over (a machine has no labels)",
                );
            }
            _ => self.lose(it, Place::Service, "not taken over"),
        }
    }

    /// Notes that something is not taken over.
    pub fn lose(&mut self, it: &Instruction, place: Place, why: &str) {
        const LONGEST: usize = 100;
        let lost = Lost {
            place,
            line: it.line,
            text: human::excerpt(&it.text, LONGEST),
            why: why.to_owned(),
        };
        match place {
            Place::Files => self.steps.push(Step::Lost(lost)),
            _ => self.lost.push(lost),
        }
    }

    /// What is lost, in the order of the Dockerfile, for a terminal; and what to do about it.
    pub fn notes(&self, file: &str) -> Vec<String> {
        let of_steps = self.steps.iter().filter_map(|step| match step {
            Step::Lost(lost) => Some(lost),
            Step::Table(_) => None,
        });
        let mut lost: Vec<&Lost> = self.lost.iter().chain(of_steps).collect();
        lost.sort_by_key(|lost| lost.line);
        let note = |lost: &&Lost| format!("{file}:{}: {}: {}", lost.line, lost.why, lost.text);
        let mut notes: Vec<String> = lost.iter().map(note).collect();
        if !self.ports.is_empty() && self.image.is_some() {
            notes.push(
                "`ports` has those of EXPOSE alone: add those that the image has itself".to_owned(),
            );
        }
        if self.needs_build {
            notes.push(format!(
                "what other stages make, and commands that are not taken over, is in an image that docker builds: {BUILD}, and image = \"{BUILT}\""
            ));
        }
        notes
    }

    /// The words of an instruction, with the values of variables.
    ///
    /// # Errors
    /// Why they cannot be known.
    pub fn words(&mut self, text: &str) -> Result<Vec<String>, String> {
        let raw = self.variables.split(text);
        if raw.len() > MOST {
            return Err(format!("it has more than {MOST} words"));
        }
        raw.into_iter()
            .map(|raw| self.variables.word(raw))
            .collect()
    }

    fn arguments(&mut self, it: &Instruction) {
        for word in self.variables.split(&it.rest) {
            let (name, value) = match word.split_once('=') {
                Some((name, raw)) => (name, self.variables.word(raw).ok()),
                None => (word, self.globals.get(word).cloned()),
            };
            if value.is_none() {
                let why =
                    "not taken over (it has no value: write --build-arg's here, ARG NAME=value)";
                self.lose(it, Place::Files, why);
            }
            self.variables.argument(name, value);
        }
    }

    /// `ENV A=1 B="2 3"`, or `ENV A all of the rest`.
    fn environment(&mut self, it: &Instruction) {
        let raw = self.variables.split(&it.rest);
        let first = raw.first().copied().unwrap_or_default();
        let pairs: Vec<(&str, &str)> = match first.contains('=') {
            true => raw.iter().filter_map(|word| word.split_once('=')).collect(),
            false => vec![(first, it.rest[first.len()..].trim_start())],
        };
        if pairs.len() + self.env.len() > MOST {
            return self.lose(it, Place::Service, "not taken over (too many variables)");
        }
        let values = pairs.iter().map(|(_, raw)| self.variables.word(raw));
        let values: Vec<_> = values.collect();
        for ((name, _), value) in pairs.into_iter().zip(values) {
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let value = match value {
                _ if name.is_empty() || !name.chars().all(is_part) => {
                    Err("it has a name that no variable can have".to_owned())
                }
                Ok(value) if value.contains('\0') => Err("a NUL character is in it".to_owned()),
                value => value,
            };
            match value {
                Ok(value) => {
                    self.variables.environment(name, value.clone());
                    self.env.retain(|(other, _)| other != name);
                    self.env.push((name.to_owned(), value));
                }
                Err(why) => {
                    self.variables.forget(name);
                    self.lose(it, Place::Service, &format!("not taken over ({why})"));
                }
            }
        }
    }

    fn command(&mut self, it: &Instruction) {
        let command = self.parse_command(&it.rest);
        let key = it.word.to_ascii_lowercase();
        if let Err(why) = accepted(&format!("service.{key} = {}", command.toml())) {
            return self.lose(it, Place::Service, &format!("not taken over ({why})"));
        }
        match it.word.as_str() {
            "CMD" => self.cmd = Some(command),
            _ => self.entrypoint = Some(command),
        }
    }

    fn shell(&mut self, it: &Instruction) {
        let words = match Command::parse(&it.rest) {
            Command::Words(words) if !words.is_empty() => words,
            _ => return self.lose(it, Place::Files, "not taken over (it is no list of words)"),
        };
        // What follows is a string for /bin/sh in a Smolfile, too.
        self.shell = Some(words).filter(|words| words != &["/bin/sh", "-c"]);
    }

    /// A command as CMD and the like have it.
    pub(super) fn parse_command(&self, text: &str) -> Command {
        self.by_shell(Command::parse(text))
    }

    /// A command, with the shell before it that runs it if it is a line.
    pub(super) fn by_shell(&self, command: Command) -> Command {
        match (command, &self.shell) {
            (Command::Line(line), Some(shell)) => {
                let words = shell.iter().cloned().chain([line]);
                Command::Words(words.collect())
            }
            (command, _) => command,
        }
    }

    fn expose(&mut self, it: &Instruction) {
        let words = match self.words(&it.rest) {
            Ok(words) => words,
            Err(why) => return self.lose(it, Place::Ports, &format!("not taken over ({why})")),
        };
        let mut refused = None;
        for word in &words {
            let (numbers, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
            let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
            let is_tcp = protocol.eq_ignore_ascii_case("tcp");
            match (first.parse::<u16>(), last.parse::<u16>()) {
                (Ok(first @ 1..), Ok(last))
                    if is_tcp && usize::from(last.saturating_sub(first)) < MOST_PORTS =>
                {
                    self.ports.extend(first..=last);
                }
                _ if !is_tcp => refused = Some("only TCP ports are possible"),
                _ => refused = Some("not a port, or too many"),
            }
        }
        let mut seen = Vec::new();
        self.ports.retain(|port| {
            let is_new = seen.len() < MOST_PORTS && !seen.contains(port);
            seen.extend(is_new.then_some(*port));
            is_new
        });
        if let Some(why) = refused {
            self.lose(it, Place::Ports, &format!("not all taken over ({why})"));
        }
    }

    /// The one value of an instruction, if `[service]` takes it under this key.
    fn value(&mut self, it: &Instruction, key: &str) -> Option<String> {
        let value = self.words(&it.rest).and_then(|words| {
            let value = words.join(" ");
            accepted(&format!("service.{key} = {}", quoted(&value))).map(|()| value)
        });
        match value {
            Ok(value) => Some(value),
            Err(why) => {
                self.lose(it, Place::Service, &format!("not taken over ({why})"));
                None
            }
        }
    }

    fn workdir(&mut self, it: &Instruction) {
        let path = self.words(&it.rest).and_then(|words| {
            let path = self.place(&words.join(" "))?;
            accepted(&format!("service.workdir = {}", quoted(&path))).map(|()| path)
        });
        self.workdir = match path {
            Ok(path) => Workdir::Known(path),
            Err(why) => {
                self.lose(it, Place::Service, &format!("not taken over ({why})"));
                Workdir::Unknown
            }
        };
    }

    /// An absolute path, without a slash at its end, of one that may be relative to WORKDIR.
    ///
    /// # Errors
    /// WORKDIR is not known.
    pub fn place(&self, path: &str) -> Result<String, String> {
        let base = match &self.workdir {
            _ if path.starts_with('/') => "",
            Workdir::OfImage => "",
            Workdir::Known(base) => base,
            Workdir::Unknown => return Err("WORKDIR is not known".to_owned()),
        };
        let mut parts: Vec<&str> = Vec::new();
        for part in base.split('/').chain(path.split('/')) {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        Ok(format!("/{}", parts.join("/")))
    }
}

/// The name of an image in a registry, as `[rootfs] image` takes it: one such as `oci:1` would be that of
/// a folder there.
fn registry_name(text: &str) -> Option<String> {
    let prefixed = format!("docker://{text}");
    let names = [text.to_owned(), prefixed].into_iter();
    let mut of_registry =
        names.filter(|name| matches!(ImageRef::parse(name), Ok(ImageRef::Registry(_))));
    of_registry.next()
}
