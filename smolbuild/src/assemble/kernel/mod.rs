//! Kernels from recipes: source, patches and configuration in, a vmlinux out, the same bytes everywhere.
//!
//! The cache, under `<cache>/kernels/`, is keyed by all that decides the bytes ([`inputs_digest`]):
//! `<digest>/vmlinux` is a finished kernel, `<digest>.lock` keeps two builds of it apart,
//! `<digest>.log` is what the last build said, `<digest>.build/` is a build under way, or what a
//! killed one left, which the next removes.

mod make;
mod recipe;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt, Progress, human};

pub use recipe::KernelRecipe;

use self::make::Session;
use crate::fetch::{self, Source};

/// Version of what this file does to the inputs; part of their digest.
const METHOD: u32 = 1;

/// Arguments of make that decide bytes. `LOCALVERSION=` keeps a git work tree around the build
/// from adding a "+" to the version.
const MAKE_ARGS: &[&str] = &["ARCH=x86_64", "LOCALVERSION="];

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Name of an embedded recipe, or the path of a recipe's folder (with a slash in it).
    pub recipe: &'a str,
    /// A source tarball of this host instead of the locked package.
    pub source: Option<&'a Path>,
    /// Build even if the cache has the kernel.
    pub rebuild: bool,
}

/// What a build tells while it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelProgress<'a> {
    /// A step that takes a while, a wait, a warning.
    Note(&'a str),
    /// Objects are made.
    Compiled {
        /// So many.
        done: u64,
        /// Of about so many.
        total: u64,
    },
}

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub struct BuiltKernel {
    /// The stripped ELF.
    pub vmlinux: PathBuf,
    /// BLAKE3 of it, hex.
    pub digest: String,
    /// BLAKE3 of all that went into it, hex: its key in the cache.
    pub inputs_digest: String,
    /// Whether the cache had it.
    pub cached: bool,
}

/// The vmlinux of the embedded recipe `name`: from the cache, else built.
///
/// # Errors
/// See [`build`].
pub fn stage(name: &str, cache: &Path, progress: &Progress, interrupt: &Interrupt) -> Result<PathBuf> {
    obtain(&Request { recipe: name, source: None, rebuild: false }, cache, progress, interrupt)
}

/// The vmlinux that `request` asks for, made under a stage of `progress`.
///
/// # Errors
/// For a recipe that does not exist, and see [`build`].
pub fn obtain(request: &Request, cache: &Path, progress: &Progress, interrupt: &Interrupt) -> Result<PathBuf> {
    let recipe = match request.recipe.contains('/') {
        true => KernelRecipe::load(Path::new(request.recipe))?,
        false => KernelRecipe::embedded(request.recipe)?,
    };
    let options = Options { source: request.source, rebuild: request.rebuild };
    let stage = progress.stage("kernel", &format!("kernel {}", recipe.name));
    let built = build(&recipe, &options, cache, interrupt, &mut |event| match event {
        KernelProgress::Note(text) => stage.note(text),
        KernelProgress::Compiled { done, total } => stage.set(done, total),
    })?;
    let size = human::bytes(fs::metadata(&built.vmlinux).map_or(0, |m| m.len()));
    stage.finish(&if built.cached { format!("{size}, cached") } else { size });
    Ok(built.vmlinux)
}

/// How a kernel is built other than from its locked source, once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// A source tarball of this host instead of the locked package.
    pub source: Option<&'a Path>,
    /// Build even if the cache has the kernel.
    pub rebuild: bool,
}

/// The kernel of `recipe`: from the cache, else built.
///
/// # Errors
/// If tools, network or disk are missing, the source is not the locked one, the build fails or is interrupted.
pub fn build(
    recipe: &KernelRecipe,
    options: &Options,
    cache: &Path,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(KernelProgress),
) -> Result<BuiltKernel> {
    make::check_tools()?;
    let tools = make::tool_versions()?;
    if options.source.is_none() && !options.rebuild {
        // Without the source at hand its locked digest tells whether the kernel is there.
        let digest = inputs_digest(recipe, &recipe.source.tar_sha256, &tools);
        if let Some(built) = Slot::new(cache, &digest).cached()? {
            return Ok(built);
        }
    }
    let source = find_source(recipe, options, cache, progress)?;
    interrupt.check()?;
    let slot = Slot::new(cache, &inputs_digest(recipe, &source.sha256, &tools));
    let _lock = slot.lock(interrupt, progress)?;
    // Another build may have made it while this one waited for the lock.
    if let Some(built) = slot.cached()?.filter(|_| !options.rebuild) {
        return Ok(built);
    }
    slot.build(recipe, &source, interrupt, progress)
}

