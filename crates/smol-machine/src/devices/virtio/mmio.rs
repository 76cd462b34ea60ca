//! The MMIO transport, version 2 (virtio 1.2, section 4.2).
//!
//! One transport owns one device and its queues behind one lock. vCPU threads come in by
//! [`MmioTransport::read`] and [`MmioTransport::write`], a live machine's I/O threads by
//! [`Waker`]; whoever holds the lock leaves it with the interrupt line in accord with
//! `InterruptStatus`.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

pub use super::state::TransportState;
use super::{Fault, Mem, StateError, VirtQueue, VirtioDevice};

/// Feature bits of the transport and the rings, offered with every device.
const TRANSPORT_FEATURES: u64 = VERSION_1 | EVENT_IDX;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"smol");

/// Registers (section 4.2.2), by their names there.
mod reg {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// Bits of `InterruptStatus`.
const INTERRUPT_USED: u32 = 1;
const INTERRUPT_CONFIG: u32 = 2;

const STATUS_BITS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_NEEDS_RESET
    | VIRTIO_CONFIG_S_FAILED;

/// The interrupt line of one device.
pub trait IrqLine: Send + Sync {
    /// Level: asserted while `InterruptStatus` is not zero. Called at every change and now and
    /// then without one, with the transport's lock held.
    fn set(&self, asserted: bool);
}

/// A virtio device on the MMIO bus.
pub struct MmioTransport {
    inner: Arc<Mutex<Inner>>,
    waker: Waker,
}

/// Lets threads other than the vCPUs' have a device served.
#[derive(Clone, Default)]
pub struct Waker(Arc<Mutex<Option<Arc<Mutex<Inner>>>>>);

impl Waker {
    /// Runs [`VirtioDevice::service`] on this thread if the machine still exists and the driver
    /// has activated the device.
    pub fn wake(&self) {
        if let Some(inner) = &*lock(&self.0) {
            lock(inner).run(|device, queues, mem| device.service(queues, mem));
        }
    }
}

impl Drop for MmioTransport {
    /// Waits for a thread that is serving the device, so that the device is dropped here and
    /// with it, at once, all that it holds open.
    fn drop(&mut self) {
        lock(&self.waker.0).take();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Inner {
    device: Box<dyn VirtioDevice>,
    mem: Mem,
    irq: Box<dyn IrqLine>,
    queues: Vec<VirtQueue>,
    status: u32,
    features: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    interrupt_status: u32,
    config_generation: u32,
    fault: Option<Fault>,
    /// The machine is stopped: neither RAM nor the interrupt line may be accessed.
    paused: bool,
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        f.debug_struct("MmioTransport")
            .field("device_id", &inner.device.id())
            .field("status", &inner.status)
            .field("fault", &inner.fault)
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// Puts `device` behind a transport in its reset state. `mem` is the guest's RAM.
    pub fn new(mut device: Box<dyn VirtioDevice>, mem: Mem, irq: Box<dyn IrqLine>) -> Arc<Self> {
        let waker = Waker::default();
        device.attach(waker.clone());
        let sizes = device.queue_sizes().iter();
        let queues = sizes.map(|&size| VirtQueue::new(size)).collect();
        let inner = Arc::new(Mutex::new(Inner {
            device,
            mem,
            irq,
            queues,
            status: 0,
            features: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            interrupt_status: 0,
            config_generation: 0,
            fault: None,
            paused: false,
        }));
        *lock(&waker.0) = Some(inner.clone());
        Arc::new(Self { inner, waker })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Reads `data.len()` bytes for the guest at `offset` in the window. Registers are read with 4
    /// bytes, the configuration space with any; anything else reads as zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let inner = self.lock();
        if offset >= reg::CONFIG {
            let config = inner.device.config();
            let start = usize::try_from(offset - reg::CONFIG).unwrap_or(usize::MAX);
            for (to, from) in data.iter_mut().zip(config.iter().skip(start)) {
                *to = *from;
            }
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = inner.read_register(offset).to_le_bytes();
        }
    }

    /// Writes `data` for the guest at `offset` in the window. A `QueueNotify` is served to the end
    /// before this returns.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Ok(value) = <[u8; 4]>::try_from(data) {
            self.lock()
                .write_register(offset, u32::from_le_bytes(value));
        }
    }

    /// Keeps all threads off RAM and the interrupt line until [`MmioTransport::resume`]: for a
    /// live machine whose vCPUs have been stopped for a snapshot.
    pub fn pause(&self) {
        self.lock().paused = true;
    }

    /// Returns the state for a snapshot, taken while no vCPU runs.
    pub fn save(&self) -> TransportState {
        let inner = self.lock();
        TransportState {
            device_id: inner.device.id(),
            status: inner.status,
            features: inner.features,
            device_features_sel: inner.device_features_sel,
            driver_features_sel: inner.driver_features_sel,
            queue_sel: inner.queue_sel,
            interrupt_status: inner.interrupt_status,
            config_generation: inner.config_generation,
            queues: inner.queues.iter().map(VirtQueue::save).collect(),
            device: inner.device.save(),
        }
    }

