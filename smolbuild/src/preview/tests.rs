use std::fs;

use smol_bundle::Digest;
use smol_cli::Session;

use super::steps::RunPreview;
use super::*;
use crate::boot::Frozen;
use crate::environment::EnvironmentInputs;
use crate::input::{DebianInput, ImageInput, Input};
use crate::lock::{Debian, LockedImage, LockedRun, PackagePin};
use crate::smolfile;
use crate::steps::StepCache;

const SMOLFILE: &str = r#"
    name = "app"
    kernel.path = "guest.elf"
    rootfs.dir = "root"
    service.cmd = ["app"]
    ready.tcp = 80
    [[copy]]
    src = "app.conf"
    dest = "/etc/app.conf"
    [[run]]
    cmd = "first && more"
    [[run]]
    cmd = ["second"]
    network = ["b.org:443", "a.org"]
    [[fetch]]
    url = "https://example.org/x/model.bin"
    sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
    dest = "/srv/"
    [[run]]
    cmd = ["third"]
"#;

/// A project, and a cache that is not there yet.
struct Scene {
    folder: tempfile::TempDir,
    session: Session,
    environment: EnvironmentInputs,
}

impl Scene {
    fn new(smolfile: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("root")).unwrap();
        for (name, text) in [
            ("Smolfile", smolfile),
            ("app.conf", "a"),
            ("guest.elf", "ELF"),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Self {
            folder,
            session: Session::detached().unwrap(),
            environment: EnvironmentInputs::default(),
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn loaded(&self) -> Loaded {
        smolfile::load(self.folder.path(), None).unwrap()
    }

    fn try_look(&self, locked: bool, net: Net) -> Result<Preview> {
        let context = BuildContext {
            downloads: &self.path("cache/downloads"),
            net,
            environment: &self.environment,
            session: &self.session,
        };
        let request = Request {
            locked,
            accel: Accel::Auto,
            cache: &self.path("cache"),
        };
        look(&self.loaded(), request, context)
    }

    fn look(&self, net: Net) -> Preview {
        self.try_look(false, net).unwrap()
    }

    /// Writes the lock file, with these runs.
    fn lock(&self, runs: &[(&str, Digest)]) {
        let (environment, interrupt) = (&self.environment, &self.session.interrupt);
        let kept = resolve::Kept::default();
        let current = resolve::current(&self.loaded(), kept, environment, interrupt);
        let (mut lock, _) = current.unwrap();
        lock.runs = runs
            .iter()
            .map(|(key, layer)| LockedRun {
                key: key.to_string(),
                layer: *layer,
            })
            .collect();
        fs::write(self.path("Smolfile.lock"), lock.to_text()).unwrap();
    }
}

fn runs(preview: &Preview) -> Vec<&RunPreview> {
    let runs = preview.steps.iter().filter_map(|step| match step {
        StepPreview::Run(run) => Some(run),
        _ => None,
    });
    runs.collect()
}

fn actions(preview: &Preview) -> Vec<Action> {
    let steps = preview.steps.iter();
    steps.map(|step| step.outcome().action).collect()
}

#[test]
fn without_a_lock_and_a_cache_everything_is_made_and_looking_makes_nothing() {
    use Action::*;
    let scene = Scene::new(SMOLFILE);
    let preview = scene.look(Net::Open);
    assert_eq!(actions(&preview), [Read, Run, Run, Download, Depends]);
    let runs = runs(&preview);
    let rules = ["a.org".to_owned(), "b.org:443".to_owned()];
    assert_eq!(runs[1].network.as_deref(), Some(&rules[..]));
    assert!(runs[0].key.is_some() && runs[1].key.is_some() && runs[2].key.is_none());
    assert_eq!(runs[2].outcome.why.as_deref(), Some("what [[run]] 2 makes"));
    assert_eq!(preview.bundle.outcome.action, Boot);
    assert_eq!((&preview.plan, &preview.seed), (&None, &None));
    assert!(!preview.lock.exists && !preview.lock.fits);
    let offline = scene.look(Net::Offline);
    assert_eq!(actions(&offline), [Read, Run, Fail, Fail, Depends]);
    let mut names: Vec<_> = fs::read_dir(scene.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["Smolfile", "app.conf", "guest.elf", "root"]);
}

#[test]
fn what_was_made_and_downloaded_before_is_cached_and_no_digest_of_it_is_taken() {
    use Action::*;
    let scene = Scene::new(SMOLFILE);
    let before = scene.look(Net::Open);
    let keys: Vec<_> = runs(&before)
        .iter()
        .map(|run| run.key.clone().unwrap_or_default())
        .collect();
    let cache = StepCache::open(&scene.path("cache")).unwrap();
    let layer = |text: &str| {
        fs::write(scene.path("cache/new"), text).unwrap();
        cache.add_layer(&scene.path("cache/new")).unwrap()
    };
    let (first, second) = (layer("first"), layer("second"));
    cache.store(&keys[0].parse().unwrap(), first).unwrap();
    scene.lock(&[(&keys[1], second)]);
    fs::create_dir(scene.path("cache/downloads")).unwrap();
    let file = format!("cache/downloads/{}.file", "0".repeat(64));
    fs::write(scene.path(&file), "not what it should be").unwrap();
    let preview = scene.look(Net::Offline);
    assert_eq!(actions(&preview), [Read, Cached, Cached, Cached, Run]);
    assert_eq!(runs(&preview)[0].layer, Some(first));
    assert!(runs(&preview)[2].key.is_some());
    assert!(preview.lock.fits, "{:?}", preview.lock);
    // The key of what comes after a networked step is known only as long as its layer is there, or the
    // lock must fit.
    fs::remove_file(cache.layers().path(&second)).unwrap();
    let gone = scene.look(Net::Open);
    assert_eq!(actions(&gone)[2..], [Run, Cached, Depends]);
    let locked = scene.try_look(true, Net::Open).unwrap();
    assert_eq!(actions(&locked)[2..], [Run, Cached, Run]);
    fs::remove_file(cache.layers().path(&first)).unwrap();
    assert_eq!(actions(&scene.look(Net::Open))[1], Run);
    scene.lock(&[]);
    let unpinned = scene.try_look(true, Net::Open).unwrap();
    assert_eq!(actions(&unpinned)[2..], [Fail, Cached, Depends]);
}

#[test]
fn a_lock_that_must_fit_and_does_not_is_an_error_and_else_its_changes_are_told() {
    let scene = Scene::new(SMOLFILE);
    let kind = |preview: Result<Preview>| smol_cli::exit_kind(&preview.unwrap_err());
    assert_eq!(kind(scene.try_look(true, Net::Open)), ExitKind::LockStale);
    scene.lock(&[]);
    fs::write(scene.path("app.conf"), "b").unwrap();
    assert_eq!(kind(scene.try_look(true, Net::Open)), ExitKind::LockStale);
    let before = fs::read(scene.path("Smolfile.lock")).unwrap();
    let lock = scene.look(Net::Open).lock;
    assert_eq!(
        (lock.exists, lock.fits, lock.changes.len()),
        (true, false, 1)
    );
    assert_eq!(fs::read(scene.path("Smolfile.lock")).unwrap(), before);
}

#[test]
fn a_bundle_that_was_built_before_is_found_with_its_plan_and_its_seed() {
    let scene = Scene::new(SMOLFILE);
    let key = scene.look(Net::Open).bundle.key.unwrap();
    let entry = scene.path("cache/built").join(&key);
    fs::create_dir_all(&entry).unwrap();
    fs::write(entry.join("bundle"), "").unwrap();
    let digest = Digest::of(b"bundle").to_string();
    let frozen = Frozen {
        cpu_features: Vec::new(),
        xcr0: 0,
        virtual_time: true,
        virtual_ms: Some(5),
        first_tick_ms: None,
        exits: 0,
        pages: 0,
        nonzero_pages: 0,
        boot_ms: 0,
        capture_ms: 0,
        working_set: None,
        no_working_set: None,
    };
    let inputs = std::collections::BTreeMap::from([("kernel".to_owned(), "12".to_owned())]);
    let facts =
        serde_json::json!({ "digest": digest, "inputs": inputs, "frozen": frozen, "file": "" });
    fs::write(entry.join("facts.json"), facts.to_string()).unwrap();
    let preview = scene.look(Net::Open);
    assert_eq!(preview.bundle.outcome.action, Action::Cached);
    assert_eq!(preview.bundle.digest, Some(digest));
    let loaded = scene.loaded();
    let (lock, _) = resolve::current(
        &loaded,
        resolve::Kept::default(),
        &scene.environment,
        &scene.session.interrupt,
    )
    .unwrap();
    let plan = Plan::resolve(&loaded.smolfile, &loaded.base_dir, lock.clone()).unwrap();
    let sealed = Sealed::new(&plan, lock, inputs);
    assert_eq!(preview.plan, Some(hex::encode(sealed.digest())));
    assert_eq!(preview.seed, Some(hex::encode(sealed.seed())));
    assert!(preview.text().contains("and does nothing else"));
    fs::remove_file(entry.join("bundle")).unwrap();
    assert_eq!(scene.look(Net::Open).bundle.outcome.action, Action::Boot);
}

#[test]
fn what_is_to_be_chosen_leaves_open_what_depends_on_it() {
    let smolfile = SMOLFILE.replace(
        "rootfs.dir = \"root\"",
        "rootfs.image = \"docker.io/library/x:1\"",
    );
    // The image may say what runs.
    let smolfile = smolfile.replace("service.cmd = [\"app\"]\n", "");
    let scene = Scene::new(&smolfile);
    let preview = scene.look(Net::Open);
    let rootfs = preview.rootfs.as_ref().unwrap();
    assert_eq!(rootfs.outcome.action, Action::Choose);
    assert_eq!(preview.bundle.outcome.action, Action::Depends);
    use Action::*;
    assert_eq!(
        actions(&preview),
        [Read, Depends, Depends, Download, Depends]
    );
    let offline = scene.look(Net::Offline);
    assert_eq!(offline.rootfs.unwrap().outcome.action, Fail);
}

#[test]
fn packages_and_layers_are_counted_by_what_is_in_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, downloads) = (folder.path(), &folder.path().join("downloads"));
    fs::create_dir_all(downloads).unwrap();
    let mut lock = Lock::of_epoch(0);
    let pin = |name: &str, digit: &str| PackagePin {
        name: name.into(),
        version: "1".into(),
        arch: "amd64".into(),
        sha256: digit.repeat(64),
    };
    lock.debian = Some(Debian {
        suite: "bookworm".into(),
        requested: vec!["a".into()],
        packages: vec![pin("a", "1"), pin("b", "2")],
        install_only: None,
    });
    let debian = DebianInput::new("bookworm".into(), vec!["a".into()]);
    let find = |input: &dyn Input, lock: &Lock| input.found(lock, cache, downloads);
    let of = |found: &Found, net| of_found(found, net).action;
    fs::write(downloads.join(format!("{}.deb", "1".repeat(64))), "").unwrap();
    let found = find(&debian, &lock).unwrap().unwrap();
    assert_eq!((found.total, &found.missing), (2, &vec!["2".repeat(64)]));
    assert_eq!(of(&found, Net::Open), Action::Download);
    assert_eq!(of(&found, Net::Offline), Action::Fail);
    fs::write(downloads.join(format!("{}.deb", "2".repeat(64))), "").unwrap();
    let found = find(&debian, &lock).unwrap().unwrap();
    assert_eq!(of(&found, Net::Offline), Action::Install);

