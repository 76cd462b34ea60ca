//! A service that is an init: systemd, or another program that wants to be PID 1. It gets what inits know
//! from containers (systemd's CONTAINER_INTERFACE): PID, mount and cgroup namespaces of its own, and an
//! environment that says so. Network, host name and root file system stay those of the machine.
//!
//! ```text
//! /proc             of its PID namespace
//! /dev              a tmpfs with the devices of containers, and a terminal as console   (files)
//! /sys              read-only: no udev
//! /sys/fs/cgroup    its own cgroup as the root, writable
//! /run /tmp         the machine's; drop-ins for systemd in /run/systemd                 (files)
//! ```
//! Everything else that runs in the machine enters the namespaces, as `exec` of container engines does
//! ([`namespaces`]).

mod files;
mod namespaces;

use std::cell::OnceCell;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use super::cgroup::Cgroup;
pub(super) use files::{Console, Lines};
pub(super) use namespaces::{Namespaces, Rest, create, in_new_pid_namespace};
use smol_protocol::Service;

/// The environment that tells an init where it is, unless the service has such variables.
pub(super) const ENVIRONMENT: [(&str, &str); 2] = [
    ("container", MANAGER),
    // Or systemd colours what it writes to the console, and asks it for its size.
    ("TERM", "dumb"),
];
/// What we are called where container managers are.
const MANAGER: &str = "smol";
const SIGINT: u8 = 2;
const SIGUSR2: u8 = 12;
const SIGRTMIN_PLUS_3: u8 = 37;

/// Which init it is, as far as it matters to how it is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// systemd.
    Systemd,
    /// The init of busybox.
    Busybox,
    /// One that shuts down when ctrl-alt-del is pressed: sysvinit, OpenRC's, runit.
    CtrlAltDel,
    /// Another one, such as the `/init` of s6-overlay.
    Other,
}

impl Kind {
    /// Number of the signal that makes it shut down; `None` where SIGTERM does.
    pub(super) fn stop_signal(self) -> Option<u8> {
        match self {
            // systemd(1), "Signals". SIGTERM makes it execute itself anew.
            Kind::Systemd => Some(SIGRTMIN_PLUS_3),
            // SIGTERM is a reboot to it, SIGUSR1 a halt.
            Kind::Busybox => Some(SIGUSR2),
            Kind::CtrlAltDel => Some(SIGINT),
            Kind::Other => None,
        }
    }

    fn of(program: &Path) -> Kind {
        match program.file_name().and_then(|name| name.to_str()) {
            Some("systemd") => Kind::Systemd,
            Some("busybox") => Kind::Busybox,
            Some("openrc-init" | "runit-init" | "runit") => Kind::CtrlAltDel,
            // An `/init` at the root is one that was made for containers.
            Some("init") if program.parent() != Some(Path::new("/")) => Kind::CtrlAltDel,
            _ => Kind::Other,
        }
    }
}

/// Which init a service is; `None` if it is an ordinary program.
pub(super) fn kind(service: &Service, path: &str) -> Option<Kind> {
    let name = service.cmd.first()?;
    let found = match name.contains('/') {
        true => Some(PathBuf::from(name)),
        false => path
            .split(':')
            .map(|dir| Path::new(dir).join(name))
            .find(|file| is_program(file)),
    };
    let at = found.unwrap_or_else(|| PathBuf::from(name));
    let program = fs::canonicalize(&at).unwrap_or_else(|_| at.clone());
    // The others are called by more than one name, and do more than one thing.
    let by_itself = matches!(
        program.file_name().and_then(|name| name.to_str()),
        Some("systemd" | "openrc-init" | "runit-init")
    );
    let is_init = by_itself || at.to_str().is_some_and(smol_protocol::is_init);
    service.init.unwrap_or(is_init).then(|| Kind::of(&program))
}

/// Whether this is a file that can be executed.
pub(super) fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// What a service that is an init runs in.
#[derive(Debug)]
pub(super) struct Container {
    kind: Kind,
    /// There from its start on.
    namespaces: OnceCell<Namespaces>,
}

impl Container {
    /// That of an init which is to be started.
    pub(super) fn of(kind: Kind) -> Self {
        Container {
            kind,
            namespaces: OnceCell::new(),
        }
    }

    /// Makes all that must be there before the init is started.
    pub(super) fn prepare(&self, cgroup: &Cgroup) -> Result<Console, String> {
        cgroup.delegate();
        files::tell_manager()?;
        if self.kind == Kind::Systemd {
            files::configure_systemd(Path::new("/"))?;
        }
        files::make_devices()
    }

    /// The init runs, as the process of this descriptor: what follows is started in its namespaces.
    pub(super) fn started(&self, pid: Pid) -> Result<(), String> {
        files::forget_devices()?;
        let namespaces = Namespaces::of(pid).map_err(|e| format!("namespaces of the init: {e}"))?;
        // A container is started once.
        let _ = self.namespaces.set(namespaces);
        Ok(())
    }

    /// The namespaces of the init that runs.
    pub(super) fn namespaces(&self) -> Option<&Namespaces> {
        self.namespaces.get()
    }
}

/// The machine got another id: what was logged until now stays visible under it.
pub(super) fn renamed(old: &str, new: &str) -> Result<(), String> {
    files::link_journals(Path::new("/"), old, new)
        .map_err(|e| format!("journals stay under the machine id of the build: {e}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn service(cmd: &[&str], init: Option<bool>) -> Service {
        Service {
            cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
            env: Default::default(),
            user: None,
            workdir: None,
            stop_signal: None,
            init,
        }
    }

    fn program(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn an_init_is_known_by_the_program_behind_its_links_or_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let systemd = root.join("usr/lib/systemd/systemd");
        program(&systemd);
        let link = root.join("boot");
        symlink(&systemd, &link).unwrap();
        let of = |cmd: &[&str], init| kind(&service(cmd, init), root.to_str().unwrap());
        assert_eq!(of(&[link.to_str().unwrap()], None), Some(Kind::Systemd));
        assert_eq!(
            of(&["boot", "--log-level=debug"], None),
            Some(Kind::Systemd)
        );
        assert_eq!(of(&[link.to_str().unwrap()], Some(false)), None);
        let own = root.join("app");
        program(&own);
        assert_eq!(of(&[own.to_str().unwrap()], None), None);
        assert_eq!(of(&[own.to_str().unwrap()], Some(true)), Some(Kind::Other));
        // Whatever is there, or is not.
        for path in ["/init", "/no/such/../../init"] {
            assert_eq!(of(&[path], None).is_some(), path == "/init", "{path}");
        }
    }

    #[test]
    fn each_init_is_stopped_by_what_it_understands() {
        for (program, signal) in [
            ("/usr/lib/systemd/systemd", Some(37)),
            ("/bin/busybox", Some(12)),
            ("/usr/sbin/init", Some(2)),
            ("/sbin/openrc-init", Some(2)),
            ("/init", None),
            ("/usr/bin/app", None),
        ] {
            assert_eq!(
                Kind::of(Path::new(program)).stop_signal(),
                signal,
                "{program}"
            );
        }
    }
}
