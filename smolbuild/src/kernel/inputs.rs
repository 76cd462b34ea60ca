//! Everything that determines a kernel's bytes, and two digests of it: with the tools of this host,
//! the name of the kernel in the cache; without them, the key of a kernel that a release carries.

use std::process::{Command, Stdio};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use smol_cli::{ExitKind, Failure};
use smol_host::doctor;

use super::recipe::Recipe;
use crate::lock;

/// Raised when the stage's own doing changes the kernel that comes out.
const STAGE_VERSION: u32 = 1;

/// Arguments of make besides the target and the number of jobs. `LOCALVERSION=` keeps it from
/// looking for a git repository around the source tree.
pub const MAKE_ARGUMENTS: &[&str] = &["ARCH=x86_64", "LOCALVERSION="];
/// What is taken out of the kernel: the symbols are in kallsyms, the comment names the compiler.
pub const STRIP_ARGUMENTS: &[&str] = &["--strip-all", "--remove-section=.comment"];
/// What is put into a kernel that can be moved: the list of its addresses, by the tool that Linux
/// builds for it. smol-machine's `boot/relocate.rs` says what is in the section.
pub const RELOCATIONS_TOOL: &str = "arch/x86/tools/relocs";
/// Makes the file with that section's content: not moved yet, and the list.
pub const RELOCATIONS_SCRIPT: &str =
    r"{ printf '\0\0\0\0\0\0\0\0' && arch/x86/tools/relocs vmlinux; } >relocs";
/// Adds that section.
pub const RELOCATIONS_ARGUMENT: &str = "--add-section=.smol.relocs=relocs";

/// The compiler and the linker, by what they say of themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toolchain {
    /// First line of `gcc --version`.
    pub gcc: String,
    /// First line of `ld --version`.
    pub ld: String,
}

impl Toolchain {
    /// Those that a lock pins.
    pub fn of_lock(lock: &lock::Kernel) -> Toolchain {
        Toolchain {
            gcc: lock.gcc.clone(),
            ld: lock.ld.clone(),
        }
    }

    /// Asks the tools of this host.
    ///
    /// # Errors
    /// If one is missing: then the error names all that a kernel build needs and how to get it.
    pub fn of_host() -> Result<Toolchain> {
        let version = |tool: &str| {
            let output = Command::new(tool)
                .arg("--version")
                .env("LC_ALL", "C")
                .stdin(Stdio::null())
                .output()
                .ok()?;
            let line = String::from_utf8_lossy(&output.stdout)
                .lines()
                .next()?
                .trim()
                .to_owned();
            (output.status.success() && !line.is_empty()).then_some(line)
        };
        match (version("gcc"), version("ld")) {
            (Some(gcc), Some(ld)) => Ok(Toolchain { gcc, ld }),
            (gcc, _) => {
                require_tools()?;
                let which = if gcc.is_none() { "gcc" } else { "ld" };
                Err(
                    Failure::new(ExitKind::Host, format!("`{which} --version` does not work"))
                        .into(),
                )
            }
        }
    }
}

/// Checks that all programs of a kernel build are installed.
///
/// # Errors
/// Exit kind Host: one error with the one command that installs it all.
pub fn require_tools() -> Result<(), Failure> {
    let check = doctor::kernel_build();
    match check.status {
        doctor::Status::Ok => Ok(()),
        _ => Err(check
            .fix
            .into_iter()
            .fold(Failure::new(ExitKind::Host, check.detail), Failure::hint)),
    }
}

