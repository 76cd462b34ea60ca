//! Kernel recipes: what `kernels/<name>/` says, carried in this program.

use serde::Deserialize;
use smol_cli::{ExitKind, Failure};

use crate::fetch::Pin;

/// A file of a recipe: its path in the recipe's folder, and its bytes.
pub type RecipeFile = (&'static str, &'static [u8]);

// `EMBEDDED: &[(name, files)]`, both sorted; made by build.rs.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

const METADATA: &str = "kernel.toml";
const FRAGMENT: &str = "kernel.config";
const PATCHES: &str = "patches/";

/// A recipe, read and found to be complete.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// What kernel.toml says.
    pub metadata: Metadata,
    /// The configuration: all that is on, the rest is off.
    pub fragment: &'static str,
    /// Patches (file name, unified diff) in the order in which they are applied.
    pub patches: Vec<(String, &'static [u8])>,
    /// All files, which determine the kernel.
    pub files: &'static [RecipeFile],
}

/// kernel.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Name of the recipe, that of its folder.
    pub name: String,
    /// Version of Linux.
    pub version: String,
    /// Architecture, as Rust names it.
    pub arch: String,
    /// The time that the kernel shows as that of its build, in the format of date(1).
    pub timestamp: String,
    /// How many commands make starts, about: the length of the progress bar.
    pub steps: u64,
    /// Names of the patches in the order in which they are applied.
    pub patches: Vec<String>,
    /// Where the source comes from.
    pub source: Sources,
}

/// The ways to the source.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sources {
    /// A Debian package; what is taken unless a tarball is given.
    pub debian: DebianSource,
    /// The tarball that it derives from.
    pub upstream: Upstream,
}

/// A Debian package that holds /usr/src/PACKAGE.tar.xz.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebianSource {
    /// Name of the package.
    pub package: String,
    /// Version of the package.
    pub version: String,
    /// SHA-256 of the package file.
    pub sha256: String,
    /// SHA-256 of the tarball in it.
    pub tarball_sha256: String,
}

impl DebianSource {
    /// The package, exactly.
    pub fn pin(&self) -> Pin {
        Pin {
            package: self.package.clone(),
            version: self.version.clone(),
            sha256: self.sha256.clone(),
        }
    }

    /// Path of the tarball in the package.
    pub fn tarball(&self) -> String {
        format!("usr/src/{}.tar.xz", self.package)
    }
}

/// A tarball as its authors publish it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// File name.
    pub tarball: String,
    /// SHA-256 of the file, where we know it.
    #[serde(default)]
    pub sha256: Option<String>,
}

/// The recipe of this name.
///
/// # Errors
/// There is none (exit kind Usage), or it is damaged.
pub fn find(name: &str) -> Result<Recipe, Failure> {
    let Some((_, files)) = EMBEDDED.iter().find(|(known, _)| *known == name) else {
        let known: Vec<_> = EMBEDDED.iter().map(|(known, _)| *known).collect();
        let failure = Failure::new(
            ExitKind::Usage,
            format!("there is no kernel recipe {name:?}"),
        );
        return Err(failure.hint(format!("known recipes: {}", known.join(", "))));
    };
    parse(name, files)
}

