//! The bus: takes each access of the guest to the device at that address, and each device's
//! interrupts to the hypervisor.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::DeviceSet;
use super::serial::Serial;
use super::slot::Slot;
use super::virtio::{IrqLine, MmioTransport, TransportState};
use crate::arch::{layout, ports};
use crate::hv::{Address, Vm};
use crate::memory::lazy::Contents;
use crate::paravirt::{GuestRequest, Paravirt, ParavirtState, Phase};
use crate::{Error, Result, Stop};

/// A register of the board outside of the virtio windows. Its address depends on the processor
/// ([`ports::register`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Register {
    /// Of the serial port, by its number.
    Serial(u16),
    /// Of the paravirtual interface, by its offset.
    Paravirt(u16),
    /// Command and status of the keyboard controller, of which only the reset command exists.
    Keyboard,
}

/// The keyboard controller's command that resets the machine.
const RESET: u8 = 0xfe;

/// An interrupt line of the hypervisor's controllers.
struct Line<V> {
    vm: Arc<V>,
    irq: u32,
}

impl<V: Vm> IrqLine for Line<V> {
    fn set(&self, asserted: bool) {
        // The line exists as long as the machine. A failure could only be a bug of the VMM, and
        // the guest would see a lost interrupt.
        if let Err(e) = self.vm.set_irq_line(self.irq, asserted) {
            debug_assert!(false, "{e}");
        }
    }
}

/// All that a guest reaches by an address, except the RAM that the hypervisor maps.
pub(crate) struct Bus {
    memory: Contents,
    registers: Mutex<Registers>,
    /// By [`Slot::index`].
    devices: [Option<Arc<MmioTransport>>; Slot::ALL.len()],
    timer: Box<dyn IrqLine>,
    phase: Phase,
}

struct Registers {
    serial: Serial,
    paravirt: Option<Paravirt>,
}

