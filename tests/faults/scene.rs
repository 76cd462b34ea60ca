//! The folders of a trial, and what may be in them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, seek};
use rustix::process::{Pid, Signal, kill_process};

use serde_json::json;
use sha2::{Digest as _, Sha256};
use smol_bundle::{Bundle, PrivateKey, PublicKey};
use smol_testing::{kernel, oci};
use smol_tests::host;
use smol_tests::support::{LIMIT, Outcome, Running, eventually, run};
use tempfile::TempDir;

/// What the machine prints when it is restored. Each `!` comes from a page of its own, in a frame of its
/// own: a page that was not loaded would print a NUL.
pub const RESTORED: &str = "restored: !!!\n";
/// What it prints before it is frozen.
pub const BOOTED: &str = "booted\n";

/// What all trials begin with.
pub struct Fixture {
    folder: PathBuf,
    unpacked: OnceLock<Listing>,
    /// Lock files, by the machine.
    locks: Mutex<BTreeMap<&'static str, String>>,
}

impl Fixture {
    /// Builds the programs, a machine, a signed bundle of it and one that is unsigned.
    pub fn make(folder: PathBuf) -> Self {
        let at = |name: &str| folder.join(name);
        for name in ["programs", "in", "in/tiny", "in/files"] {
            fs::create_dir_all(at(name)).expect("the folder is our own");
        }
        host::programs(&host::workspace(), &at("programs"));
        let pages = [16 << 20, 32 << 20, 48 << 20];
        let machine = kernel::far_kernel_of(&pages, [BOOTED, "restored: ", "\n"]);
        let write = |name: &str, content: &[u8]| {
            fs::write(at("in").join(name), content).expect("the folder is our own");
        };
        write("tiny/kernel", &machine);
        write("tiny/Smolfile", TINY.as_bytes());
        write("files/kernel", &machine);
        write("files/Smolfile", FILES.as_bytes());
        for name in ["one", "two"] {
            let folder = at("in/files/root/etc").join(name);
            fs::create_dir_all(&folder).expect("the folder is our own");
            fs::write(folder.join("content"), name.repeat(5000)).expect("the folder is our own");
        }
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(at("in/files/root.tar"));
        run(tar.arg("-C").arg(at("in/files/root")).arg(".")).succeed();
        write_image(&at("in/image"), &machine);
        let fixture = Self {
            folder,
            unpacked: OnceLock::new(),
            locks: Mutex::default(),
        };
        fixture.keys_and_bundles();
        fixture
    }

    fn keys_and_bundles(&self) {
        let scene = Scene::of(self.folder.clone(), self);
        for folder in ["tmp", "out"] {
            fs::create_dir_all(scene.path(folder)).expect("the folder is our own");
        }
        run(&mut scene.command("smolbuild", &["keygen", "-o", "in/me.key"])).succeed();
        if crate::NO_KVM.is_some() {
            return;
        }
        for (name, sign) in [("signed", &["--sign", "in/me.key"][..]), ("unsigned", &[])] {
            let out = format!("in/{name}.smolmachine");
            let mut build = scene.command("smolbuild", &["in/tiny", "-o", &out]);
            run(build.args(sign)).succeed();
        }
        run(&mut scene.command("smolrun", &["in/signed.smolmachine", "--key", "in/me.pub"]))
            .succeed();
        let unpacked = fs::read_dir(scene.path("cache/bundles")).expect("it has run");
        let unpacked = unpacked.flatten().next().expect("it was unpacked").path();
        fs::rename(unpacked, scene.path("unpacked")).expect("both are our own");
        for folder in ["cache", "run", "out"] {
            fs::remove_dir_all(scene.path(folder)).expect("the folder is our own");
        }
    }

    /// Returns the files of the bundle `signed`, unpacked.
    pub fn unpacked(&self) -> &Listing {
        self.unpacked
            .get_or_init(|| listing(&self.folder.join("unpacked")))
    }

    /// Returns the lock file of the machine in this folder of `in`.
    pub fn lock(&self, machine: &'static str) -> String {
        let mut locks = self.locks.lock().expect("nobody panics with it");
        let make = || {
            let scene = self.scene();
            let folder = format!("in/{machine}");
            run(&mut scene.command("smolbuild", &["lock", &folder, "--offline"])).succeed();
            let lock = fs::read_to_string(scene.path(&folder).join("Smolfile.lock"));
            lock.expect("it was written")
        };
        locks.entry(machine).or_insert_with(make).clone()
    }

