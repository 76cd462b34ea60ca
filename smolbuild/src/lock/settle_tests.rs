//! The lock file: missing, fitting, out of date in a part.

use std::fs;
use std::os::unix::fs::MetadataExt;

use smol_cli::Mode;

use super::*;

const SMOLFILE: &str = r#"name = "app"
[kernel]
path = "guest.elf"
[rootfs]
dir = "root"
[[copy]]
src = "app.conf"
dest = "/etc/app.conf"
[service]
cmd = ["app"]
[ready]
tcp = 80
"#;

struct Project {
    folder: tempfile::TempDir,
    surroundings: Surroundings,
}

impl Project {
    fn new() -> Project {
        let project = Project {
            folder: tempfile::tempdir().unwrap(),
            surroundings: Surroundings::default(),
        };
        project.write("Smolfile", SMOLFILE);
        project.write("guest.elf", "ELF");
        project.write("app.conf", "a");
        fs::create_dir(project.folder.path().join("root")).unwrap();
        project
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.folder.path().join(name), content).unwrap();
    }

    fn read(&self) -> String {
        fs::read_to_string(self.folder.path().join("Smolfile.lock")).unwrap()
    }

    fn with<R>(&self, act: impl FnOnce(&Loaded, World) -> R) -> R {
        let loaded = crate::smolfile::load(self.folder.path()).unwrap();
        let world = World {
            downloads: &self.folder.path().join("downloads"),
            offline: true,
            surroundings: &self.surroundings,
            progress: &Progress::new(Mode::Plain),
            interrupt: &Interrupt::detached().unwrap(),
        };
        act(&loaded, world)
    }

    fn settle(&self, locked: bool) -> Result<Settled> {
        self.with(|loaded, world| settle(loaded, &Policy::File { locked }, world))
    }

    fn refresh(&self) -> Vec<String> {
        self.with(refresh).unwrap()
    }

    /// What `--locked` says of a lock that does not fit.
    fn stale(&self) -> String {
        let before = fs::read(self.folder.path().join("Smolfile.lock")).ok();
        let error = self.settle(true).unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::LockStale);
        let after = fs::read(self.folder.path().join("Smolfile.lock")).ok();
        assert_eq!(before, after, "--locked writes nothing");
        smol_cli::error::render(&error, false)
    }
}

#[test]
fn a_missing_lock_is_made_and_one_that_fits_is_not_touched() {
    let project = Project::new();
    let stale = project.stale();
    assert!(stale.contains("there is no lock file"), "{stale}");
    assert!(stale.contains("hint: make it: smolbuild lock"), "{stale}");
    let settled = project.settle(false).unwrap();
    assert_eq!(project.read(), settled.lock.to_text());
    let file = project.folder.path().join("Smolfile.lock");
    let inode = || fs::metadata(&file).unwrap().ino();
    let before = inode();
    for locked in [true, false] {
        assert_eq!(project.settle(locked).unwrap().lock, settled.lock);
    }
    assert_eq!(project.refresh(), [""; 0]);
    assert_eq!(inode(), before);
    let host = project.folder.path().to_str().unwrap();
    assert!(
        !project.read().contains(host),
        "no path of the host is in it"
    );
}

#[test]
fn locked_lists_each_thing_that_differs_and_a_build_renews_those_parts() {
    let project = Project::new();
    let before = project.settle(false).unwrap().lock;
    project.write("guest.elf", "ELF2");
    project.write("app.conf", "b");
    project.write("root/new", "");
    let stale = project.stale();
    for line in [
        "Smolfile.lock is out of date:\n",
        "  [kernel] path \"guest.elf\" changed\n",
        "  [rootfs] dir \"root\" changed\n",
        "  [[copy]] \"app.conf\" changed\n",
        "  hint: renew it: smolbuild lock\n",
    ] {
        assert!(stale.contains(line), "{line:?} is not in {stale}");
    }
    let after = project.settle(false).unwrap().lock;
    assert_eq!(project.read(), after.to_text());
    assert_eq!(differences(&before, &after).len(), 3);
    assert_eq!(project.settle(true).unwrap().lock, after);
}

#[test]
fn packages_stay_as_they_are_locked_until_others_are_asked_for() {
    let project = Project::new();
    let debian = SMOLFILE.replace(
        "dir = \"root\"",
        "debian = { suite = \"bookworm\", packages = [\"curl\"] }",
    );
    project.write("Smolfile", &debian);
    // Offline there is nobody to ask, and the error says for what.
    let error = project.settle(false).unwrap_err().to_string();
    assert!(
        error.contains("bookworm") && error.contains("curl"),
        "{error}"
    );
    let (mut lock, complete) = project
        .with(|loaded, world| present(loaded, None, world.surroundings, world.interrupt))
        .unwrap();
    assert!(!complete);
    lock.debian.as_mut().unwrap().packages = vec![super::super::PackagePin {
        name: "curl".into(),
        version: "7.88".into(),
        arch: "amd64".into(),
        sha256: "ab".repeat(32),
    }];
    let file = project.folder.path().join("Smolfile.lock");
    store(&file, &lock).unwrap();
    project.write("app.conf", "b");
    let settled = project.settle(false).unwrap().lock;
    assert_eq!(settled.debian, lock.debian);
    assert_ne!(settled.copies, lock.copies);
    assert_eq!(
        project.refresh(),
        [""; 0],
        "offline, packages that fit stay"
    );
    project.write("Smolfile", &debian.replace("\"curl\"", "\"curl\", \"jq\""));
    let stale = project.stale();
    assert!(stale.contains("[rootfs] packages: jq is new"), "{stale}");
    assert!(project.settle(false).is_err());
}

#[test]
fn the_epoch_of_the_lock_holds_until_the_environment_has_another() {
    let mut project = Project::new();
    project.surroundings.epoch = Some(1_000);
    project.settle(false).unwrap();
    project.surroundings.epoch = None;
    assert_eq!(project.settle(true).unwrap().lock.builder.epoch, 1_000);
    project.surroundings.epoch = Some(2_000);
    assert!(project.stale().contains("epoch: 1000 -> 2000"));
    project.surroundings.epoch = None;
    assert_eq!(project.refresh(), ["epoch: 1000 -> 1767225600"]);
}

#[test]
fn a_file_that_is_no_lock_stops_a_build_and_is_made_anew_by_a_refresh() {
    let project = Project::new();
    project.write("Smolfile.lock", "version = 1\n[bilder]\n");
    for locked in [true, false] {
        let error = project.settle(locked).unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
        let text = smol_cli::error::render(&error, false);
        assert!(
            text.contains("bilder") && text.contains("smolbuild lock"),
            "{text}"
        );
    }
    assert_eq!(project.refresh().len(), 1);
    project.settle(true).unwrap();
}

#[test]
fn a_lock_that_is_given_is_taken_as_it_is_and_nothing_is_written() {
    let project = Project::new();
    let lock = Lock::of_epoch(7);
    let policy = Policy::Given(Box::new(lock.clone()));
    let settled = project
        .with(|loaded, world| {
            let world = World {
                offline: false,
                ..world
            };
            settle(loaded, &policy, world)
        })
        .unwrap();
    assert_eq!(
        (settled.lock, settled.net, settled.file),
        (lock, Net::Pinned, None)
    );
    assert!(!project.folder.path().join("Smolfile.lock").exists());
}
