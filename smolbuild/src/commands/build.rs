//! `smolbuild [SMOLFILE|DIR]`: from the command line to the pipeline, and the report of what was built.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use smol_bundle::Output;
use smol_cli::progress::render_waterfall;
use smol_cli::{ExitKind, Failure, Interrupt, Progress, Session, human};

use super::timings::Page;
use crate::cli::Build;
use crate::environment::EnvironmentInputs;
use crate::error::ResultExt;
use crate::folder;
use crate::kernel::ReadyKernels;
use crate::pack::Built;
use crate::pipeline::{self, BuildRequest, Reuse};
use crate::resolve::Policy;
use crate::smolfile::Loaded;
use crate::steps::Rerun;

/// Builds the machine and writes its bundle; and facts about it, also if it fails.
pub fn run(args: &Build, interrupt: &Interrupt) -> Result<()> {
    let session = Session::titled(
        args.conditions.shown.progress,
        "Building",
        interrupt.clone(),
    );
    let loaded = super::load_smolfile(&args.smolfile);
    let name = loaded.as_ref().ok().map(|it| it.smolfile.name.clone());
    let outcome = loaded.and_then(|loaded| build(args, &loaded, &session));
    if let Err(error) = &outcome
        && let Err(why) = write_failed(args, name, error, &session.progress)
    {
        session.note(&format!("{why:#}"));
    }
    outcome
}

/// Writes what is asked for about a build that failed. Where there is no folder for it, that is the error,
/// or one of the next build.
fn write_failed(
    args: &Build,
    name: Option<String>,
    error: &anyhow::Error,
    progress: &Progress,
) -> Result<()> {
    let is_possible = |file: &&PathBuf| folder::of(file).is_dir();
    if let Some(file) = args.timings.as_ref().filter(is_possible) {
        let page = Page {
            name: name.as_deref(),
            outcome: &format!("{error:#}"),
            laps: &progress.waterfall(),
            images: &[],
            file_size: 0,
        };
        write_whole(file, page.render().as_bytes())?;
    }
    if let Some(file) = args.metadata_file.as_ref().filter(is_possible) {
        write_metadata(file, &failed(name, error, progress))?;
    }
    Ok(())
}

fn build(args: &Build, loaded: &Loaded, session: &Session) -> Result<()> {
    let key = args
        .sign
        .as_deref()
        .map(smol_trust::load_private)
        .transpose()?;
    let no_prebuilt = args.conditions.kernel.no_prebuilt;
    let kernels = ReadyKernels::of_process(args.no_cache, no_prebuilt)?;
    let environment = EnvironmentInputs {
        insecure_registries: args.conditions.downloads.insecure_registry.clone(),
        ..EnvironmentInputs::of_process(kernels)?
    };
    let out = match &args.output {
        Some(out) => out.clone(),
        None => default_output(loaded)?,
    };
    // Before the work, not after it.
    let outputs = [
        Some(&out),
        args.metadata_file.as_ref(),
        args.timings.as_ref(),
    ];
    for file in outputs.into_iter().flatten() {
        smol_bundle::check_output(file).classify()?;
    }
    let request = BuildRequest {
        smolfile: loaded,
        lock: Policy::File {
            locked: args.locked,
        },
        offline: args.conditions.downloads.offline,
        environment,
        reuse: Reuse::of(args.rebuild, args.no_cache),
        rerun: match args.rerun {
            true => Rerun::Networked,
            false => Rerun::None,
        },
        accel: args.conditions.host.accel,
        watchdog: args.conditions.watchdog,
        verbose: args.conditions.verbose,
        out: &out,
        key: key.as_ref(),
    };
    let built = pipeline::build_bundle(&request, session)?;
    // Whoever runs it needs the public key.
    let signer = args.sign.as_deref().zip(key.as_ref()).map(|(file, key)| {
        smol_trust::public_file(file, &key.public()).unwrap_or_else(|| "PUBLIC.pub".into())
    });
    report(&built, args, &out, signer.as_deref(), &session.progress)
}

/// The bundle of a build that names none. A project must not decide which file is replaced: a link of
/// that name is not followed.
fn default_output(loaded: &Loaded) -> Result<PathBuf> {
    let name = PathBuf::from(format!("{}.smolmachine", loaded.smolfile.name));
    if name.is_symlink() {
        let what = format!("{} is a symbolic link", name.display());
        return Err(Failure::new(ExitKind::Usage, what)
            .hint(format!(
                "`-o {}` writes to what it leads to",
                name.display()
            ))
            .into());
    }
    Ok(name)
}

/// The facts about a build that failed.
fn failed(name: Option<String>, error: &anyhow::Error, progress: &Progress) -> Value {
    let laps = progress.waterfall();
    // The error comes out of the stage that began last of those that were not finished.
    let stage = laps.iter().rfind(|lap| !lap.finished).map(|lap| &lap.name);
    let of_error = smol_cli::error::json::object(error);
    let mut failed = json!({ "stage": stage, "reason": of_error["message"] });
    for key in [
        "kind", "code", "details", "causes", "hints", "file", "line", "column",
    ] {
        if let Some(value) = of_error.get(key) {
            failed[key] = value.clone();
        }
    }
    json!({ "name": name, "failed": failed, "stages": laps })
}

fn write_metadata(path: &Path, facts: &Value) -> Result<()> {
    write_whole(path, &serde_json::to_vec_pretty(facts)?)
}

/// Writes a file, whole or not at all.
fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let output = Output::create(path).classify()?;
    let written = output.file().write_all(content);
    written.with_context(|| format!("cannot write {}", path.display()))?;
    output.publish().classify()
}

/// Waterfall, metadata, page and the one line that says what there is now.
fn report(
    built: &Built,
    args: &Build,
    out: &Path,
    signer: Option<&Path>,
    progress: &Progress,
) -> Result<()> {
    const WIDTH: usize = 40;
    let Built {
        sealed,
        frozen,
        written,
    } = built;
    let plan = &sealed.plan;
    let laps = progress.waterfall();
    if args.conditions.shown.progress != smol_cli::progress::Mode::Json {
        smol_cli::print_error(&render_waterfall(&laps, WIDTH));
    }
    if let Some(path) = &args.metadata_file {
        let facts = json!({
            "name": plan.name, "digest": written.digest.to_string(), "fileSize": written.file_size,
            "signed": signer.is_some(), "plan": blake3::Hash::from_bytes(sealed.digest()).to_hex().to_string(),
            "frozen": frozen, "stages": laps,
        });
        write_metadata(path, &facts)?;
    }
    if let Some(path) = &args.timings {
        let page = Page {
            name: Some(&plan.name),
            outcome: &written.digest.to_string(),
            laps: &laps,
            images: &written.stats.images,
            file_size: written.file_size,
        };
        write_whole(path, page.render().as_bytes())?;
    }
    let ports = match plan.ports() {
        [] => String::new(),
        ports => format!(" {}", human::publish_options(ports)),
    };
    let trust = match signer {
        Some(public) => format!(" --key {}", public.display()),
        None => " --insecure-unsigned".to_owned(),
    };
    smol_cli::print(&format!(
        "{}  {}  {}  {}\n",
        plan.name,
        human::bytes(written.file_size),
        written.digest,
        out.display()
    ))?;
    smol_cli::print(&format!(
        "run it:  smolrun {}{ports}{trust}\n",
        out.display()
    ))?;
    Ok(())
}