    /// Returns a new scene.
    pub fn scene(&self) -> Scene {
        let folder = tempfile::tempdir().expect("there is a temporary folder");
        let scene = Scene::of(folder.path().to_owned(), self);
        scene.set_up();
        Scene {
            _folder: Some(folder),
            ..scene
        }
    }
}

/// A machine that is just a kernel.
const TINY: &str = r#"name = "tiny"
memory = "64MiB"
[kernel]
path = "kernel"
[ready]
log = "booted"
"#;

/// A machine that cannot boot here, but whose images can be made.
const FILES: &str = r#"name = "files"
memory = "128MiB"
[kernel]
path = "kernel"
[rootfs]
tar = "root.tar"
[[copy]]
src = "root"
dest = "/copied"
[service]
cmd = ["/etc/one/content"]
[ready]
tcp = 80
"#;

/// Writes a machine whose files are those of a container image with two layers, and one that is downloaded.
fn write_image(folder: &Path, kernel: &[u8]) {
    let layer = |name: &str| {
        let content = name.repeat(5000);
        let layer = oci::Layer::default().folder("etc");
        layer.file(&format!("etc/{name}"), 0o755, content.as_bytes())
    };
    let layers = vec![layer("one"), layer("two")];
    let config = json!({"Cmd": ["/etc/one"], "ExposedPorts": {"80/tcp": {}}});
    let layout = folder.join("layout");
    oci::write_layout(&layout, "v1", &config, layers, oci::Packed::Gzip);
    let smolfile = format!(
        "name = \"image\"\nmemory = \"128MiB\"\nkernel.path = \"kernel\"\nrootfs.image = \"oci:layout:v1\"\n\
         [[fetch]]\nurl = \"https://example.org/file\"\nsha256 = \"{}\"\ndest = \"/etc/\"\n",
        sha256(DOWNLOADED)
    );
    for (name, content) in [("kernel", kernel), ("Smolfile", smolfile.as_bytes())] {
        fs::write(folder.join(name), content).expect("the folder is our own");
    }
}

/// What was downloaded before.
const DOWNLOADED: &[u8] = b"from a server\n";

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Ends a program that hangs. None takes a second.
const HANGS: Duration = LIMIT.checked_div(5).expect("it is not zero");

/// Kills a process, which may have ended.
pub fn kill(pid: u32) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process id");
    let _ = kill_process(pid, Signal::KILL);
}

/// Paths below a folder, with the [`content`] of files; `None` for folders and others.
pub type Listing = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Returns all that is in a folder; nothing if it is missing.
pub fn listing(folder: &Path) -> Listing {
    let content = |name: PathBuf| {
        let path = folder.join(&name);
        // It may be a socket, or a link.
        let is_file = fs::symlink_metadata(&path).is_ok_and(|found| found.is_file());
        let content = is_file.then(|| content(&path).expect("it is our own"));
        (name, content)
    };
    names(folder).into_iter().map(content).collect()
}

/// Longest file that is kept as it is.
const SHORT: u64 = 1 << 20;

/// Returns the content of a file. Of a long one, which has large holes, only pages that are not zero are
/// kept, each with its number before it, and the length.
fn content(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    if length <= SHORT {
        return fs::read(path);
    }
    let (mut kept, mut at) = (length.to_le_bytes().to_vec(), 0);
    // It fails where there is no more data.
    while let Ok(data) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(data))?;
        for page in data / 4096..at.div_ceil(4096) {
            let mut bytes = [0; 4096];
            let count = file.read_at(&mut bytes, page * 4096)?;
            if bytes != [0; 4096] {
                kept.extend(page.to_le_bytes());
                kept.extend(&bytes[..count]);
            }
        }
    }
    Ok(kept)
}

/// Returns the paths of all that is in a folder.
pub fn names(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path.clone());
            }
            let name = path.strip_prefix(folder).expect("it is in there");
            found.push(name.to_owned());
        }
    }
    found
}

