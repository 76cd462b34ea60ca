//! The lock file: missing, fitting, out of date in a part.

use std::fs;
use std::os::unix::fs::MetadataExt;

use smol_cli::Session;

use super::*;
use crate::environment::EnvironmentInputs;

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
    environment: EnvironmentInputs,
}

impl Project {
    fn new() -> Project {
        let project = Project {
            folder: tempfile::tempdir().unwrap(),
            environment: EnvironmentInputs::default(),
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

    fn with<R>(&self, act: impl FnOnce(&Loaded, BuildContext) -> R) -> R {
        let loaded = crate::smolfile::load(self.folder.path(), None).unwrap();
        let context = BuildContext {
            downloads: &self.folder.path().join("downloads"),
            net: Net::Offline,
            environment: &self.environment,
            session: &Session::detached().unwrap(),
        };
        act(&loaded, context)
    }

    fn resolve(&self, locked: bool) -> Result<Resolved> {
        self.with(|loaded, context| resolve(loaded, &Policy::File { locked }, context))
    }

    fn refresh(&self) -> Vec<String> {
        self.with(|loaded, context| refresh(loaded, &[], context))
            .unwrap()
    }

    /// What `--locked` says of a lock that does not fit.
    fn stale(&self) -> String {
        let before = fs::read(self.folder.path().join("Smolfile.lock")).ok();
        let error = self.resolve(true).unwrap_err();
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
    let resolved = project.resolve(false).unwrap();
    assert_eq!(project.read(), resolved.lock.to_text());
    let file = project.folder.path().join("Smolfile.lock");
    let inode = || fs::metadata(&file).unwrap().ino();
    let before = inode();
    for locked in [true, false] {
        assert_eq!(project.resolve(locked).unwrap().lock, resolved.lock);
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
    let before = project.resolve(false).unwrap().lock;
    project.write("guest.elf", "ELF2");
    project.write("app.conf", "b");
    project.write("root/new", "");
    let stale = project.stale();
    for line in [
        "Smolfile.lock is out of date:\n",
        "  [kernel] path \"guest.elf\" changed\n",
        "  [rootfs] dir \"root\" changed\n",
        "  [[copy]] \"app.conf\" changed\n",
        "  hint: renew what changed: smolbuild lock --only files ",
    ] {
        assert!(stale.contains(line), "{line:?} is not in {stale}");
    }
    let after = project.resolve(false).unwrap().lock;
    assert_eq!(project.read(), after.to_text());
    assert_eq!(differences(&before, &after).len(), 3);
    assert_eq!(project.resolve(true).unwrap().lock, after);
}

#[test]
fn packages_stay_as_they_are_locked_until_others_are_asked_for() {
    let project = Project::new();
    let debian = SMOLFILE.replace(
        "dir = \"root\"",
        "debian = { suite = \"bookworm\", packages = [\"curl\"] }",
    );
    project.write("Smolfile", &debian);
    // Offline there is no service to ask, and the error says for what.
    let error = project.resolve(false).unwrap_err().to_string();
    assert!(
        error.contains("bookworm") && error.contains("curl"),
        "{error}"
    );
    let (mut lock, pins) = project
        .with(|loaded, context| {
            current(
                loaded,
                Kept::default(),
                context.environment,
                &context.session.interrupt,
            )
        })
        .unwrap();
    assert_eq!(pins, Pins::ToChoose);
    lock.debian.as_mut().unwrap().packages = vec![crate::lock::PackagePin {
        name: "curl".into(),
        version: "7.88".into(),
        arch: "amd64".into(),
        sha256: "ab".repeat(32),
    }];
    let file = project.folder.path().join("Smolfile.lock");
    store(&file, &lock).unwrap();
    project.write("app.conf", "b");
    let resolved = project.resolve(false).unwrap().lock;
    assert_eq!(resolved.debian, lock.debian);
    assert_ne!(resolved.copies, lock.copies);
    assert_eq!(
        project.refresh(),
        [""; 0],
        "offline, packages that fit stay"
    );
    project.write("Smolfile", &debian.replace("\"curl\"", "\"curl\", \"jq\""));
    let stale = project.stale();
    assert!(stale.contains("[rootfs] packages: jq is new"), "{stale}");
    assert!(project.resolve(false).is_err());
}

#[test]
fn the_epoch_of_the_lock_holds_until_the_environment_has_another() {
    let mut project = Project::new();
    project.environment.epoch = Some(1_000);
    project.resolve(false).unwrap();
    project.environment.epoch = None;
    assert_eq!(project.resolve(true).unwrap().lock.builder.epoch, 1_000);
    assert_eq!(project.refresh(), [""; 0], "not even all anew changes it");
    project.environment.epoch = Some(2_000);
    assert_eq!(project.refresh(), ["epoch: 1000 -> 2000"]);
}

#[test]
fn a_locked_build_takes_the_epoch_of_the_environment_and_leaves_the_lock_file_as_it_is() {
    let mut project = Project::new();
    project.resolve(false).unwrap();
    let before = project.read();
    project.environment.epoch = Some(2_000);
    let resolved = project.resolve(true).unwrap();
    assert_eq!((resolved.lock.builder.epoch, resolved.file), (2_000, None));
    assert_eq!(project.read(), before);
    // All else must fit.
    project.write("app.conf", "b");
    let stale = project.stale();
    assert!(
        stale.contains("app.conf") && !stale.contains("epoch"),
        "{stale}"
    );
}

#[test]
fn a_part_is_renewed_alone_and_the_hint_names_those_that_differ() {
    let project = Project::new();
    let refresh =
        |only: &[Part]| project.with(|loaded, context| super::refresh(loaded, only, context));
    let error = refresh(&[Part::Files]).unwrap_err();
    assert_eq!(smol_cli::exit_kind(&error), ExitKind::LockStale);
    project.resolve(false).unwrap();
    let older = project.read().replace(env!("CARGO_PKG_VERSION"), "0.0.9");
    project.write("Smolfile.lock", &older);
    project.write("app.conf", "b");
    let hint = |parts: &str| format!("  hint: renew what changed: smolbuild lock --only {parts} ");
    assert!(project.stale().contains(&hint("builder,files")));
    let changed = "[[copy]] \"app.conf\" changed";
    assert_eq!(refresh(&[Part::Files]).unwrap(), [changed]);
    assert!(project.stale().contains(&hint("builder")));
    assert_eq!(refresh(&[Part::Kernel, Part::Builder]).unwrap().len(), 1);
    project.resolve(true).unwrap();
}

#[test]
fn a_file_that_is_no_lock_stops_a_build_and_is_made_anew_by_a_refresh() {
    let project = Project::new();
    project.write("Smolfile.lock", "version = 1\n[bilder]\n");
    for locked in [true, false] {
        let error = project.resolve(locked).unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
        let text = smol_cli::error::render(&error, false);
        assert!(
            text.contains("bilder") && text.contains("smolbuild lock"),
            "{text}"
        );
    }
    assert_eq!(project.refresh().len(), 1);
    project.resolve(true).unwrap();
}

#[test]
fn a_lock_that_is_given_is_taken_as_it_is_and_nothing_is_written() {
    let project = Project::new();
    let lock = Lock::of_epoch(7);
    let policy = Policy::Given(Box::new(lock.clone()));
    let resolved = project
        .with(|loaded, context| {
            let context = BuildContext {
                net: Net::Open,
                ..context
            };
            resolve(loaded, &policy, context)
        })
        .unwrap();
    assert_eq!(
        (resolved.lock, resolved.net, resolved.file),
        (lock, Net::Pinned, None)
    );
    assert!(!project.folder.path().join("Smolfile.lock").exists());
}
