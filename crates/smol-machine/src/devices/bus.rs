//! The board: what stands on the guest's I/O ports and MMIO windows.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::serial::Serial;
use super::virtio::console::Console;
use super::virtio::pmem::Pmem;
use super::virtio::rng::Rng;
use super::virtio::vsock::Vsock;
use super::virtio::{IrqLine, MmioTransport, TransportState};
use crate::arch::layout;
use crate::hv::Vm;
use crate::memory::Ram;
use crate::memory::lazy::Contents;
use crate::paravirt::{self, Paravirt, Request};
use crate::{Error, Result, Stop};

/// virtio-mmio windows of the board.
pub const SLOTS: usize = 4;
/// Interrupt line of each window.
const SLOT_IRQS: [u32; SLOTS] = [5, 9, 10, 11];
/// Timer interrupt of the paravirtual clock.
const TIMER_IRQ: u32 = 0;
const KEYBOARD_STATUS: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;

/// The devices of a machine, each in its window; an empty window is not announced.
pub struct DeviceSet {
    /// Window 0, hvc0.
    pub console: Option<Console>,
    /// Window 1, /dev/pmem0.
    pub pmem: Option<Pmem>,
    /// Window 2.
    pub vsock: Option<Vsock>,
    /// Window 3.
    pub rng: Option<Rng>,
}

impl DeviceSet {
    /// Which windows are taken.
    pub fn occupied(&self) -> [bool; SLOTS] {
        [
            self.console.is_some(),
            self.pmem.is_some(),
            self.vsock.is_some(),
            self.rng.is_some(),
        ]
    }

    fn plug_in<V: Vm>(self, vm: &Arc<V>, ram: &Ram) -> [Option<Arc<MmioTransport>>; SLOTS] {
        let irq = |slot: usize| {
            Box::new(Gsi {
                vm: vm.clone(),
                gsi: SLOT_IRQS[slot],
            })
        };
        [
            self.console
                .map(|d| MmioTransport::new(d, ram.clone(), irq(0))),
            self.pmem
                .map(|d| MmioTransport::new(d, ram.clone(), irq(1))),
            self.vsock
                .map(|d| MmioTransport::new(d, ram.clone(), irq(2))),
            self.rng.map(|d| MmioTransport::new(d, ram.clone(), irq(3))),
        ]
    }
}

/// The machine's own part of the kernel command line: where its virtio devices are.
pub fn cmdline(occupied: [bool; SLOTS]) -> String {
    let windows = occupied
        .iter()
        .enumerate()
        .filter(|(_, there)| **there)
        .map(|(slot, _)| {
            let gpa = layout::MMIO_BASE + slot as u64 * layout::MMIO_SIZE;
            format!("virtio_mmio.device=4K@{gpa:#x}:{}", SLOT_IRQS[slot])
        });
    windows.collect::<Vec<_>>().join(" ")
}

/// Interrupt line of the board.
struct Gsi<V> {
    vm: Arc<V>,
    gsi: u32,
}

impl<V: Vm> IrqLine for Gsi<V> {
    fn set(&self, asserted: bool) {
        // The line exists as long as the machine; a failure could only be our bug, and the
        // guest would see a lost interrupt.
        if let Err(e) = self.vm.set_irq_line(self.gsi, asserted) {
            debug_assert!(false, "{e}");
        }
    }
}

/// Ports and windows of one machine.
pub(crate) struct Board {
    memory: Contents,
    ports: Mutex<Ports>,
    windows: [Option<Arc<MmioTransport>>; SLOTS],
    timer: Box<dyn IrqLine>,
    virtual_time: bool,
}

struct Ports {
    serial: Serial,
    paravirt: Option<Paravirt>,
}

impl Board {
    pub(crate) fn new<V: Vm>(
        vm: &Arc<V>,
        memory: Contents,
        serial: Serial,
        devices: DeviceSet,
        paravirt: Option<Paravirt>,
        virtual_time: bool,
    ) -> Self {
        let windows = devices.plug_in(vm, &memory.ram);
        let timer = Box::new(Gsi {
            vm: vm.clone(),
            gsi: TIMER_IRQ,
        });
        Self {
            memory,
            ports: Mutex::new(Ports { serial, paravirt }),
            windows,
            timer,
            virtual_time,
        }
    }

    fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pulse_timer(&self) {
        self.timer.set(true);
        self.timer.set(false);
    }

    /// Accounts for a VM exit: virtual time passes.
    pub(crate) fn exit(&self) {
        if self.virtual_time && self.ports().paravirt.as_mut().is_some_and(Paravirt::exit) {
            self.pulse_timer();
        }
    }