/// The folders of a trial.
///
/// ```text
/// in/     what the commands read: Smolfiles, keys, bundles
/// out/    what they write
/// cache/ run/ config/ tmp/
/// ```
pub struct Scene {
    folder: PathBuf,
    programs: PathBuf,
    inputs: PathBuf,
    _folder: Option<TempDir>,
}

impl Scene {
    fn of(folder: PathBuf, fixture: &Fixture) -> Self {
        let made = &fixture.folder;
        Self {
            folder,
            programs: made.join("programs"),
            inputs: made.join("in"),
            _folder: None,
        }
    }

    /// Makes the folders as they are before an operation.
    pub fn set_up(&self) {
        for name in ["in", "out", "cache", "run", "config", "tmp"] {
            let _ = fs::remove_dir_all(self.path(name));
            let mut builder = DirBuilder::new();
            let made = builder.mode(0o700).create(self.path(name));
            made.expect("the folder is our own");
        }
        copy(&self.inputs, &self.path("in"));
    }

    /// Has the cache hold what the machine `image` downloads.
    pub fn download(&self) {
        let mut builder = DirBuilder::new();
        let made = builder.mode(0o700).create(self.path("cache/downloads"));
        made.expect("the folder is our own");
        let name = format!("cache/downloads/{}.file", sha256(DOWNLOADED));
        fs::write(self.path(&name), DOWNLOADED).expect("the folder is our own");
    }

    /// Returns a path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command in this scene; arguments that begin with `in/` or `out/` are paths.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join(program));
        self.prepare(&mut command, arguments);
        command
    }

    /// The same, run by another program.
    pub fn command_under(&self, by: &[&str], program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(by[0]);
        command.args(&by[1..]).arg(self.programs.join(program));
        self.prepare(&mut command, arguments);
        command
    }

    fn prepare(&self, command: &mut Command, arguments: &[&str]) {
        for argument in arguments {
            match argument.starts_with("in/") || argument.starts_with("out/") {
                true => command.arg(self.path(argument)),
                false => command.arg(argument),
            };
        }
        for (name, folder) in [("CACHE", "cache"), ("RUNTIME", "run"), ("CONFIG", "config")] {
            command.env(format!("SMOL_{name}_DIR"), self.path(folder));
        }
        command
            .current_dir(&self.folder)
            .env("TMPDIR", self.path("tmp"))
            .env("NO_COLOR", "1")
            .env("SMOL_PROGRESS", "plain")
            .env("SMOL_ACCEL", "kvm")
            .env_remove("SMOL_SANDBOX");
    }

    /// Returns the processes that run in this scene.
    pub fn processes(&self) -> Vec<u32> {
        let wanted = format!("SMOL_CACHE_DIR={}", self.path("cache").display());
        let entries = fs::read_dir("/proc").expect("there is /proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let mut variables = environment.split(|byte| *byte == 0);
            let is_ours = variables.any(|variable| variable == wanted.as_bytes());
            // In the middle of exec(2) a process has its program already, and no environment yet; in that of
            // exit(2) none any more.
            smol_testing::runs(*pid) && (is_ours || environment.is_empty() && runs_a_program(*pid))
        })
        .collect()
    }

    /// Runs a program, and waits for all of its processes. Those that hang are killed.
    pub fn run(&self, command: &mut Command) -> Outcome {
        let running = Running::start(command);
        let begin = Instant::now();
        while !self.processes_of(running.pid()).is_empty() {
            if begin.elapsed() > HANGS {
                println!("\n{command:?} hangs");
                self.processes().into_iter().for_each(kill);
            }
            thread::sleep(Duration::from_millis(5));
        }
        running.finish(LIMIT)
    }

    /// The processes of this scene, and this one if it runs.
    fn processes_of(&self, pid: u32) -> Vec<u32> {
        match smol_testing::runs(pid) {
            true => vec![pid],
            false => self.processes(),
        }
    }

    /// Waits until no process of this scene runs: a machine in the background ends by itself.
    ///
    /// # Panics
    /// If one does not end.
    pub fn await_ends(&self) {
        let what = format!("the end of the processes {:?}", self.processes());
        eventually(&what, LIMIT / 10, || {
            self.processes().is_empty().then_some(())
        });
    }

    /// Returns what programs have left outside of `out`, but for the images, the layers and the downloads in
    /// the cache.
    ///
    /// # Errors
    /// Images in the cache are not those of the bundle `signed`; layers or downloads are not what their
    /// names say.
    pub fn left(&self) -> Result<Vec<PathBuf>, String> {
        let mut left = Vec::new();
        for (name, kept) in [
            // Folders that builds share, empty.
            (
                "cache",
                &[
                    "work",
                    "bundles",
                    "downloads",
                    "kernels",
                    "debian",
                    "layers",
                    "steps",
                ][..],
            ),
            ("run", &["instances"]),
            ("config", &[]),
            ("tmp", &[]),
        ] {
            for path in names(&self.path(name)) {
                let first = path.iter().next().expect("a path has a name");
                let is_kept = path.as_path() == first && kept.iter().any(|kept| first == *kept);
                let is_whole = || -> Result<bool, String> {
                    Ok(name == "cache" && (self.is_image(&path)? || self.is_blob(&path)?))
                };
                if !(is_kept || is_whole()?) {
                    left.push(Path::new(name).join(path));
                }
            }
        }
        Ok(left)
    }

    /// Whether this path in the cache is a layer of an image or a download, which are named after their
    /// digests.
    fn is_blob(&self, path: &Path) -> Result<bool, String> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let digest = match path.parent().and_then(Path::to_str) {
            Some("layers") => name.strip_suffix(".tar"),
            Some("downloads") => name.strip_suffix(".file"),
            _ => None,
        };
        let Some(digest) = digest.filter(|digest| digest.len() == 64) else {
            return Ok(false);
        };
        let content = fs::read(self.path("cache").join(path)).map_err(|e| e.to_string())?;
        match sha256(&content) == digest {
            true => Ok(true),
            false => Err(format!("{} is not what its name says", path.display())),
        }
    }

    /// Whether this path in the cache is one of the images of the bundle `signed`, or their folder.
    fn is_image(&self, path: &Path) -> Result<bool, String> {
        let Ok(inside) = path.strip_prefix("bundles") else {
            return Ok(false);
        };
        let mut parts = inside.iter();
        let folder = parts.next().unwrap_or_default();
        if folder.to_string_lossy().ends_with(".tmp") {
            return Ok(false);
        }
        let unpacked = self.path("cache/bundles").join(folder);
        match listing(&unpacked) == *crate::FIXTURE.unpacked() {
            true => Ok(true),
            false => Err(format!(
                "{} is not what the bundle holds",
                unpacked.display()
            )),
        }
    }
}

