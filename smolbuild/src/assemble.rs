//! From a Plan to the three images that a machine boots from.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use smol_cli::{ErrorExt, ExitKind, human};
use smol_machine::boot;
use smol_rootfs::{CopySpec, Ignore, Tree};
use toml::Spanned;

use crate::boot::Images;
use crate::context::BuildContext;
use crate::fetched;
use crate::hash;
use crate::initramfs;
use crate::input::{InputDirs, Rootfs};
use crate::kernel::{self, KernelRequest};
use crate::lock::Lock;
use crate::plan::{Plan, PlannedStep, Sealed, StepChain};
use crate::programs::{self, NamedCommand};
use crate::rootfs;
use crate::smolfile::{CopyStep, FetchStep, KernelSource};
use crate::source_dir::SourceDir;
use crate::steps::{StepMachines, Steps};
use crate::users::{self, NamedUser};

/// The directories of a build.
#[derive(Clone, Copy, Debug)]
pub struct BuildDirs<'a> {
    /// Kernels and installed systems that were made before.
    pub cache: &'a Path,
    /// Folder to make the images in.
    pub work: &'a Path,
}

/// A machine whose images are made.
#[derive(Debug)]
pub struct Assembled {
    /// The Plan, with their digests. Where a pinned input was not to be had any more and another one was
    /// taken, because that is allowed, its lock has that one.
    pub sealed: Sealed,
    /// The images.
    pub images: Images,
    /// Why the same inputs may give other images; `None` if they will not.
    pub doubt: Option<String>,
}

/// Makes the images, and seals the Plan with their digests. The machines of its build steps run as `machines`
/// says.
///
/// # Errors
/// Whatever keeps an image from being made.
pub fn assemble(
    plan: &Plan,
    dirs: BuildDirs,
    machines: &StepMachines,
    context: BuildContext,
) -> Result<Assembled> {
    let mut lock = plan.lock.clone();
    let kernel = build_kernel(plan, &mut lock, dirs, context)?;
    context.session.check()?;
    let mut doubt = None;
    let rootfs = plan.rootfs.as_ref().map(|rootfs| {
        let steps = Steps {
            plan,
            machines,
            kernel: &kernel,
            cache: dirs.cache,
            work: dirs.work,
            mtimes: rootfs.input().mtimes(),
            context,
        };
        build_rootfs(&steps, rootfs, &mut lock, &mut doubt)
    });
    let rootfs = rootfs.transpose()?;
    let initramfs = plan.guest.as_ref().map(|guest| {
        let out = dirs.work.join("initramfs");
        initramfs::build(guest, &out).map(|()| out)
    });
    let images = Images {
        kernel,
        initramfs: initramfs.transpose()?,
        rootfs,
    };
    let sealed = Sealed::new(plan, lock, digests(&images)?);
    let kernel = place_kernel(&sealed, &images.kernel, &dirs.work.join("kernel"))?;
    Ok(Assembled {
        sealed,
        images: Images { kernel, ..images },
        doubt,
    })
}

fn build_kernel(
    plan: &Plan,
    lock: &mut Lock,
    dirs: BuildDirs,
    context: BuildContext,
) -> Result<PathBuf> {
    let name = match &plan.kernel.source {
        KernelSource::Path(path) => return own_kernel(plan, path.get_ref(), dirs),
        KernelSource::Recipe(name) => name,
    };
    let pinned = lock.kernel.as_mut().context("the lock has no kernel");
    let pinned = pinned.kind(ExitKind::Internal)?;
    let request = KernelRequest {
        recipe: name,
        source: context.environment.kernel_source.as_deref(),
        pinned: Some(pinned),
        downloads: context.downloads,
        net: context.net,
        release: context.environment.kernels.release.as_deref(),
        rebuild: false,
    };
    let kernel = kernel::obtain(&request, dirs.cache, context.session)?;
    kernel.source.enter(pinned);
    Ok(kernel.vmlinux)
}

