//! What no image has: documentation, caches, logs, and everything that differs between one
//! machine or one run and another.

use anyhow::Result;

use smol_rootfs::{Inode, Node, Tree};

/// Files and directories that go, with all below them.
const GONE: &[&str] = &[
    // Of the host, or of this one installation.
    "etc/hostname",
    "etc/resolv.conf",
    "etc/.pwd.lock",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/apt/sources.list",
    // A key that ssl-cert makes for this host: everybody's, in an image.
    "etc/ssl/certs/ssl-cert-snakeoil.pem",
    "etc/ssl/private/ssl-cert-snakeoil.key",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    // Which packages were asked for by name: all of them, of a lock.
    "var/lib/apt/extended_states",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/systemd/random-seed",
    // Documentation in forms nobody reads in a machine like this.
    "usr/share/groff",
    "usr/share/info",
    "usr/share/linda",
    "usr/share/lintian",
];

/// Directories that stay, empty.
const EMPTY: &[&str] = &[
    "dev",
    "etc/apt/sources.list.d",
    "tmp",
    "usr/share/man",
    "var/backups",
    "var/cache/apt",
    "var/cache/debconf",
    "var/cache/fontconfig",
    "var/cache/ldconfig",
    "var/cache/man",
    "var/lib/apt/lists",
    "var/lib/apt/mirrors",
    // The package makes a database, which is like no other: with a time and an identifier of its own.
    "var/lib/postgresql",
    "var/tmp",
];

/// Remove them from `tree`.
pub fn clean(tree: &mut Tree) -> Result<()> {
    let doomed: Vec<_> = tree
        .walk()
        .filter(|(path, _, inode)| unwanted(path, inode))
        .map(|(path, ..)| path)
        .collect();
    for path in doomed {
        tree.remove(path)?;
    }
    Ok(())
}

fn unwanted(path: &[u8], inode: &Inode) -> bool {
    let (directory, name) = match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&b""[..], path),
    };
    let is_directory = matches!(inode.node, Node::Directory(_));
    match directory {
        _ if GONE.iter().any(|gone| gone.as_bytes() == path) => true,
        _ if EMPTY.iter().any(|empty| empty.as_bytes() == directory) => true,
        // Services expect their directories, but no logs, and nothing that ran before.
        _ if path.starts_with(b"var/log/") || path.starts_with(b"run/") => !is_directory,
        // Licences stay with what they are for.
        _ if path.starts_with(b"usr/share/doc/") => !is_directory && name != b"copyright",
        b"var/lib/dpkg" => name.ends_with(b"-old"),
        b"etc/ssh" => name.starts_with(b"ssh_host_"),
        // Links by the hash of the subject, which for the key above is this host's name.
        b"etc/ssl/certs" => {
            matches!(&inode.node, Node::Symlink(to) if to.ends_with(b"ssl-cert-snakeoil.pem"))
        }
        // Translations. The locale C.UTF-8 is elsewhere (usr/lib/locale).
        b"usr/share/locale" => name != b"locale.alias",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_keeps_licences_and_log_directories_and_loses_the_rest() {
        let mut tree = Tree::new();
        let kept = [
            "dev",
            "etc/ssh/sshd_config",
            "run/lock",
            "etc/ssl/certs/ca-certificates.crt",
            "usr/lib/locale/C.utf8/LC_CTYPE",
            "usr/share/doc/bash/copyright",
            "usr/share/locale/locale.alias",
            "usr/share/man",
            "var/cache/nginx/warm",
            "var/lib/dpkg/status",
            "var/lib/postgresql",
            "var/log/redis",
        ];
        let lost = [
            "dev/console",
            "etc/apt/sources.list",
            "etc/apt/sources.list.d/main.sources",
            "etc/resolv.conf",
            "run/lock/apt",
            "etc/ssh/ssh_host_rsa_key",
            "etc/ssl/certs/62742064.0",
            "etc/ssl/certs/ssl-cert-snakeoil.pem",
            "etc/ssl/private/ssl-cert-snakeoil.key",
            "usr/share/doc/bash/changelog.gz",
            "usr/share/locale/de/LC_MESSAGES/bash.mo",
            "usr/share/man/man1/bash.1.gz",
            "var/cache/apt/pkgcache.bin",
            "var/lib/dpkg/status-old",
            "var/lib/postgresql/15/main/PG_VERSION",
            "var/log/redis/redis.log",
            "var/log/dpkg.log",
        ];
        for path in kept.iter().chain(&lost) {
            let name = path.rsplit('/').next().unwrap();
            if ["dev", "lock", "man", "postgresql", "redis"].contains(&name) {
                tree.mkdir(path, 0o755).unwrap();
            } else if name == "62742064.0" {
                tree.symlink(path, "ssl-cert-snakeoil.pem").unwrap();
            } else {
                tree.file(path, 0o644, Vec::new()).unwrap();
            }
        }
        clean(&mut tree).unwrap();
        for path in kept {
            assert!(tree.lookup(path).unwrap().is_some(), "{path} is gone");
        }
        for path in lost {
            assert!(
                tree.lookup(path).unwrap().is_none(),
                "{path} is still there"
            );
        }
    }
}