impl Bus {
    pub(crate) fn new<V: Vm>(
        vm: &Arc<V>,
        memory: Contents,
        serial: Serial,
        devices: DeviceSet,
        paravirt: Option<Paravirt>,
    ) -> Self {
        let line = |irq| {
            Box::new(Line {
                vm: vm.clone(),
                irq,
            })
        };
        let mut slots = Slot::ALL.into_iter();
        let devices = devices.0.map(|device| {
            let slot = slots.next()?;
            let transport =
                |device| MmioTransport::new(device, memory.ram.clone(), line(slot.irq()));
            device.map(transport)
        });
        Self {
            timer: line(layout::TIMER_IRQ),
            phase: paravirt.as_ref().map_or(Phase::Host, Paravirt::phase),
            registers: Mutex::new(Registers { serial, paravirt }),
            memory,
            devices,
        }
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn pulse_timer(&self) {
        self.timer.set(true);
        self.timer.set(false);
    }

    /// Returns where the machine's time comes from.
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Accounts for a VM exit: virtual time passes.
    pub(crate) fn exit(&self) {
        if self.phase == Phase::Virtual
            && self
                .registers()
                .paravirt
                .as_mut()
                .is_some_and(Paravirt::exit)
        {
            self.pulse_timer();
        }
    }

    /// Lets virtual time pass by a tick of the watchdog, from its thread. Returns the virtual time
    /// before it, ns.
    pub(crate) fn tick(&self) -> Option<u64> {
        let mut registers = self.registers();
        let paravirt = registers.paravirt.as_mut()?;
        let (before, due) = (paravirt.now(), paravirt.tick());
        if due {
            // With the lock held: the guest must find the interrupt when it next accesses a register.
            self.pulse_timer();
        }
        Some(before)
    }

    /// Has the machine stop once `ns` of virtual time have passed from now on.
    pub(crate) fn limit(&self, ns: u64) {
        if let Some(paravirt) = &mut self.registers().paravirt {
            paravirt.limit(ns);
        }
    }

    /// Reads for the guest. Where nothing is, all bits are set.
    pub(crate) fn read(&self, at: Address, data: &mut [u8]) {
        match (ports::register(at), at) {
            (Some(register), _) => fill(data, self.read_register(register)),
            (None, Address::Memory(gpa)) => self.read_memory(gpa, data),
            (None, Address::Port(_)) => data.fill(0xff),
        }
    }

    /// Writes for the guest. Returns a reason to stop if the write asks for something that
    /// concerns the whole machine.
    pub(crate) fn write(&self, at: Address, data: &[u8]) -> Option<Stop> {
        match (ports::register(at), at) {
            (Some(register), _) => self.write_register(register, data),
            (None, Address::Memory(gpa)) => {
                self.write_memory(gpa, data);
                None
            }
            (None, Address::Port(_)) => None,
        }
    }

    fn read_register(&self, register: Register) -> u32 {
        let mut registers = self.registers();
        match register {
            Register::Serial(number) => registers.serial.read(number).into(),
            Register::Paravirt(offset) => {
                let paravirt = registers.paravirt.as_mut();
                paravirt.and_then(|p| p.read(offset)).unwrap_or(u32::MAX)
            }
            Register::Keyboard => 0,
        }
    }

    fn write_register(&self, register: Register, data: &[u8]) -> Option<Stop> {
        let mut registers = self.registers();
        match register {
            Register::Serial(number) => {
                // String output (REP OUTSB) comes as many bytes in one exit.
                for byte in data {
                    registers.serial.write(number, *byte);
                }
                None
            }
            Register::Paravirt(offset) => {
                let value = u32::from_le_bytes(data.try_into().ok()?);
                let (request, timer_due) = registers.paravirt.as_mut()?.write(offset, value);
                drop(registers);
                if timer_due {
                    self.pulse_timer();
                }
                match request {
                    GuestRequest::None => None,
                    GuestRequest::Snapshot => Some(Stop::Snapshot),
                    GuestRequest::Stuck => Some(Stop::Stuck),
                    GuestRequest::TimeIsUp => Some(Stop::TimeIsUp),
                }
            }
            Register::Keyboard => (data.first() == Some(&RESET)).then_some(Stop::Reset),
        }
    }

    fn device_at(&self, gpa: u64) -> Option<(&MmioTransport, u64)> {
        let (slot, offset) = Slot::at(gpa)?;
        Some((self.devices[slot.index()].as_deref()?, offset))
    }

    fn read_memory(&self, gpa: u64, data: &mut [u8]) {
        match self.device_at(gpa) {
            Some((transport, offset)) => transport.read(offset, data),
            // An access to RAM comes here where the hypervisor emulates an instruction one of
            // whose operands is on a page that the kernel cannot fault in (see `memory::lazy`).
            // An access of ours waits for the page.
            None if self.memory.read_at(gpa, data) => {}
            None => data.fill(0xff),
        }
    }

    fn write_memory(&self, gpa: u64, data: &[u8]) {
        match self.device_at(gpa) {
            Some((transport, offset)) => transport.write(offset, data),
            None => self.memory.write_at(gpa, data),
        }
    }

    pub(crate) fn paravirt(&self) -> Option<ParavirtState> {
        self.registers().paravirt.as_ref().map(Paravirt::save)
    }

    /// Captures the virtio devices, by slot.
    pub(crate) fn save(&self) -> Vec<Option<TransportState>> {
        let states = self.devices.iter();
        states
            .map(|device| device.as_ref().map(|t| t.save()))
            .collect()
    }

    /// Restores the virtio devices, and leaves them paused until [`Bus::resume`].
    pub(crate) fn restore(&self, states: &[Option<TransportState>]) -> Result<()> {
        let bad = |message: String| Err(Error::bad_state(message));
        if states.len() != self.devices.len() {
            return bad(format!(
                "it has {} device windows instead of {}",
                states.len(),
                self.devices.len()
            ));
        }
        for (slot, (device, state)) in self.devices.iter().zip(states).enumerate() {
            match (device, state) {
                (Some(transport), Some(state)) => transport
                    .restore(state)
                    .map_err(|e| Error::bad_state(format!("device window {slot}: {e}")))?,
                (None, None) => {}
                (Some(_), None) => return bad(format!("device window {slot} is empty in it")),
                (None, Some(_)) => {
                    return bad(format!(
                        "it has a device in window {slot} that this machine lacks"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Keeps the devices off RAM and interrupt lines until [`Bus::resume`].
    pub(crate) fn pause(&self) {
        self.devices.iter().flatten().for_each(|t| t.pause());
    }

    /// Lets every device tell the guest what happened while it was frozen, before the vCPUs run.
    pub(crate) fn resume(&self) {
        self.devices.iter().flatten().for_each(|t| t.resume());
    }
}

/// Puts a register's value into a read of any width.
fn fill(data: &mut [u8], value: u32) {
    for (to, from) in data.iter_mut().zip(value.to_le_bytes().into_iter().cycle()) {
        *to = from;
    }
}
