//! From the spanned TOML tables to the typed [`Smolfile`](super::Smolfile), section by section.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use smol_machine::cpu::Level;
use toml::Spanned;
use toml::de::DeValue;

use super::command::{self, command, env_list, port_help};
use super::diagnostic::Diagnostic;
use super::keys;
use super::table::{Entry, Errors, Table, as_integer, as_string, parsed, to_u64};
use super::values::{self, MIB};
use super::{Http, KernelSection, KernelSource, Probe, Ready, Service, Warm, WarmRestore};
use crate::input::{BundleInput, DebianInput, DirInput, ImageInput, Rootfs, TarInput};

/// Smallest and largest guest memory, in bytes.
pub const MEMORY: RangeInclusive<u64> = 64 * MIB..=64 << 30;
/// Guest memory unless the Smolfile says it, in bytes.
pub(super) const DEFAULT_MEMORY: u64 = 256 * MIB;
/// Most vCPUs a machine can have.
pub const MAX_CPUS: u64 = 8;

const HOUR: Duration = Duration::from_secs(3600);
/// How long a machine may take to get ready, or a command, unless the Smolfile says it.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two attempts of a probe, unless the Smolfile says it.
pub const DEFAULT_INTERVAL: Duration = Duration::from_millis(100);

/// `memory` of a table, in bytes.
pub(super) fn memory(
    table: &mut Table<'_>,
    default: u64,
    range: RangeInclusive<u64>,
    errors: &mut Errors,
) -> u64 {
    let Some(entry) = table.take("memory") else {
        return default;
    };
    let size = match entry.value.get_ref() {
        DeValue::Integer(mib) => {
            let span = entry.value.span();
            Some(Spanned::new(
                span,
                to_u64(mib).unwrap_or(u64::MAX).saturating_mul(MIB),
            ))
        }
        _ => as_string(entry.value, errors).and_then(|text| parsed(text, errors, values::size)),
    };
    let Some(size) = size else { return default };
    if !range.contains(size.get_ref()) {
        errors.push(
            Diagnostic::new(size.span(), "`memory` is out of range")
                .label("must be 64MiB to 64GiB"),
        );
    } else if size.get_ref() % MIB != 0 {
        errors.push(Diagnostic::new(
            size.span(),
            "`memory` must be a multiple of 1 MiB",
        ));
    }
    size.into_inner()
}

pub(super) fn cpu(top: &mut Table<'_>, errors: &mut Errors) -> Level {
    let level = top.parsed("cpu", errors, values::cpu);
    level.map_or_else(Level::default, Spanned::into_inner)
}

pub(super) fn ports(top: &mut Table<'_>, errors: &mut Errors) -> Option<Vec<u16>> {
    top.has("ports").then(|| port_list(top, errors))
}

fn port_list(top: &mut Table<'_>, errors: &mut Errors) -> Vec<u16> {
    let mut seen: Vec<Spanned<u16>> = Vec::new();
    for value in top.array("ports", "a list of ports, such as [8080]", errors) {
        let span = value.span();
        if let DeValue::String(text) = value.get_ref()
            && let Some(wrong) = port_help(text, span.clone())
        {
            errors.push(wrong);
            continue;
        }
        let Some(port) = port(value, errors) else {
            continue;
        };
        match seen.iter().find(|other| *other.get_ref() == port) {
            Some(first) => errors.push(
                Diagnostic::new(span, format!("port {port} is listed twice"))
                    .context(first.span(), "first here"),
            ),
            None => seen.push(Spanned::new(span, port)),
        }
    }
    seen.into_iter().map(Spanned::into_inner).collect()
}

fn port(value: Spanned<DeValue<'_>>, errors: &mut Errors) -> Option<u16> {
    let port = as_integer(value, "port", 1..=u16::MAX.into(), errors)?;
    u16::try_from(port.into_inner()).ok()
}

/// The kernel recipe that is taken unless another one is named.
pub const DEFAULT_RECIPE: &str = "smol-6.1";

