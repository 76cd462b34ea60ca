//! Programs that a Smolfile, or the image that it names, runs: whether the root file system has them.

use anyhow::Result;
use smol_cli::{ErrorExt, ExitKind, Failure};
use smol_protocol::{DEFAULT_PATH, Service};
use smol_rootfs::{Node, Tree};

use crate::smolfile::{Diagnostic, Loaded, Span};

/// Folders whose files a running machine has from elsewhere.
const MOUNTED: [&str; 5] = ["/dev/", "/proc/", "/run/", "/sys/", "/tmp/"];
/// What a command that is a string is run by.
const SHELL: &str = "/bin/sh";

/// A command, and who says it.
#[derive(Clone, Debug)]
pub struct NamedCommand<'a> {
    /// The command and its world.
    pub service: &'a Service,
    /// What says it, as part of a sentence: "`cmd` of [service]".
    pub what: &'a str,
    /// Where it is in the text of the Smolfile; `None` for one of the image's configuration.
    pub span: Option<Span>,
}

/// Checks that the root file system has the program, before a machine boots in vain.
///
/// # Errors
/// It has not (of kind Usage): with the place in the text of `smolfile`.
pub fn require(tree: &Tree, command: &NamedCommand, smolfile: &Loaded) -> Result<()> {
    let service = command.service;
    let Some(program) = service.cmd.first() else {
        return Ok(());
    };
    let places = places(service, program);
    let is_there = |place: &String| matches!(tree.content(place), Ok(Some(_)));
    if places
        .iter()
        .any(|place| is_there(place) || is_mounted(place.as_bytes()) || leads_to_mount(tree, place))
    {
        return Ok(());
    }
    let why = match program.contains('/') {
        true => format!("the root file system has no {}", places[0]),
        false => format!("it is in no folder of PATH ({})", path(service)),
    };
    let advice = advice(tree, program);
    Err(match &command.span {
        Some(span) => {
            let title = format!("cannot run {program:?}, the program of {}", command.what);
            let mut wrong = Diagnostic::new(span.clone(), title).label(why);
            wrong.help.extend(advice);
            smolfile.mistake(wrong).into()
        }
        None => {
            let what = format!("cannot run {program:?}, the program of the image: {why}");
            let error = Failure::new(ExitKind::Usage, what).into();
            advice.into_iter().fold(error, ErrorExt::hint)
        }
    })
}

/// Whether a path is in a folder whose files nobody knows yet.
fn is_mounted(path: &[u8]) -> bool {
    MOUNTED
        .iter()
        .any(|folder| path.starts_with(folder.as_bytes()))
}

/// Whether a path is a symbolic link into such a folder.
fn leads_to_mount(tree: &Tree, path: &str) -> bool {
    let found = tree.lookup(path).ok().flatten();
    found.is_some_and(|id| match &tree.inode(id).node {
        Node::Symlink(target) => is_mounted(target),
        _ => false,
    })
}

/// Where the guest looks for a program, as execvp(3) does.
fn places(service: &Service, program: &str) -> Vec<String> {
    let workdir = service.workdir.as_deref().unwrap_or("/");
    let below = |folder: &str, name: &str| match name.starts_with('/') {
        true => name.to_owned(),
        false => format!("{}/{name}", folder.trim_end_matches('/')),
    };
    match program.contains('/') {
        true => vec![below(workdir, program)],
        false => path(service)
            .split(':')
            .map(|folder| below(&below(workdir, folder), program))
            .collect(),
    }
}

fn path(service: &Service) -> &str {
    service.env.get("PATH").map_or(DEFAULT_PATH, String::as_str)
}

/// What to do about a program that is missing.
fn advice(tree: &Tree, program: &str) -> Option<String> {
    if program == SHELL {
        return Some(
            "a command that is one string needs a shell; write it as a list: [\"program\", \"argument\"]"
                .to_owned(),
        );
    }
    similar(tree, program).map(|similar| format!("did you mean {similar:?}?"))
}