/// Copies what is in a folder.
pub fn copy(from: &Path, to: &Path) {
    for (name, content) in listing(from) {
        let to = to.join(name);
        match content {
            None => fs::create_dir_all(to).expect("the folder is our own"),
            Some(content) => {
                let _ = fs::create_dir_all(to.parent().expect("it is in a folder"));
                fs::write(to, content).expect("the folder is our own");
            }
        }
    }
}

/// Whether a bundle is whole, verified to its last byte, and signed if it is to be.
pub fn is_bundle(path: &Path, signed: bool) -> Result<(), String> {
    let verify = || -> smol_bundle::Result<usize> {
        let bundle = Bundle::open(path)?;
        bundle.verify_all(&mut |_, _| {})?;
        Ok(bundle.signatures().len())
    };
    match verify() {
        Ok(signatures) if signatures == usize::from(signed) => Ok(()),
        Ok(signatures) => Err(format!("{} has {signatures} signatures", path.display())),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Whether this is a pair of keys.
pub fn are_keys(private: &Path, public: &Path) -> Result<(), String> {
    let private = PrivateKey::load(private).map_err(|e| e.to_string())?;
    let public = PublicKey::load(public).map_err(|e| e.to_string())?;
    match private.public() == public {
        true => Ok(()),
        false => Err("the keys are not a pair".into()),
    }
}

/// Whether the process runs one of our programs, or has run it: one that is ending has no memory any more,
/// and so no program, but its locks for a while.
fn runs_a_program(pid: u32) -> bool {
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let names = [
        program.file_name().unwrap_or_default(),
        OsStr::new(name.trim()),
    ];
    names
        .iter()
        .any(|name| *name == "smolrun" || *name == "smolbuild")
}
