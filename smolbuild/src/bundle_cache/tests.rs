use smol_bundle::Written;

use super::*;
use crate::lock::Lock;
use crate::plan::{DEFAULT_EPOCH, Sealed};
use crate::work::WorkDir;

const SMOLFILE: &str = "name = \"a\"\n[kernel]\npath = \"guest.elf\"\n[ready]\nlog = \"^up$\"\n";

/// A cache, and a bundle that is to be kept in it.
struct Scene {
    cache: tempfile::TempDir,
    bundles: BundleCache,
    bundle: PathBuf,
    written: Written,
    plan: Plan,
}

fn plan(smolfile: &str, lock: Lock) -> Plan {
    let smolfile = crate::smolfile::parse(smolfile).unwrap();
    Plan::resolve(
        &smolfile,
        &crate::source_dir::SourceDir::bare("/base"),
        lock,
    )
    .unwrap()
}

fn lock() -> Lock {
    Lock::of_epoch(DEFAULT_EPOCH)
}

fn frozen() -> Frozen {
    Frozen {
        cpu_features: vec!["fpu".into()],
        xcr0: 0,
        virtual_time: true,
        virtual_ms: Some(5),
        first_tick_ms: None,
        exits: 7,
        pages: 9,
        nonzero_pages: 3,
        boot_ms: 11,
        capture_ms: 13,
        working_set: None,
        no_working_set: None,
    }
}

fn digests() -> BTreeMap<String, String> {
    BTreeMap::from([("kernel".to_owned(), "12".to_owned())])
}

fn scene() -> Scene {
    let cache = tempfile::tempdir().unwrap();
    let kernel = cache.path().join("kernel");
    fs::write(&kernel, vec![7; 50_000]).unwrap();
    let bundle = cache.path().join("x.smolmachine");
    let plan = plan(SMOLFILE, lock());
    let spec = smol_bundle::BundleSpec {
        config: crate::pack::config(&plan, &frozen()),
        kernel,
        initramfs: None,
        rootfs: None,
        snapshot: None,
        smolfile: None,
        lock: None,
        parent: None,
    };
    let written = smol_bundle::write(&spec, &bundle, &mut |_, _| {}).unwrap();
    Scene {
        bundles: BundleCache::open(cache.path()).unwrap(),
        cache,
        bundle,
        written,
        plan,
    }
}

impl Scene {
    fn store(&self, key: &str) {
        let work = WorkDir::create(self.cache.path()).unwrap();
        let built = Built {
            sealed: Sealed::new(&self.plan, lock(), digests()),
            frozen: frozen(),
            written: self.written.clone(),
        };
        self.bundles
            .store(key, &self.bundle, &built, work.path())
            .unwrap();
    }

    /// The bytes of the bundle that is taken, and the facts.
    fn lookup(&self, key: &str) -> Result<Option<(Vec<u8>, Facts)>> {
        let work = WorkDir::create(self.cache.path()).unwrap();
        let taken = self.bundles.lookup(key, work.path())?;
        Ok(taken.map(|(path, facts)| (fs::read(path).unwrap(), facts)))
    }

    fn entries(&self) -> usize {
        fs::read_dir(self.cache.path().join("built"))
            .unwrap()
            .count()
    }
}

#[test]
fn what_is_kept_is_taken_with_all_that_its_build_found_also_by_two_at_once() {
    let scene = scene();
    assert!(scene.lookup("k").unwrap().is_none());
    scene.store("k");
    scene.store("k");
    let (bytes, facts) = scene.lookup("k").unwrap().unwrap();
    assert_eq!(bytes, fs::read(&scene.bundle).unwrap());
    assert_eq!(facts.frozen, frozen());
    assert_eq!(facts.inputs, digests());
    assert_eq!(facts.digest, scene.written.digest.to_string());
    assert!(scene.lookup("other").unwrap().is_none());
    assert_eq!(scene.entries(), 1);
}