    /// A tick of the watchdog, from its thread. Virtual time before it, ns.
    pub(crate) fn tick(&self) -> Option<u64> {
        let mut ports = self.ports();
        let paravirt = ports.paravirt.as_mut()?;
        let (before, due) = (paravirt.now(), paravirt.tick());
        drop(ports);
        if due {
            self.pulse_timer();
        }
        Some(before)
    }

    pub(crate) fn io_in(&self, port: u16, data: &mut [u8]) {
        let mut ports = self.ports();
        let value = match port {
            super::serial::PORT_BASE..0x400 => Some(u32::from(
                ports.serial.read(port - super::serial::PORT_BASE),
            )),
            paravirt::PORT_BASE..paravirt::PORT_END => {
                ports.paravirt.as_mut().and_then(|p| p.read(port))
            }
            KEYBOARD_STATUS => Some(0),
            _ => None,
        };
        fill(data, value.unwrap_or(u32::MAX));
    }

    /// Port write; a machine-wide consequence comes back as a reason to stop.
    pub(crate) fn io_out(&self, port: u16, data: &[u8]) -> Option<Stop> {
        let mut ports = self.ports();
        match port {
            super::serial::PORT_BASE..0x400 => {
                // String output (REP OUTSB) comes as many bytes in one exit.
                for byte in data {
                    ports.serial.write(port - super::serial::PORT_BASE, *byte);
                }
            }
            paravirt::PORT_BASE..paravirt::PORT_END => {
                let value = u32::from_le_bytes(data.try_into().ok()?);
                let (request, timer_due) = ports.paravirt.as_mut()?.write(port, value);
                drop(ports);
                if timer_due {
                    self.pulse_timer();
                }
                return match request {
                    Request::None => None,
                    Request::Snapshot => Some(Stop::Snapshot),
                    Request::Stuck => Some(Stop::Stuck),
                };
            }
            KEYBOARD_STATUS if data.first() == Some(&KEYBOARD_RESET) => return Some(Stop::Reset),
            _ => {}
        }
        None
    }

    fn window(&self, gpa: u64) -> Option<(&MmioTransport, u64)> {
        let offset = gpa.checked_sub(layout::MMIO_BASE)?;
        let slot = usize::try_from(offset / layout::MMIO_SIZE).ok()?;
        Some((
            self.windows.get(slot)?.as_deref()?,
            offset % layout::MMIO_SIZE,
        ))
    }

    pub(crate) fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        match self.window(gpa) {
            Some((transport, offset)) => transport.read(offset, data),
            // Memory comes here where the hypervisor emulates an instruction with an operand on a
            // page that it cannot have (see `demand`). We can: a touch of ours waits for it.
            None if self.memory.read_at(gpa, data) => {}
            None => data.fill(0xff),
        }
    }

    pub(crate) fn mmio_write(&self, gpa: u64, data: &[u8]) {
        match self.window(gpa) {
            Some((transport, offset)) => transport.write(offset, data),
            None => self.memory.write_at(gpa, data),
        }
    }

    pub(crate) fn paravirt(&self) -> Option<paravirt::ParavirtState> {
        self.ports().paravirt.as_ref().map(Paravirt::save)
    }

    pub(crate) fn save(&self) -> Vec<Option<TransportState>> {
        self.windows
            .iter()
            .map(|w| w.as_ref().map(|t| t.save()))
            .collect()
    }

    pub(crate) fn restore(&self, states: &[Option<TransportState>]) -> Result<()> {
        if states.len() != SLOTS {
            return Err(Error::bad_state(format!(
                "it has {} device windows instead of {SLOTS}",
                states.len()
            )));
        }
        for (slot, (window, state)) in self.windows.iter().zip(states).enumerate() {
            match (window, state) {
                (Some(transport), Some(state)) => {
                    transport
                        .restore(state)
                        .map_err(|e| Error::bad_state(format!("device window {slot}: {e}")))?;
                }
                (None, None) => {}
                (Some(_), None) => {
                    return Err(Error::bad_state(format!(
                        "device window {slot} is empty in it"
                    )));
                }
                (None, Some(_)) => {
                    return Err(Error::bad_state(format!(
                        "it has a device in window {slot} that this machine lacks"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Lets every device tell the guest what happened while it was frozen. Once, before the first run.
    pub(crate) fn resume(&self) {
        for transport in self.windows.iter().flatten() {
            transport.resume();
        }
    }
}

/// Puts a register value into a port read of any width.
fn fill(data: &mut [u8], value: u32) {
    for (to, from) in data.iter_mut().zip(value.to_le_bytes().into_iter().cycle()) {
        *to = from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_taken_windows_are_announced() {
        assert_eq!(
            cmdline([true, false, false, true]),
            "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0003000:11"
        );
    }
}
