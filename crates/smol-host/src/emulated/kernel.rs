//! The kernel of the emulated host: Debian's stock one, because it is a complete KVM host with 9p.
//!
//! Taken from its package without installing it (`apt-get download`, `dpkg-deb -x`) and kept under
//! `<cache>/emulated-host/<package version>-r<REVISION>/` as `vmlinux` (already uncompressed: the
//! emulated CPU would need more than a second for it), the modules we need, and `index.json`.
//! The folder appears by one rename, under a lock, so that it is complete or absent.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use smol_cli::paths;

use super::modules;
use crate::apt::{self, DownloadDir};
use crate::cache::InUse;
use crate::child;
use crate::error::{HostError, Result};
use crate::lock_dir::ScratchDir;

/// Part of the cache folder's name; raised when what we keep in it changes.
const REVISION: u32 = 2;

/// The package that depends on the current kernel's package.
const META_PACKAGE: &str = "linux-image-amd64";

/// Names a folder with `boot/vmlinuz*` and `lib/modules/`, to be used instead of Debian's package.
pub const KERNEL_ROOT_VARIABLE: &str = "SMOL_EMULATED_KERNEL_ROOT";

/// A kernel that is ready to be booted.
#[derive(Debug)]
pub struct HostKernel {
    dir: PathBuf,
    index: KernelIndex,
    /// Until QEMU has read it.
    _in_use: InUse,
}

/// `index.json` of a cached kernel.
#[derive(Debug, Serialize, Deserialize)]
struct KernelIndex {
    /// What the kernel is: package and version.
    origin: String,
    /// Every kept module with what it depends on, dependencies first.
    modules: Vec<(String, Vec<String>)>,
}

impl HostKernel {
    /// Returns the newest cached kernel, without asking the network or apt.
    pub fn cached(cache: &Path) -> Option<HostKernel> {
        let suffix = format!("-r{REVISION}");
        let mut dirs: Vec<PathBuf> = fs::read_dir(kernels(cache))
            .ok()?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().ends_with(&suffix))
            })
            .collect();
        dirs.sort_by_key(|dir| fs::metadata(dir).and_then(|meta| meta.modified()).ok());
        dirs.into_iter()
            .rev()
            .find_map(|dir| HostKernel::open(&dir).ok())
    }

    /// Returns the cached kernel, or downloads one.
    ///
    /// # Errors
    /// apt is absent, does not know or cannot download the package; a tool is missing; the disk is full.
    pub fn obtain(cache: &Path) -> Result<HostKernel> {
        if let Some(root) = std::env::var_os(KERNEL_ROOT_VARIABLE) {
            return HostKernel::from_folder(cache, Path::new(&root));
        }
        if let Some(kernel) = HostKernel::cached(cache) {
            return Ok(kernel);
        }
        let scratch = KernelScratch::new(cache)?;
        // Another process may have fetched it while we waited for the lock.
        if let Some(kernel) = HostKernel::cached(cache) {
            return Ok(kernel);
        }
        let (root, version) = download(scratch.path())?;
        install(
            &root,
            &scratch,
            &format!("{META_PACKAGE} {version}"),
            &format!("{version}-r{REVISION}"),
        )
    }

    /// Returns what [`HostKernel::obtain`] would download, without downloading it; an error, if it could not.
    pub(crate) fn obtainable() -> Result<String> {
        if let Some(root) = std::env::var_os(KERNEL_ROOT_VARIABLE) {
            return find_image(Path::new(&root)).map(|image| image.display().to_string());
        }
        require_tools()?;
        Ok(format!("{META_PACKAGE} {}", resolve()?[0].version))
    }

    /// Returns the kernel in a folder of the user's, cached by the name of its image.
    fn from_folder(cache: &Path, root: &Path) -> Result<HostKernel> {
        let scratch = KernelScratch::new(cache)?;
        let image = find_image(root)?;
        let name = format!(
            "own-{}",
            image.file_name().unwrap_or_default().to_string_lossy()
        );
        HostKernel::open(&scratch.kernels.join(&name))
            .or_else(|_| install(root, &scratch, &root.display().to_string(), &name))
    }

    fn open(dir: &Path) -> Result<HostKernel> {
        let path = dir.join("index.json");
        let in_use =
            InUse::of(dir).map_err(HostError::io(format!("cannot use {}", dir.display())))?;
        let in_use =
            in_use.ok_or_else(|| HostError::new(format!("there is no {}", dir.display())))?;
        let text =
            fs::read(&path).map_err(HostError::io(format!("cannot read {}", path.display())))?;
        let index = serde_json::from_slice(&text).map_err(|e| {
            HostError::new(format!("{} is damaged: {e}", path.display())).fix(remove_command(dir))
        })?;
        Ok(HostKernel {
            dir: dir.to_owned(),
            index,
            _in_use: in_use,
        })
    }

    /// Returns what it is, for people: package and version.
    pub fn origin(&self) -> &str {
        &self.index.origin
    }

    /// Returns the path of the ELF kernel, for `-kernel` (it has a PVH entry).
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// Returns the bytes of the modules that loading `wanted` needs, dependencies first.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        modules::subset(&self.index.modules, wanted)
            .into_iter()
            .map(|name| {
                let path = self.dir.join("modules").join(format!("{name}.ko"));
                let bytes = fs::read(&path).map_err(|e| {
                    HostError::new(format!("cannot read {}: {e}", path.display()))
                        .fix(remove_command(&self.dir))
                })?;
                Ok((name, bytes))
            })
            .collect()
    }
}

