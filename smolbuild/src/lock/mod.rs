//! `Smolfile.lock`: every input of a machine, by version and digest.
//!
//! A lock is a value; its text is canonical, so that the same lock is the same bytes. Nothing of the
//! host that made it is in it: no path outside of the Smolfile's folder, no user, no time of day, no
//! place that a package was fetched from.
//!
//! | file | what it holds |
//! |---|---|
//! | `text.rs` | from a lock to its text and back, strictly |
//! | `rules.rs` | what a value in it may look like |
//! | `image.rs` | a container image |
//! | `compare.rs` | in what two locks differ, for people |
//! | `part.rs` | its parts, which can be renewed each on its own |
//!
//! Which lock a build uses is decided in `resolve/`.

mod compare;
mod image;
mod part;
pub(crate) mod rules;
#[cfg(test)]
mod tests;
mod text;

use serde::{Deserialize, Serialize};

pub use self::compare::differences;
pub use self::image::{LockedImage, Origin};
pub use self::part::Part;

/// Version of the lock's format.
pub const VERSION: u32 = 1;
/// Longest lock, in bytes: what a bundle takes.
pub const MAX_SIZE: usize = smol_bundle::limits::MAX_LOCK_SIZE as usize;

/// Every input of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Lock {
    /// [`VERSION`].
    pub version: u32,
    /// What builds it.
    pub builder: Builder,
    /// The recipe of the kernel; absent for a kernel of one's own, which is among the `files`.
    #[serde(default)]
    pub kernel: Option<Kernel>,
    /// The Debian system; absent for other root file systems.
    #[serde(default)]
    pub debian: Option<Debian>,
    /// The container image; absent for other root file systems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<LockedImage>,
    /// A kernel, archive, folder or bundle that the Smolfile names.
    #[serde(default, rename = "file")]
    pub files: Vec<InputFile>,
    /// What each `[[copy]]` copies, in the order of the Smolfile.
    #[serde(default, rename = "copy")]
    pub copies: Vec<CopySource>,
    /// What each `[[run]]` with a network has made, in the order of the Smolfile.
    #[serde(default, rename = "run", skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<LockedRun>,
}

/// What a `[[run]]` with a network has made: an input of all that comes after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LockedRun {
    /// Digest of its command, its machine and all before it, in hexadecimal.
    #[serde(deserialize_with = "rules::sha256")]
    pub key: String,
    /// Digest of the files that it changed: of their tar archive.
    pub layer: smol_bundle::Digest,
}

/// This program, and its settings besides the Smolfile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Builder {
    /// Version of smolbuild.
    #[serde(deserialize_with = "rules::line")]
    pub smolbuild: String,
    /// Version of the bundle format.
    pub bundle_format: u32,
    /// SHA-256 of the guest's PID 1.
    #[serde(deserialize_with = "rules::sha256")]
    pub guest_sha256: String,
    /// The clock at power-on and the time of files, in seconds since the Unix epoch.
    pub epoch: u32,
}

/// A kernel that is built from a recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Kernel {
    /// Name of the recipe.
    #[serde(deserialize_with = "rules::line")]
    pub recipe: String,
    /// SHA-256 over the recipe's own files: configuration, patches, description.
    #[serde(deserialize_with = "rules::sha256")]
    pub recipe_sha256: String,
    /// The source: a Debian package and its version, or the name of a tarball.
    #[serde(deserialize_with = "rules::line")]
    pub source: String,
    /// SHA-256 of the source tarball.
    #[serde(deserialize_with = "rules::sha256")]
    pub source_sha256: String,
    /// SHA-256 of the package that the tarball is in; absent for a tarball of one's own.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "rules::some_sha256"
    )]
    pub package_sha256: Option<String>,
    /// First line of `gcc --version`.
    #[serde(deserialize_with = "rules::line")]
    pub gcc: String,
    /// First line of `ld --version`.
    #[serde(deserialize_with = "rules::line")]
    pub ld: String,
}

/// A Debian system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Debian {
    /// Release, such as `bookworm`.
    #[serde(deserialize_with = "rules::word")]
    pub suite: String,
    /// What the Smolfile asks for, sorted.
    pub requested: Vec<String>,
    /// All that is installed, sorted.
    pub packages: Vec<PackagePin>,
    /// What is there besides while those are installed, and is not in the image, sorted: packages of
    /// the priority *required*, which the scripts of others count on. Absent in a lock of a version
    /// that did without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub install_only: Option<Vec<PackagePin>>,
}

impl Debian {
    /// All packages that are needed to make the system.
    pub fn to_install(&self) -> Vec<&PackagePin> {
        let install_only = self.install_only.iter().flatten();
        self.packages.iter().chain(install_only).collect()
    }
}

