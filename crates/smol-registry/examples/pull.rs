//! `pull REFERENCE FOLDER [INSECURE-HOST]`: the manifest and every blob that it names, as files.

use std::error::Error;
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use smol_registry::{Client, Options, Reference, Wanted};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "pull REFERENCE FOLDER [INSECURE-HOST]";
    let reference: Reference = arguments.next().ok_or(usage)?.parse()?;
    let folder = PathBuf::from(arguments.next().ok_or(usage)?);
    let options = Options {
        insecure: arguments.collect(),
        ..Options::default()
    };
    let client = Client::new(options, Arc::new(|| true))?;
    let manifest = client.manifest(&reference)?;
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("manifest.json"), &manifest.bytes)?;
    let parsed: serde_json::Value = serde_json::from_slice(&manifest.bytes)?;
    let layers = parsed["layers"].as_array().into_iter().flatten();
    let mut wanted = Vec::new();
    for blob in layers.chain(parsed.get("config")) {
        let digest = blob["digest"].as_str().ok_or("no digest")?.to_owned();
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(folder.join(digest.replace(':', "-")))?;
        wanted.push(Wanted {
            digest,
            size: blob["size"].as_u64().ok_or("no size")?,
            file,
        });
    }
    let pinned = reference.with_digest(&manifest.digest);
    client.blobs(&pinned, &mut wanted, &mut |_, _| {})?;
    Ok(())
}
