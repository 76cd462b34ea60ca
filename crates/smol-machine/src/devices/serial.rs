//! The early console: as much of a 16550 as a kernel needs to print before its drivers
//! are up, and as bare guests use. Output only, no interrupt.

use std::io::Write;

const DATA: u16 = 0;
const IIR: u16 = 2;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
const MSR: u16 = 6;
const SCRATCH: u16 = 7;
const DLAB: u8 = 0x80;
const LOOPBACK: u8 = 0x10;
const TRANSMITTER_EMPTY: u8 = 0x60;
const NO_INTERRUPT: u8 = 1;
const CARRIER_AND_READY: u8 = 0xb0;

/// The port; registers that change nothing that a guest could see are not kept.
pub struct Serial {
    out: Box<dyn Write + Send>,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
}

impl Serial {
    /// Returns a port that prints to `out`.
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        Self {
            out,
            line_control: 0,
            modem_control: 0,
            scratch: 0,
        }
    }

    /// Reads a register.
    pub fn read(&self, register: u16) -> u8 {
        match register {
            IIR => NO_INTERRUPT,
            LCR => self.line_control,
            MCR => self.modem_control,
            LSR => TRANSMITTER_EMPTY,
            // In loopback mode the modem control bits come back as status, which drivers test.
            MSR if self.modem_control & LOOPBACK != 0 => {
                let m = self.modem_control;
                (m & 1) << 5 | (m & 2) << 3 | (m & 4) << 4 | (m & 8) << 4
            }
            MSR => CARRIER_AND_READY,
            SCRATCH => self.scratch,
            _ => 0,
        }
    }

    /// Writes a register. A full or closed console does not stop the guest: the byte is lost.
    pub fn write(&mut self, register: u16, value: u8) {
        match register {
            DATA if (self.line_control & DLAB) | (self.modem_control & LOOPBACK) == 0 => {
                let _ = self.out.write_all(&[value]);
            }
            LCR => self.line_control = value,
            MCR => self.modem_control = value & 0x1f,
            SCRATCH => self.scratch = value,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl Write for Sink {
        fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(b);
            Ok(b.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn baud_rate_divisors_are_not_printed() {
        let sink = Sink::default();
        let mut s = Serial::new(Box::new(sink.clone()));
        s.write(LCR, DLAB | 3);
        s.write(DATA, 0x41);
        s.write(LCR, 3);
        s.write(DATA, 0x42);
        assert_eq!(*sink.0.lock().unwrap(), b"B");
        assert_eq!(s.read(LSR) & 0x20, 0x20);
    }
}