/// Reads a recipe and checks that its parts belong together.
fn parse(name: &str, files: &'static [RecipeFile]) -> Result<Recipe, Failure> {
    let damaged = |what: String| {
        Failure::new(
            ExitKind::Internal,
            format!("the kernel recipe {name}: {what}"),
        )
    };
    let file = |path: &str| {
        let found = files.iter().find(|(known, _)| *known == path);
        found
            .map(|(_, bytes)| *bytes)
            .ok_or_else(|| damaged(format!("{path} is missing")))
    };
    let text =
        |path: &str| std::str::from_utf8(file(path)?).map_err(|e| damaged(format!("{path}: {e}")));
    let metadata: Metadata =
        toml::from_str(text(METADATA)?).map_err(|e| damaged(format!("{METADATA}: {e}")))?;
    if metadata.name != name {
        return Err(damaged(format!("{METADATA} names it {}", metadata.name)));
    }
    let mut patches = Vec::new();
    for patch in &metadata.patches {
        patches.push((patch.clone(), file(&format!("{PATCHES}{patch}"))?));
    }
    let mut present = files
        .iter()
        .filter_map(|(path, _)| path.strip_prefix(PATCHES));
    if let Some(unlisted) =
        present.find(|patch| !metadata.patches.iter().any(|listed| listed == patch))
    {
        return Err(damaged(format!(
            "{METADATA} does not list the patch {unlisted}"
        )));
    }
    Ok(Recipe {
        fragment: text(FRAGMENT)?,
        metadata,
        patches,
        files,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub const KERNEL_TOML: &str = r#"
        name = "test"
        version = "6.1.2"
        arch = "x86_64"
        timestamp = "Thu Jan  1 00:00:00 UTC 2026"
        steps = 10
        patches = ["0002-b.patch", "0001-a.patch"]
        [source.debian]
        package = "linux-source-6.1"
        version = "6.1.2-1"
        sha256 = "aa"
        tarball_sha256 = "bb"
        [source.upstream]
        tarball = "linux-6.1.2.tar.xz"
    "#;
    const BOTH: [&str; 2] = ["0001-a.patch", "0002-b.patch"];

    /// A recipe with this kernel.toml and patches of these names.
    pub fn recipe(toml: &str, patches: &[&str]) -> Result<Recipe, Failure> {
        let leak = |text: String| -> &'static str { text.leak() };
        let toml = leak(toml.to_owned()).as_bytes();
        let mut files: Vec<RecipeFile> = vec![
            ("kernel.config", b"CONFIG_64BIT=y\n"),
            ("kernel.toml", toml),
        ];
        for name in patches {
            files.push((
                leak(format!("patches/{name}")),
                leak(format!("--- {name}\n")).as_bytes(),
            ));
        }
        parse("test", files.leak())
    }

    #[test]
    fn every_recipe_in_the_tree_is_complete() {
        assert!(!EMBEDDED.is_empty());
        for (name, files) in EMBEDDED {
            let recipe = find(name).unwrap();
            assert!(recipe.metadata.steps > 0);
            assert!(
                files.is_sorted_by_key(|(path, _)| path),
                "the digest must not hang on the order of a folder"
            );
            let hex = |text: &str| {
                text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            };
            let Sources { debian, upstream } = recipe.metadata.source;
            assert!(hex(&debian.sha256) && hex(&debian.tarball_sha256));
            assert!(upstream.sha256.as_deref().is_none_or(hex));
        }
    }

    #[test]
    fn patches_come_in_the_order_of_the_list_and_not_of_their_names() {
        let recipe = recipe(KERNEL_TOML, &BOTH).unwrap();
        let names: Vec<_> = recipe
            .patches
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(names, ["0002-b.patch", "0001-a.patch"]);
        assert_eq!(recipe.patches[0].1, b"--- 0002-b.patch\n");
    }

    #[test]
    fn an_unknown_recipe_is_refused_and_the_known_ones_are_named() {
        let error = find("smol-2.4").unwrap_err().into();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
        assert!(smol_cli::error::render(&error, false).contains("smol-6.1"));
    }

    #[test]
    fn a_patch_that_is_missing_or_not_listed_is_found() {
        let missing = recipe(KERNEL_TOML, &BOTH[..1]).unwrap_err().to_string();
        assert!(
            missing.contains("patches/0002-b.patch is missing"),
            "{missing}"
        );
        let unlisted = recipe(
            KERNEL_TOML,
            &["0001-a.patch", "0002-b.patch", "0003-c.patch"],
        )
        .unwrap_err()
        .to_string();
        assert!(
            unlisted.contains("does not list the patch 0003-c.patch"),
            "{unlisted}"
        );
    }

    #[test]
    fn a_kernel_toml_with_a_wrong_name_or_an_unknown_key_is_found() {
        let named = recipe(&KERNEL_TOML.replace("\"test\"", "\"other\""), &BOTH)
            .unwrap_err()
            .to_string();
        assert!(named.contains("names it other"), "{named}");
        let unknown = recipe(&KERNEL_TOML.replace("steps", "stepps"), &BOTH)
            .unwrap_err()
            .to_string();
        assert!(unknown.contains("stepps"), "{unknown}");
    }
}
