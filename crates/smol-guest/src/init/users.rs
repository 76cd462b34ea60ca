//! Who the service runs as: passwd(5) and group(5), read as text. (No NSS: the init is a
//! static program, and the only users are those of the root file system.)

use std::fs;
use std::io;

/// A user, ready for setgroups, setgid and setuid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name, or the number where it has none.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Group ids in all, ascending: the supplementary ones and, as initgroups(3) does it, the
    /// group id itself.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// Reads /etc/passwd and /etc/group and finds the user of a [`Service`](smol_protocol::Service).
pub(super) fn find(spec: Option<&str>) -> Result<User, String> {
    let read = |path: &str| match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(format!("{path}: {e}")),
    };
    resolve(
        spec.unwrap_or("0"),
        &read("/etc/passwd")?,
        &read("/etc/group")?,
    )
}

/// Resolves `user[:group]`, each a name or a number, as container engines do: a number needs
/// no entry, and a group given by hand replaces the supplementary groups.
pub fn resolve(spec: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (wanted, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let entry = entries(passwd, 7).find(|e| e[0] == wanted || (is_id(wanted) && e[2] == wanted));
    let mut user = match entry {
        Some(e) => User {
            name: e[0].to_owned(),
            uid: id(e[2]).ok_or_else(|| format!("/etc/passwd: {:?} has no valid user id", e[0]))?,
            gid: id(e[3])
                .ok_or_else(|| format!("/etc/passwd: {:?} has no valid group id", e[0]))?,
            groups: Vec::new(),
            home: if e[5].is_empty() {
                "/".to_owned()
            } else {
                e[5].to_owned()
            },
        },
        None => {
            let uid = id(wanted).ok_or_else(|| format!("user {wanted:?} is not in /etc/passwd"))?;
            let (name, home) = if uid == 0 {
                ("root", "/root")
            } else {
                (wanted, "/")
            };
            User {
                name: name.to_owned(),
                uid,
                gid: 0,
                groups: Vec::new(),
                home: home.to_owned(),
            }
        }
    };
    match wanted_group {
        Some(wanted) => {
            user.gid = entries(group, 4)
                .find(|e| e[0] == wanted)
                .map_or_else(|| id(wanted), |e| id(e[2]))
                .ok_or_else(|| format!("group {wanted:?} is not in /etc/group"))?;
        }
        None => {
            user.groups = entries(group, 4)
                .filter(|e| e[3].split(',').any(|member| member == user.name))
                .filter_map(|e| id(e[2]))
                .collect();
        }
    }
    user.groups.push(user.gid);
    user.groups.sort_unstable();
    user.groups.dedup();
    Ok(user)
}

/// Lines with exactly so many fields; others are no entries.
fn entries(text: &str, fields: usize) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(move |e| e.len() == fields)
}

fn is_id(text: &str) -> bool {
    id(text).is_some()
}

/// A user or group id: digits only, and not the kernel's "no id".
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# a comment\n+::::::\nredis:x:101:102::/var/lib/redis:/bin/false\nbroken:x:y:1:::\nnohome:x:7:7:::\n";
    const GROUP: &str =
        "root:x:0:\nredis:x:102:\nssl-cert:x:110:postgres,redis\ntty:x:5:redis\nself:x:102:redis\n";

    #[test]
    fn a_name_brings_its_group_its_supplementary_groups_and_its_home() {
        let user = resolve("redis", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid), (101, 102));
        assert_eq!(user.groups, [5, 102, 110]);
        assert_eq!(user.home, "/var/lib/redis");
        assert_eq!(resolve("101", PASSWD, GROUP).unwrap(), user);
    }

    #[test]
    fn a_group_by_hand_replaces_the_supplementary_groups() {
        let user = resolve("redis:ssl-cert", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (101, 110, vec![110]));
        assert_eq!(resolve("redis:77", PASSWD, GROUP).unwrap().gid, 77);
    }

    #[test]
    fn a_number_needs_no_entry_and_root_none_at_all() {
        let user = resolve("1234:56", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.home.as_str()), (1234, 56, "/"));
        let root = resolve("0", "", "").unwrap();
        assert_eq!(
            (root.name.as_str(), root.uid, root.gid, root.home.as_str()),
            ("root", 0, 0, "/root")
        );
        assert_eq!(resolve("nohome", PASSWD, GROUP).unwrap().home, "/");
    }

    #[test]
    fn unknown_names_and_broken_entries_are_refused() {
        for bad in [
            "nobody",
            "redis:nogroup",
            "-1",
            "4294967295",
            "+1",
            "",
            "redis:",
            ":",
            "broken",
        ] {
            assert!(resolve(bad, PASSWD, GROUP).is_err(), "{bad:?}");
        }
        assert!(
            resolve("nobody", PASSWD, GROUP)
                .unwrap_err()
                .contains("/etc/passwd")
        );
    }
}