/// Copies a kernel that the Smolfile names, so that what is booted is what was looked at, whatever
/// becomes of its path.
fn own_kernel(plan: &Plan, path: &str, dirs: BuildDirs) -> Result<PathBuf> {
    let (mut kernel, _) = plan.base_dir.require_file(path)?;
    let out = dirs.work.join("kernel.named");
    File::create(&out)
        .and_then(|mut copy| io::copy(&mut kernel, &mut copy))
        .with_context(|| format!("cannot write {}", out.display()))?;
    Ok(out)
}

fn build_rootfs(
    steps: &Steps,
    rootfs: &Rootfs,
    lock: &mut Lock,
    doubt: &mut Option<String>,
) -> Result<PathBuf> {
    let (plan, context) = (steps.plan, steps.context);
    let (input, interrupt) = (rootfs.input(), &context.session.interrupt);
    input.fetch(lock, steps.cache, context)?;
    let fetched = fetched::files(plan, context)?;
    let input_dirs = InputDirs {
        base_dir: &plan.base_dir,
        downloads: context.downloads,
        cache: steps.cache,
        scratch: steps.work,
    };
    let stage = context
        .session
        .stage("rootfs", "assembling the root file system");
    let mut loaded = input.load(lock, &input_dirs, &mut |line| stage.output(line), interrupt)?;
    let tree = &mut loaded.tree;
    rootfs::make_folders(tree, &plan.image_folders())?;
    let mut chain = StepChain::new(plan);
    for step in &plan.steps {
        interrupt.check()?;
        let key = chain.pass(step);
        match step {
            PlannedStep::Copy(copy) => {
                require_owner(tree, &copy.owner, "`owner` of [[copy]]", steps)?;
                tree.copy(&copy_spec(&plan.base_dir, copy)?)?;
            }
            PlannedStep::Fetch(fetch) => {
                let file = fetched.get(&fetch.sha256);
                let file = file.context("a [[fetch]] without its file");
                let spec = fetched_spec(fetch, file.kind(ExitKind::Internal)?);
                require_owner(tree, &fetch.owner, "`owner` of [[fetch]]", steps)?;
                tree.copy(&spec)?;
            }
            PlannedStep::Run(run) => {
                let key = key.context("a [[run]] without a key");
                let made = steps.run(tree, run, &key.kind(ExitKind::Internal)?, lock, &stage)?;
                *doubt = doubt.take().or(made.doubt);
                if step.has_network() {
                    chain.made(&made.layer);
                }
            }
        }
    }
    stage.output("writing the root file system image");
    require_service(tree, steps)?;
    let out = steps.work.join("rootfs");
    let image = rootfs::write(tree, plan.epoch(), steps.mtimes, &out)?;
    stage.finish(&human::bytes(image.size));
    Ok(image.path)
}

/// Checks the owner of files that are put over the root file system.
fn require_owner(
    tree: &Tree,
    owner: &Option<Spanned<String>>,
    what: &str,
    steps: &Steps,
) -> Result<()> {
    let Some(owner) = owner else {
        return Ok(());
    };
    let user = NamedUser {
        name: owner.get_ref(),
        what,
        span: Some(owner.span()),
    };
    users::require(tree, &user, steps.machines.smolfile)
}

/// Checks user and program of the service, which the Smolfile names, or else the image.
fn require_service(tree: &Tree, steps: &Steps) -> Result<()> {
    let loaded = steps.machines.smolfile;
    let guest = steps.plan.guest.as_ref().map(|guest| &guest.service);
    let (Some(planned), Some(written)) = (guest, loaded.smolfile.service()) else {
        return Ok(());
    };
    if let Some(name) = planned.user.as_deref() {
        let user = NamedUser {
            name,
            what: "`user` of [service]",
            span: written.user.as_ref().map(Spanned::span),
        };
        users::require(tree, &user, loaded)?;
    }
    let (what, words) = match &written.entrypoint {
        Some(words) if !words.get_ref().is_empty() => ("`entrypoint` of [service]", Some(words)),
        _ => ("`cmd` of [service]", written.cmd.as_ref()),
    };
    // A `cmd` may be no more than the arguments of the image's entrypoint.
    let words = words.filter(|words| words.get_ref().first() == planned.cmd.first());
    let command = NamedCommand {
        service: planned,
        what,
        span: words.map(Spanned::span),
    };
    programs::require(tree, &command, loaded)
}

