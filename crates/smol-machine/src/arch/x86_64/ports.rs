//! The I/O ports of the board.

use crate::devices::bus::Register;
use crate::hv::Address;
use crate::paravirt::REGISTERS_LEN;

/// First port of COM1.
const SERIAL: u16 = 0x3f8;
/// Ports of a 16550.
const SERIAL_PORTS: u16 = 8;
/// First port of the paravirtual interface.
pub const PARAVIRT: u16 = 0x520;
/// Command and status of the keyboard controller.
const KEYBOARD: u16 = 0x64;

/// Returns the register at an address of the guest.
pub(crate) fn register(at: Address) -> Option<Register> {
    let Address::Port(port) = at else { return None };
    let within = |first: u16, ports| port.checked_sub(first).filter(|number| *number < ports);
    if let Some(number) = within(SERIAL, SERIAL_PORTS) {
        return Some(Register::Serial(number));
    }
    if let Some(offset) = within(PARAVIRT, REGISTERS_LEN) {
        return Some(Register::Paravirt(offset));
    }
    (port == KEYBOARD).then_some(Register::Keyboard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_of_the_board_is_a_register_and_no_other() {
        let found = |port| register(Address::Port(port));
        assert_eq!(found(0x3f8), Some(Register::Serial(0)));
        assert_eq!(found(0x3ff), Some(Register::Serial(7)));
        assert_eq!(found(0x520), Some(Register::Paravirt(0)));
        assert_eq!(found(0x557), Some(Register::Paravirt(0x37)));
        assert_eq!(found(0x64), Some(Register::Keyboard));
        for port in [0, 0x60, 0x3f7, 0x400, 0x51f, 0x558, u16::MAX] {
            assert_eq!(found(port), None, "{port:#x}");
        }
        assert_eq!(register(Address::Memory(0x3f8)), None);
    }
}
