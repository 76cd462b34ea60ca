//! Build steps: each `[[run]]` in a machine of its own, over the files as they are at its place.
//!
//! | file | what it does |
//! |---|---|
//! | `cache.rs` | the layers of steps that ran before |
//! | `network.rs` | what a step may reach, and how |
//!
//! The machine has the files so far as its root file system. Without a network it has one vCPU, virtual
//! time, and its randomness comes from the step's key ([`StepChain`](crate::plan::StepChain)): what the
//! command changes is a function of the key, and a layer in the cache stands for a run. Two steps never
//! share a machine: what the second one finds must not depend on whether the first one was in the cache.
//!
//! A step with a network may make something else each time, so its layer is an input, which the lock
//! pins: it is taken from the cache, or made again and compared.
//!
//! The layer comes from the guest, and is read as input from a stranger is.

mod cache;
mod network;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use smol_bundle::Digest;
use smol_cli::progress::Stage;
use smol_cli::{ErrorExt, ExitKind, Failure, human};
use smol_protocol::step::StepConfig;
use smol_rootfs::Tree;
use smol_rootfs::erofs::Mtimes;
use smol_sandbox::Access;

pub use self::cache::StepCache;
use self::network::Uplinks;
use crate::boot::{self, BootJob, Images, LAYER_FILE, StepMachine};
use crate::context::BuildContext;
use crate::fetch::Net;
use crate::initramfs;
use crate::input::confined;
use crate::lock::Lock;
use crate::plan::{Plan, PlannedRun};
use crate::programs::{self, NamedCommand};
use crate::resolve;
use crate::rootfs;
use crate::smolfile::Loaded;
use crate::users::{self, NamedUser};

/// Folders of the root file system that are mount points in a running machine: nothing that a command
/// leaves there is a file of the image.
const MOUNT_POINTS: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];

/// Which steps run although what they make is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rerun {
    /// None.
    None,
    /// Those with a network, whose results may be out of date.
    Networked,
    /// Those without: to see that they make the same again.
    Offline,
}

/// How the machines of build steps run.
#[derive(Clone, Copy)]
pub struct StepMachines<'a> {
    /// Where the commands are written.
    pub smolfile: &'a Loaded,
    /// The file that what networked steps have made is entered into at once, so that a build which fails
    /// later does not run them again.
    pub lock_file: Option<&'a Path>,
    /// Which of them run in any case.
    pub rerun: Rerun,
    /// Where they run.
    pub machine: StepMachine<'a>,
}

/// Runs the build steps of a Plan.
pub struct Steps<'a> {
    /// The Plan.
    pub plan: &'a Plan,
    /// How their machines run.
    pub machines: &'a StepMachines<'a>,
    /// The kernel of the machines.
    pub kernel: &'a Path,
    /// Folder with what was made before.
    pub cache: &'a Path,
    /// Folder for what is being made.
    pub work: &'a Path,
    /// Which times the files of the input have.
    pub mtimes: Mtimes,
    /// What the stages share.
    pub context: BuildContext<'a>,
}

/// What a step has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The files that it changed, as a layer in the cache.
    pub layer: Digest,
    /// Why another run may change something else although it has no network; `None` if it will not.
    pub doubt: Option<String>,
}