pub(super) fn kernel(
    table: Option<Table<'_>>,
    kernel_only: bool,
    errors: &mut Errors,
) -> KernelSection {
    let mut kernel = KernelSection {
        source: KernelSource::Recipe(DEFAULT_RECIPE.to_owned()),
        cmdline: String::new(),
        given: None,
    };
    let Some(mut table) = table else {
        return kernel;
    };
    kernel.given = Some(table.span.clone());
    if let (Some(recipe), Some(path)) = (table.key_span("recipe"), table.key_span("path")) {
        let title = "`recipe` and `path` both name the kernel";
        errors.push(
            Diagnostic::new(path, title)
                .context(recipe, "named here as well")
                .help("remove one of the two"),
        );
    }
    if let Some(recipe) = table.parsed("recipe", errors, values::name) {
        kernel.source = KernelSource::Recipe(recipe.into_inner());
    }
    if let Some(path) = table.parsed("path", errors, values::host_path) {
        kernel.source = KernelSource::Path(path);
    }
    if let Some(cmdline) =
        table.parsed("cmdline", errors, |text| values::cmdline(text, kernel_only))
    {
        kernel.cmdline = cmdline.into_inner();
    }
    table.finish(errors);
    kernel
}

/// Reports unless exactly one of the keys is there.
fn exactly_one(table: &Table<'_>, keys: &[&str], what: &str, errors: &mut Errors) {
    let mut found = keys
        .iter()
        .filter_map(|key| Some((key, table.key_span(key)?)));
    let choice = || format!("write exactly one of {}", keys.join(", "));
    match (found.next(), found.next()) {
        (None, _) => {
            errors.push(
                Diagnostic::new(
                    table.span.clone(),
                    format!("{} does not say {what}", keys::heading(table.name)),
                )
                .help(choice()),
            );
        }
        (Some((first, at)), Some((second, also))) => {
            let (first, second, at, also) = if at.start < also.start {
                (first, second, at, also)
            } else {
                (second, first, also, at)
            };
            errors.push(
                Diagnostic::new(
                    also,
                    format!("`{second}` and `{first}` cannot both be there"),
                )
                .context(at, "the other one")
                .help(choice()),
            );
        }
        _ => {}
    }
}

pub(super) fn rootfs(mut table: Table<'_>, cpu: Level, errors: &mut Errors) -> Option<Rootfs> {
    exactly_one(
        &table,
        &["debian", "image", "tar", "dir"],
        "where the files come from",
        errors,
    );
    let tar = table
        .parsed("tar", errors, values::host_path)
        .map(|path| Rootfs::Tar(TarInput(path)));
    let dir = table
        .parsed("dir", errors, values::host_path)
        .map(|path| Rootfs::Dir(DirInput(path)));
    let image = table
        .parsed("image", errors, values::image)
        .map(|reference| Rootfs::Image(ImageInput::new(reference, cpu)));
    let debian = table
        .table("debian", "rootfs.debian", errors)
        .map(|debian| debian_rootfs(debian, errors));
    let others = tar.or(dir).or(image);
    let debian = slim(&mut table, debian, others.is_some(), errors);
    table.finish(errors);
    debian.map(Rootfs::Debian).or(others)
}

/// `slim` and `without`, which are about packages alone.
fn slim(
    table: &mut Table<'_>,
    debian: Option<DebianInput>,
    of_no_packages: bool,
    errors: &mut Errors,
) -> Option<DebianInput> {
    let spans = ["slim", "without"].map(|key| table.key_span(key));
    let slim = table.boolean("slim", errors);
    let without = packages(table, "without", errors);
    for (key, span) in ["slim", "without"].iter().zip(&spans) {
        if let (Some(span), true) = (span, of_no_packages) {
            errors.push(
                Diagnostic::new(span.clone(), format!("`{key}` is for `debian` alone"))
                    .help("remove it: an archive or a folder is taken as it is"),
            );
        }
    }
    if let ([_, Some(span)], Some(false) | None) = (&spans, slim)
        && !of_no_packages
    {
        errors.push(
            Diagnostic::new(span.clone(), "`without` is for a slim system alone")
                .help("write `slim = true`, too"),
        );
    }
    let debian = debian?;
    for package in without
        .iter()
        .filter(|package| debian.packages.contains(package.get_ref()))
    {
        errors.push(
            Diagnostic::new(
                package.span(),
                format!("package `{}` cannot be left out", package.get_ref()),
            )
            .help("it is among the `packages` of `debian`: remove it in one of the two"),
        );
    }
    Some(match slim {
        Some(true) => debian.slim(without.into_iter().map(Spanned::into_inner).collect()),
        _ => debian,
    })
}

