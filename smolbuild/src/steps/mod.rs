//! Build steps: each `[[run]]` in a machine of its own, over the files as they are at its place.
//!
//! | file | what it does |
//! |---|---|
//! | `cache.rs` | the layers of steps that ran before |
//!
//! The machine has the files so far as its root file system, one vCPU, virtual time and no network; its
//! randomness comes from the step's key ([`Plan::run_keys`]). So what the command changes is a function
//! of the key, and a layer in the cache stands for a run. Two steps never share a machine: what the second
//! one finds must not depend on whether the first one was in the cache.
//!
//! The layer comes from the guest, and is read as input from a stranger is.

mod cache;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use smol_bundle::Digest;
use smol_cli::progress::Stage;
use smol_cli::{ErrorExt, ExitKind, human};
use smol_protocol::step::StepConfig;
use smol_rootfs::Tree;
use smol_rootfs::erofs::Mtimes;
use smol_sandbox::Access;

use self::cache::StepCache;
use crate::boot::{self, BootJob, Images, LAYER_FILE, StepMachine};
use crate::context::BuildContext;
use crate::initramfs;
use crate::input::confined;
use crate::plan::{Plan, PlannedRun};
use crate::rootfs;
use crate::smolfile::Loaded;

/// Folders of the root file system that are mount points in a running machine: nothing that a command
/// leaves there is a file of the image.
const MOUNT_POINTS: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];

/// Runs the build steps of a Plan.
pub struct Steps<'a> {
    /// The Plan.
    pub plan: &'a Plan,
    /// Where the commands are written.
    pub smolfile: &'a Loaded,
    /// The kernel of the machines.
    pub kernel: &'a Path,
    /// Where the machines run.
    pub machine: &'a StepMachine<'a>,
    /// Folder with what was made before.
    pub cache: &'a Path,
    /// Folder for what is being made.
    pub work: &'a Path,
    /// Which times the files of the input have.
    pub mtimes: Mtimes,
    /// What the stages share.
    pub context: BuildContext<'a>,
}

impl Steps<'_> {
    /// Runs the step with this key on the files of `tree`, unless it ran before, and puts what it changed
    /// into the tree. Its progress is a part of `parent`. Returns why another run may change something else; `None` if it will not.
    ///
    /// # Errors
    /// The command fails; its machine cannot be started; what comes from it is no layer; a full disk; the
    /// interrupt.
    pub fn run(
        &self,
        tree: &mut Tree,
        run: &PlannedRun,
        key: &blake3::Hash,
        parent: &Stage,
    ) -> Result<Option<String>> {
        let session = self.context.session;
        let cache = StepCache::open(self.cache)?;
        let title = human::one_line(&run.command.cmd.join(" "));
        let stage = parent.child(&format!("run {}", run.number), &title);
        let mut doubt = None;
        let layer = match cache.lookup(key, &session.interrupt)? {
            Some(layer) => {
                stage.cached("");
                layer
            }
            None => {
                let (layer, why) = self.boot(tree, run, key, &cache, &stage)?;
                doubt = why;
                let size = fs::metadata(cache.layers().path(&layer));
                stage.finish(&human::bytes(size.map_or(0, |found| found.len())));
                layer
            }
        };
        let path = cache.layers().path(&layer);
        let access = Access::none().read(cache.layers().folder());
        let applied = confined(&access, || {
            tree.apply_overlay(&path, &MOUNT_POINTS)
                .kind(ExitKind::Failed)
        });
        applied
            .with_context(|| format!("what [[run]] {} has changed cannot be used", run.number))?;
        Ok(doubt)
    }

    /// Runs the step in a machine.
    fn boot(
        &self,
        tree: &Tree,
        run: &PlannedRun,
        key: &blake3::Hash,
        cache: &StepCache,
        stage: &Stage,
    ) -> Result<(Digest, Option<String>)> {
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
        let config = self.config(run);
        config
            .check()
            .with_context(|| format!("[[run]] {} cannot be run so", run.number))
            .kind(ExitKind::Usage)?;
        initramfs::build_step(&config, &folder.join("initramfs"))?;
        let user = run.command.user.as_deref();
        let (epoch, image) = (plan.epoch(), folder.join("rootfs"));
        rootfs::write_step_image(tree, user, epoch, self.mtimes, &image)?;
        interrupt.check()?;
        let machine = self.machine;
        let (watchdog, sandbox) = (machine.watchdog, machine.sandbox);
        let job = BootJob::step(plan, run, &images, key, watchdog, sandbox, &out);
        let place = self.smolfile.place(&run.span);
        let stepped = boot::run_step(&job, machine, &place, stage, interrupt)?;
        let layer = cache.add_layer(&out.join(LAYER_FILE))?;
        let doubt = stepped
            .first_tick_ms
            .map(|at| format!("[[run]] {}: {}", run.number, boot::ticked(at)));
        match &doubt {
            None => cache.store(key, layer)?,
            Some(why) => stage.note(&format!("warning: not reproducible: {why}")),
        }
        // The image is as large as the root file system, and there may be many steps.
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
        Ok((layer, doubt))
    }

    fn config(&self, run: &PlannedRun) -> StepConfig {
        let guest = self.plan.guest.as_ref();
        StepConfig {
            hostname: guest.map_or_else(|| self.plan.name.clone(), |guest| guest.hostname.clone()),
            rootfs: smol_protocol::Rootfs::default(),
            number: run.number,
            command: run.command.clone(),
            timeout_ms: run.timeout_ms,
            epoch: self.plan.epoch(),
        }
    }
}