/// A package, exactly.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackagePin {
    /// `redis-server`
    #[serde(deserialize_with = "rules::word")]
    pub name: String,
    /// `5:7.0.15-1~deb12u4`
    #[serde(deserialize_with = "rules::version")]
    pub version: String,
    /// `amd64`, or `all`.
    #[serde(deserialize_with = "rules::word")]
    pub arch: String,
    /// SHA-256 of the package file in hexadecimal.
    #[serde(deserialize_with = "rules::sha256")]
    pub sha256: String,
}

/// A file or folder that the Smolfile names, other than to copy it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct InputFile {
    /// What it is for.
    pub role: Role,
    /// Its path, as in the Smolfile.
    #[serde(deserialize_with = "rules::host_path")]
    pub path: String,
    /// SHA-256 of the file; of a folder, over all that reaches the image; of a bundle, its digest,
    /// in which signatures have no part.
    #[serde(deserialize_with = "rules::sha256")]
    pub sha256: String,
}

/// What an input file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// `[kernel] path`
    Kernel,
    /// `[rootfs] tar`
    RootfsTar,
    /// `[rootfs] dir`
    RootfsDir,
    /// `[base] bundle`
    Base,
}

impl Role {
    /// As the Smolfile has it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Kernel => "[kernel] path",
            Role::RootfsTar => "[rootfs] tar",
            Role::RootfsDir => "[rootfs] dir",
            Role::Base => "[base] bundle",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Role::Kernel => "kernel",
            Role::RootfsTar => "rootfs-tar",
            Role::RootfsDir => "rootfs-dir",
            Role::Base => "base",
        }
    }
}

/// What a `[[copy]]` copies: enough to make an equal source again from the files alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CopySource {
    /// Its path, as in the Smolfile.
    #[serde(deserialize_with = "rules::host_path")]
    pub src: String,
    /// A file: itself, with the path `.`. A folder: all below it, sorted by path, folders before
    /// what is in them.
    pub contents: Vec<CopiedEntry>,
}

impl CopySource {
    /// Whether it is a file alone.
    pub fn is_file(&self) -> bool {
        let [entry] = self.contents.as_slice() else {
            return false;
        };
        entry.path == "." && matches!(entry.node, CopiedNode::File { .. })
    }
}

/// A name in a [`CopySource`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "text::RawEntry", into = "text::RawEntry")]
pub struct CopiedEntry {
    /// Relative to the source: names separated by `/`.
    pub path: String,
    /// What has this name.
    pub node: CopiedNode,
}

/// What a name in a [`CopySource`] stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopiedNode {
    /// A file.
    File {
        /// 0755 or 0644; always 0644 when the Smolfile gives the mode.
        mode: u32,
        /// SHA-256 of its content.
        sha256: String,
    },
    /// A folder.
    Directory,
    /// A symbolic link, with its target.
    Symlink(String),
    /// Another name of the file that this entry names.
    HardLink(String),
    /// A pipe, socket or device, in words.
    Special(String),
}

impl Lock {
    /// The lock as a bundle has it: an image is the same wherever it was taken from.
    pub fn without_places(&self) -> Lock {
        let mut lock = self.clone();
        if let Some(image) = &mut lock.image {
            image.origin = None;
        }
        lock
    }

    /// Enters what the `[[run]]` with this key has made. What the lock has of those after it was made of
    /// something else, and goes.
    pub fn pin_run(&mut self, key: String, layer: smol_bundle::Digest) {
        let place = self.runs.iter().position(|run| run.key == key);
        self.runs.truncate(place.unwrap_or(self.runs.len()));
        self.runs.push(LockedRun { key, layer });
    }

    /// The digest of the bundle that the machine is built on.
    pub fn base(&self) -> Option<smol_bundle::Digest> {
        let base = self.files.iter().find(|file| file.role == Role::Base)?;
        let digest = format!("sha256:{}", base.sha256);
        Some(digest.parse().expect("a lock holds no other SHA-256"))
    }
}

#[cfg(test)]
impl Lock {
    /// A lock without inputs.
    pub fn of_epoch(epoch: u32) -> Lock {
        Lock {
            version: VERSION,
            builder: Builder {
                smolbuild: env!("CARGO_PKG_VERSION").to_owned(),
                bundle_format: 1,
                guest_sha256: "0".repeat(64),
                epoch,
            },
            kernel: None,
            debian: None,
            image: None,
            files: Vec::new(),
            copies: Vec::new(),
            runs: Vec::new(),
        }
    }
}