pub(super) fn base(mut table: Table<'_>, errors: &mut Errors) -> Option<Rootfs> {
    table.require("bundle", "bundle = \"base.smolmachine\"", errors);
    let bundle = table.parsed("bundle", errors, values::host_path);
    table.finish(errors);
    bundle.map(|path| Rootfs::Bundle(BundleInput(path)))
}

fn debian_rootfs(mut table: Table<'_>, errors: &mut Errors) -> DebianInput {
    table.require("suite", "suite = \"bookworm\"", errors);
    let suite = table
        .parsed("suite", errors, values::suite)
        .map(Spanned::into_inner)
        .unwrap_or_default();
    let packages = packages(&mut table, "packages", errors);
    table.finish(errors);
    let packages = packages.into_iter().map(Spanned::into_inner).collect();
    DebianInput::new(suite, packages)
}

/// A list of packages, each once.
fn packages(table: &mut Table<'_>, key: &str, errors: &mut Errors) -> Vec<Spanned<String>> {
    let mut packages: Vec<Spanned<String>> = Vec::new();
    let what = match key {
        "without" => "a list of packages, such as [\"perl\"]",
        _ => "a list of packages, such as [\"redis-server\"]",
    };
    for value in table.array(key, what, errors) {
        let Some(package) =
            as_string(value, errors).and_then(|text| parsed(text, errors, values::package))
        else {
            continue;
        };
        match packages
            .iter()
            .find(|other| other.get_ref() == package.get_ref())
        {
            Some(first) => errors.push(
                Diagnostic::new(
                    package.span(),
                    format!("package `{}` is listed twice", package.get_ref()),
                )
                .context(first.span(), "first here"),
            ),
            None => packages.push(package),
        }
    }
    packages
}

/// `[service]`; of an image, which says what it leaves out.
pub(super) fn service(mut table: Table<'_>, of_image: bool, errors: &mut Errors) -> Service {
    let entrypoint = match of_image {
        true => table
            .value_span("entrypoint")
            .map(|span| Spanned::new(span, command(&mut table, "entrypoint", errors))),
        // Told as a key that is unknown here.
        false => None,
    };
    if !of_image {
        table.require("cmd", "cmd = [\"program\", \"argument\"]", errors);
    }
    let table_span = table.span.clone();
    let cmd = table
        .value_span("cmd")
        .map(|span| Spanned::new(span, command::service(&mut table, of_image, errors)));
    let env = environment(&mut table, "service.env", errors);
    let user = table.parsed("user", errors, values::user);
    let workdir = table
        .parsed("workdir", errors, values::guest_path)
        .map(Spanned::into_inner);
    let stop_signal = table
        .parsed("stop_signal", errors, values::signal)
        .map(Spanned::into_inner);
    let init = table.boolean("init", errors);
    if let (Some(true), Some(user)) = (init, &user)
        && !["root", "0"].contains(&user.get_ref().split(':').next().unwrap_or_default())
    {
        let wrong = Diagnostic::new(user.span(), "an init runs as root");
        errors.push(wrong.help("remove `user`: the units say which user each service has"));
    }
    table.finish(errors);
    Service {
        entrypoint,
        // What is missing was reported.
        cmd: cmd.or_else(|| (!of_image).then(|| Spanned::new(table_span, Vec::new()))),
        env,
        user,
        workdir,
        stop_signal,
        init,
    }
}

