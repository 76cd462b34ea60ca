//! This host: programs, guests, keys and Smolfiles, before the first test or measurement.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use smol_host::emulated;

use crate::support::{names, run};
use crate::tools::Tools;

/// This host as the tests see it.
pub struct Host {
    /// The programs.
    pub tools: Tools,
    /// The checkout.
    pub workspace: PathBuf,
    /// Bundles, and the keys beside them.
    pub bundles: PathBuf,
    /// Smolfiles of our own machines, with what they name.
    pub machines: PathBuf,
    /// The native guest's folder.
    pub native: PathBuf,
    /// For each test's own files.
    pub scratch: PathBuf,
    /// Reports of emulated hosts that died or hung by themselves.
    faults: PathBuf,
    root: PathBuf,
}

impl Host {
    /// Creates a new empty folder for a test's own files.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.scratch.join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("the build folder can be written");
        folder
    }

    /// Returns the path of a bundle that an earlier test has built.
    #[track_caller]
    pub fn bundle(&self, name: &str) -> PathBuf {
        let path = self.bundles.join(name).with_extension("smolmachine");
        assert!(path.exists(), "the bundle {name} was not built");
        path
    }

    /// `smolbuild SMOLFILE`, signed, with its facts beside the bundle as .json.
    pub fn build(&self, smolfile: &Path, bundle: &Path) -> Command {
        let mut command = self.tools.smolbuild();
        command.arg(smolfile).arg("-o").arg(bundle);
        command.arg("--sign").arg(self.bundles.join("key.key"));
        command
            .arg("--metadata-file")
            .arg(bundle.with_extension("json"));
        command
    }

    /// Returns what `smolbuild inspect --json` prints.
    #[track_caller]
    pub fn inspect(&self, bundle: &Path) -> Value {
        let said = run(self
            .tools
            .smolbuild()
            .args(["inspect", "--json"])
            .arg(bundle))
        .succeed();
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"))
    }

    /// Returns the cache that the programs use.
    pub fn cache(&self) -> PathBuf {
        self.tools.home.join("cache")
    }

    /// Paths below `root`; [`Host::prepare`] fills them.
    pub fn new(root: &Path) -> Self {
        Self {
            tools: Tools {
                programs: root.join("programs"),
                home: root.join("home"),
                key: root.join("bundles/key.pub"),
                accel: "auto",
            },
            bundles: root.join("bundles"),
            machines: root.join("machines"),
            native: root.join("guests/native"),
            scratch: root.join("scratch"),
            faults: root.join("faults"),
            workspace: workspace(),
            root: root.to_owned(),
        }
    }

    /// Prepares everything that the tests need. What the last run has left is removed if it is to be
    /// `fresh`, else used again.
    pub fn prepare(&self, fresh: bool) {
        if fresh {
            let _ = fs::remove_dir_all(&self.root);
        }
        for folder in [
            &self.tools.programs,
            &self.bundles,
            &self.machines,
            &self.scratch,
            &self.faults,
            &self.cache().join(emulated::FAULTS),
        ] {
            fs::create_dir_all(folder).expect("the build folder can be written");
        }
        programs(&self.workspace, &self.tools.programs);
        caches(self);
        guests(self, &self.root.join("guests"));
        keys(self);
        machines(self, &self.root.join("guests/service"));
        kernel(self);
        self.faults();
    }

    /// Returns the faults of emulated hosts since the last call. The reports are kept.
    pub fn faults(&self) -> Vec<String> {
        let reports = self.cache().join(emulated::FAULTS);
        let mut told = Vec::new();
        for name in names(&reports) {
            let (from, to) = (reports.join(&name), self.faults.join(&name));
            told.extend(fs::read_to_string(&from));
            fs::rename(from, to).expect("both are in the build folder");
        }
        told
    }
}

/// Returns the checkout that this program was built from.
pub fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("a member of the workspace").to_owned()
}

/// The programs under test, each in a package of its name.
const PROGRAMS: [&str; 2] = ["smolbuild", "smolrun"];

/// Builds the programs, in the profile that this program was built in, and copies them into the folder
/// `to`, so that no later build replaces them while they run.
///
/// # Panics
/// If they cannot be built or copied.
pub fn programs(workspace: &Path, to: &Path) {
    let folder = profile_folder();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace).args(["build", "--quiet"]);
    for name in PROGRAMS {
        cargo.args(["--package", name, "--bin", name]);
    }
    match folder.ends_with("release") {
        true => cargo.arg("--release"),
        // One of their tests with them: so cargo chooses the features of dependencies that it has chosen
        // for `cargo test`, which has built them already.
        false => cargo.args(["--test", "messages"]),
    };
    run(&mut cargo).succeed();
    for name in PROGRAMS {
        let to = to.join(name);
        let _ = fs::remove_file(&to);
        fs::copy(folder.join(name), to)
            .unwrap_or_else(|e| panic!("{name} in {}: {e}", folder.display()));
    }
}

/// Returns the place where cargo puts a program, in the profile that this program was built in.
pub fn built_program(name: &str) -> PathBuf {
    profile_folder().join(name)
}

fn profile_folder() -> PathBuf {
    // <target>/<triple>/<profile>/deps/<this program>
    let own = std::env::current_exe().expect("it was started from a file");
    let folder = own.ancestors().nth(2).expect("cargo has built it");
    folder.to_owned()
}

