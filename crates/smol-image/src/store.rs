//! Images in files: a layout, as a folder or an archive, and what `docker save` writes.
//!
//! Both are read as a tree. Engines that save an image write the files of the two kinds into one
//! archive; what `docker load` would read counts then.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use smol_bundle::Digest;
use smol_rootfs::{FileData, Tree};

use crate::config::ImageConfig;
use crate::layer::Layer;
use crate::manifest::{Descriptor, Document, Manifest};
use crate::{MAX_DOCUMENT, MAX_NESTED, index};

/// The index of a layout (image-layout.md).
const INDEX: &str = "index.json";
/// The list of images of `docker save`.
const DOCKER_MANIFEST: &str = "manifest.json";
/// Names of images that an error lists.
const SHOWN: usize = 20;

/// An image whose layers are here.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of its configuration, which says all that it is.
    pub id: Digest,
    /// Its configuration.
    pub config: ImageConfig,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
}

/// Reads an image of a layout: the one with this tag, or the only one. An index in it is gone through to
/// the image for a CPU of this level.
///
/// # Errors
/// It is no layout; there is no such image, or several; a blob is missing or damaged; the image is for
/// another machine.
pub fn layout(files: &Tree, tag: Option<&str>, level: u32) -> Result<Image> {
    let Some(list) = files.read(INDEX, MAX_DOCUMENT)? else {
        return Err(no_image(files, INDEX));
    };
    let Document::Index(entries) = Document::parse(&list).context(INDEX)? else {
        bail!("{INDEX} is no index");
    };
    let mut entry = tagged(&entries, tag, level)?.clone();
    for _ in 0..MAX_NESTED {
        let bytes = document(files, &entry)?;
        match Document::parse(&bytes).with_context(|| format!("blob {}", entry.digest))? {
            Document::Manifest(manifest) => return image(files, &manifest, level),
            Document::Index(entries) => entry = index::choose(&entries, level)?.clone(),
        }
    }
    bail!("more than {MAX_NESTED} indexes are in each other")
}

/// The name that an image of a layout has.
fn ref_name(entry: &Descriptor) -> Option<&str> {
    let name = entry.annotations.get("org.opencontainers.image.ref.name");
    name.or_else(|| entry.annotations.get("io.containerd.image.name"))
        .map(String::as_str)
}

/// The entry of a layout's index that is meant.
fn tagged<'a>(entries: &'a [Descriptor], tag: Option<&str>, level: u32) -> Result<&'a Descriptor> {
    let is_tag = |entry: &&Descriptor, tag: &str| {
        ref_name(entry).is_some_and(|name| {
            name == tag
                || name
                    .rsplit('/')
                    .next()
                    .is_some_and(|n| n.split_once(':').is_some_and(|(_, t)| t == tag))
        })
    };
    let named: Vec<&Descriptor> = match tag {
        Some(tag) => entries.iter().filter(|entry| is_tag(entry, tag)).collect(),
        None => entries.iter().collect(),
    };
    let mut names: Vec<&str> = entries.iter().filter_map(ref_name).collect();
    names.sort_unstable();
    names.dedup();
    match (&named[..], tag) {
        ([one], _) => Ok(one),
        ([], Some(tag)) => bail!("it has no image {tag:?}{}", offered(&names)),
        ([], None) => bail!("it has no image"),
        ([first, rest @ ..], _) if rest.iter().all(|other| other.digest == first.digest) => {
            Ok(first)
        }
        // One image for several platforms, without an index of its own.
        _ if tag.is_some() || names.len() < 2 => index::choose(entries, level),
        _ => bail!(
            "it has several images: write its tag behind a colon{}",
            offered(&names)
        ),
    }
}

fn offered(names: &[&str]) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(SHOWN)
        .map(|name| name.escape_debug().to_string())
        .collect();
    let more = names.len().saturating_sub(SHOWN);
    match (shown.is_empty(), more) {
        (true, _) => String::new(),
        (false, 0) => format!("; it has {}", shown.join(", ")),
        (false, more) => format!("; it has {}, and {more} more", shown.join(", ")),
    }
}

fn image(files: &Tree, manifest: &Manifest, level: u32) -> Result<Image> {
    let bytes = document(files, &manifest.config)?;
    let config = ImageConfig::parse(&bytes)?;
    config.platform.require(level)?;
    let layers = pair(&config, &manifest.layers)?;
    let layers = layers.map(|(diff_id, blob)| {
        let data = find(files, blob)?;
        ensure!(
            data.len() == blob.size,
            "layer {} has {} bytes instead of {}",
            blob.digest,
            data.len(),
            blob.size
        );
        Ok(Layer {
            diff_id,
            digest: Some(blob.digest),
            blob: data.clone(),
        })
    });
    Ok(Image {
        id: manifest.config.digest,
        layers: layers.collect::<Result<_>>()?,
        config,
    })
}

/// Each blob with the digest of what it holds.
///
/// # Errors
/// The configuration has more layers than the manifest, or fewer.
pub fn pair<'a, T>(
    config: &ImageConfig,
    blobs: &'a [T],
) -> Result<impl Iterator<Item = (Digest, &'a T)> + use<'a, T>> {
    let (is, has) = (config.diff_ids.len(), blobs.len());
    ensure!(
        is == has,
        "the image has {has} layers, and its configuration says {is}"
    );
    Ok(config.diff_ids.clone().into_iter().zip(blobs))
}

/// Where a blob of a layout is.
fn find<'a>(files: &'a Tree, blob: &Descriptor) -> Result<&'a FileData> {
    let found = files.content(format!("blobs/sha256/{}", blob.digest.hex()))?;
    found.with_context(|| {
        format!(
            "blob {} is missing: the image was not copied completely",
            blob.digest
        )
    })
}

