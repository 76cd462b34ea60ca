//! `smolbuild inspect`: what is in a bundle, and where the bytes go.

use anyhow::Result;
use serde_json::{Value, json};
use smol_bundle::{Bundle, Config, ImageStats};
use smol_cli::human;
use smol_machine::cpu::{Features, Level};

use super::{only_read, open_bundle};
use crate::cli::Inspect;
use crate::error::ResultExt;

/// Prints facts about a bundle. Its structure is checked on the way, its signature is not.
pub fn run(args: &Inspect) -> Result<()> {
    only_read(&[&args.bundle], &[])?;
    let bundle = open_bundle(&args.bundle)?;
    if args.format.json {
        smol_cli::print_json(&as_json(&bundle)?)?;
    } else {
        smol_cli::print(&as_text(&bundle))?;
    }
    Ok(())
}

fn as_json(bundle: &Bundle) -> Result<Value> {
    let text = |bytes: Option<Vec<u8>>| bytes.map(|b| String::from_utf8_lossy(&b).into_owned());
    Ok(json!({
        "digest": bundle.digest().to_string(),
        "parent": bundle.parent().map(|digest| digest.to_string()),
        "fileSize": bundle.file_size(),
        "signatures": bundle.signatures().iter().map(|s| s.key_id.to_string()).collect::<Vec<_>>(),
        "config": bundle.config(),
        "manifest": serde_json::from_slice::<Value>(bundle.manifest_json())?,
        "blobs": bundle.layout().iter().map(|b| json!({
            "mediaType": b.media_type, "digest": b.digest.to_string(), "offset": b.offset, "size": b.size,
        })).collect::<Vec<_>>(),
        "images": bundle.stats().images.iter().map(image_json).collect::<Vec<_>>(),
        "smolfile": text(bundle.smolfile().classify()?),
        "lock": text(bundle.lock().classify()?),
    }))
}

fn image_json(i: &ImageStats) -> Value {
    json!({
        "kind": i.kind.name(), "size": i.size, "pages": i.pages, "zero": i.zero, "duplicate": i.duplicate,
        "inRootfs": i.in_rootfs, "inBootImages": i.in_boot, "stored": i.stored, "frames": i.frames,
        "workingSet": i.working_set, "rawBytes": i.raw_bytes, "compressedBytes": i.compressed_bytes,
    })
}

fn as_text(bundle: &Bundle) -> String {
    use std::fmt::Write as _;
    let config = bundle.config();
    let mut text = String::new();
    let mut line = |key: &str, value: String| {
        let _ = writeln!(text, "{key:<12} {}", human::one_line(&value));
    };
    line(
        "name",
        [Some(config.name.as_str()), config.version.as_deref()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" "),
    );
    line("digest", bundle.digest().to_string());
    if let Some(parent) = bundle.parent() {
        line("parent", parent.to_string());
    }
    line("signed by", signers(bundle));
    line("file", human::bytes(bundle.file_size()));
    line(
        "machine",
        format!(
            "{}, {} of memory, cpus {}",
            config.arch,
            human::bytes(config.memory),
            config.cpus
        ),
    );
    line(
        "ports",
        config
            .ports
            .iter()
            .map(u16::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    );
    line(
        "snapshot",
        if bundle.has_snapshot() {
            "yes".into()
        } else {
            "no: it boots cold".into()
        },
    );
    line("reproducible", reproducible(config));
    line("cpu needs", cpu_needs(&config.cpu.features));
    text + &images_as_text(bundle)
}

/// The level of the CPU, if these are the features of one, or else all of them.
fn cpu_needs(features: &[String]) -> String {
    let level = Level::ALL
        .into_iter()
        .find(|level| Features::of(*level).names() == features);
    level.map_or_else(|| features.join(" "), |level| level.name().to_owned())
}

/// A table of the images.
fn images_as_text(bundle: &Bundle) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "\n{:<10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10}",
        "image", "size", "zero", "same", "elsewhere", "stored", "first", "raw", "compressed"
    );
    for i in bundle.stats().images {
        let _ = writeln!(
            text,
            "{:<10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10}",
            i.kind.name(),
            human::bytes(i.size),
            i.zero,
            i.duplicate,
            i.in_rootfs + i.in_boot,
            i.stored,
            i.working_set,
            human::bytes(i.raw_bytes),
            human::bytes(i.compressed_bytes),
        );
    }
    let _ = writeln!(
        text,
        "(zero, same, elsewhere, stored: pages of 4 KiB; first: those that a restored machine touches first)"
    );
    text
}

fn signers(bundle: &Bundle) -> String {
    let ids: Vec<_> = bundle
        .signatures()
        .iter()
        .map(|s| s.key_id.to_string())
        .collect();
    if ids.is_empty() {
        "nobody".into()
    } else {
        format!("{} (not checked here)", ids.join(", "))
    }
}

fn reproducible(config: &Config) -> String {
    match &config.reproducible {
        None => "nothing is claimed".into(),
        Some(r) if r.claimed => "claimed".into(),
        Some(r) => format!(
            "not claimed: {}",
            r.reason.as_deref().unwrap_or("no reason given")
        ),
    }
}