    let layers = [Digest::of(b"1"), Digest::of(b"2"), Digest::of(b"1")];
    lock.image = Some(LockedImage {
        origin: None,
        id: Digest::of(b"image"),
        variant: None,
        diff_ids: layers.to_vec(),
        config: smol_image::RunConfig::default(),
    });
    let image = |name: &str| {
        let name = toml::Spanned::new(0..0, smol_image::ImageRef::parse(name).unwrap());
        ImageInput::new(name, smol_machine::cpu::Level::V2)
    };
    let [local, remote] = ["oci-archive:x.tar", "docker.io/library/x:1"].map(image);
    let place = LayerCacheOf(cache);
    place.put(&layers[0]);
    let found = find(&local, &lock).unwrap().unwrap();
    assert_eq!((found.total, &found.missing), (2, &vec![layers[1].hex()]));
    assert_eq!(of(&found, Net::Offline), Action::Unpack);
    let found = find(&remote, &lock).unwrap().unwrap();
    assert_eq!(of(&found, Net::Open), Action::Fail, "nothing says where");
    place.put(&layers[1]);
    let found = find(&remote, &lock).unwrap().unwrap();
    assert_eq!(of(&found, Net::Offline), Action::Cached);
}

/// Layers in a cache, of which the name is all that counts here.
struct LayerCacheOf<'a>(&'a Path);

impl LayerCacheOf<'_> {
    fn put(&self, layer: &Digest) {
        let cache = crate::input::layers::LayerCache::open(self.0).unwrap();
        fs::write(cache.path(layer), "").unwrap();
    }
}

#[test]
fn a_smolfile_cannot_write_lines_of_its_own_into_the_table() {
    let smolfile = SMOLFILE.replace("\"first && more\"", "\"a\\nbundle  \\u001b[2J\"");
    let text = Scene::new(&smolfile).look(Net::Open).text();
    assert!(text.contains("a\\nbundle  \\u{1b}[2J"), "{text}");
    assert_eq!(text.matches("\nbundle ").count(), 1, "{text}");
}