/// An index, manifest or configuration of a layout, verified.
fn document(files: &Tree, blob: &Descriptor) -> Result<Vec<u8>> {
    let bytes = bytes(find(files, blob)?).with_context(|| format!("blob {}", blob.digest))?;
    blob.verify(&bytes).context("the image is damaged")?;
    Ok(bytes)
}

fn bytes(data: &FileData) -> Result<Vec<u8>> {
    ensure!(
        data.len() <= MAX_DOCUMENT,
        "it is longer than {} MiB",
        MAX_DOCUMENT >> 20
    );
    let mut bytes = Vec::new();
    data.copy_to(&mut bytes)?;
    Ok(bytes)
}

/// One image in the list of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Reads an image of an archive of `docker save`: the one with this name, or with this number after `@`,
/// or the only one.
///
/// # Errors
/// As for [`layout`].
pub fn docker(files: &Tree, name: Option<&str>, level: u32) -> Result<Image> {
    let Some(list) = files.read(DOCKER_MANIFEST, MAX_DOCUMENT)? else {
        return Err(no_image(files, DOCKER_MANIFEST));
    };
    let list: Vec<Saved> = serde_json::from_slice(&list).context("manifest.json cannot be read")?;
    let saved = named(&list, name)?;
    let config = files.content(&saved.config)?;
    let config =
        config.with_context(|| format!("the configuration {:?} is missing", saved.config))?;
    let config = bytes(config).context("the configuration of the image")?;
    let id = Digest::of(&config);
    // Its name is its digest, in both of the forms that engines write.
    let file = saved.config.rsplit('/').next().unwrap_or_default();
    let says = file.strip_suffix(".json").unwrap_or(file);
    if let Ok(says) = format!("sha256:{says}").parse::<Digest>() {
        ensure!(
            says == id,
            "the image is damaged: its configuration has the digest {id} instead of {says}"
        );
    }
    let config = ImageConfig::parse(&config)?;
    config.platform.require(level)?;
    let paths = saved.layers.as_deref().unwrap_or_default();
    let layers = pair(&config, paths)?.map(|(diff_id, path)| {
        let blob = files.content(path)?;
        let blob = blob.with_context(|| {
            format!("layer {path:?} is missing: the image was not saved completely")
        })?;
        Ok(Layer {
            diff_id,
            digest: None,
            blob: blob.clone(),
        })
    });
    Ok(Image {
        id,
        layers: layers.collect::<Result<_>>()?,
        config,
    })
}

fn named<'a>(list: &'a [Saved], name: Option<&str>) -> Result<&'a Saved> {
    let tags: Vec<&str> = list
        .iter()
        .flat_map(|saved| saved.repo_tags.iter().flatten())
        .map(String::as_str)
        .collect();
    let Some(name) = name else {
        return match list {
            [one] => Ok(one),
            [] => bail!("it has no image"),
            _ => bail!(
                "it has {} images: write the name of one behind a colon, or @0 for the first{}",
                list.len(),
                offered(&tags)
            ),
        };
    };
    let found = match name.strip_prefix('@').map(str::parse::<usize>) {
        Some(Ok(number)) => list.get(number),
        _ => list.iter().find(|saved| {
            let mut tags = saved.repo_tags.iter().flatten();
            tags.any(|tag| is_name(tag, name))
        }),
    };
    found.with_context(|| format!("it has no image {name:?}{}", offered(&tags)))
}

/// Whether a tag of `docker save` is the image that is called so: `nginx` is
/// `docker.io/library/nginx:latest`.
fn is_name(tag: &str, name: &str) -> bool {
    let full = |name: &str| {
        let name = name.strip_prefix("docker.io/").unwrap_or(name);
        let name = name.strip_prefix("library/").unwrap_or(name);
        match name
            .rsplit('/')
            .next()
            .is_some_and(|last| last.contains(':'))
        {
            true => name.to_owned(),
            false => format!("{name}:latest"),
        }
    };
    full(tag) == full(name)
}

/// The error for files that are not what they should be.
fn no_image(files: &Tree, missing: &str) -> anyhow::Error {
    let there = |path: &str| files.lookup(path).is_ok_and(|found| found.is_some());
    let hint = if there(DOCKER_MANIFEST) {
        ": it is an archive of `docker save`; write docker-archive:"
    } else if there("oci-layout") {
        ": it is a layout; write oci-archive: for an archive, and oci: for a folder"
    } else if there("repositories") {
        ": it was saved by a docker before version 1.10; save the image again with a newer one"
    } else if there("etc") || there("bin") || there("usr") {
        ": it looks like a root file system; write [rootfs] tar, or dir"
    } else {
        ""
    };
    anyhow::anyhow!("it holds no {missing}{hint}")
}

/// Reads an image of an archive of either kind, of which it is the only one.
///
/// # Errors
/// As for [`layout`].
pub fn any(files: &Tree, level: u32) -> Result<Image> {
    match files.lookup(DOCKER_MANIFEST)?.is_some() {
        true => docker(files, None, level),
        false => layout(files, None, level),
    }
}

#[cfg(test)]
mod tests;
