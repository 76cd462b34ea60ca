//! Users whom a Smolfile, or the image that it names, expects in the root file system.

use anyhow::{Error, Result};
use smol_cli::{ErrorExt, ExitKind};
use smol_rootfs::Tree;

use crate::smolfile::keys::nearest;
use crate::smolfile::{Diagnostic, Loaded, Span};

/// Most of an account file that is looked through for similar names, bytes.
const MAX_ACCOUNTS: u64 = 1 << 20;
/// Where users come from.
const MORE_USERS: &str = "Debian packages make their users; else write numbers, such as \"1000:1000\", or copy an \
                          /etc/passwd and /etc/group of your own by [[copy]]";

/// A user, and who names it.
#[derive(Clone, Debug)]
pub struct NamedUser<'a> {
    /// `USER` or `USER:GROUP`, of names or numbers.
    pub name: &'a str,
    /// What it is named for, as part of a sentence: "`user` of [service]".
    pub what: &'a str,
    /// Where it is in the text of the Smolfile; `None` for one of the image's configuration.
    pub span: Option<Span>,
}

/// Checks that the root file system has the user, before a machine boots in vain.
///
/// # Errors
/// It has not (of kind Usage): with the place in the text of `smolfile`.
pub fn require(tree: &Tree, user: &NamedUser, smolfile: &Loaded) -> Result<()> {
    let Err(why) = tree.resolve_owner(user.name) else {
        return Ok(());
    };
    let similar = similar_names(tree, user.name).filter(|similar| similar != user.name);
    let similar = similar.map(|similar| format!("did you mean {similar:?}?"));
    Err(match &user.span {
        Some(span) => {
            let title = format!("cannot use {:?} as {}", user.name, user.what);
            let mut wrong = Diagnostic::new(span.clone(), title).label(format!("{why:#}"));
            wrong.help = similar.into_iter().chain([MORE_USERS.to_owned()]).collect();
            smolfile.mistake(wrong).into()
        }
        None => of_image(user, why, similar),
    })
}

/// The error for a user whom the Smolfile does not name.
fn of_image(user: &NamedUser, why: Error, similar: Option<String>) -> Error {
    let what = format!(
        "cannot use {:?}, whom the configuration of the image names, as {}",
        user.name, user.what
    );
    let error = why.context(what).kind(ExitKind::Usage);
    let error = similar.into_iter().fold(error, ErrorExt::hint);
    error
        .hint("name another one: [service] user = \"root\"")
        .hint(MORE_USERS)
}

/// A `USER` or `USER:GROUP` of names that the root file system has, and of which `user` is probably a misspelling.
fn similar_names(tree: &Tree, user: &str) -> Option<String> {
    let names = |file: &str| {
        let content = tree.read(file, MAX_ACCOUNTS).ok().flatten();
        let content = String::from_utf8_lossy(&content.unwrap_or_default()).into_owned();
        let names = content.lines().filter_map(|line| line.split(':').next());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let similar = |name: &str, file: &str| {
        let known = names(file);
        if name.parse::<u32>().is_ok() || known.iter().any(|known| known == name) {
            return Some(name.to_owned());
        }
        nearest(name, known.iter().map(String::as_str)).map(str::to_owned)
    };
    match user.split_once(':') {
        None => similar(user, "etc/passwd"),
        Some((user, group)) => {
            let (user, group) = (similar(user, "etc/passwd")?, similar(group, "etc/group")?);
            Some(format!("{user}:{group}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smolfile::check_text;

    const SMOLFILE: &str = r#"name = "app"
kernel.path = "vmlinux"
rootfs.dir = "root"
ready.tcp = 80
[service]
cmd = ["app"]
user = "USER"
"#;

    fn tree() -> Tree {
        let mut tree = Tree::new();
        let passwd =
            b"root:x:0:0::/:/bin/sh\nwww-data:x:33:33::/:/bin/sh\nredis:x:101:102::/:/bin/sh\n";
        tree.file("etc/passwd", 0o644, passwd.to_vec()).unwrap();
        let group = b"root:x:0:\nwww-data:x:33:\nredis:x:102:\n";
        tree.file("etc/group", 0o644, group.to_vec()).unwrap();
        tree
    }

    fn check(user: &str, is_of_image: bool) -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("root")).unwrap();
        std::fs::write(folder.path().join("vmlinux"), "").unwrap();
        let text = SMOLFILE.replace("USER", user);
        let place = std::path::Path::new("Smolfile");
        let loaded = check_text(text, place, folder.path().into(), None).unwrap();
        let crate::smolfile::Workload::Service { service, .. } = &loaded.smolfile.workload else {
            panic!()
        };
        let named = service.user.as_ref().unwrap();
        let user = NamedUser {
            name: named.get_ref(),
            what: "`user` of [service]",
            span: (!is_of_image).then(|| named.span()),
        };
        require(&tree(), &user, &loaded)
    }

    fn told(user: &str, is_of_image: bool) -> String {
        let error = check(user, is_of_image).unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
        smol_cli::error::render(&error, false)
    }

    #[test]
    fn a_user_that_is_not_there_is_told_with_its_place_and_the_one_that_may_be_meant() {
        assert_eq!(
            told("wwwdata", false),
            "error: cannot use \"wwwdata\" as `user` of [service]\n \
             --> Smolfile:7:8\n  |\n\
             7 | user = \"wwwdata\"\n  |        ^^^^^^^^^ the image has no user 'wwwdata' in /etc/passwd\n  |\n  \
             = help: did you mean \"www-data\"?\n  \
             = help: Debian packages make their users; else write numbers, such as \"1000:1000\", or copy an \
             /etc/passwd and /etc/group of your own by [[copy]]\n"
        );
    }

    #[test]
    fn a_user_of_the_image_is_told_as_such() {
        assert_eq!(
            told("wwwdata", true),
            "error: cannot use \"wwwdata\", whom the configuration of the image names, as `user` of [service]\n  \
             because: the image has no user 'wwwdata' in /etc/passwd\n  \
             hint: did you mean \"www-data\"?\n  \
             hint: name another one: [service] user = \"root\"\n  \
             hint: Debian packages make their users; else write numbers, such as \"1000:1000\", or copy an \
             /etc/passwd and /etc/group of your own by [[copy]]\n"
        );
    }

    #[test]
    fn similar_names_are_those_of_users_and_groups() {
        for (user, similar) in [
            ("wwwdata", "\"www-data\""),
            ("rediss", "\"redis\""),
            ("redis:redsi", "\"redis:redis\""),
            ("wwwdata:www-data", "\"www-data:www-data\""),
            ("1000:redi", "\"1000:redis\""),
        ] {
            let told = told(user, false);
            assert!(told.contains(&format!("did you mean {similar}?")), "{told}");
            assert!(told.contains(&format!("cannot use {user:?} as `user` of [service]")));
        }
        for user in ["postgres", "postgres:redis", "redis:postgres"] {
            assert!(!told(user, false).contains("did you mean"));
        }
        assert!(told("redis:web", false).contains("no group 'web' in /etc/group"));
    }

    #[test]
    fn names_and_numbers_of_users_are_taken() {
        for good in [
            "redis:www-data",
            "redis",
            "101",
            "1000",
            "1000:1000",
            "redis:7",
        ] {
            check(good, false).unwrap();
        }
    }
}