/// `env` of a table; `name` is what it is called itself.
pub(super) fn environment(
    table: &mut Table<'_>,
    name: &'static str,
    errors: &mut Errors,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let help = table.list("env").and_then(env_list);
    let before = errors.0.len();
    let variables = table.table("env", name, errors);
    if let (Some(help), Some(wrong)) = (help, errors.0.get_mut(before)) {
        wrong.help.push(help);
    }
    if let Some(mut variables) = variables {
        for Entry { key, value } in variables.take_all() {
            let name = key.get_ref();
            if name.is_empty() || name.contains(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
                let help = "use letters, digits and `_`";
                errors.push(
                    Diagnostic::new(key.span(), "not the name of an environment variable")
                        .help(help),
                );
            }
            if let Some(value) = as_string(value, errors) {
                env.insert(name.clone().into_owned(), value.into_inner());
            }
        }
    }
    env
}

/// A duration from 1 ms to `max`.
pub(super) fn duration(
    table: &mut Table<'_>,
    key: &str,
    default: Duration,
    max: Duration,
    errors: &mut Errors,
) -> Duration {
    let Some(value) = table.take(key).map(|entry| entry.value) else {
        return default;
    };
    if let DeValue::Integer(number) = value.get_ref() {
        let help = format!("write \"{number}s\" or \"{number}ms\"");
        errors.push(Diagnostic::new(value.span(), "a duration needs a unit").help(help));
        return default;
    }
    let time = as_string(value, errors).and_then(|text| parsed(text, errors, values::duration));
    let Some(time) = time else { return default };
    if !(Duration::from_millis(1)..=max).contains(time.get_ref()) {
        let max = match max {
            HOUR => "1h",
            _ if max > HOUR => "24h",
            _ => "1min",
        };
        errors.push(
            Diagnostic::new(time.span(), format!("`{key}` is out of range"))
                .label(format!("must be 1ms to {max}")),
        );
    }
    time.into_inner()
}

pub(super) fn warm(mut table: Table<'_>, errors: &mut Errors) -> Warm {
    table.require("cmd", "cmd = [\"program\", \"argument\"]", errors);
    let cmd = command(&mut table, "cmd", errors);
    let timeout = duration(&mut table, "timeout", DEFAULT_TIMEOUT, HOUR, errors);
    table.finish(errors);
    Warm { cmd, timeout }
}

/// The kinds of probe, as keys of `[ready]`.
pub(super) const PROBES: [&str; 6] = ["exec", "tcp", "http", "log", "file", "notify"];

pub(super) fn ready(mut table: Table<'_>, errors: &mut Errors) -> Ready {
    exactly_one(&table, &PROBES, "what to wait for", errors);
    for event in ["log", "notify"] {
        if table.has(event) {
            for key in ["interval", "successes"] {
                if let Some(span) = table.key_span(key) {
                    let title =
                        format!("`{key}` has no meaning with `{event}`, which happens once");
                    errors.push(Diagnostic::new(span, title).help(format!("remove `{key}`")));
                }
            }
        }
    }
    let probe = probe(&mut table, "ready.http", errors);
    let timeout = duration(&mut table, "timeout", DEFAULT_TIMEOUT, HOUR, errors);
    let interval = duration(
        &mut table,
        "interval",
        DEFAULT_INTERVAL,
        Duration::from_secs(60),
        errors,
    );
    let successes = table
        .integer("successes", 1..=100, errors)
        .map_or(1, |n| *n.get_ref() as u32);
    table.finish(errors);
    Ready {
        probe: probe.unwrap_or(Probe::Notify),
        timeout,
        interval,
        successes,
    }
}

/// The kinds of probe that ask the service something, and those that wait for a sign of it.
const REQUESTS: [&str; 3] = ["exec", "tcp", "http"];
const SIGNS: [&str; 3] = ["log", "file", "notify"];