#[test]
fn a_taken_bundle_stays_when_its_entry_goes() {
    let scene = scene();
    scene.store("k");
    let work = WorkDir::create(scene.cache.path()).unwrap();
    let (path, _) = scene.bundles.lookup("k", work.path()).unwrap().unwrap();
    fs::remove_dir_all(scene.cache.path().join("built")).unwrap();
    assert_eq!(fs::read(path).unwrap(), fs::read(&scene.bundle).unwrap());
}

#[test]
fn an_entry_with_a_flipped_bit_or_a_missing_part_is_told_once_and_goes() {
    let entry = |scene: &Scene| scene.cache.path().join("built/k");
    type Harm = fn(&Path);
    let harms: [Harm; 4] = [
        |entry| {
            let mut bytes = fs::read(entry.join(BUNDLE)).unwrap();
            // Within the frames, where opening a bundle does not look.
            bytes[2048] ^= 1;
            fs::write(entry.join(BUNDLE), bytes).unwrap();
        },
        |entry| {
            let bytes = fs::read(entry.join(BUNDLE)).unwrap();
            fs::write(entry.join(BUNDLE), &bytes[..bytes.len() / 2]).unwrap();
        },
        |entry| fs::write(entry.join(FACTS), "{}").unwrap(),
        |entry| fs::remove_file(entry.join(FACTS)).unwrap(),
    ];
    for harm in harms {
        let scene = scene();
        scene.store("k");
        harm(&entry(&scene));
        assert!(scene.lookup("k").is_err());
        assert!(scene.lookup("k").unwrap().is_none());
        scene.store("k");
        assert!(scene.lookup("k").unwrap().is_some());
    }
}

#[test]
fn an_entry_that_others_could_have_written_is_not_taken() {
    for part in ["", BUNDLE, FACTS] {
        let scene = scene();
        scene.store("k");
        let path = scene.cache.path().join("built/k").join(part);
        let mut open = fs::metadata(&path).unwrap().permissions();
        open.set_mode(open.mode() | 0o020);
        fs::set_permissions(&path, open).unwrap();
        let error = scene.lookup("k").unwrap_err().to_string();
        assert!(error.contains("can be written to by others"), "{error}");
        assert!(scene.lookup("k").unwrap().is_none());
    }
}

#[test]
fn of_many_bundles_those_that_were_used_last_stay() {
    let scene = scene();
    for number in 0..MOST {
        scene.store(&number.to_string());
        let entry = scene.cache.path().join("built").join(number.to_string());
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
        File::open(entry).unwrap().set_modified(time).unwrap();
    }
    assert!(scene.lookup("0").unwrap().is_some());
    scene.store("new");
    assert_eq!(scene.entries(), MOST);
    assert!(scene.lookup("0").unwrap().is_some());
    assert!(scene.lookup("1").unwrap().is_none());
    assert!(scene.lookup("new").unwrap().is_some());
}

#[test]
fn the_key_follows_plan_lock_smolfile_and_program_and_not_what_follows_from_them() {
    let Scene {
        bundles,
        plan: known,
        ..
    } = scene();
    let key = bundles.key(&known, SMOLFILE);
    assert_eq!(bundles.key(&plan(SMOLFILE, lock()), SMOLFILE), key);
    let mut other_lock = lock();
    other_lock.builder.guest_sha256 = "1".repeat(64);
    let another = BundleCache {
        folder: PathBuf::new(),
        program: blake3::hash(b"another build of the same version"),
    };
    let wider = format!("cpus = 2\n{SMOLFILE}");
    let mut keys = vec![
        key,
        bundles.key(&plan(SMOLFILE, other_lock), SMOLFILE),
        bundles.key(&plan(&wider, lock()), SMOLFILE),
        // A comment changes nothing but the text, and that is in the bundle.
        bundles.key(&known, &format!("{SMOLFILE}# more\n")),
        another.key(&known, SMOLFILE),
    ];
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 5);
}