    /// Takes over a saved state and leaves the transport paused: neither RAM nor the interrupt
    /// line is accessed before [`MmioTransport::resume`].
    ///
    /// # Errors
    /// If the state is not one that this device can be in, with these features, queues and RAM;
    /// the transport is then as it was.
    pub fn restore(&self, state: &TransportState) -> Result<(), StateError> {
        let mut inner = self.lock();
        inner
            .restore(state)
            .map_err(|e| StateError(format!("virtio device {}: {e}", inner.device.id())))
    }

    /// Goes on after [`MmioTransport::restore`] or [`MmioTransport::pause`], once RAM and the
    /// interrupt controllers are in place and before any vCPU runs: sets the interrupt line, tells
    /// the guest what it has to know and serves what had been left in the queues.
    pub fn resume(&self) {
        let mut inner = self.lock();
        inner.paused = false;
        inner.run(|device, queues, mem| device.service(queues, mem));
        inner.notify_all();
        inner.set_irq();
    }

    /// Returns why the device stopped and has to be reset, if it did: a fault of the driver, for
    /// diagnostics.
    pub fn fault(&self) -> Option<String> {
        self.lock().fault.as_ref().map(Fault::to_string)
    }
}

impl Inner {
    fn offered(&self) -> u64 {
        TRANSPORT_FEATURES | self.device.features()
    }

    fn has(&self, status: u32) -> bool {
        self.status & status == status
    }

    fn failed(&self) -> bool {
        self.status & (VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED) != 0
    }

    fn selected(&self) -> Option<&VirtQueue> {
        self.queues.get(self.queue_sel as usize)
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            reg::MAGIC_VALUE => MAGIC,
            reg::VERSION => VERSION,
            reg::DEVICE_ID => self.device.id(),
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => half(self.offered(), self.device_features_sel),
            reg::QUEUE_NUM_MAX => self
                .device
                .queue_sizes()
                .get(self.queue_sel as usize)
                .map_or(0, |&size| size.into()),
            reg::QUEUE_READY => self.selected().is_some_and(VirtQueue::ready).into(),
            reg::INTERRUPT_STATUS => self.interrupt_status,
            reg::STATUS => self.status,
            // There are no shared memory regions: "-1" by section 4.2.2.
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH => u32::MAX,
            reg::CONFIG_GENERATION => self.config_generation,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::DRIVER_FEATURES => self.accept_features(value),
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::QUEUE_NUM..=reg::QUEUE_READY | reg::QUEUE_DESC_LOW..=reg::QUEUE_DEVICE_HIGH => {
                self.configure_queue(offset, value);
            }
            reg::QUEUE_NOTIFY => self.notify(value as usize),
            reg::INTERRUPT_ACK => {
                self.interrupt_status &= !value;
                self.set_irq();
            }
            reg::STATUS => self.set_status(value),
            _ => {}
        }
    }

