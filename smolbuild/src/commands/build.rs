//! `smolbuild [SMOLFILE|DIR]`: from the command line to the pipeline, and the report of what was built.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use smol_bundle::Output;
use smol_cli::progress::render_waterfall;
use smol_cli::{ExitKind, Failure, Interrupt, Progress, Session, human};

use crate::cli::Build;
use crate::environment::EnvironmentInputs;
use crate::error::ResultExt;
use crate::folder;
use crate::kernel::ReadyKernels;
use crate::pack::Built;
use crate::pipeline::{self, BuildRequest, Reuse};
use crate::resolve::Policy;
use crate::smolfile::Loaded;

/// Builds the machine and writes its bundle; and facts about it, also if it fails.
pub fn run(args: &Build, interrupt: &Interrupt) -> Result<()> {
    let session = Session::new(args.conditions.shown.progress, interrupt.clone());
    let loaded = super::load_smolfile(&args.smolfile);
    let name = loaded.as_ref().ok().map(|it| it.smolfile.name.clone());
    let outcome = loaded.and_then(|loaded| build(args, &loaded, &session));
    if let (Err(error), Some(file)) = (&outcome, &args.metadata_file)
        // Where there is no folder, that is the error, or one of the next build.
        && folder::of(file).is_dir()
        && let Err(why) = write_metadata(file, &failed(name, error, &session.progress))
    {
        session.note(&format!("{why:#}"));
    }
    outcome
}

fn build(args: &Build, loaded: &Loaded, session: &Session) -> Result<()> {
    let key = args
        .sign
        .as_deref()
        .map(smol_trust::load_private)
        .transpose()?;
    let no_prebuilt = args.conditions.kernel.no_prebuilt;
    let kernels = ReadyKernels::of_process(args.no_cache, no_prebuilt)?;
    let environment = EnvironmentInputs::of_process(kernels)?;
    let out = match &args.output {
        Some(out) => out.clone(),
        None => default_output(loaded)?,
    };
    // Before the work, not after it.
    for file in [Some(&out), args.metadata_file.as_ref()]
        .into_iter()
        .flatten()
    {
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

/// Writes the metadata file, whole or not at all.
fn write_metadata(path: &Path, facts: &Value) -> Result<()> {
    let output = Output::create(path).classify()?;
    let written = output.file().write_all(&serde_json::to_vec_pretty(facts)?);
    written.with_context(|| format!("cannot write {}", path.display()))?;
    output.publish().classify()
}

/// Waterfall, metadata and the one line that says what there is now.
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
        let _ = std::io::stderr().write_all(render_waterfall(&laps, WIDTH).as_bytes());
    }
    if let Some(path) = &args.metadata_file {
        let facts = json!({
            "name": plan.name, "digest": written.digest.to_string(), "fileSize": written.file_size,
            "signed": signer.is_some(), "plan": blake3::Hash::from_bytes(sealed.digest()).to_hex().to_string(),
            "frozen": frozen, "stages": laps,
        });
        write_metadata(path, &facts)?;
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