pub(super) fn kernels(cache: &Path) -> PathBuf {
    cache.join(super::FOLDER)
}

fn remove_command(dir: &Path) -> String {
    format!("rm -r {}", dir.display())
}

/// A scratch folder beside the cached kernels, with the lock of their folder.
struct KernelScratch {
    dir: ScratchDir,
    kernels: PathBuf,
    _lock: File,
}

impl KernelScratch {
    fn new(cache: &Path) -> Result<KernelScratch> {
        let kernels = kernels(cache);
        paths::create_in_cache(&kernels).map_err(HostError::io(format!(
            "cannot create {}",
            kernels.display()
        )))?;
        let path = kernels.join("lock");
        let lock = File::create(&path)
            .map_err(HostError::io(format!("cannot create {}", path.display())))?;
        lock.lock()
            .map_err(HostError::io(format!("cannot lock {}", path.display())))?;
        let dir = ScratchDir::create(&kernels, "new-").map_err(HostError::io(format!(
            "cannot create a folder in {}",
            kernels.display()
        )))?;
        Ok(KernelScratch {
            dir,
            kernels,
            _lock: lock,
        })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Downloads the kernel's packages and unpacks them; returns the root folder and the version.
fn download(scratch: &Path) -> Result<(PathBuf, String)> {
    require_tools()?;
    let packages = resolve()?;
    let debs = scratch.join("debs");
    let root = scratch.join("root");
    for dir in [&debs, &root] {
        fs::create_dir(dir).map_err(HostError::io(format!("cannot create {}", dir.display())))?;
    }
    let folder = DownloadDir::new(scratch);
    let folder = folder.map_err(HostError::io("cannot make a folder for downloads"))?;
    let mut apt_get = Command::new("apt-get");
    folder.configure(&mut apt_get);
    run(apt_get.args(packages.iter().map(Package::pin))).map_err(|e| e.fix(apt_update()))?;
    let taken = folder.take(&debs);
    for deb in taken.map_err(HostError::io("cannot take the downloaded packages"))? {
        run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&root))?;
    }
    let version = packages
        .first()
        .map(|package| package.version.clone())
        .unwrap_or_default();
    Ok((root, version))
}

fn require_tools() -> Result<()> {
    for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
        if apt::find_program(tool).is_none() {
            let message = format!(
                "the emulated host's kernel comes from Debian's package {META_PACKAGE}, and {tool} is not installed"
            );
            return Err(HostError::new(message).fix(format!(
                "unpack a kernel package with KVM, 9p and virtio modules into a folder and set {KERNEL_ROOT_VARIABLE}=<folder>"
            )));
        }
    }
    Ok(())
}

fn apt_update() -> String {
    let sudo = if rustix::process::geteuid().is_root() {
        ""
    } else {
        "sudo "
    };
    format!("{sudo}apt-get update")
}

#[derive(Debug, PartialEq)]
struct Package {
    name: String,
    version: String,
}

impl Package {
    fn pin(&self) -> String {
        format!("{}={}", self.name, self.version)
    }
}