impl Steps<'_> {
    /// Runs the step with this key on the files of `tree`, unless it ran before, and puts what it changed
    /// into the tree. What a step with a network makes is in `lock`, or entered into it. Its progress is a
    /// part of `parent`.
    ///
    /// # Errors
    /// The command fails; its machine cannot be started; what comes from it is no layer; the lock has
    /// something else, or may not be changed; a full disk; the interrupt.
    pub fn run(
        &self,
        tree: &mut Tree,
        run: &PlannedRun,
        key: &blake3::Hash,
        lock: &mut Lock,
        parent: &Stage,
    ) -> Result<Made> {
        let cache = StepCache::open(self.cache)?;
        let title = human::one_line(&run.command.cmd.join(" "));
        let stage = parent.child(&format!("run {}", run.number), &title);
        let made = match run.network {
            None => self.offline(tree, run, key, &cache, stage)?,
            Some(_) => self.networked(tree, run, key, &cache, lock, stage)?,
        };
        let path = cache.layers().path(&made.layer);
        let access = Access::none().read(cache.layers().folder());
        let applied = confined(&access, || {
            tree.apply_overlay(&path, &MOUNT_POINTS)
                .kind(ExitKind::Failed)
        });
        applied
            .with_context(|| format!("what [[run]] {} has changed cannot be used", run.number))?;
        Ok(made)
    }

    /// A step whose layer is a function of its key.
    fn offline(
        &self,
        tree: &Tree,
        run: &PlannedRun,
        key: &blake3::Hash,
        cache: &StepCache,
        stage: Stage,
    ) -> Result<Made> {
        if self.machines.rerun != Rerun::Offline
            && let Some(layer) = cache.lookup(key, &self.context.session.interrupt)?
        {
            stage.cached("");
            return Ok(Made { layer, doubt: None });
        }
        let made = self.boot(tree, run, key, cache, &stage)?;
        match &made.doubt {
            None => cache.store(key, made.layer)?,
            Some(why) => stage.note(&format!("warning: not reproducible: {why}")),
        }
        stage.finish(&self.size(cache, &made.layer));
        Ok(made)
    }

    /// A step whose layer is pinned by the lock.
    fn networked(
        &self,
        tree: &Tree,
        run: &PlannedRun,
        key: &blake3::Hash,
        cache: &StepCache,
        lock: &mut Lock,
        stage: Stage,
    ) -> Result<Made> {
        let hex = key.to_hex().to_string();
        let pinned = lock.runs.iter().find(|pin| pin.key == hex);
        let pinned = pinned.map(|pin| pin.layer);
        let interrupt = &self.context.session.interrupt;
        if self.machines.rerun != Rerun::Networked
            && let Some(layer) = pinned
            && cache.layers().missing(&[layer], interrupt)?.is_empty()
        {
            stage.cached("");
            return Ok(Made { layer, doubt: None });
        }
        self.may_run(run, pinned)?;
        let made = Made {
            doubt: None,
            ..self.boot(tree, run, key, cache, &stage)?
        };
        match pinned {
            Some(layer) if layer == made.layer => stage.note("it has made the same files again"),
            Some(_) if self.context.net == Net::Pinned => return Err(other_files(run).into()),
            _ => {
                if pinned.is_some() {
                    stage.note("it has made other files than before");
                }
                lock.pin_run(hex, made.layer);
                if let Some(file) = self.machines.lock_file {
                    resolve::keep(file, lock, &self.context.session.progress)?;
                }
            }
        }
        stage.finish(&self.size(cache, &made.layer));
        Ok(made)
    }

    /// Whether a step with a network may run, whose layer is `pinned` and not in the cache.
    fn may_run(&self, run: &PlannedRun, pinned: Option<Digest>) -> Result<()> {
        let net = self.context.net;
        let step = format!("[[run]] {}", run.number);
        let Some(mut what) = why_not(net, pinned.is_some(), &step) else {
            return Ok(());
        };
        what += &pinned.map_or_else(String::new, |layer| format!(": {layer}"));
        let hint = match net {
            Net::Offline => "build once without --offline",
            _ => "build once without --locked: the lock file then has it",
        };
        Err(Failure::new(ExitKind::LockStale, what).hint(hint).into())
    }

    /// Runs the step in a machine.
    fn boot(
        &self,
        tree: &Tree,
        run: &PlannedRun,
        key: &blake3::Hash,
        cache: &StepCache,
        stage: &Stage,
    ) -> Result<Made> {
        let (plan, interrupt) = (self.plan, &self.context.session.interrupt);
        let folder = self.work.join(format!("step-{}", run.number));
        let out = folder.join("out");
        let made = fs::create_dir_all(&out);
        made.with_context(|| format!("cannot create {}", out.display()))?;
        let images = Images {
            kernel: self.kernel.to_owned(),
            initramfs: Some(folder.join("initramfs")),
            rootfs: Some(folder.join("rootfs")),
        };
        let machine = &self.machines.machine;
        let mut uplinks = Uplinks::of(run, machine.sandbox)?;
        let config = self.config(run, &uplinks);
        config
            .check()
            .with_context(|| format!("[[run]] {} cannot be run so", run.number))
            .kind(ExitKind::Usage)?;
        initramfs::build_step(&config, &folder.join("initramfs"))?;
        if let Some(name) = run.command.user.as_deref() {
            let user = NamedUser {
                name,
                what: "`user` of [[run]]",
                span: run.user_span.clone(),
            };
            users::require(tree, &user, self.machines.smolfile)?;
        }
        let command = NamedCommand {
            service: &run.command,
            what: "`cmd` of [[run]]",
            span: Some(run.span.clone()),
        };
        programs::require(tree, &command, self.machines.smolfile)?;
        let (epoch, image) = (plan.epoch(), folder.join("rootfs"));
        rootfs::write_step_image(tree, epoch, self.mtimes, &image)?;
        interrupt.check()?;
        let (watchdog, sandbox) = (machine.watchdog, machine.sandbox);
        let job = BootJob::step(plan, run, &images, key, watchdog, sandbox, &out);
        let place = self.machines.smolfile.place(&run.span);
        let network = uplinks.guest_end()?;
        let stepped = boot::run_step(&job, machine, &place, network, stage, interrupt);
        let stepped = uplinks.end(stepped, stage)?;
        let layer = cache.add_layer(&out.join(LAYER_FILE))?;
        // The image is as large as the root file system, and there may be many steps.
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
        let ticked = |at| format!("[[run]] {}: {}", run.number, boot::ticked(at));
        Ok(Made {
            layer,
            doubt: stepped.first_tick_ms.map(ticked),
        })
    }

    fn config(&self, run: &PlannedRun, uplinks: &Uplinks) -> StepConfig {
        let guest = self.plan.guest.as_ref();
        let mut command = run.command.clone();
        for (name, value) in uplinks.variables() {
            command.env.entry(name).or_insert(value);
        }
        StepConfig {
            hostname: guest.map_or_else(|| self.plan.name.clone(), |guest| guest.hostname.clone()),
            rootfs: smol_protocol::Rootfs::default(),
            number: run.number,
            command,
            epoch: self.plan.epoch(),
            network: run.network.is_some(),
        }
    }

    fn size(&self, cache: &StepCache, layer: &Digest) -> String {
        let found = fs::metadata(cache.layers().path(layer));
        human::bytes(found.map_or(0, |found| found.len()))
    }
}

/// Why a step with a network may not run although what it makes is not in the cache; `None` if it may. The
/// sentence calls it `step`.
pub fn why_not(net: Net, is_pinned: bool, step: &str) -> Option<String> {
    match (net, is_pinned) {
        (Net::Offline, true) => Some(format!(
            "offline, and what {step} has made is not in the cache"
        )),
        (Net::Offline, false) => Some(format!("offline, and {step} needs the network")),
        (Net::Pinned, false) => Some(format!(
            "the lock does not have what {step} makes with its network"
        )),
        (Net::Pinned, true) | (Net::Open, _) => None,
    }
}

fn other_files(run: &PlannedRun) -> Failure {
    let number = run.number;
    let what =
        format!("[[run]] {number} has made other files than the lock says: it has a network");
    Failure::new(ExitKind::LockStale, what)
        .hint("a build without --locked enters what it makes now into the lock file")
        .hint("what can be had by its digest comes the same each time with [[fetch]], and a [[run]] without a network after it")
}