pub(super) fn warm_restore(mut table: Table<'_>, errors: &mut Errors) -> Option<WarmRestore> {
    let mut signs = false;
    for sign in SIGNS {
        if let Some(entry) = table.take(sign) {
            signs = true;
            let title = format!("`{sign}` cannot be a request: it asks the service nothing");
            let help = format!("write one of {}", REQUESTS.join(", "));
            errors.push(Diagnostic::new(entry.key.span(), title).help(help));
        }
    }
    if !signs {
        exactly_one(&table, &REQUESTS, "what to ask", errors);
    }
    let probe = probe(&mut table, "warm_restore.http", errors);
    let timeout = duration(&mut table, "timeout", DEFAULT_TIMEOUT, HOUR, errors);
    table.finish(errors);
    Some(WarmRestore {
        probe: probe?,
        timeout,
    })
}

/// Takes the probe of a table, in which `http` is called so.
fn probe(table: &mut Table<'_>, http: &'static str, errors: &mut Errors) -> Option<Probe> {
    let mut probes = Vec::new();
    if table.has("exec") {
        probes.push(Probe::Exec(command(table, "exec", errors)));
    }
    if let Some(entry) = table.take("tcp") {
        probes.push(Probe::Tcp(port(entry.value, errors).unwrap_or_default()));
    }
    probes.extend(http_request(table, http, errors).map(Probe::Http));
    probes.extend(
        table
            .parsed("log", errors, values::pattern)
            .map(|log| Probe::Log(log.into_inner())),
    );
    probes.extend(
        table
            .parsed("file", errors, values::guest_path)
            .map(|file| Probe::File(file.into_inner())),
    );
    if let Some(span) = table.key_span("notify") {
        if table.boolean("notify", errors) == Some(false) {
            errors.push(
                Diagnostic::new(span, "`notify` can only be true")
                    .help("name another probe, or write `notify = true`"),
            );
        }
        probes.push(Probe::Notify);
    }
    probes.into_iter().next()
}

/// Takes `http` of a table: a URL, or a table that is called `name`.
fn http_request(table: &mut Table<'_>, name: &'static str, errors: &mut Errors) -> Option<Http> {
    if !table.is_string("http") {
        let request = table.table("http", name, errors)?;
        return Some(http_probe(request, errors));
    }
    let (port, path) = table.parsed("http", errors, values::http_url)?.into_inner();
    Some(Http {
        port,
        path,
        status: vec![200],
        body: None,
    })
}

fn http_probe(mut table: Table<'_>, errors: &mut Errors) -> Http {
    table.require("port", "port = 8080", errors);
    let port = table
        .take("port")
        .and_then(|entry| port(entry.value, errors))
        .unwrap_or_default();
    let path = table
        .parsed("path", errors, values::http_path)
        .map_or_else(|| "/".to_owned(), Spanned::into_inner);
    let body = table
        .parsed("body", errors, values::pattern)
        .map(Spanned::into_inner);
    let mut status = vec![200];
    if let Some(Entry { value, .. }) = table.take("status") {
        let span = value.span();
        let values: Vec<_> = match value.into_inner() {
            DeValue::Array(values) => values.into_iter().collect(),
            other => vec![Spanned::new(span.clone(), other)],
        };
        if values.is_empty() {
            errors
                .push(Diagnostic::new(span, "`status` lists no code").help("write `status = 200`"));
        }
        status = values
            .into_iter()
            .filter_map(|value| as_integer(value, "status", 100..=599, errors))
            .filter_map(|code| u16::try_from(code.into_inner()).ok())
            .collect();
    }
    table.finish(errors);
    Http {
        port,
        path,
        status,
        body,
    }
}

pub(super) fn drop_caches(snapshot: Option<Table<'_>>, errors: &mut Errors) -> bool {
    let Some(mut table) = snapshot else {
        return true;
    };
    let drop_caches = table.boolean("drop_caches", errors);
    table.finish(errors);
    drop_caches.unwrap_or(true)
}
