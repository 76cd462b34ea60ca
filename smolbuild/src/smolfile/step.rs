//! `[[run]]` and `[[fetch]]`, and the order of all that is done to the root file system.

use std::time::Duration;

use smol_net::Rule;
use toml::Spanned;
use toml::de::DeValue;

use super::command::command;
use super::copy::{self, file_mode};
use super::diagnostic::Diagnostic;
use super::parse::{self, MEMORY, duration, environment};
use super::table::{Errors, Table, as_string};
use super::values::{self, MIB};
use super::{CopyStep, FetchStep, Network, RunStep, Step};

/// How long a `[[run]]` may take, unless the Smolfile says it.
const RUN_TIMEOUT: Duration = Duration::from_secs(3600);
/// The longest that it can say.
const MAX_RUN_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Memory of a `[[run]]`'s machine, unless the Smolfile says it, bytes: the files that a command writes
/// are in it.
const RUN_MEMORY: u64 = 2048 * MIB;
/// Most patterns of all `[[copy]]`s: a lock is looked through for each.
const MAX_PATTERNS: usize = 1000;
/// Most `[[run]]`s: each boots a machine, and is a layer.
pub const MAX_RUNS: usize = 100;

/// Everything that is done to the root file system, in the order of the file, whatever its kind.
/// `None` only after an error was reported.
pub(super) fn steps(top: &mut Table<'_>, errors: &mut Errors) -> Option<Vec<Step>> {
    let mut steps: Vec<(usize, Option<Vec<Step>>)> = Vec::new();
    for (number, table) in top.tables("copy", errors).into_iter().enumerate() {
        let start = table.span.start;
        let copies = copy::copy(table, number, errors);
        let copies = copies.map(|all| all.into_iter().map(Step::Copy).collect());
        steps.push((start, copies));
    }
    for table in top.tables("fetch", errors) {
        let start = table.span.start;
        let step = fetch(table, errors).map(|step| vec![Step::Fetch(step)]);
        steps.push((start, step));
    }
    let runs = top.tables("run", errors);
    if let Some(table) = runs.get(MAX_RUNS) {
        let title = format!("[[run]] is written more than {MAX_RUNS} times");
        errors.push(Diagnostic::new(table.span.clone(), title).help("join commands with `&&`"));
    }
    for (number, table) in (1..).zip(runs) {
        let start = table.span.start;
        steps.push((start, Some(vec![Step::Run(run(table, number, errors))])));
    }
    steps.sort_by_key(|(start, _)| *start);
    let steps = steps.into_iter().map(|(_, steps)| steps);
    let steps = steps.collect::<Option<Vec<_>>>()?.concat();
    let copies = steps.iter().filter_map(Step::copy);
    limit_patterns(copies, errors);
    Some(steps)
}

fn limit_patterns<'a>(copies: impl Iterator<Item = &'a CopyStep>, errors: &mut Errors) {
    if let Some(step) = copies.filter(|step| step.glob).nth(MAX_PATTERNS) {
        let title = format!("[[copy]] has more than {MAX_PATTERNS} patterns");
        errors.push(Diagnostic::new(step.src.span(), title).help("copy a folder"));
    }
}

fn run(mut table: Table<'_>, number: u32, errors: &mut Errors) -> RunStep {
    table.require("cmd", "cmd = \"make install\"", errors);
    let span = table.value_span("cmd").unwrap_or(table.span.clone());
    let cmd = command(&mut table, "cmd", errors);
    let env = environment(&mut table, "run.env", errors);
    let user = table.parsed("user", errors, values::user);
    let workdir = table.parsed("workdir", errors, values::guest_path);
    let memory = parse::memory(&mut table, RUN_MEMORY, MEMORY, errors);
    let network = network(&mut table, errors);
    let timeout = duration(&mut table, "timeout", RUN_TIMEOUT, MAX_RUN_TIMEOUT, errors);
    table.finish(errors);
    RunStep {
        number,
        cmd: Spanned::new(span, cmd),
        env,
        user,
        workdir: workdir.map(Spanned::into_inner),
        memory,
        network,
        timeout,
    }
}

/// `network`: true, false, or a list of names and addresses.
fn network(table: &mut Table<'_>, errors: &mut Errors) -> Network {
    const WHAT: &str = "true, false, or a list such as [\"registry.example.org:443\"]";
    match table.value("network") {
        None => return Network::None,
        Some(DeValue::Boolean(_)) => {
            return match table.boolean("network", errors) {
                Some(true) => Network::All,
                _ => Network::None,
            };
        }
        Some(_) => {}
    }
    let mut rules = Vec::new();
    for value in table.array("network", WHAT, errors) {
        let span = value.span();
        let Some(text) = as_string(value, errors) else {
            continue;
        };
        match text.get_ref().parse::<Rule>() {
            Ok(rule) => rules.push(rule),
            Err(why) => {
                let wrong = Diagnostic::new(span, "not a name or address to reach");
                errors.push(wrong.label(why.to_string()));
            }
        }
    }
    Network::Listed(rules)
}

fn fetch(mut table: Table<'_>, errors: &mut Errors) -> Option<FetchStep> {
    table.require("url", "url = \"https://example.org/model.bin\"", errors);
    table.require("dest", "dest = \"/srv/model.bin\"", errors);
    let url = table.parsed("url", errors, values::url);
    if let Some(url) = &url
        && !table.has("sha256")
    {
        let get = format!("curl -L {} | sha256sum", url.get_ref());
        let title = "`sha256` is missing in [[fetch]]: the file is known by its digest";
        errors.push(Diagnostic::new(table.span.clone(), title).help(get));
    }
    let sha256 = table.parsed("sha256", errors, values::sha256);
    let dest = table.parsed("dest", errors, values::destination);
    let owner = table.parsed("owner", errors, values::user);
    let mode = table.take("mode");
    let mode = mode.and_then(|entry| file_mode(entry, errors));
    table.finish(errors);
    let (url, dest) = (url?, dest?.into_inner());
    if dest.ends_with('/') && values::file_name(url.get_ref()).is_none() {
        let title = "the URL has no file name, and `dest` is a folder";
        let help = "write `dest` with the name that the file is to have";
        errors.push(Diagnostic::new(url.span(), title).help(help));
    }
    Some(FetchStep {
        url,
        sha256: sha256?.into_inner(),
        dest,
        mode,
        owner,
    })
}