fn copy_spec(base_dir: &SourceDir, copy: &CopyStep) -> Result<CopySpec> {
    let src = copy.src.get_ref();
    Ok(CopySpec {
        src: base_dir.require(src)?,
        name: Path::new(src).file_name().map(OsStr::to_owned),
        dest: copy.dest.clone(),
        mode: copy.mode,
        owner: owner_name(&copy.owner),
        ignore: base_dir.ignore(src, &copy.exclude)?,
    })
}

fn owner_name(owner: &Option<Spanned<String>>) -> Option<String> {
    owner.as_ref().map(|owner| owner.get_ref().clone())
}

/// The file of a `[[fetch]]`, as something to copy.
fn fetched_spec(fetch: &FetchStep, file: &Path) -> CopySpec {
    const MODE: u32 = 0o644;
    CopySpec {
        src: file.to_owned(),
        name: fetch.file_name().map(OsString::from),
        dest: fetch.dest.clone(),
        mode: Some(fetch.mode.unwrap_or(MODE)),
        owner: owner_name(&fetch.owner),
        ignore: Ignore::default(),
    }
}

/// Digests of the images, by name.
fn digests(images: &Images) -> Result<BTreeMap<String, String>> {
    let present = [
        ("kernel", Some(&images.kernel)),
        ("initramfs", images.initramfs.as_ref()),
        ("rootfs", images.rootfs.as_ref()),
    ];
    let digest = |(name, path): (&str, Option<&PathBuf>)| {
        let hash = hash::blake3(path?).with_context(|| format!("the {name}"));
        Some(hash.map(|hash| (name.to_owned(), hash.to_hex().to_string())))
    };
    present.into_iter().filter_map(digest).collect()
}

/// Moves a smol kernel to the address that follows from the kernel seed before it is booted, into the
/// file `out`. Then the pages of it in the machine's memory are those of the image in the bundle,
/// which has them once. Returns the kernel to boot.
fn place_kernel(sealed: &Sealed, kernel: &Path, out: &Path) -> Result<PathBuf> {
    if !boot::is_smol_kernel(kernel)? {
        return Ok(kernel.to_owned());
    }
    let cmdline = &sealed.plan.kernel.build_cmdline;
    let Some(image) = boot::place_kernel(kernel, cmdline, &sealed.kernel_seed())? else {
        return Ok(kernel.to_owned());
    };
    fs::write(out, image).with_context(|| format!("cannot write {}", out.display()))?;
    Ok(out.to_owned())
}

#[cfg(test)]
mod tests {
    use smol_cli::Session;
    use smol_rootfs::erofs;

    use super::*;
    use crate::boot::StepMachine;
    use crate::environment::EnvironmentInputs;
    use crate::extract;
    use crate::fetch::Net;
    use crate::resolve::{self, Kept};
    use crate::smolfile::{self, Loaded};
    use crate::steps::Rerun;

    const SMOLFILE: &str = r#"
        name = "app"
        kernel.path = "vmlinux"
        rootfs.dir = "root"
        service.cmd = ["app"]
        ready.tcp = 80
        [[copy]]
        src = ["app.conf", "dist/*.js", "static", "dist/static/*"]
        dest = "/srv/"
        exclude = ["*.map"]
        [[copy]]
        src = "**/*.conf"
        dest = "/etc/app/"
        mode = 0o600
    "#;

