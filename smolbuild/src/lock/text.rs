//! From a lock to its text and back.

use std::collections::{HashMap, HashSet};
use std::fmt::{Display, Write as _};

use serde::{Deserialize, Serialize};
use smol_cli::{ExitKind, Failure};

use super::{CopiedEntry, CopiedNode, Debian, Lock, MAX_SIZE, PackagePin, VERSION, rules};

const HEAD: &str =
    "# Every input of the machine, by digest. Written by smolbuild; `smolbuild lock` renews it.\n";
const RENEW: &str = "`smolbuild lock` writes a new one";

impl Lock {
    /// The lock as text: the same lock is the same bytes, one line a package or file.
    pub fn to_text(&self) -> String {
        let mut text = Text(HEAD.to_owned());
        text.number("version", self.version);
        text.table("[builder]");
        text.string("smolbuild", &self.builder.smolbuild);
        text.number("bundle-format", self.builder.bundle_format);
        text.string("guest-sha256", &self.builder.guest_sha256);
        text.number("epoch", self.builder.epoch);
        if let Some(kernel) = &self.kernel {
            text.table("[kernel]");
            text.string("recipe", &kernel.recipe);
            text.string("recipe-sha256", &kernel.recipe_sha256);
            text.string("source", &kernel.source);
            text.string("source-sha256", &kernel.source_sha256);
            if let Some(sha256) = &kernel.package_sha256 {
                text.string("package-sha256", sha256);
            }
            text.string("gcc", &kernel.gcc);
            text.string("ld", &kernel.ld);
        }
        if let Some(debian) = &self.debian {
            text.table("[debian]");
            text.string("suite", &debian.suite);
            let requested: Vec<_> = debian.requested.iter().map(|name| quoted(name)).collect();
            text.0 += &format!("requested = [{}]\n", requested.join(", "));
            text.list("packages", debian.packages.iter().map(pin_fields));
            if let Some(pins) = &debian.install_only {
                text.list("install-only", pins.iter().map(pin_fields));
            }
        }
        if let Some(image) = &self.image {
            image.write(&mut text);
        }
        for file in &self.files {
            text.table("[[file]]");
            text.string("role", file.role.key());
            text.string("path", &file.path);
            text.string("sha256", &file.sha256);
        }
        for run in &self.runs {
            text.table("[[run]]");
            text.string("key", &run.key);
            text.string("layer", &run.layer.to_string());
        }
        for copy in &self.copies {
            text.table("[[copy]]");
            text.string("src", &copy.src);
            text.list("contents", copy.contents.iter().map(entry_fields));
        }
        text.0
    }

    /// Reads a lock. `shown` names it in errors.
    ///
    /// # Errors
    /// Of kind [`ExitKind::Usage`]: it is too long, of another version, no TOML, or holds what a
    /// lock cannot hold.
    pub fn parse(bytes: &[u8], shown: &str) -> Result<Lock, Failure> {
        let refuse = |why: &str| {
            let what = format!("{shown} cannot be used as a lock file: {why}");
            Failure::new(ExitKind::Usage, what).hint(RENEW)
        };
        if bytes.len() > MAX_SIZE {
            return Err(refuse(&format!("it is longer than {} MiB", MAX_SIZE >> 20)));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let line = 1 + bytes[..error.valid_up_to()]
                .iter()
                .filter(|&&byte| byte == b'\n')
                .count();
            refuse(&format!("line {line} is not UTF-8 text"))
        })?;
        let syntax = |error: toml::de::Error| refuse(error.to_string().trim_end());
        // The version first: of another one the rest may look like anything.
        let Head { version } = toml::from_str(text).map_err(syntax)?;
        if version != i64::from(VERSION) {
            return Err(refuse(&format!(
                "it is of version {version}, and this smolbuild knows version {VERSION}"
            )));
        }
        let lock: Lock = toml::from_str(text).map_err(syntax)?;
        lock.check().map_err(|why| refuse(&why))?;
        Ok(lock)
    }

    /// What no single value shows.
    fn check(&self) -> Result<(), String> {
        if let Some(debian) = &self.debian {
            check_packages(debian)?;
        }
        for copy in &self.copies {
            check_contents(&copy.contents)
                .map_err(|why| format!("[[copy]] src = {:?}: {why}", copy.src))?;
        }
        Ok(())
    }
}

/// Packages are sorted and unique, and no name is in both lists.
fn check_packages(debian: &Debian) -> Result<(), String> {
    let install_only = debian.install_only.as_deref().unwrap_or_default();
    for (key, pins) in [
        ("packages", debian.packages.as_slice()),
        ("install-only", install_only),
    ] {
        if !pins.is_sorted_by(|a, b| a < b) {
            return Err(format!(
                "the {key} of [debian] are not sorted, or one is there twice"
            ));
        }
    }
    let stays: HashSet<_> = debian.packages.iter().map(|pin| &pin.name).collect();
    match install_only.iter().find(|pin| stays.contains(&pin.name)) {
        Some(pin) => Err(format!(
            "{} is in the packages of [debian], and in install-only",
            pin.name
        )),
        None => Ok(()),
    }
}