/// SHA-256 over the recipe's own files.
pub fn recipe_sha256(recipe: &Recipe) -> String {
    let mut hasher = Sha256::new();
    for part in recipe
        .files
        .iter()
        .flat_map(|(path, bytes)| [path.as_bytes(), bytes])
    {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hex::encode(hasher.finalize())
}

/// Digest of all inputs: the recipe's part, and the tools. The name of the kernel in the cache.
pub fn digest(recipe: &Recipe, source_sha256: &str, toolchain: &Toolchain) -> blake3::Hash {
    let inputs = [source_sha256, &toolchain.gcc, &toolchain.ld];
    hash("smolbuild kernel inputs", recipe, &inputs)
}

/// Digest of the recipe's part of the inputs: its files, the source (SHA-256 of its tarball), and the
/// arguments of the tools, whichever tools these are. The key of a kernel that a release carries.
pub fn recipe_key(recipe: &Recipe, source_sha256: &str) -> blake3::Hash {
    hash("smolbuild kernel recipe", recipe, &[source_sha256])
}

fn hash(context: &str, recipe: &Recipe, inputs: &[&str]) -> blake3::Hash {
    let files = recipe.files.iter();
    let files = files.flat_map(|(path, bytes)| [path.as_bytes(), bytes]);
    let arguments = MAKE_ARGUMENTS
        .iter()
        .chain(STRIP_ARGUMENTS)
        .chain(&[RELOCATIONS_SCRIPT, RELOCATIONS_ARGUMENT]);
    let inputs = inputs.iter().chain(arguments).map(|text| text.as_bytes());
    let mut hasher = blake3::Hasher::new_derive_key(context);
    hasher.update(&STAGE_VERSION.to_le_bytes());
    hasher.update(&(recipe.files.len() as u64).to_le_bytes());
    for part in files.chain(inputs) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::super::recipe::tests::{KERNEL_TOML, recipe};
    use super::*;

    #[test]
    fn the_digest_changes_with_every_input_and_only_then() {
        let toolchain = Toolchain {
            gcc: "gcc 12".into(),
            ld: "ld 2.40".into(),
        };
        let base = recipe(KERNEL_TOML, &["0001-a.patch", "0002-b.patch"]).unwrap();
        let of = |recipe: &Recipe| digest(recipe, "bb", &toolchain);
        let unchanged = of(&base);
        assert_eq!(
            unchanged,
            of(&recipe(KERNEL_TOML, &["0001-a.patch", "0002-b.patch"]).unwrap())
        );

        let mut digests = vec![unchanged];
        let toml = KERNEL_TOML.replace("2026", "2027");
        digests.push(of(
            &recipe(&toml, &["0001-a.patch", "0002-b.patch"]).unwrap()
        ));
        for (at, file) in [
            (0, ("kernel.config", &b"CONFIG_64BIT=n\n"[..])),
            (2, ("patches/0001-a.patch", b"--- other\n")),
        ] {
            let mut files = base.files.to_vec();
            files[at] = file;
            digests.push(of(&Recipe {
                files: files.leak(),
                ..base.clone()
            }));
        }
        digests.push(digest(&base, "bc", &toolchain));
        digests.push(digest(
            &base,
            "bb",
            &Toolchain {
                gcc: "gcc 13".into(),
                ..toolchain.clone()
            },
        ));
        digests.push(digest(
            &base,
            "bb",
            &Toolchain {
                ld: "ld 2.41".into(),
                ..toolchain.clone()
            },
        ));
        // A byte that moves from one input to the next is a change, too.
        digests.push(digest(
            &base,
            "bbg",
            &Toolchain {
                gcc: "cc 12".into(),
                ..toolchain.clone()
            },
        ));
        let distinct: std::collections::HashSet<_> = digests.iter().collect();
        assert_eq!(distinct.len(), digests.len());
    }

    #[test]
    fn the_key_of_a_recipe_changes_with_its_files_and_its_source() {
        let patches = ["0001-a.patch", "0002-b.patch"];
        let base = recipe(KERNEL_TOML, &patches).unwrap();
        let other = recipe(&KERNEL_TOML.replace("2026", "2027"), &patches).unwrap();
        let key = recipe_key(&base, "bb");
        assert_eq!(
            key,
            recipe_key(&recipe(KERNEL_TOML, &patches).unwrap(), "bb")
        );
        assert_ne!(key, recipe_key(&base, "bc"));
        assert_ne!(key, recipe_key(&other, "bb"));
    }

    #[test]
    fn the_digest_of_known_inputs_stays_so_that_kernels_in_the_cache_are_found() {
        let toolchain = Toolchain {
            gcc: "gcc 12".into(),
            ld: "ld 2.40".into(),
        };
        let base = recipe(KERNEL_TOML, &["0001-a.patch", "0002-b.patch"]).unwrap();
        let digest = digest(&base, "bb", &toolchain).to_hex();
        assert_eq!(
            digest.as_str(),
            "f1263ff9d8e55fc6a88882da228afcb1cac37ffdd5fb2463f6bd7e2f2d343c64"
        );
    }
}
