//! A vCPU on its thread, exit by exit, until the machine stops.

use super::control::{Control, Stop};
use crate::devices::bus::Bus;
use crate::hv::{Exit, HostVcpu, Vcpu};
use crate::memory::arrivals::{Arrivals, Step};
use crate::{Error, Result};

impl Control {
    /// Runs a vCPU on the calling thread until the machine stops, for its reason or for that of
    /// another thread.
    pub(super) fn run_vcpu(&self, number: usize, vcpu: &mut HostVcpu, bus: &Bus) {
        let outcome = vcpu.kicker().and_then(|kicker| {
            self.enter(number, kicker);
            self.exit_loop(vcpu, bus)
        });
        if let Some(outcome) = outcome.transpose() {
            self.stop(outcome);
        }
        self.leave(number);
        self.kick_until_stopped();
    }

    /// Runs the guest, exit by exit. `None` when another thread has stopped the machine.
    fn exit_loop(&self, vcpu: &mut HostVcpu, bus: &Bus) -> Result<Option<Stop>> {
        if let Some(arrivals) = self.arrivals() {
            // Each page that is absent costs a way out of the guest and back.
            arrivals.wait_until_open(|| self.stopping());
        }
        let mut absent = None;
        while !self.stopping() {
            if let Some((address, before)) = absent.take() {
                self.await_page(vcpu, address, before)?;
            }
            let before = self.arrivals().and_then(Arrivals::step);
            let stop = match vcpu.run()? {
                Exit::Read { at, data } => {
                    bus.read(at, data);
                    bus.exit();
                    None
                }
                Exit::Write { at, data } => {
                    let stop = bus.write(at, data);
                    bus.exit();
                    stop
                }
                Exit::Interrupted => continue,
                Exit::Absent { address } => {
                    absent = Some((address, before));
                    continue;
                }
                Exit::Shutdown => Some(Stop::Reset),
                Exit::Broken(what) => Some(Stop::Crashed(what)),
            };
            self.count_exit();
            if stop.is_some() {
                return Ok(stop);
            }
        }
        Ok(None)
    }

    /// Waits until more has arrived than there was `before` the guest needed a page that is absent.
    ///
    /// # Errors
    /// If everything had arrived: then it is another page that cannot be had.
    fn await_page(
        &self,
        vcpu: &HostVcpu,
        address: Option<u64>,
        before: Option<Step>,
    ) -> Result<()> {
        let Some((arrivals, before)) = self.arrivals().zip(before) else {
            let at = address.map_or(String::new(), |gpa| format!(" (at {gpa:#x})"));
            let message = format!("the hypervisor cannot have a page that the guest needs{at}");
            return Err(Error::Memory(message));
        };
        // Without an address it may be the page that the instruction is on. If it is not, that one
        // is present, or is loaded earlier than it need be.
        if let Some(gpa) = address.or_else(|| vcpu.instruction()) {
            arrivals.want(gpa);
        }
        arrivals.wait(before, || self.stopping());
        Ok(())
    }
}
