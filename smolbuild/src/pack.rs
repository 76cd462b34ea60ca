//! From a frozen machine to a bundle: the last stage before the signature.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result};
use smol_bundle::{
    BundleSpec, ClockMode, Config, CpuContract, Prepared, Reproducible, SnapshotSpec, Tsc,
    TscNeeds, WorkingSet, Written,
};
use smol_cli::Interrupt;
use smol_machine::cpu;

use crate::assemble::Images;
use crate::boot::{Frozen, MEMORY_FILE, STATE_FILE, WORKING_SET_FILE};
use crate::plan::Plan;

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
    let state_path = frozen_in.join(STATE_FILE);
    let state = std::fs::read(&state_path)
        .with_context(|| format!("cannot read {}", state_path.display()))?;
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
        lock: Some(plan.lock.to_text().into_bytes()),
        parent: plan.lock.base(),
    })
}

fn working_set(frozen: &Frozen, frozen_in: &Path) -> Result<WorkingSet> {
    if frozen.working_set.is_none() {
        return Ok(WorkingSet::default());
    }
    let path = frozen_in.join(WORKING_SET_FILE);
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{}", path.display()))
}

/// Writes the bundle, unless the user wants us to stop.
///
/// # Errors
/// As [`smol_bundle::write_while`].
pub fn write(
    spec: &BundleSpec,
    prepared: &Prepared,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64),
    interrupt: &Interrupt,
) -> smol_bundle::Result<Written> {
    smol_bundle::write_while(spec, prepared, out, &mut |done, total| {
        progress(done, total);
        match interrupt.is_set() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })
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
    let reason = unreproducible(frozen);
    Reproducible {
        claimed: reason.is_none(),
        reason,
    }
}

/// Why no second build can be expected to give the same bits; `None` if it can.
pub fn unreproducible(frozen: &Frozen) -> Option<String> {
    if !frozen.virtual_time {
        return Some("the kernel runs on the host's clock".to_owned());
    }
    if let Some(why) = &frozen.no_working_set {
        return Some(format!(
            "what a restored machine touches first was not found out: {why}"
        ));
    }
    let at = frozen.first_tick_ms?;
    Some(format!(
        "watchdog tick at {}.{:03} s of guest time: the guest computed without pause, and from \
         then on its time was the host's",
        at / 1000,
        at % 1000
    ))
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
        xcr0: 0,
        tsc: Tsc { needs, khz: None },
    }
}