    /// Between DRIVER and FEATURES_OK (section 3.1.1, step 4).
    fn accept_features(&mut self, value: u32) {
        if !self.has(VIRTIO_CONFIG_S_DRIVER) || self.has(VIRTIO_CONFIG_S_FEATURES_OK) {
            return;
        }
        match self.driver_features_sel {
            0 => self.features = self.features & !0xffff_ffff | u64::from(value),
            1 => self.features = self.features & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    /// After FEATURES_OK, for a queue that is not ready; a ready queue can only be given up.
    fn configure_queue(&mut self, offset: u64, value: u32) {
        let event_idx = self.features & EVENT_IDX != 0;
        if !self.has(VIRTIO_CONFIG_S_FEATURES_OK) || self.failed() {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else {
            return;
        };
        if queue.ready() {
            if offset == reg::QUEUE_READY && value == 0 {
                queue.reset();
            }
            return;
        }
        let registers = queue.registers();
        match offset {
            // The library refuses sizes and alignments that the specification does not allow.
            reg::QUEUE_NUM => registers.set_size(value.try_into().unwrap_or(0)),
            reg::QUEUE_DESC_LOW => registers.set_desc_table_address(Some(value), None),
            reg::QUEUE_DESC_HIGH => registers.set_desc_table_address(None, Some(value)),
            reg::QUEUE_DRIVER_LOW => registers.set_avail_ring_address(Some(value), None),
            reg::QUEUE_DRIVER_HIGH => registers.set_avail_ring_address(None, Some(value)),
            reg::QUEUE_DEVICE_LOW => registers.set_used_ring_address(Some(value), None),
            reg::QUEUE_DEVICE_HIGH => registers.set_used_ring_address(None, Some(value)),
            reg::QUEUE_READY if value == 1 => {
                if let Err(fault) = queue.enable(&self.mem, event_idx) {
                    self.fail(fault);
                }
            }
            _ => {}
        }
    }

    /// The status machine (sections 2.1 and 3.1.1): bits are only ever added, in order, until a
    /// reset.
    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let mut added = value & STATUS_BITS & !VIRTIO_CONFIG_S_NEEDS_RESET & !self.status;
        let unknown = self.features & !self.offered() != 0 || self.features & VERSION_1 == 0;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0
            && (unknown || !self.has(VIRTIO_CONFIG_S_DRIVER))
        {
            added &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !self.has(VIRTIO_CONFIG_S_FEATURES_OK) {
            added &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        self.status |= added;
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.notify_all();
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(VirtQueue::reset);
        self.status = 0;
        self.features = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
        self.interrupt_status = 0;
        self.fault = None;
        self.set_irq();
    }

    fn notify(&mut self, index: usize) {
        if self.queues.get(index).is_some_and(VirtQueue::ready) {
            self.run(|device, queues, mem| device.notify(index, queues, mem));
        }
    }

    fn notify_all(&mut self) {
        for index in 0..self.queues.len() {
            self.notify(index);
        }
    }

    /// Lets an active device work, then raises the interrupt that it owes or takes its fault.
    fn run(
        &mut self,
        work: impl FnOnce(&mut dyn VirtioDevice, &mut [VirtQueue], &Mem) -> Result<(), Fault>,
    ) {
        if self.paused || !self.has(VIRTIO_CONFIG_S_DRIVER_OK) || self.failed() {
            return;
        }
        self.queues.iter_mut().for_each(VirtQueue::begin);
        let result = work(&mut *self.device, &mut self.queues, &self.mem);
        let signals = self
            .queues
            .iter_mut()
            .filter(|queue| queue.ready())
            .map(VirtQueue::take_signal);
        if signals.fold(false, |any, signal| any | signal) {
            self.interrupt_status |= INTERRUPT_USED;
            self.set_irq();
        }
        if let Err(fault) = result {
            self.fail(fault);
        }
    }

    /// Section 2.1.2: a device that cannot go on asks to be reset.
    fn fail(&mut self, fault: Fault) {
        self.device.reset();
        self.fault = Some(fault);
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        if self.has(VIRTIO_CONFIG_S_DRIVER_OK) {
            self.interrupt_status |= INTERRUPT_CONFIG;
            self.set_irq();
        }
    }

    fn set_irq(&self) {
        self.irq.set(self.interrupt_status != 0);
    }

    fn restore(&mut self, state: &TransportState) -> Result<(), StateError> {
        self.check(state)?;
        let sizes = self.device.queue_sizes();
        let queues = sizes.iter().zip(&state.queues);
        let queues: Result<_, _> = queues
            .map(|(&max, q)| VirtQueue::restore(max, q, &self.mem))
            .collect();
        let queues = queues?;
        self.device.restore(&state.device)?;
        self.queues = queues;
        self.status = state.status;
        self.features = state.features;
        self.device_features_sel = state.device_features_sel;
        self.driver_features_sel = state.driver_features_sel;
        self.queue_sel = state.queue_sel;
        self.interrupt_status = state.interrupt_status;
        self.config_generation = state.config_generation;
        self.fault = None;
        self.paused = true;
        Ok(())
    }

    /// Whether the transport's part of `state` is one that a driver can bring about.
    fn check(&self, state: &TransportState) -> Result<(), StateError> {
        let refuse = |what: String| Err(StateError(what));
        let status = |bits: u32| state.status & bits != 0;
        if state.device_id != self.device.id() {
            return refuse(format!("the state is that of device {}", state.device_id));
        }
        let unknown = state.features & !self.offered();
        let negotiated = status(VIRTIO_CONFIG_S_FEATURES_OK);
        if negotiated && (unknown != 0 || state.features & VERSION_1 == 0) {
            return refuse(format!(
                "the driver uses feature bits {:#x}, offered are {:#x}",
                state.features,
                self.offered()
            ));
        }
        if status(!STATUS_BITS) || status(VIRTIO_CONFIG_S_DRIVER_OK) && !negotiated {
            return refuse(format!("impossible device status {:#x}", state.status));
        }
        if state.interrupt_status & !(INTERRUPT_USED | INTERRUPT_CONFIG) != 0 {
            return refuse(format!(
                "impossible interrupt status {:#x}",
                state.interrupt_status
            ));
        }
        if state.queues.len() != self.queues.len() {
            return refuse(format!(
                "{} virtqueues, the device has {}",
                state.queues.len(),
                self.queues.len()
            ));
        }
        let event_idx = state.features & EVENT_IDX != 0;
        if state
            .queues
            .iter()
            .any(|q| q.ready && (!negotiated || q.event_idx != event_idx))
        {
            return refuse("a virtqueue that does not fit the negotiated features".into());
        }
        Ok(())
    }
}

/// Returns the low (0) or high (1) 32 bits of a set of feature bits; there are no others.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}
