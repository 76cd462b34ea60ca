//! From a Dockerfile: what a Smolfile can say, too, and what it cannot.
//!
//! | file | what it does |
//! |---|---|
//! | `read.rs` | from the text to instructions |
//! | `words.rs` | words of an instruction, and the variables in them |
//! | `taken.rs` | what an instruction means for a machine |
//! | `copy.rs` | … COPY and ADD |
//! | `run.rs` | … RUN |
//! | `health.rs` | … HEALTHCHECK |
//! | `network.rs` | which commands are in need of the network |
//! | `step.rs` | a step of the Smolfile |
//! | `write.rs` | the Smolfile |
//!
//! The last stage counts, with the stages that it begins from. What cannot be taken over is told with the
//! number of its line, as a note and in the Smolfile.

mod copy;
mod health;
mod network;
mod read;
mod run;
mod step;
mod taken;
mod words;
mod write;

use std::collections::BTreeMap;

use smol_cli::{ExitKind, Failure};

use self::read::{Dockerfile, Instruction};
use self::taken::Taken;
use self::words::Variables;
use super::Draft;

pub use self::read::MAX_SIZE;

/// What docker sets by itself, of the platform that machines have (Dockerfile reference, "Automatic platform
/// ARGs in the global scope").
const PLATFORM: &[(&str, &str)] = &[
    ("BUILDARCH", "amd64"),
    ("BUILDOS", "linux"),
    ("BUILDPLATFORM", "linux/amd64"),
    ("BUILDVARIANT", ""),
    ("TARGETARCH", "amd64"),
    ("TARGETOS", "linux"),
    ("TARGETPLATFORM", "linux/amd64"),
    ("TARGETVARIANT", ""),
];

/// A stage: FROM, and what follows it.
struct Stage<'a> {
    from: &'a Instruction,
    /// What it begins from, with the variables replaced.
    base: Result<String, String>,
    name: Option<String>,
    instructions: Vec<&'a Instruction>,
}

/// The Smolfile of what a Dockerfile builds. `shown` is the name of the file, for notes.
///
/// # Errors
/// Of kind Usage: it is too long, or has no FROM.
pub fn smolfile(name: &str, shown: &str, text: &str) -> Result<Draft, Failure> {
    let file = read::read(text)?;
    let (globals, stages) = stages(&file);
    let chain = chain(&stages);
    let Some(first) = chain.first() else {
        let what = format!("{shown} is no Dockerfile: there is no FROM in it");
        return Err(Failure::new(ExitKind::Usage, what)
            .hint("smolbuild init IMAGE makes a Smolfile of an image"));
    };
    let mut taken = Taken::new(file.escape, globals);
    taken.from(first.from, &first.base);
    for stage in &chain {
        taken.begin_stage();
        for instruction in &stage.instructions {
            taken.take(instruction);
        }
    }
    taken.make_workdir();
    Draft::new(write::page(name, shown, &taken), taken.notes(shown))
}

/// The values of ARG before the first FROM, and the stages.
fn stages(file: &Dockerfile) -> (BTreeMap<String, String>, Vec<Stage<'_>>) {
    let mut variables = Variables::new(file.escape);
    for (name, value) in PLATFORM {
        variables.argument(name, Some((*value).to_owned()));
    }
    let mut stages = Vec::<Stage>::new();
    for instruction in &file.instructions {
        if instruction.word == "FROM" {
            stages.push(stage(instruction, &mut variables));
        } else if let Some(stage) = stages.last_mut() {
            stage.instructions.push(instruction);
        } else if instruction.word == "ARG" {
            for word in variables.split(&instruction.rest) {
                let (name, raw) = word.split_once('=').unwrap_or((word, ""));
                let value = word.contains('=').then(|| variables.word(raw).ok());
                variables.argument(name, value.flatten());
            }
        }
    }
    (variables.into_values(), stages)
}

/// `FROM image AS name`.
fn stage<'a>(from: &'a Instruction, variables: &mut Variables) -> Stage<'a> {
    let mut words = variables.split(&from.rest).into_iter();
    let base = words.next().unwrap_or_default();
    let is_named = words
        .next()
        .is_some_and(|word| word.eq_ignore_ascii_case("as"));
    let name = words.next().filter(|_| is_named);
    Stage {
        from,
        base: variables.word(base),
        name: name.map(str::to_ascii_lowercase),
        instructions: Vec::new(),
    }
}

/// The last stage, and before it those that it begins from.
fn chain<'s, 'a>(stages: &'s [Stage<'a>]) -> Vec<&'s Stage<'a>> {
    let mut chain = Vec::new();
    let mut rest = stages;
    while let Some((stage, earlier)) = rest.split_last() {
        chain.push(stage);
        let base = stage.base.as_ref().map(|base| base.to_ascii_lowercase());
        let is_base =
            |stage: &Stage| stage.name.is_some() && stage.name.as_ref() == base.as_ref().ok();
        rest = match earlier.iter().rposition(is_base) {
            Some(at) => &earlier[..=at],
            None => &[],
        };
    }
    chain.reverse();
    chain
}

#[cfg(test)]
mod tests;