/// Follows the meta package to the packages that hold the kernel and its modules.
fn resolve() -> Result<Vec<Package>> {
    let mut found: Vec<Package> = Vec::new();
    let mut todo = vec![META_PACKAGE.to_owned()];
    while let Some(name) = todo.pop() {
        let record = run(Command::new("apt-cache").args(["show", "--no-all-versions", &name]))
            .map_err(|e| {
                HostError::new(format!(
                    "apt does not know the package {name}: {}",
                    e.message
                ))
                .fix(apt_update())
            })?;
        for package in kernel_dependencies(&record) {
            if !found.iter().any(|known| known.name == package.name) {
                todo.push(package.name.clone());
                found.push(package);
            }
        }
    }
    if found.is_empty() {
        return Err(HostError::new(format!(
            "the package {META_PACKAGE} depends on no kernel package"
        ))
        .fix(apt_update()));
    }
    Ok(found)
}

/// Returns the versioned kernel packages in a package record's `Depends:` field.
fn kernel_dependencies(record: &str) -> Vec<Package> {
    let depends = record
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))
        .unwrap_or("");
    depends
        .split(',')
        .filter_map(|item| {
            let (name, version) = item.trim().split_once(" (= ")?;
            let kernel = ["linux-image-", "linux-modules-", "linux-binary-"]
                .iter()
                .any(|prefix| name.starts_with(prefix));
            kernel.then(|| Package {
                name: name.to_owned(),
                version: version.trim_end_matches(')').to_owned(),
            })
        })
        .collect()
}

/// Takes the kernel and the modules out of an unpacked `root` into the cache, as `name`.
fn install(root: &Path, scratch: &KernelScratch, origin: &str, name: &str) -> Result<HostKernel> {
    let new = scratch.path().join("kernel");
    let modules_dir = new.join("modules");
    fs::create_dir_all(&modules_dir).map_err(HostError::io(format!(
        "cannot create {}",
        modules_dir.display()
    )))?;

    let image = find_image(root)?;
    let bytes =
        fs::read(&image).map_err(HostError::io(format!("cannot read {}", image.display())))?;
    let vmlinux = uncompress_kernel(&bytes, scratch.path()).map_err(|e| HostError {
        message: format!("{}: {}", image.display(), e.message),
        ..e
    })?;
    write(&new.join("vmlinux"), &vmlinux)?;

    let files = find_modules(root);
    let mut contents = BTreeMap::new();
    let mut failure = None;
    let order = modules::load_order(modules::WANTED, |module| {
        let path = files.get(module)?;
        match read_module(path) {
            Ok(mut bytes) => {
                modules::strip_signature(&mut bytes);
                let depends = modules::dependencies(&bytes);
                contents.insert(module.to_owned(), (bytes, depends.clone()));
                Some(depends)
            }
            Err(e) => {
                failure.get_or_insert(e);
                None
            }
        }
    });
    if let Some(e) = failure {
        return Err(e);
    }
    let mut index = KernelIndex {
        origin: origin.to_owned(),
        modules: Vec::new(),
    };
    for module in order {
        if let Some((bytes, depends)) = contents.remove(&module) {
            write(&modules_dir.join(format!("{module}.ko")), &bytes)?;
            index.modules.push((module, depends));
        }
    }
    let json = serde_json::to_vec_pretty(&index)
        .map_err(|e| HostError::new(format!("cannot write index.json: {e}")))?;
    write(&new.join("index.json"), &json)?;

    let place = scratch.kernels.join(name);
    let _ = fs::remove_dir_all(&place); // a damaged one
    fs::rename(&new, &place)
        .map_err(HostError::io(format!("cannot create {}", place.display())))?;
    HostKernel::open(&place)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let done = File::create(path).and_then(|mut file| {
        std::io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    });
    done.map_err(HostError::io(format!("cannot write {}", path.display())))
}

fn find_image(root: &Path) -> Result<PathBuf> {
    let boot = root.join("boot");
    let mut images: Vec<PathBuf> = fs::read_dir(&boot)
        .map_err(HostError::io(format!("cannot list {}", boot.display())))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
        })
        .collect();
    images.sort();
    images
        .pop()
        .ok_or_else(|| HostError::new(format!("no vmlinuz in {}", boot.display())))
}

/// Returns every module file under `root`, by module name.
fn find_modules(root: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.join("lib/modules"), root.join("usr/lib/modules")];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(path);
            } else if let Some(name) = modules::module_name(&entry.file_name().to_string_lossy()) {
                found.insert(name, path);
            }
        }
    }
    found
}

/// Returns a module's bytes, uncompressed (newer kernel packages hold .ko.xz).
fn read_module(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => {
            return fs::read(path)
                .map_err(HostError::io(format!("cannot read {}", path.display())));
        }
    };
    capture(Command::new(tool).arg("-dc").arg(path))
}

