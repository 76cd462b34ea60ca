//! From a frozen machine to a bundle: the last stage before the signature.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use smol_bundle::limits::MAX_STATE_SIZE;
use smol_bundle::{
    BundleSpec, ClockMode, Config, CpuContract, Prepared, PrivateKey, Reproducible, SnapshotSpec,
    Tsc, TscNeeds, WorkingSet, Written,
};
use smol_cli::human;
use smol_machine::cpu;
use smol_rootfs::host;

use crate::boot::{Frozen, Images, MEMORY_FILE, STATE_FILE, WORKING_SET_FILE};
use crate::context::BuildContext;
use crate::error::{LibraryError, ResultExt};
use crate::plan::{Plan, Sealed};

/// Longest list of the working set, in bytes: 30 for each run of pages.
const MAX_WORKING_SET: u64 = 64 << 20;

/// A bundle that was written.
pub struct Built {
    /// What it was built from, and the digests of its images.
    pub sealed: Sealed,
    /// The machine as it was frozen.
    pub frozen: Frozen,
    /// The file.
    pub written: Written,
}

/// Describes the bundle of a machine that was frozen into the folder `frozen_in`.
///
/// # Errors
/// If the captured state cannot be read.
pub fn spec(
    plan: &Plan,
    images: &Images,
    frozen: &Frozen,
    frozen_in: &Path,
    smolfile: &str,
) -> Result<BundleSpec> {
    let state = result(frozen_in, STATE_FILE, MAX_STATE_SIZE)?;
    Ok(BundleSpec {
        config: config(plan, frozen),
        kernel: images.kernel.clone(),
        initramfs: images.initramfs.clone(),
        rootfs: images.rootfs.clone(),
        snapshot: Some(SnapshotSpec {
            state,
            memory: frozen_in.join(MEMORY_FILE),
            working_set: working_set(frozen, frozen_in)?,
        }),
        smolfile: Some(smolfile.as_bytes().to_vec()),
        lock: Some(plan.lock.without_places().to_text().into_bytes()),
        parent: plan.lock.base(),
    })
}

fn working_set(frozen: &Frozen, frozen_in: &Path) -> Result<WorkingSet> {
    if frozen.working_set.is_none() {
        return Ok(WorkingSet::default());
    }
    let text = result(frozen_in, WORKING_SET_FILE, MAX_WORKING_SET)?;
    serde_json::from_slice(&text).context("the working set")
}

/// Reads a file that the boot left in the folder `frozen_in`, of at most `limit` bytes, and follows no
/// link there.
fn result(frozen_in: &Path, name: &str, limit: u64) -> Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", frozen_in.join(name).display());
    let folder = frozen_in.canonicalize().with_context(cannot)?;
    let file = host::open(&folder.join(name)).with_context(cannot)?;
    let is_file = file.metadata().with_context(cannot)?.is_file();
    ensure!(is_file, "{}: it is no file", cannot());
    let mut bytes = Vec::new();
    let read = file.take(limit + 1).read_to_end(&mut bytes);
    read.with_context(cannot)?;
    let short = bytes.len() as u64 <= limit;
    ensure!(short, "{}: it has more than {limit} bytes", cannot());
    Ok(bytes)
}

/// Writes the unsigned bundle, which appears whole or not at all.
///
/// # Errors
/// As [`smol_bundle::write_while`]; the interrupt.
pub fn write(
    spec: &BundleSpec,
    prepared: &Prepared,
    out: &Path,
    context: BuildContext,
) -> Result<Written> {
    let interrupt = &context.session.interrupt;
    let stage = context
        .session
        .stage("pack", "dropping equal pages, compressing");
    let written = smol_bundle::write_while(spec, prepared, out, &mut |done, total| {
        stage.set(done, total);
        match interrupt.is_set() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    let written = written.map_err(|error| {
        let stopped = interrupt.check().err().map(anyhow::Error::from);
        stopped.unwrap_or_else(|| error.classified())
    })?;
    stage.finish(&human::bytes(written.file_size));
    Ok(written)
}

/// Writes a signed copy of the bundle `unsigned` to `out`, whole or not at all.
///
/// # Errors
/// `out` cannot be written; the interrupt.
pub fn sign(unsigned: &Path, key: &PrivateKey, out: &Path, context: BuildContext) -> Result<()> {
    context.session.check()?;
    let stage = context.session.stage("sign", "signing");
    smol_bundle::sign(unsigned, key, out).classify()?;
    stage.finish(&format!("by {}", key.public().id()));
    Ok(())
}

pub(crate) fn config(plan: &Plan, frozen: &Frozen) -> Config {
    Config {
        name: plan.name.clone(),
        version: plan.version.clone(),
        arch: std::env::consts::ARCH.to_owned(),
        cpus: plan.cpus,
        memory: plan.memory,
        cmdline: plan.kernel.run_cmdline.clone(),
        ports: plan.ports().to_vec(),
        warm: plan.warm_commands(),
        clock: if frozen.virtual_time {
            ClockMode::Virtual
        } else {
            ClockMode::Host
        },
        reproducible: Some(claim(frozen)),
        cpu: contract(frozen),
    }
}

/// What the bundle says of itself: `smolbuild reproduce` puts it to the test.
fn claim(frozen: &Frozen) -> Reproducible {
    let reason = frozen.unreproducible();
    Reproducible {
        claimed: reason.is_none(),
        reason,
    }
}

fn contract(frozen: &Frozen) -> CpuContract {
    let needs = if frozen.virtual_time {
        TscNeeds::Invariant
    } else {
        TscNeeds::None
    };
    CpuContract {
        arch: std::env::consts::ARCH.to_owned(),
        features: frozen.cpu_features.clone(),
        physical_address_bits: cpu::PHYSICAL_ADDRESS_BITS.into(),
        xcr0: frozen.xcr0,
        tsc: Tsc { needs, khz: None },
    }
}