/// Names are sorted and unique, and the folder of each is in the list too: making these files in
/// an empty folder makes none outside of it.
fn check_contents(contents: &[CopiedEntry]) -> Result<(), String> {
    if let [CopiedEntry { path, node }] = contents
        && path == "."
    {
        return match node {
            CopiedNode::File { .. } => Ok(()),
            _ => Err("`.` is not a file".into()),
        };
    }
    let mut nodes: HashMap<&str, &CopiedNode> = HashMap::new();
    let mut last: Option<&str> = None;
    for CopiedEntry { path, node } in contents {
        let shown = format!("{path:?}");
        if !rules::is_inner_path(path) {
            return Err(format!("{shown} leads elsewhere"));
        }
        let key = |path: &'_ str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
        if last.is_some_and(|last| key(last) >= key(path)) {
            return Err(format!("{shown} is not in its place, or there twice"));
        }
        if let Some((folder, _)) = path.rsplit_once('/')
            && nodes.get(folder) != Some(&&CopiedNode::Directory)
        {
            return Err(format!("{shown} is in no folder of the list"));
        }
        if let CopiedNode::HardLink(first) = node
            && matches!(
                nodes.get(first.as_str()),
                None | Some(CopiedNode::Directory | CopiedNode::HardLink(_))
            )
        {
            return Err(format!(
                "{shown} is a link to {first:?}, which is not a file listed before it"
            ));
        }
        nodes.insert(path, node);
        last = Some(path);
    }
    Ok(())
}

#[derive(Deserialize)]
struct Head {
    version: i64,
}

/// An [`CopiedEntry`] as it is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawEntry {
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

impl From<CopiedEntry> for RawEntry {
    fn from(entry: CopiedEntry) -> RawEntry {
        let path = entry.path;
        let of_kind = |kind: &str, target| RawEntry {
            kind: Some(kind.to_owned()),
            target,
            ..RawEntry::default()
        };
        let raw = match entry.node {
            CopiedNode::File { mode, sha256 } => RawEntry {
                mode: Some(format!("{mode:04o}")),
                sha256: Some(sha256),
                ..RawEntry::default()
            },
            CopiedNode::Directory => of_kind("folder", None),
            CopiedNode::Symlink(target) => of_kind("symlink", Some(target)),
            CopiedNode::HardLink(target) => of_kind("hardlink", Some(target)),
            CopiedNode::Special(what) => of_kind("special", Some(what)),
        };
        RawEntry { path, ..raw }
    }
}

impl TryFrom<RawEntry> for CopiedEntry {
    type Error = String;

    fn try_from(raw: RawEntry) -> Result<CopiedEntry, String> {
        let parts = (
            raw.kind.as_deref(),
            raw.mode.as_deref(),
            raw.sha256,
            raw.target,
        );
        let node = match parts {
            (None, Some(mode @ ("0644" | "0755")), Some(sha256), None)
                if rules::is_sha256(&sha256) =>
            {
                CopiedNode::File {
                    mode: if mode == "0755" { 0o755 } else { 0o644 },
                    sha256,
                }
            }
            (Some("folder"), None, None, None) => CopiedNode::Directory,
            (Some("symlink"), None, None, Some(target)) => CopiedNode::Symlink(target),
            (Some("hardlink"), None, None, Some(target)) => CopiedNode::HardLink(target),
            (Some("special"), None, None, Some(what)) => CopiedNode::Special(what),
            _ => {
                return Err(format!(
                    "{:?} is neither a file (mode 0644 or 0755, sha256) nor a folder, symlink, hardlink or special (kind, target)",
                    raw.path
                ));
            }
        };
        Ok(CopiedEntry {
            path: raw.path,
            node,
        })
    }
}

fn pin_fields(pin: &PackagePin) -> Vec<(&'static str, String)> {
    vec![
        ("name", pin.name.clone()),
        ("version", pin.version.clone()),
        ("arch", pin.arch.clone()),
        ("sha256", pin.sha256.clone()),
    ]
}

fn entry_fields(entry: &CopiedEntry) -> Vec<(&'static str, String)> {
    let raw = RawEntry::from(entry.clone());
    let fields = [
        ("path", Some(raw.path)),
        ("kind", raw.kind),
        ("mode", raw.mode),
        ("sha256", raw.sha256),
        ("target", raw.target),
    ];
    fields
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect()
}

/// A document that grows. The layout is fixed here and not by a library, whose next version may
/// have another taste.
pub(super) struct Text(String);

impl Text {
    pub(super) fn table(&mut self, head: &str) {
        let _ = write!(self.0, "\n{head}\n");
    }

    pub(super) fn number(&mut self, key: &str, number: impl Display) {
        let _ = writeln!(self.0, "{key} = {number}");
    }

    pub(super) fn string(&mut self, key: &str, value: &str) {
        let _ = writeln!(self.0, "{key} = {}", quoted(value));
    }

    /// A list of strings, one to a line.
    pub(super) fn strings(&mut self, key: &str, values: impl Iterator<Item = String>) {
        let _ = writeln!(self.0, "{key} = [");
        for value in values {
            let _ = writeln!(self.0, "    {},", quoted(&value));
        }
        self.0 += "]\n";
    }

    fn list(&mut self, key: &str, items: impl Iterator<Item = Vec<(&'static str, String)>>) {
        let _ = writeln!(self.0, "{key} = [");
        for fields in items {
            let fields: Vec<_> = fields
                .iter()
                .map(|(key, value)| format!("{key} = {}", quoted(value)))
                .collect();
            let _ = writeln!(self.0, "    {{ {} }},", fields.join(", "));
        }
        self.0 += "]\n";
    }
}

/// A basic string of TOML.
fn quoted(value: &str) -> String {
    let mut text = String::from('"');
    for char in value.chars() {
        match char {
            '"' | '\\' => text.extend(['\\', char]),
            char if char.is_control() => {
                let _ = write!(text, "\\u{:04X}", u32::from(char));
            }
            char => text.push(char),
        }
    }
    text + "\""
}