fn find_source(
    recipe: &KernelRecipe,
    options: &Options,
    cache: &Path,
    progress: &mut dyn FnMut(KernelProgress),
) -> Result<Source> {
    let Some(path) = options.source else {
        return fetch::debian_source(&recipe.source, cache, &mut |text| progress(KernelProgress::Note(text)));
    };
    let source = fetch::source_file(path)?;
    if source.sha256 != recipe.source.tar_sha256 {
        progress(KernelProgress::Note(&format!("warning: {} is not the locked source of this recipe", path.display())));
    }
    Ok(source)
}

/// BLAKE3 over all that decides the bytes of the kernel, hex.
pub fn inputs_digest(recipe: &KernelRecipe, source_sha256: &str, tools: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("smol kernel inputs 1");
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(&METHOD.to_le_bytes());
    part(&recipe.recipe.to_le_bytes());
    part(source_sha256.as_bytes());
    part(tools.as_bytes());
    part(MAKE_ARGS.join(" ").as_bytes());
    part(recipe.timestamp.as_bytes());
    part(recipe.config.as_bytes());
    for (name, patch) in &recipe.patches {
        part(name.as_bytes());
        part(patch);
    }
    hasher.finalize().to_hex().to_string()
}

/// The places in the cache of one kernel.
struct Slot {
    digest: String,
    parent: PathBuf,
    finished: PathBuf,
    work: PathBuf,
    log: PathBuf,
}

impl Slot {
    fn new(cache: &Path, digest: &str) -> Self {
        let parent = cache.join("kernels");
        Self {
            digest: digest.to_owned(),
            finished: parent.join(digest),
            work: parent.join(format!("{digest}.build")),
            log: parent.join(format!("{digest}.log")),
            parent,
        }
    }

    fn cached(&self) -> Result<Option<BuiltKernel>> {
        let vmlinux = self.finished.join("vmlinux");
        if !vmlinux.exists() {
            return Ok(None);
        }
        Ok(Some(BuiltKernel { digest: file_digest(&vmlinux)?, vmlinux, inputs_digest: self.digest.clone(), cached: true }))
    }

