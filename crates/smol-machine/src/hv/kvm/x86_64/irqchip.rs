//! Interrupt controllers and timers: KVM's structures to and from our wire types. Pure.

use kvm_bindings::{kvm_irqchip, kvm_pic_state, kvm_pit_channel_state};

use super::same_fields;
use crate::arch::state::{IoapicState, PicState, PitChannel};
use crate::{Error, Result};

same_fields! {
    pic_state_from_kvm, pic_state_to_kvm: PicState = kvm_pic_state {
        last_irr, irr, imr, isr, priority_add, irq_base, read_reg_select, poll, special_mask,
        init_state, auto_eoi, rotate_on_auto_eoi, special_fully_nested_mode, init4, elcr, elcr_mask,
    }
}

// The time at which a channel was loaded is not kept.
same_fields! {
    pit_from_kvm, pit_to_kvm: PitChannel = kvm_pit_channel_state {
        count, latched_count, count_latched, status_latched, status, read_state, write_state,
        write_latch, rw_mode, mode, bcd, gate,
    }
}

pub(super) fn pic_from_kvm(chip: &kvm_irqchip) -> PicState {
    // SAFETY: the chip id names a PIC, so KVM filled this member of the union; all its bytes are plain.
    pic_state_from_kvm(&unsafe { chip.chip.pic })
}

pub(super) fn pic_to_kvm(chip_id: u32, pic: &PicState) -> kvm_irqchip {
    let mut chip = kvm_irqchip {
        chip_id,
        ..Default::default()
    };
    chip.chip.pic = pic_state_to_kvm(pic);
    chip
}

pub(super) fn ioapic_from_kvm(chip: &kvm_irqchip) -> IoapicState {
    // SAFETY: the chip id names the IOAPIC, so KVM filled this member of the union; all its bytes are plain.
    let io = unsafe { chip.chip.ioapic };
    IoapicState {
        base_address: io.base_address,
        ioregsel: io.ioregsel,
        id: io.id,
        irr: io.irr,
        // SAFETY: both members of the entry's union are the same 64 plain bits.
        redirection: io.redirtbl.iter().map(|e| unsafe { e.bits }).collect(),
    }
}

pub(super) fn ioapic_to_kvm(chip_id: u32, io: &IoapicState) -> Result<kvm_irqchip> {
    let mut chip = kvm_irqchip {
        chip_id,
        ..Default::default()
    };
    let mut to = kvm_bindings::kvm_ioapic_state {
        base_address: io.base_address,
        ioregsel: io.ioregsel,
        id: io.id,
        irr: io.irr,
        ..Default::default()
    };
    if io.redirection.len() != to.redirtbl.len() {
        return Err(Error::bad_state(format!(
            "the IOAPIC has {} pins instead of {}",
            io.redirection.len(),
            to.redirtbl.len()
        )));
    }
    for (entry, bits) in to.redirtbl.iter_mut().zip(&io.redirection) {
        entry.bits = *bits;
    }
    chip.chip.ioapic = to;
    Ok(chip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ioapic_with_another_number_of_pins_is_refused() {
        let ioapic = IoapicState {
            base_address: 0,
            ioregsel: 0,
            id: 0,
            irr: 0,
            redirection: vec![0; 25],
        };
        assert!(ioapic_to_kvm(2, &ioapic).is_err());
    }

    #[test]
    fn controllers_and_timers_survive_the_way_there_and_back() {
        let pic = PicState {
            irr: 1,
            irq_base: 0x30,
            elcr_mask: 0xf8,
            ..Default::default()
        };
        assert_eq!(pic_from_kvm(&pic_to_kvm(1, &pic)), pic);
        let pit = PitChannel {
            count: 0x1_0000,
            mode: 2,
            gate: 1,
            ..Default::default()
        };
        assert_eq!(pit_from_kvm(&pit_to_kvm(&pit)), pit);
    }
}
