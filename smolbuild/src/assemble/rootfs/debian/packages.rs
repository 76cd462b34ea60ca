//! Which packages a system has: from dpkg's status file, with digests from the package indexes they
//! were chosen from.

use std::collections::HashMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::bootstrap::OFFERED;
use crate::assemble::rootfs::tree::Tree;

/// Largest list of packages read (all of Debian has some 6 MB).
const MAX_LIST: u64 = 64 << 20;

/// An installed package, exactly.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PackagePin {
    /// `redis-server`
    pub name: String,
    /// `5:7.0.15-1~deb12u4`
    pub version: String,
    /// `amd64`, or `all`.
    pub arch: String,
    /// SHA-256 of the package file in hexadecimal, if the index of the archive named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// The packages installed in `tree`, sorted.
pub fn installed(tree: &Tree) -> Result<Vec<PackagePin>> {
    let status = tree
        .read("var/lib/dpkg/status", MAX_LIST)?
        .unwrap_or_default();
    let offered = tree.read(OFFERED, MAX_LIST)?.unwrap_or_default();
    let offered = String::from_utf8_lossy(&offered);
    let digests: HashMap<_, _> = offered
        .lines()
        .filter_map(|line| line.rsplit_once(' '))
        .collect();
    let mut pins = parse_status(&String::from_utf8_lossy(&status));
    for pin in &mut pins {
        let key = format!("{} {} {}", pin.name, pin.version, pin.arch);
        pin.sha256 = digests.get(key.as_str()).map(|digest| digest.to_string());
    }
    Ok(pins)
}

/// Installed packages of a dpkg status file (deb822: stanzas of `Field: value`, continued by
/// leading blanks).
fn parse_status(status: &str) -> Vec<PackagePin> {
    let mut pins: Vec<_> = status.split("\n\n").filter_map(parse_stanza).collect();
    pins.sort();
    pins
}

fn parse_stanza(stanza: &str) -> Option<PackagePin> {
    let field = |name: &str| {
        let value = |line: &str| {
            line.strip_prefix(name)?
                .strip_prefix(':')
                .map(|value| value.trim().to_string())
        };
        stanza.lines().find_map(value)
    };
    // "install ok installed": what is wanted, whether it is broken, how far it is.
    field("Status")?.ends_with(" installed").then_some(())?;
    Some(PackagePin {
        name: field("Package")?,
        version: field("Version")?,
        arch: field("Architecture")?,
        sha256: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_count_and_they_are_sorted() {
        let status = "Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\nMulti-Arch: same\n\
                      Description: a library\n Version: not this\nVersion: 1:1.2.13\n\n\
                      Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n\n\
                      Package: adduser\nStatus: install ok installed\nArchitecture: all\nVersion: 3.134\n";
        let pins = parse_status(status);
        let shown: Vec<_> = pins
            .iter()
            .map(|pin| format!("{} {} {}", pin.name, pin.version, pin.arch))
            .collect();
        assert_eq!(shown, ["adduser 3.134 all", "zlib1g 1:1.2.13 amd64"]);
    }
}
