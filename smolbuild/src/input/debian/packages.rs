//! Which packages there are: read from what apt and dpkg tell in paragraphs of fields.

use crate::lock::PackagePin;

/// The packages of an index: what `apt-cache show` prints. Sorted, each once.
pub fn parse_records(records: &str) -> Vec<PackagePin> {
    let mut pins: Vec<_> = records.split("\n\n").filter_map(parse_record).collect();
    pins.sort();
    pins.dedup();
    pins
}

/// The package of one paragraph, if it is complete.
pub fn parse_record(record: &str) -> Option<PackagePin> {
    Some(PackagePin {
        name: field(record, "Package")?,
        version: field(record, "Version")?,
        arch: field(record, "Architecture")?,
        sha256: field(record, "SHA256")?.to_lowercase(),
    })
}

/// Whether the package of a paragraph is of the priority *required* (Debian policy 2.5).
pub fn is_required(record: &str) -> bool {
    field(record, "Priority").as_deref() == Some("required")
}

/// A package that a dpkg status file calls installed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Installed<'a> {
    pub name: String,
    pub version: String,
    pub arch: String,
    /// Its paragraph.
    pub paragraph: &'a str,
}

/// The packages that a dpkg status file calls installed, sorted.
pub fn installed(status: &str) -> Vec<Installed<'_>> {
    let of = |paragraph| {
        // "install ok installed": what is wanted, whether it is broken, how far it is.
        field(paragraph, "Status")?
            .ends_with(" installed")
            .then_some(())?;
        Some(Installed {
            name: field(paragraph, "Package")?,
            version: field(paragraph, "Version")?,
            arch: field(paragraph, "Architecture")?,
            paragraph,
        })
    };
    let mut installed: Vec<_> = status.split("\n\n").filter_map(of).collect();
    installed.sort();
    installed
}

impl Installed<'_> {
    /// The names that it goes by besides its own.
    pub fn provides(&self) -> Vec<String> {
        names(&field(self.paragraph, "Provides").unwrap_or_default())
    }

    /// The names that it depends on, all alternatives of each dependency.
    pub fn depends(&self) -> Vec<String> {
        ["Pre-Depends", "Depends"]
            .iter()
            .filter_map(|field_name| field(self.paragraph, field_name))
            .flat_map(|relations| names(&relations))
            .collect()
    }
}

/// The names in a relationship field: `a (>= 1) | b:any, c [amd64]` (Debian policy 7.1).
fn names(relations: &str) -> Vec<String> {
    let name = |relation: &str| {
        let name = relation
            .trim()
            .split([' ', '(', '[', ':'])
            .next()
            .unwrap_or_default();
        (!name.is_empty()).then(|| name.to_owned())
    };
    relations.split([',', '|']).filter_map(name).collect()
}

/// A field of a paragraph: `Field: value`, continued by leading blanks (deb822(5)).
fn field(paragraph: &str, name: &str) -> Option<String> {
    let value = |line: &str| {
        line.strip_prefix(name)?
            .strip_prefix(':')
            .map(|value| value.trim().to_string())
    };
    paragraph.lines().find_map(value)
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
        let shown: Vec<_> = installed(status)
            .iter()
            .map(|package| format!("{} {} {}", package.name, package.version, package.arch))
            .collect();
        assert_eq!(shown, ["adduser 3.134 all", "zlib1g 1:1.2.13 amd64"]);
    }

    #[test]
    fn dependencies_are_names_without_versions_and_architectures() {
        let status = "Package: memcached\nStatus: install ok installed\nArchitecture: amd64\n\
                      Version: 1.6\nProvides: cache-server, memcache (= 1.6)\n\
                      Pre-Depends: init-system-helpers (>= 1.54~)\n\
                      Depends: libc6 (>= 2.34), perl:any, adduser | useradd [linux-any]\n\
                      Suggests: libcache-memcached-perl\n";
        let installed = installed(status);
        assert_eq!(installed[0].provides(), ["cache-server", "memcache"]);
        assert_eq!(
            installed[0].depends(),
            ["init-system-helpers", "libc6", "perl", "adduser", "useradd"]
        );
    }

    #[test]
    fn a_required_package_is_one_by_its_own_field() {
        assert!(is_required("Package: passwd\nPriority: required\n"));
        assert!(!is_required(
            "Package: caddy\nDescription: required\n Priority: required\nPriority: optional\n"
        ));
        assert!(!is_required("Package: caddy\n"));
    }

    #[test]
    fn a_package_that_is_listed_twice_is_one_and_half_a_record_is_none() {
        let record = "Package: bash\nVersion: 5.2\nArchitecture: amd64\nSHA256: AB\n";
        let half = "Package: dash\nVersion: 0.5\n";
        let pins = parse_records(&format!("{record}\n{half}\n{record}"));
        assert_eq!(pins.len(), 1);
        assert_eq!(
            (pins[0].name.as_str(), pins[0].sha256.as_str()),
            ("bash", "ab")
        );
    }
}