/// The path of a program whose name is most like this one's.
fn similar(tree: &Tree, program: &str) -> Option<String> {
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let programs = tree.walk().filter_map(|(path, _, inode)| {
        let runs = match &inode.node {
            Node::File(_) => inode.meta.mode & 0o111 != 0,
            Node::Symlink(_) => true,
            _ => false,
        };
        let path = String::from_utf8(path).ok().filter(|_| runs)?;
        let (folder, _) = path.rsplit_once('/')?;
        (folder.ends_with("bin") || program.contains('/') && name(&path) == name(program))
            .then(|| format!("/{path}"))
    });
    let programs: Vec<String> = programs.collect();
    let names: Vec<String> = programs.iter().map(|path| name(path)).collect();
    let wanted = name(program);
    let nearest = crate::smolfile::keys::nearest(&wanted, names.iter().map(String::as_str))?;
    let at = names.iter().position(|name| name == nearest)?;
    programs.into_iter().nth(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smolfile::check_text;

    fn tree() -> Tree {
        let mut tree = Tree::new();
        for program in ["usr/bin/busybox", "usr/sbin/nginx", "opt/db/bin/postgres"] {
            tree.file(program, 0o755, b"\x7fELF".to_vec()).unwrap();
        }
        tree.file("usr/bin/notes", 0o644, Vec::new()).unwrap();
        tree.file("srv/start", 0o755, Vec::new()).unwrap();
        tree.symlink("bin", "usr/bin").unwrap();
        tree.symlink("usr/bin/httpd", "busybox").unwrap();
        tree.symlink("usr/bin/loop", "loop").unwrap();
        tree.symlink("usr/bin/dangling", "nothing").unwrap();
        tree.symlink("usr/bin/current", "/run/current/app").unwrap();
        tree
    }

    fn check(service: &str, is_of_image: bool) -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("root")).unwrap();
        std::fs::write(folder.path().join("vmlinux"), "").unwrap();
        let text = format!(
            "name = \"app\"\nkernel.path = \"vmlinux\"\nrootfs.dir = \"root\"\nready.tcp = 80\n[service]\n{service}\n"
        );
        let place = std::path::Path::new("Smolfile");
        let loaded = check_text(text, place, folder.path().into(), None).unwrap();
        let service = loaded.smolfile.service().unwrap();
        let cmd = service.cmd.as_ref().unwrap();
        let guest = Service {
            cmd: cmd.get_ref().clone(),
            env: service.env.clone(),
            user: None,
            workdir: service.workdir.clone(),
            stop_signal: None,
            init: None,
        };
        let command = NamedCommand {
            service: &guest,
            what: "`cmd` of [service]",
            span: (!is_of_image).then(|| cmd.span()),
        };
        require(&tree(), &command, &loaded)
    }

    fn told(service: &str, is_of_image: bool) -> String {
        let error = check(service, is_of_image).unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
        smol_cli::error::render(&error, false)
    }

    #[test]
    fn a_program_is_found_where_the_guest_finds_it() {
        for service in [
            "cmd = [\"/usr/sbin/nginx\"]",
            "cmd = [\"nginx\"]",
            "cmd = [\"/bin/httpd\"]",
            "cmd = [\"./start\"]\nworkdir = \"/srv\"",
            "cmd = [\"db/bin/postgres\"]\nworkdir = \"/opt/\"",
            "cmd = [\"postgres\"]\nenv = { PATH = \"/bin:/opt/db/bin\" }",
            "cmd = [\"postgres\"]\nenv = { PATH = \"bin\" }\nworkdir = \"/opt/db\"",
            // It may be there when the machine runs.
            "cmd = [\"/proc/self/exe\"]",
            "cmd = [\"current\"]",
            "cmd = [\"any\"]\nenv = { PATH = \"/run/wrappers:/bin\" }",
        ] {
            check(service, false).unwrap_or_else(|e| panic!("{service}: {e:#}"));
        }
        for service in [
            "cmd = [\"postgres\"]",
            "cmd = [\"/usr/bin\"]",
            "cmd = [\"loop\"]",
            "cmd = [\"/bin/dangling\"]",
            "cmd = [\"/usr/sbin/nginx/x\"]",
        ] {
            assert!(check(service, false).is_err(), "{service}");
        }
    }

    #[test]
    fn one_that_is_not_there_is_told_with_its_place_and_the_one_that_may_be_meant() {
        assert_eq!(
            told("cmd = [\"/usr/bin/nginx\", \"-g\"]", false),
            "error: cannot run \"/usr/bin/nginx\", the program of `cmd` of [service]\n \
             --> Smolfile:6:7\n  |\n\
             6 | cmd = [\"/usr/bin/nginx\", \"-g\"]\n  |       ^^^^^^^^^^^^^^^^^^^^^^^^ \
             the root file system has no /usr/bin/nginx\n  |\n  \
             = help: did you mean \"/usr/sbin/nginx\"?\n"
        );
        let bare = told("cmd = [\"postgress\"]", false);
        assert!(
            bare.contains("is in no folder of PATH (/usr/local/sbin:"),
            "{bare}"
        );
        assert!(
            bare.contains("did you mean \"/opt/db/bin/postgres\"?"),
            "{bare}"
        );
        let shell = told("cmd = \"exec nginx\"", false);
        assert!(shell.contains("write it as a list"), "{shell}");
        let of_image = told("cmd = [\"/entry.sh\"]", true);
        assert_eq!(
            of_image,
            "error: cannot run \"/entry.sh\", the program of the image: the root file system has no /entry.sh\n"
        );
    }
}