/// Links kernels and packages from the user's own cache: they are large, and keyed by what decides
/// their bytes. All else of the cache is the tests' own.
fn caches(host: &Host) {
    let users = smol_cli::paths::cache_dir().expect("there is a cache folder");
    for name in ["kernels", "downloads", "debian", "emulated-host"] {
        let (from, to) = (users.join(name), host.cache().join(name));
        fs::create_dir_all(&from).expect("the cache can be written");
        if !to.exists() {
            symlink(&from, &to).expect("the build folder can be written");
        }
    }
}

/// Puts the kernel in its place that our own Smolfiles name by path. The first time, it is compiled.
fn kernel(host: &Host) {
    let vmlinux = host.machines.join("vmlinux");
    let mut smolbuild = host.tools.smolbuild();
    smolbuild.args(["kernel", "smol-6.1", "-o", text(&vmlinux)]);
    run(&mut smolbuild).succeed();
}

fn guests(host: &Host, out: &Path) {
    let mut make = Command::new("make");
    make.args(["--silent", "-C", text(&host.workspace.join("tests/guests"))]);
    run(make.arg(format!("OUT={}", out.display()))).succeed();
}

fn keys(host: &Host) {
    for name in ["key", "other"] {
        let key = host.bundles.join(name).with_extension("key");
        if !key.exists() {
            run(host.tools.smolbuild().args(["keygen", "-o"]).arg(key)).succeed();
        }
    }
}

/// A machine of our own, whose service listens on port 7777.
struct TestMachine {
    name: &'static str,
    /// Keys of the whole machine.
    head: &'static str,
    /// The service's command line.
    cmd: &'static [&'static str],
    /// What follows the port in the table `[ready]`.
    rest: &'static str,
}

const fn machine(
    name: &'static str,
    head: &'static str,
    cmd: &'static [&'static str],
    rest: &'static str,
) -> TestMachine {
    TestMachine {
        name,
        head,
        cmd,
        rest,
    }
}

const MACHINES: &[TestMachine] = &[
    machine(
        "service",
        "cpus = 2\nports = [7777]\n",
        &["/service"],
        r#"
[[warm]]
cmd = ["/service", "ask", "remember the past"]
[[restore]]
cmd = ["/service", "--draw", "/run/own"]
"#,
    ),
    machine("never", "", &["/service", "--never"], "timeout = \"3s\"\n"),
    machine(
        "elsewhere",
        "",
        &["/service", "--port", "8080"],
        "timeout = \"3s\"\n",
    ),
    machine("crash", "", &["/service", "--exit", "3"], ""),
    machine("daemon", "", &["/service", "--daemon"], ""),
    machine(
        "warm",
        "",
        &["/service"],
        "[[warm]]\ncmd = [\"/service\", \"--exit\", \"9\"]\n",
    ),
    machine(
        "asked",
        "",
        &["/service"],
        "[[warm_restore]]\nexec = [\"/service\", \"ask\", \"touch 16\"]\n",
    ),
    machine(
        "unanswered",
        "",
        &["/service"],
        r#"
[[warm_restore]]
exec = ["/service", "ask", "ping"]
[[warm_restore]]
exec = ["/service", "--exit", "9"]
"#,
    ),
    machine(
        "asks-frozen",
        "",
        &["/service"],
        "[[restore]]\ncmd = [\"/service\", \"ask\", \"ping\"]\ntimeout = \"1h\"\n",
    ),
    machine(
        "late",
        "",
        &["/service", "--late", "3000"],
        "timeout = \"1h\"\ninterval = \"1min\"\n",
    ),
    machine("avx", "", &["/service", "--avx"], AVX_KEPT),
    machine(
        "old-cpu",
        "cpu = \"x86-64-v2\"\n",
        &["/service", "--avx"],
        "",
    ),
    machine("spin", "", &["/service", "--spin"], ""),
    machine("absent", "", &["/run/no/such/program"], ""),
    machine(
        "step",
        "",
        &["/service"],
        "[[run]]\ncmd = [\"/service\", \"--exit\", \"9\"]\n",
    ),
];

/// A thread holds something in the YMM registers while the machine is frozen.
const AVX_KEPT: &str = "[[warm]]\ncmd = [\"/service\", \"ask\", \"keep\"]\n";

impl TestMachine {
    /// Returns the Smolfile. The kernel and the root file system next to it are shared by all.
    fn smolfile(&self) -> String {
        let Self {
            name,
            head,
            cmd,
            rest,
        } = self;
        format!(
            r#"name = "{name}"
memory = "128MiB"
{head}
[kernel]
path = "vmlinux"
[rootfs]
dir = "root"
[service]
cmd = {cmd:?}
[ready]
tcp = 7777
{rest}"#
        )
    }
}

/// Smolfiles side by side in one folder, with the root file system that they share: one program. The folder
/// `shell` is another one: busybox.
fn machines(host: &Host, service: &Path) {
    let root = host.machines.join("root");
    fs::create_dir_all(&root).expect("the build folder can be written");
    fs::copy(service, root.join("service")).expect("make has built it");
    let shell = host.machines.join("shell/bin");
    fs::create_dir_all(&shell).expect("the build folder can be written");
    fs::copy("/bin/busybox", shell.join("busybox")).expect("busybox-static is installed");
    for machine in MACHINES {
        fs::write(smolfile(host, machine.name), machine.smolfile())
            .expect("the build folder can be written");
    }
}

/// Returns the path of one of our own Smolfiles.
pub fn smolfile(host: &Host, name: &str) -> PathBuf {
    host.machines.join(name).with_extension("toml")
}

/// Returns the path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("the tests' own paths are UTF-8")
}