    fn lock(loaded: &Loaded, context: BuildContext) -> Lock {
        let interrupt = &context.session.interrupt;
        let (lock, _) =
            resolve::current(loaded, Kept::default(), context.environment, interrupt).unwrap();
        lock
    }

    #[test]
    fn what_patterns_match_is_in_the_image_and_can_be_taken_out_of_it_again_by_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            ("vmlinux", "ELF"),
            ("root/bin/app", "app"),
            ("app.conf", "1"),
            ("dist/b.js", "2"),
            ("dist/a.js", "3"),
            ("dist/a.js.map", "4"),
            ("dist/more.map.js", "5"),
            ("dist/static/x.map", "6"),
            ("dist/static/x.css", "7"),
            ("static/y.css", "8"),
            ("static/y.map", "9"),
            ("static/deep/y.conf", "10"),
            ("Smolfile", SMOLFILE),
        ];
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let (work, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let context = BuildContext {
            downloads: &work.path().join("downloads"),
            net: Net::Offline,
            environment: &EnvironmentInputs::default(),
            session: &Session::detached().unwrap(),
        };
        let loaded = smolfile::load(folder.path(), None).unwrap();
        let mut locked = lock(&loaded, context);
        let sources: Vec<_> = locked.copies.iter().map(|it| it.src.as_str()).collect();
        let confs = ["app.conf", "static/deep/y.conf"];
        let scripts = ["dist/a.js", "dist/b.js", "dist/more.map.js"];
        let first = [&confs[..1], &scripts, &["static", "dist/static/x.css"]].concat();
        assert_eq!(sources, [first, confs.to_vec()].concat());

        let plan = Plan::resolve(&loaded.smolfile, &loaded.base_dir, locked.clone()).unwrap();
        let rootfs = plan.rootfs.clone().unwrap();
        let machines = StepMachines {
            smolfile: &loaded,
            lock_file: None,
            rerun: Rerun::None,
            machine: StepMachine {
                backend: smol_host::Backend::Kvm,
                host_cache: work.path(),
                watchdog: 1,
                sandbox: smol_sandbox::Mode::Off,
                verbose: false,
            },
        };
        let steps = Steps {
            plan: &plan,
            machines: &machines,
            kernel: Path::new("vmlinux"),
            cache: work.path(),
            work: work.path(),
            mtimes: rootfs.input().mtimes(),
            context,
        };
        let image = build_rootfs(&steps, &rootfs, &mut locked, &mut None).unwrap();
        let tree = erofs::read_into(Tree::new(), &image).unwrap();
        let names = tree.walk().filter_map(|(path, _, inode)| {
            let path = String::from_utf8(path).unwrap();
            let is_file = matches!(inode.node, smol_rootfs::Node::File(_));
            (is_file && !path.starts_with("etc/hosts")).then_some(path)
        });
        let expected = [
            "bin/app",
            "etc/app/app.conf",
            "etc/app/y.conf",
            "srv/a.js",
            "srv/app.conf",
            "srv/b.js",
            "srv/deep/y.conf",
            "srv/more.map.js",
            "srv/x.css",
            "srv/y.css",
        ];
        assert_eq!(names.collect::<Vec<_>>(), expected);

        // As `reproduce` does, which has the text and the lock.
        let parsed = smolfile::parse(SMOLFILE).unwrap();
        let copies = smolfile::copies_of_lock(parsed.copies(), &locked.copies);
        let interrupt = &context.session.interrupt;
        let missing =
            extract::restore(&copies, &locked.copies, &tree, again.path(), interrupt).unwrap();
        assert_eq!(missing, [""; 0]);
        for (name, text) in [files[0], files[1]] {
            let path = again.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let place = again.path().join("Smolfile");
        let text = SMOLFILE.to_owned();
        let reloaded = smolfile::check_text(text, &place, again.path().into(), None).unwrap();
        assert_eq!(lock(&reloaded, context).copies, locked.copies);
    }
}
