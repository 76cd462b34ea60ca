//! `smolbuild inspect`: what is in a bundle, and where the bytes go.

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};
use smol_bundle::{Bundle, Config, ImageStats};
use smol_cli::human;
use smol_machine::cpu::{Features, Level};

use super::{only_read, open_bundle};
use crate::cli::Inspect;
use crate::error::ResultExt;
use crate::lock::Lock;
use crate::smolfile::{self, Network, Step};

/// Prints facts about a bundle. Its structure is checked on the way, its signature is not.
pub fn run(args: &Inspect) -> Result<()> {
    only_read(&[&args.bundle], &[])?;
    let bundle = open_bundle(&args.bundle)?;
    if args.format.json {
        smol_cli::print_json(&as_json(&bundle)?)?;
    } else {
        smol_cli::print(&as_text(&bundle)?)?;
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
        "buildSteps": BuildSteps::of(bundle)?,
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

/// The `[[run]]`s by which a bundle was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct BuildSteps {
    /// By the Smolfile in the bundle.
    all: usize,
    /// Those of them that could reach a network.
    with_network: usize,
    /// Those whose files the lock in the bundle pins.
    pinned: usize,
}

impl BuildSteps {
    /// Those of a bundle; `None` if it does not say.
    fn of(bundle: &Bundle) -> Result<Option<Self>> {
        let (smolfile, lock) = (bundle.smolfile().classify()?, bundle.lock().classify()?);
        Ok(Self::count(smolfile.as_deref(), lock.as_deref()))
    }

    /// Those of a Smolfile and its lock; `None` if one cannot be read, or they do not fit together.
    fn count(smolfile: Option<&[u8]>, lock: Option<&[u8]>) -> Option<Self> {
        let text = std::str::from_utf8(smolfile?).ok()?;
        let smolfile = smolfile::parse(text).ok()?;
        let pinned = match lock {
            Some(lock) => Lock::parse(lock, "the lock").ok()?.runs.len(),
            None => 0,
        };
        let runs = smolfile.steps().iter().filter_map(|step| match step {
            Step::Run(run) => Some(run),
            Step::Copy(_) | Step::Fetch(_) => None,
        });
        let (all, with_network) = runs.fold((0, 0), |(all, with_network), run| {
            let has_network = run.network != Network::None;
            (all + 1, with_network + usize::from(has_network))
        });
        (pinned <= with_network).then_some(Self {
            all,
            with_network,
            pinned,
        })
    }

    /// In words; `None` if there are none.
    fn as_text(self) -> Option<String> {
        let files = match (self.with_network, self.pinned) {
            (0, _) => "none with a network".to_owned(),
            (1, 1) => "1 with a network (its files are pinned by the lock)".to_owned(),
            (all, pinned) if all == pinned => {
                format!("{all} with a network (their files are pinned by the lock)")
            }
            (all, pinned) => {
                format!("{all} with a network (the lock pins the files of {pinned} of them)")
            }
        };
        (self.all > 0).then(|| format!("{}, of which {files}", self.all))
    }
}

fn as_text(bundle: &Bundle) -> Result<String> {
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
    if let Some(steps) = BuildSteps::of(bundle)?.and_then(BuildSteps::as_text) {
        line("build steps", steps);
    }
    line("cpu needs", cpu_needs(&config.cpu.features));
    Ok(text + &images_as_text(bundle))
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

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLFILE: &str = "name = \"a\"\nrootfs.image = \"a\"\n[[run]]\ncmd = \"a\"\n[[copy]]\nsrc = \"a\"\n\
                            dest = \"/a\"\n[[run]]\ncmd = \"b\"\nnetwork = true\n[[run]]\ncmd = \"c\"\n\
                            network = [\"example.org:443\"]\n[[run]]\ncmd = \"d\"\nnetwork = false\n";

    /// A lock that pins the files of so many steps.
    fn lock(runs: usize) -> String {
        let digest = "0".repeat(64);
        let head = format!(
            "version = 1\n[builder]\nsmolbuild = \"1\"\nbundle-format = 1\nguest-sha256 = \"{digest}\"\nepoch = 1\n"
        );
        let run = format!("[[run]]\nkey = \"{digest}\"\nlayer = \"sha256:{digest}\"\n");
        head + &run.repeat(runs)
    }

    fn count(smolfile: &str, runs: usize) -> Option<String> {
        let lock = lock(runs);
        BuildSteps::count(Some(smolfile.as_bytes()), Some(lock.as_bytes()))?.as_text()
    }

    #[test]
    fn steps_are_counted_with_those_that_had_a_network_and_whose_files_are_pinned() {
        let counted = BuildSteps::count(Some(SMOLFILE.as_bytes()), Some(lock(2).as_bytes()));
        let value = serde_json::to_value(counted).unwrap();
        assert_eq!(value, json!({"all": 4, "withNetwork": 2, "pinned": 2}));
        let said = |runs| count(SMOLFILE, runs).unwrap();
        assert_eq!(
            said(2),
            "4, of which 2 with a network (their files are pinned by the lock)"
        );
        assert_eq!(
            said(1),
            "4, of which 2 with a network (the lock pins the files of 1 of them)"
        );
        let one = SMOLFILE.replace("network = true\n", "");
        let wanted = "4, of which 1 with a network (its files are pinned by the lock)";
        assert_eq!(count(&one, 1).unwrap(), wanted);
        let none = one.replace("network = [\"example.org:443\"]\n", "");
        assert_eq!(count(&none, 0).unwrap(), "4, of which none with a network");
    }

    #[test]
    fn nothing_is_said_where_there_are_none_or_it_cannot_be_known() {
        let plain = "name = \"a\"\nrootfs.image = \"a\"\n";
        assert_eq!(count(plain, 0), None);
        assert_eq!(count("no Smolfile", 0), None);
        // More than there are steps.
        assert_eq!(count(SMOLFILE, 3), None);
        assert_eq!(BuildSteps::count(None, None), None);
        assert_eq!(BuildSteps::count(Some(b"\xff"), None), None);
        assert_eq!(
            BuildSteps::count(Some(SMOLFILE.as_bytes()), Some(b"?")),
            None
        );
    }
}