    /// Keeps other builds of this kernel waiting until the file is closed, also by being killed.
    fn lock(&self, interrupt: &Interrupt, progress: &mut dyn FnMut(KernelProgress)) -> Result<File> {
        fs::create_dir_all(&self.parent).with_context(|| format!("cannot create the folder {}", self.parent.display()))?;
        let path = self.parent.join(format!("{}.lock", self.digest));
        let lock = || format!("cannot lock {}", path.display());
        let file = File::create(&path).with_context(lock)?;
        let mut told = false;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error).with_context(lock),
            }
            if !told {
                progress(KernelProgress::Note("another build of this kernel is under way: waiting for it"));
                told = true;
            }
            interrupt.wait(Some(Duration::from_millis(200))).with_context(lock)?;
            interrupt.check()?;
        }
    }

    fn build(
        &self,
        recipe: &KernelRecipe,
        source: &Source,
        interrupt: &Interrupt,
        progress: &mut dyn FnMut(KernelProgress),
    ) -> Result<BuiltKernel> {
        remove(&self.work)?;
        remove_file(&self.log)?;
        let tree = self.work.join("linux");
        fs::create_dir_all(&tree).with_context(|| format!("cannot create the folder {}", tree.display()))?;
        let session = Session { log: &self.log, interrupt };
        let result = self
            .prepare(recipe, source, &tree, &session, progress)
            .and_then(|()| self.compile(recipe, &tree, &session, progress))
            .and_then(|()| self.publish(&tree, &session));
        // A gigabyte of sources is of no use after a failure either: the log stays.
        let removed = remove(&self.work);
        let built = result?;
        removed?;
        Ok(built)
    }

    /// Source, patches, configuration.
    fn prepare(
        &self,
        recipe: &KernelRecipe,
        source: &Source,
        tree: &Path,
        session: &Session,
        progress: &mut dyn FnMut(KernelProgress),
    ) -> Result<()> {
        progress(KernelProgress::Note("unpacking the source"));
        let mut tar = make::command("tar", tree);
        tar.args(["-x", "--strip-components=1", "--no-same-owner", "-f"]).arg(std::path::absolute(&source.path)?);
        session.run(&mut tar, "unpacking the source", &mut || ())?;
        for (name, patch) in &recipe.patches {
            let file = self.work.join("patch");
            fs::write(&file, patch).with_context(|| format!("cannot write {}", file.display()))?;
            let mut command = make::command("patch", tree);
            command.args(["-p1", "--fuzz=0", "--forward", "--batch", "--no-backup-if-mismatch", "--input"]).arg(&file);
            session.run(&mut command, &format!("applying the patch {name}"), &mut || ())?;
        }
        self.configure(recipe, tree, session)
    }

    fn configure(&self, recipe: &KernelRecipe, tree: &Path, session: &Session) -> Result<()> {
        let fragment = self.work.join("fragment");
        fs::write(&fragment, &recipe.config).with_context(|| format!("cannot write {}", fragment.display()))?;
        let mut make = self.make(recipe, tree, "allnoconfig");
        make.env("KCONFIG_ALLCONFIG", &fragment);
        session.run(&mut make, "configuring the kernel", &mut || ())?;
        let config = fs::read_to_string(tree.join(".config")).context("make allnoconfig left no .config")?;
        let lost = lost_options(&recipe.config, &config);
        if lost.is_empty() {
            return Ok(());
        }
        Err(Failure::new(ExitKind::Failed, format!("the kernel's Kconfig does not take: {}", lost.join(", ")))
            .hint("a dependency is missing in the recipe's configuration, or the source is another one")
            .into())
    }

    fn compile(
        &self,
        recipe: &KernelRecipe,
        tree: &Path,
        session: &Session,
        progress: &mut dyn FnMut(KernelProgress),
    ) -> Result<()> {
        progress(KernelProgress::Note("compiling"));
        let mut done = 0;
        session.run(&mut self.make(recipe, tree, "vmlinux"), "building the kernel", &mut || {
            done += 1;
            // The number of steps is an estimate.
            progress(KernelProgress::Compiled { done: done.min(recipe.steps), total: recipe.steps });
        })
    }

    /// make in the tree itself, so that all paths it sees are relative and the same everywhere.
    fn make(&self, recipe: &KernelRecipe, tree: &Path, target: &str) -> std::process::Command {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let map = format!("-ffile-prefix-map={}=.", tree.display());
        let mut make = make::command("make", tree);
        make.arg(format!("-j{jobs}"))
            .args(MAKE_ARGS)
            .args([format!("KCFLAGS={map}"), format!("KAFLAGS={map}")])
            .arg(target)
            .env("KBUILD_BUILD_TIMESTAMP", &recipe.timestamp)
            .env("KBUILD_BUILD_USER", "smol")
            .env("KBUILD_BUILD_HOST", "smol")
            .env("KBUILD_BUILD_VERSION", "1");
        make
    }

    /// Strips the kernel and puts it where the cache finds it, in one step.
    fn publish(&self, tree: &Path, session: &Session) -> Result<BuiltKernel> {
        let out = self.work.join("out");
        fs::create_dir(&out).with_context(|| format!("cannot create the folder {}", out.display()))?;
        let vmlinux = out.join("vmlinux");
        let mut strip = make::command("strip", tree);
        strip.args(["--strip-all", "--remove-section=.comment", "-o"]).arg(&vmlinux).arg("vmlinux");
        session.run(&mut strip, "stripping the kernel", &mut || ())?;
        fs::copy(tree.join(".config"), out.join("config")).context("cannot keep the kernel's configuration")?;
        for path in [&vmlinux, &out.join("config"), &out] {
            File::open(path).and_then(|f| f.sync_all()).with_context(|| format!("cannot write {}", path.display()))?;
        }
        remove(&self.finished)?;
        fs::rename(&out, &self.finished)
            .and_then(|()| File::open(&self.parent)?.sync_all())
            .with_context(|| format!("cannot create the folder {}", self.finished.display()))?;
        let vmlinux = self.finished.join("vmlinux");
        Ok(BuiltKernel { digest: file_digest(&vmlinux)?, vmlinux, inputs_digest: self.digest.clone(), cached: false })
    }
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display())).hint("remove it by hand")
        }
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn file_digest(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The lines of the configuration `fragment` that did not make it into `config`.
fn lost_options<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let lines: std::collections::HashSet<_> = config.lines().collect();
    let names: std::collections::HashSet<_> = config.lines().filter_map(|l| l.split_once('=')).map(|(name, _)| name).collect();
    let lost = |line: &&str| match line.strip_prefix("# ").and_then(|l| l.strip_suffix(" is not set")) {
        Some(name) => names.contains(name),
        None => line.starts_with("CONFIG_") && !lines.contains(line),
    };
    fragment.lines().map(str::trim_end).filter(lost).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn recipe() -> KernelRecipe {
        KernelRecipe::embedded("smol-6.1").unwrap()
    }

    #[test]
    fn every_input_changes_the_digest() {
        let base = inputs_digest(&recipe(), "s", "t");
        assert_eq!(base, inputs_digest(&recipe(), "s", "t"));
        let changed = |change: fn(&mut KernelRecipe)| {
            let mut recipe = recipe();
            change(&mut recipe);
            inputs_digest(&recipe, "s", "t")
        };
        let others = [
            inputs_digest(&recipe(), "x", "t"),
            inputs_digest(&recipe(), "s", "x"),
            changed(|r| r.recipe += 1),
            changed(|r| r.config.push('\n')),
            changed(|r| r.timestamp.push('\n')),
            changed(|r| r.patches[0].1.push(b'\n')),
            changed(|r| r.patches.swap(0, 1)),
            changed(|r| drop(r.patches.pop())),
        ];
        for (n, other) in others.iter().enumerate() {
            assert_ne!(&base, other, "input {n}");
        }
    }

    #[test]
    fn options_that_kconfig_drops_or_sets_are_found() {
        let fragment = "# words\nCONFIG_A=y\nCONFIG_B=\"x\"\n# CONFIG_C is not set\n# CONFIG_D is not set\nCONFIG_E=y\n";
        let config = "CONFIG_A=y\nCONFIG_B=\"z\"\nCONFIG_C=y\n# CONFIG_E is not set\n";
        assert_eq!(lost_options(fragment, config), ["CONFIG_B=\"x\"", "# CONFIG_C is not set", "CONFIG_E=y"]);
        assert!(lost_options(fragment, "CONFIG_A=y\nCONFIG_B=\"x\"\nCONFIG_E=y\n").is_empty());
    }

    #[test]
    fn a_finished_kernel_is_taken_from_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        let slot = Slot::new(cache.path(), "d");
        assert!(slot.cached().unwrap().is_none());
        fs::create_dir_all(&slot.finished).unwrap();
        fs::write(slot.finished.join("vmlinux"), b"kernel").unwrap();
        let built = slot.cached().unwrap().unwrap();
        assert!(built.cached);
        assert_eq!(built.digest, blake3::hash(b"kernel").to_hex().to_string());
    }

    #[test]
    fn a_second_build_waits_for_the_first_and_says_so() {
        let cache = tempfile::tempdir().unwrap();
        let slot = Slot::new(cache.path(), "d");
        let interrupt = Interrupt::detached().unwrap();
        let mut first = Some(slot.lock(&interrupt, &mut |_| panic!("nobody to wait for")).unwrap());
        let mut said = Vec::new();
        slot.lock(&interrupt, &mut |event| {
            if let KernelProgress::Note(text) = event {
                said.push(text.to_owned());
            }
            first.take();
        })
        .unwrap();
        assert_eq!(said, ["another build of this kernel is under way: waiting for it"]);
    }

    #[test]
    fn a_patch_that_does_not_apply_fails_with_its_name_and_leaves_nothing_but_the_log() {
        let cache = tempfile::tempdir().unwrap();
        let tarball = cache.path().join("source.tar");
        let mut builder = tar::Builder::new(File::create(&tarball).unwrap());
        let mut header = tar::Header::new_ustar();
        header.set_size(2);
        header.set_mode(0o644);
        builder.append_data(&mut header, "linux/Makefile", &b"x\n"[..]).unwrap();
        builder.into_inner().unwrap().flush().unwrap();
        let mut recipe = recipe();
        recipe.patches = vec![("0001-bad.patch".into(), b"--- a/Makefile\n+++ b/Makefile\n@@ -1 +1 @@\n-y\n+z\n".to_vec())];
        let source = fetch::source_file(&tarball).unwrap();
        let slot = Slot::new(cache.path(), "d");
        let interrupt = Interrupt::detached().unwrap();
        let _lock = slot.lock(&interrupt, &mut |_| ()).unwrap();
        let error = slot.build(&recipe, &source, &interrupt, &mut |_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("applying the patch 0001-bad.patch failed"), "{error:#}");
        assert!(slot.log.exists() && !slot.work.exists() && !slot.finished.exists());
    }
}
