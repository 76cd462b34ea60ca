//! A release includes its kernel: whoever uses it compiles none. The kernel of these tests is a text,
//! so nothing here boots it, and nothing is compiled: there is no compiler in PATH, or the source is
//! out of reach.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use smolbuild::kernel::{self, ReadyKernels};
use smolbuild::lock::Kernel;

const KERNEL: &[u8] = b"\x7fELF, a kernel for tests";
const RECIPE: &str = "smol-6.1";
const SMOLFILE: &str = r#"name = "app"
[rootfs]
dir = "root"
[service]
cmd = ["app"]
[ready]
tcp = 80
"#;

/// A release, unpacked on a machine without a compiler and with an empty cache.
struct Release(tempfile::TempDir);

impl Release {
    /// One whose kernel was built by this compiler.
    fn by(gcc: &str) -> Release {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["bin", "share/smol/kernels", "tools", "work/root"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        // No copy: a file that was open for writing when another test forked could not be run.
        let program = assert_cmd::cargo::cargo_bin!("smolbuild");
        fs::hard_link(program, at("bin/smolbuild")).unwrap();
        fs::write(at("work/Smolfile"), SMOLFILE).unwrap();
        let release = Release(folder);
        release.add(&pins(gcc, None));
        release
    }

    /// Gives it the kernel that is made of what `pins` says.
    fn add(&self, pins: &Kernel) {
        let vmlinux = self.path("vmlinux");
        fs::write(&vmlinux, KERNEL).unwrap();
        kernel::release(pins, &vmlinux, &self.path("share/smol/kernels")).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn kernel_file(&self, name: &str) -> PathBuf {
        self.path("share/smol/kernels").join(RECIPE).join(name)
    }

    fn smolbuild(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/smolbuild"));
        command
            .args(arguments)
            .current_dir(self.path("work"))
            .env_clear()
            .env("PATH", self.path("tools"))
            .env("SMOL_OFFLINE", "1")
            .env("SMOL_CACHE_DIR", self.path("cache"));
        command
    }

    /// Stdout and stderr of a command that ends with this exit code.
    fn said(&self, arguments: &[&str], code: i32) -> (String, String) {
        said(&mut self.smolbuild(arguments), code)
    }

    fn lock(&self) -> String {
        fs::read_to_string(self.path("work/Smolfile.lock")).unwrap()
    }
}

fn pins(gcc: &str, source: Option<&Path>) -> Kernel {
    Kernel {
        gcc: gcc.to_owned(),
        ld: "ld of the release".to_owned(),
        ..kernel::pins(RECIPE, source, None, &ReadyKernels::default()).unwrap()
    }
}

fn said(command: &mut Command, code: i32) -> (String, String) {
    let output = command.assert().code(code).get_output().clone();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

fn doctor(release: &Release) -> serde_json::Value {
    let output = release.smolbuild(&["doctor", "--json"]).output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = told["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "kernel-tools");
    check.unwrap().clone()
}

/// The names in a folder of the cache's, without the lock.
fn cached(cache: &Path) -> Vec<String> {
    let entries = fs::read_dir(cache.join("kernels")).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "lock")
        .collect()
}

#[test]
fn the_kernel_of_the_release_is_used_once_and_in_the_cache_afterwards() {
    let release = Release::by("gcc of the release");
    let (_, told) = release.said(&["kernel", "-o", "out"], 0);
    assert!(told.contains("using the kernel of the release"), "{told}");
    assert_eq!(fs::read(release.path("work/out")).unwrap(), KERNEL);
    let (_, told) = release.said(&["kernel", "-o", "again"], 0);
    assert!(told.contains("cached"), "{told}");
    assert!(!told.contains("of the release"), "{told}");
    assert_eq!(cached(&release.path("cache")).len(), 1);
    // The program alone still finds it there.
    fs::remove_dir_all(release.path("share")).unwrap();
    release.said(&["kernel", "-o", "alone"], 0);
}

#[test]
fn a_damaged_kernel_is_refused_and_the_cache_stays_empty() {
    let release = Release::by("gcc of the release");
    let file = release.kernel_file("vmlinux.zst");
    let packed = fs::read(&file).unwrap();
    fs::write(&file, &packed[..packed.len() - 1]).unwrap();
    let (_, told) = release.said(&["kernel"], 4);
    assert!(told.contains("the prebuilt kernel is damaged"), "{told}");
    assert!(
        told.contains("hint: or compile the kernel here: --no-prebuilt"),
        "{told}"
    );
    assert_eq!(cached(&release.path("cache")), [""; 0]);
    let check = doctor(&release);
    assert_eq!(check["status"], "missing", "{check}");
}

#[test]
fn a_kernel_with_another_key_is_not_used_and_a_note_says_so() {
    let release = Release::by("gcc of the release");
    let source = release.path("work/tar");
    fs::write(&source, "no source of Linux").unwrap();
    release.add(&pins("gcc of the release", Some(&source)));
    release.said(&["kernel", "--source", "tar"], 0);
    fs::remove_dir_all(release.path("cache")).unwrap();
    let file = release.kernel_file("kernel.json");
    let text = fs::read_to_string(&file).unwrap();
    let key = text.split("\"key\": \"").nth(1).unwrap()[..64].to_owned();
    fs::write(&file, text.replace(&key, &"0".repeat(64))).unwrap();
    // With this host's compiler, which gets nothing that it could compile.
    let mut command = release.smolbuild(&["kernel", "--source", "tar"]);
    command.env("PATH", std::env::var_os("PATH").unwrap());
    let (_, told) = said(&mut command, 1);
    assert!(told.contains("it is of another recipe or source"), "{told}");
    assert!(told.contains("cannot unpack"), "{told}");
    assert_eq!(doctor(&release)["status"], "missing");
}

#[test]
fn no_prebuilt_compiles_also_when_the_releases_kernel_is_in_the_cache() {
    let release = Release::by("gcc of the release");
    release.said(&["kernel"], 0);
    for arguments in [
        &["kernel", "--no-prebuilt"][..],
        &["lock", "--no-prebuilt"],
        &["--no-prebuilt"],
    ] {
        let (_, told) = release.said(arguments, 5);
        assert!(
            told.contains("a kernel cannot be built without gcc"),
            "{told}"
        );
    }
}

#[test]
fn doctor_asks_for_no_compiler_where_the_kernel_is_in_the_release_or_in_the_cache() {
    let release = Release::by("gcc of the release");
    let check = doctor(&release);
    assert_eq!(check["status"], "ok");
    assert!(check["detail"].as_str().unwrap().contains("this release"));
    release.said(&["kernel"], 0);
    fs::remove_dir_all(release.path("share")).unwrap();
    let check = doctor(&release);
    assert_eq!(check["status"], "ok");
    assert!(check["detail"].as_str().unwrap().contains("in the cache"));
    fs::remove_dir_all(release.path("cache")).unwrap();
    let check = doctor(&release);
    assert_eq!(check["status"], "missing");
    assert!(check["detail"].as_str().unwrap().contains("gcc"), "{check}");
}

#[test]
fn a_lock_pins_the_compiler_of_the_releases_kernel_and_fits_on_every_host_with_that_release() {
    let release = Release::by("gcc of the release");
    release.said(&["lock"], 0);
    assert!(
        release.lock().contains("gcc = \"gcc of the release\""),
        "{}",
        release.lock()
    );
    // Another release, by another compiler: its kernel is another one.
    let other = Release::by("gcc 99");
    fs::copy(
        release.path("work/Smolfile.lock"),
        other.path("work/Smolfile.lock"),
    )
    .unwrap();
    let (_, told) = other.said(&["--locked"], 3);
    assert!(told.contains("gcc: gcc of the release -> gcc 99"), "{told}");
    // The same release on a host with a compiler.
    let mut command = release.smolbuild(&["lock"]);
    command.env("PATH", std::env::var_os("PATH").unwrap());
    let (told, _) = said(&mut command, 0);
    assert!(told.contains("is up to date"), "{told}");
}