/// Returns the ELF kernel inside a bzImage (boot protocol 2.08 or later: payload_offset, payload_length;
/// Documentation/arch/x86/boot.rst). An ELF file is returned as it is.
fn uncompress_kernel(image: &[u8], scratch: &Path) -> Result<Vec<u8>> {
    if image.starts_with(b"\x7fELF") {
        return Ok(image.to_vec());
    }
    let word = |at: usize| {
        image
            .get(at..at + 4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)
    };
    let payload = (|| {
        (image.get(0x202..0x206)? == b"HdrS").then_some(())?;
        let protected_mode = (usize::from(*image.get(0x1f1)?) + 1) * 512;
        let start = protected_mode.checked_add(word(0x248)?)?;
        image.get(start..start.checked_add(word(0x24c)?)?)
    })();
    let payload = payload.ok_or_else(|| HostError::new("this is not a bzImage"))?;
    let (tool, flags): (&str, &[&str]) = match payload {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ("xz", &["-dc", "--single-stream"]),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", &["-dc"]),
        [0x1f, 0x8b, ..] => ("gzip", &["-dc"]),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", &["-dc"]),
        _ => {
            return Err(HostError::new(
                "the kernel in it is compressed in a way we do not know",
            ));
        }
    };
    let path = scratch.join("payload");
    write(&path, payload)?;
    let input =
        File::open(&path).map_err(HostError::io(format!("cannot read {}", path.display())))?;
    // The payload ends with the uncompressed size, which some tools warn of as trailing garbage:
    // what counts is whether an ELF file came out.
    let output = command_output(Command::new(tool).args(flags).stdin(input))?;
    if !output.stdout.starts_with(b"\x7fELF") {
        return Err(failed(tool, &output));
    }
    Ok(output.stdout)
}

/// Runs a command to its end and returns its stdout as text.
fn run(command: &mut Command) -> Result<String> {
    capture(command).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn capture(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command_output(command.stdin(Stdio::null()))?;
    if !output.status.success() {
        return Err(failed(&name, &output));
    }
    Ok(output.stdout)
}

fn command_output(command: &mut Command) -> Result<std::process::Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    child::kill_with_parent(command.env("LC_ALL", "C"))
        .output()
        .map_err(|e| {
            let error = HostError::new(format!("cannot run {name}: {e}"));
            let package = match name.as_str() {
                "xz" => "xz-utils",
                other => other,
            };
            error.fix(apt::install_command(&[package]))
        })
}

fn failed(name: &str, output: &std::process::Output) -> HostError {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last = stderr
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("it said nothing");
    HostError::new(format!("{name} failed ({}): {last}", output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versioned_kernel_package_is_found_in_the_record_of_the_meta_package() {
        let record = "Package: linux-image-amd64\nDepends: linux-image-6.1.0-56-amd64 (= 6.1.192-2)\nSection: kernel\n";
        assert_eq!(
            kernel_dependencies(record)[0].pin(),
            "linux-image-6.1.0-56-amd64=6.1.192-2"
        );
    }

    #[test]
    fn packages_that_are_not_kernels_or_have_no_version_are_not_followed() {
        let record = "Depends: kmod, linux-base (>= 4.3~), linux-modules-6.16 (= 6.16-1), initramfs-tools | linux-initramfs-tool\n";
        let found = kernel_dependencies(record);
        assert_eq!(
            found,
            [Package {
                name: "linux-modules-6.16".into(),
                version: "6.16-1".into()
            }]
        );
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        for bytes in [&b""[..], b"short", &[0; 4096]] {
            assert!(uncompress_kernel(bytes, scratch.path()).is_err());
        }
    }

    #[test]
    fn a_bzimage_whose_payload_lies_outside_the_file_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let mut image = vec![0; 4096];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&u32::MAX.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = uncompress_kernel(&image, scratch.path()).unwrap_err();
        assert!(error.message.contains("not a bzImage"), "{error}");
    }

    #[test]
    fn a_cache_without_a_complete_kernel_has_none() {
        let cache = tempfile::tempdir().unwrap();
        assert!(HostKernel::cached(cache.path()).is_none());
        fs::create_dir_all(kernels(cache.path()).join(format!("6.1-r{REVISION}"))).unwrap();
        assert!(HostKernel::cached(cache.path()).is_none());
    }
}
