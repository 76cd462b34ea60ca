//! Kernel recipes: kernels/<name>/, built into this program, or read from a folder.

use std::fs;
use std::path::{Component, Path};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use smol_cli::{ErrorExt, ExitKind, Failure};

use crate::fetch::DebianSource;

/// The metadata of a recipe.
const METADATA: &str = "kernel.toml";

/// The files of a recipe that is built in: name and bytes, kernel.toml first.
type Files = &'static [(&'static str, &'static [u8])];

macro_rules! files {
    ($dir:literal, $($file:literal),+ $(,)?) => {
        &[$(($file, include_bytes!(concat!("../../../../kernels/", $dir, "/", $file)))),+]
    };
}

const EMBEDDED: &[(&str, Files)] = &[(
    "smol-6.1",
    files![
        "smol-6.1",
        "kernel.toml",
        "kernel.config",
        "patches/0001-optional-tsc.patch",
        "patches/0002-platform.patch",
        "patches/0003-virtual-time.patch",
        "patches/0004-emulate-rdtsc.patch",
        "patches/0005-system-calls-are-work.patch",
        "patches/0006-no-entropy-from-reproducible-interrupts.patch",
        "patches/0007-snapshot-and-thaw.patch",
        "patches/0008-no-clearing-of-zero-memory.patch",
    ],
)];

/// What to build and from what.
#[derive(Clone, Debug)]
pub struct KernelRecipe {
    /// Name: `smol-6.1`.
    pub name: String,
    /// Version of the way it is built.
    pub recipe: u32,
    /// The source lock.
    pub source: DebianSource,
    /// Configuration fragment for allnoconfig.
    pub config: String,
    /// Patches with their file names, in order.
    pub patches: Vec<(String, Vec<u8>)>,
    /// KBUILD_BUILD_TIMESTAMP: what `uname -v` shows.
    pub timestamp: String,
    /// About how many steps the build has, for the progress.
    pub steps: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    recipe: u32,
    arch: String,
    abi: u32,
    source: Sources,
    build: Build,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sources {
    debian: DebianSource,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    config: String,
    patches: Vec<String>,
    timestamp: String,
    steps: u64,
}

impl KernelRecipe {
    /// The names of the recipes in this program.
    pub fn embedded_names() -> impl Iterator<Item = &'static str> {
        EMBEDDED.iter().map(|(name, _)| *name)
    }

    /// The recipe `name` of this program.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn embedded(name: &str) -> Result<Self> {
        let Some((_, files)) = EMBEDDED.iter().find(|(known, _)| *known == name) else {
            let known: Vec<_> = Self::embedded_names().collect();
            return Err(Failure::new(ExitKind::Usage, format!("there is no kernel recipe {name}"))
                .hint(format!("recipes: {}; a path to a vmlinux is taken as it is", known.join(", ")))
                .into());
        };
        Self::read(&|path| {
            let found = files.iter().find(|(name, _)| *name == path);
            found.map(|(_, bytes)| bytes.to_vec()).with_context(|| format!("{path} is not in this program"))
        })
    }

    /// The recipe in the folder `dir`.
    ///
    /// # Errors
    /// For files that are missing or wrong.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::read(&|path| fs::read(dir.join(path)).with_context(|| format!("cannot read {path}")))
            .with_context(|| format!("kernel recipe {}", dir.display()))
            .kind(ExitKind::Usage)
    }

    fn read(file: &dyn Fn(&str) -> Result<Vec<u8>>) -> Result<Self> {
        let text = |path: &str| String::from_utf8(file(path)?).with_context(|| format!("{path} is not UTF-8"));
        let meta: Metadata = toml::from_str(&text(METADATA)?).with_context(|| METADATA.to_owned())?;
        ensure!(meta.arch == "x86_64", "{METADATA}: arch {} cannot be built; only x86_64", meta.arch);
        let abi = smol_machine::paravirt::ABI;
        ensure!(meta.abi == abi, "{METADATA}: abi {}, but this program's machines offer {abi}", meta.abi);
        let plain = |name: &str| matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
        ensure!(
            plain(&meta.name) && plain(&meta.build.config) && meta.build.patches.iter().all(|p| plain(p)),
            "{METADATA}: name, config and patches are plain file names"
        );
        let patches = meta.build.patches.into_iter().map(|name| Ok((file(&format!("patches/{name}"))?, name)));
        let patches = patches.map(|p| p.map(|(bytes, name)| (name, bytes))).collect::<Result<_>>()?;
        Ok(Self {
            name: meta.name,
            recipe: meta.recipe,
            source: meta.source.debian,
            config: text(&meta.build.config)?,
            patches,
            timestamp: meta.build.timestamp,
            steps: meta.build.steps,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/smol-6.1")
    }

    #[test]
    fn the_embedded_recipe_is_the_folder_and_leaves_no_patch_out() {
        let embedded = KernelRecipe::embedded("smol-6.1").unwrap();
        let loaded = KernelRecipe::load(&folder()).unwrap();
        assert_eq!((&embedded.config, &embedded.patches), (&loaded.config, &loaded.patches));
        let mut in_folder: Vec<_> =
            fs::read_dir(folder().join("patches")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        in_folder.sort_unstable();
        let named: Vec<_> = embedded.patches.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(named, in_folder);
    }

    #[test]
    fn an_unknown_recipe_is_answered_with_the_known_ones() {
        let error = KernelRecipe::embedded("smol-9").unwrap_err();
        assert!(smol_cli::error::render(&error, false).contains("recipes: smol-6.1"), "{error:?}");
    }

    fn with(change: impl Fn(String) -> String) -> String {
        let result = KernelRecipe::read(&|path| {
            let bytes = fs::read(folder().join(path))?;
            if path != METADATA {
                return Ok(bytes);
            }
            Ok(change(String::from_utf8(bytes)?).into_bytes())
        });
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn a_recipe_that_reaches_out_of_its_folder_is_refused() {
        let error = with(|t| t.replace("\"kernel.config\"", "\"../kernel.config\""));
        assert!(error.contains("plain file names"), "{error}");
    }

    #[test]
    fn a_recipe_for_another_interface_version_is_refused() {
        assert!(with(|t| t.replace("abi = 1", "abi = 2")).contains("abi 2"));
    }

    #[test]
    fn a_recipe_with_an_unknown_key_is_refused() {
        assert!(with(|t| format!("colour = 1\n{t}")).contains("colour"));
    }
}
