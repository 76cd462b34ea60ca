//! What a snapshot holds of the virtio devices: our own types, numbers only, in the order and
//! under the names in which they are serialised.
//!
//! A state comes from a bundle and may be hostile: nothing of it is used before it was checked
//! against the device that takes it over and against the guest's RAM.

use serde::{Deserialize, Serialize};

/// Why a captured device cannot be restored on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StateError(pub(super) String);

/// A virtio-mmio transport and its device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportState {
    /// Virtio device id (section 5).
    pub device_id: u32,
    /// Device status (section 2.1).
    pub status: u32,
    /// Feature bits that the driver has accepted.
    pub features: u64,
    /// `DeviceFeaturesSel`.
    pub device_features_sel: u32,
    /// `DriverFeaturesSel`.
    pub driver_features_sel: u32,
    /// `QueueSel`.
    pub queue_sel: u32,
    /// `InterruptStatus`: bit 0 used buffers, bit 1 configuration change.
    pub interrupt_status: u32,
    /// `ConfigGeneration`.
    pub config_generation: u32,
    /// The virtqueues, as many as the device has.
    pub queues: Vec<QueueState>,
    /// What the device itself remembers.
    pub device: DeviceState,
}

/// A split virtqueue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// Entries: a power of two.
    pub size: u16,
    /// Whether the driver has set the queue up.
    pub ready: bool,
    /// GPA of the descriptor table.
    pub desc: u64,
    /// GPA of the available ring.
    pub avail: u64,
    /// GPA of the used ring.
    pub used: u64,
    /// Next entry of the available ring that the device takes.
    pub next_avail: u16,
    /// Next entry of the used ring that the device writes.
    pub next_used: u16,
    /// Notifications are suppressed by index (VIRTIO_F_EVENT_IDX).
    pub event_idx: bool,
}

/// State of a device beyond its transport's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum DeviceState {
    /// virtio-console.
    Console {},
    /// virtio-rng. The position of a seeded stream is not kept: a restored machine has the
    /// host's randomness.
    Rng {},
    /// virtio-pmem.
    Pmem {
        /// GPA of the region.
        start: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// virtio-vsock. Its connections are not kept: they end at the snapshot, and the restored
    /// guest is told so.
    Vsock {
        /// The guest's context id.
        guest_cid: u64,
    },
}

impl DeviceState {
    /// Returns the error for a device that finds another kind of state than its own.
    pub(super) fn mismatch(&self, wanted: &str) -> StateError {
        StateError(format!(
            "it is the state of another kind of device than virtio-{wanted}: {self:?}"
        ))
    }
}
