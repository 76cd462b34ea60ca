//! The registers of x87, SSE and AVX: KVM's XSAVE area to and from our wire types.
//!
//! Equal registers have equal bytes. A component that is in its initial state may hold anything in the
//! area, and whether one is counts as in use is up to the processor: so the initial values are written
//! out on the way from KVM, and on the way to it AVX is in use if it holds something.

use kvm_bindings::{kvm_xcrs, kvm_xsave};
use kvm_ioctls::VcpuFd;

use crate::arch::state::{VcpuState, Xsave};
use crate::arch::xsave::{AVX, AVX_OFFSET, AVX_SIZE, LEGACY_SIZE, XCR0_AVX, XCR0_RESET};
use crate::{Error, Result};

/// Bytes of the legacy region that the processor defines; then 48 reserved and 48 for software.
const LEGACY_DEFINED: usize = 416;
/// Where the legacy region holds which bits of MXCSR there are.
const MXCSR_MASK: std::ops::Range<usize> = 28..32;
/// Those that every processor has; AMD's have a bit more.
const COMMON_MXCSR_MASK: u32 = 0xffff;
/// The header's first word, XSTATE_BV, in 32-bit words.
const XSTATE_BV: usize = LEGACY_SIZE / 4;
const X87_AND_SSE: u32 = 3;

/// Returns the legacy region, and what XSAVE has besides.
pub fn save(fd: &VcpuFd) -> Result<(Vec<u8>, Option<Xsave>)> {
    let xcrs = fd.get_xcrs().map_err(Error::hv("KVM_GET_XCRS"))?;
    let area = fd.get_xsave().map_err(Error::hv("KVM_GET_XSAVE"))?;
    let count = (xcrs.nr_xcrs as usize).min(xcrs.xcrs.len());
    let xcr0 = xcrs.xcrs[..count].iter().find(|xcr| xcr.xcr == 0);
    let xcr0 = xcr0.map_or(XCR0_RESET, |xcr| xcr.value);
    let xsave = (xcr0 != XCR0_RESET).then(|| Xsave {
        xcr0,
        ymm_high: ymm_high_from_kvm(&area),
    });
    Ok((legacy_from_kvm(&area), xsave))
}

/// Sets XCR0, and then the registers that it enables.
pub fn restore(fd: &VcpuFd, state: &VcpuState) -> Result<()> {
    let (xcr0, area) = accept(state)?;
    set_xcr0(fd, xcr0)?;
    // SAFETY: the guest has no state component beyond AVX, so KVM reads 4096 bytes and no more.
    unsafe { fd.set_xsave(&area) }.map_err(Error::hv("KVM_SET_XSAVE"))
}

/// Returns XCR0 and the XSAVE area of a state.
pub fn accept(state: &VcpuState) -> Result<(u64, kvm_xsave)> {
    let xcr0 = match &state.xsave {
        None => XCR0_RESET,
        Some(xsave) if xsave.xcr0 & !XCR0_AVX == 0 => xsave.xcr0,
        Some(xsave) => {
            let what = format!("XCR0 is {:#x}, with what no machine has", xsave.xcr0);
            return Err(Error::bad_state(what));
        }
    };
    Ok((xcr0, area_to_kvm(&state.fxsave, state.xsave.as_ref())?))
}

/// Sets XCR0.
pub fn set_xcr0(fd: &VcpuFd, value: u64) -> Result<()> {
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    xcrs.xcrs[0].value = value;
    fd.set_xcrs(&xcrs).map_err(Error::hv("KVM_SET_XCRS"))
}

fn bytes(area: &kvm_xsave, range: std::ops::Range<usize>) -> Vec<u8> {
    let words = &area.region[range.start / 4..range.end / 4];
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn legacy_from_kvm(area: &kvm_xsave) -> Vec<u8> {
    let mut legacy = bytes(area, 0..LEGACY_SIZE);
    let present = area.region[XSTATE_BV];
    if present & 1 == 0 {
        legacy[..24].fill(0);
        legacy[..2].copy_from_slice(&0x037fu16.to_le_bytes()); // FCW after FNINIT
        legacy[32..160].fill(0);
    }
    if present & 2 == 0 {
        legacy[160..LEGACY_DEFINED].fill(0);
    }
    legacy[MXCSR_MASK].copy_from_slice(&COMMON_MXCSR_MASK.to_le_bytes());
    legacy[LEGACY_DEFINED..].fill(0);
    legacy
}

fn ymm_high_from_kvm(area: &kvm_xsave) -> Vec<u8> {
    if u64::from(area.region[XSTATE_BV]) & AVX == 0 {
        return vec![0; AVX_SIZE];
    }
    bytes(area, AVX_OFFSET..AVX_OFFSET + AVX_SIZE)
}

fn area_to_kvm(legacy: &[u8], xsave: Option<&Xsave>) -> Result<kvm_xsave> {
    let mut area = kvm_xsave::default();
    let mut put = |what: &str, from: &[u8], at: usize, size: usize| {
        if from.len() != size {
            let message = format!("{what} has {} bytes instead of {size}", from.len());
            return Err(Error::bad_state(message));
        }
        for (word, bytes) in area.region[at / 4..]
            .iter_mut()
            .zip(from.as_chunks::<4>().0)
        {
            *word = u32::from_le_bytes(*bytes);
        }
        Ok(())
    };
    put("the FXSAVE area", legacy, 0, LEGACY_SIZE)?;
    let mut present = X87_AND_SSE;
    if let Some(xsave) = xsave {
        put("the AVX area", &xsave.ymm_high, AVX_OFFSET, AVX_SIZE)?;
        if xsave.ymm_high.iter().any(|byte| *byte != 0) {
            present |= AVX as u32;
        }
    }
    area.region[XSTATE_BV] = present;
    Ok(area)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirty(present: u32) -> kvm_xsave {
        let mut area = kvm_xsave {
            region: [0xaaaa_aaaa; 1024],
            ..Default::default()
        };
        area.region[XSTATE_BV] = present;
        area
    }

    #[test]
    fn state_that_is_initial_has_one_form() {
        let area = dirty(0);
        let legacy = legacy_from_kvm(&area);
        assert_eq!(legacy[..2], [0x7f, 3]);
        assert!(legacy[32..].iter().all(|b| *b == 0));
        let xsave = Xsave {
            xcr0: XCR0_AVX,
            ymm_high: ymm_high_from_kvm(&area),
        };
        assert_eq!(xsave.ymm_high, [0; AVX_SIZE]);
        let back = area_to_kvm(&legacy, Some(&xsave)).unwrap();
        assert_eq!(back.region[XSTATE_BV], 3);
    }

    #[test]
    fn avx_that_is_marked_and_empty_is_as_avx_that_is_not_marked() {
        let mut marked = dirty(7);
        marked.region[AVX_OFFSET / 4..(AVX_OFFSET + AVX_SIZE) / 4].fill(0);
        assert_eq!(ymm_high_from_kvm(&marked), ymm_high_from_kvm(&dirty(3)));
    }

    #[test]
    fn all_registers_survive_the_way_there_and_back() {
        let area = dirty(7);
        let xsave = Xsave {
            xcr0: XCR0_AVX,
            ymm_high: ymm_high_from_kvm(&area),
        };
        let back = area_to_kvm(&legacy_from_kvm(&area), Some(&xsave)).unwrap();
        assert_eq!(back.region[XSTATE_BV], 7);
        let registers = |area: &kvm_xsave| {
            let defined = bytes(area, 32..LEGACY_DEFINED);
            [defined, bytes(area, AVX_OFFSET..AVX_OFFSET + AVX_SIZE)].concat()
        };
        assert_eq!(registers(&back), registers(&area));
    }

    #[test]
    fn the_bits_of_mxcsr_are_those_that_all_processors_have() {
        for mask in [0xffff, 0x0002_ffff] {
            let mut area = dirty(3);
            area.region[MXCSR_MASK.start / 4] = mask;
            assert_eq!(legacy_from_kvm(&area)[MXCSR_MASK], [0xff, 0xff, 0, 0]);
        }
    }

    #[test]
    fn odd_sizes_from_a_bundle_are_refused() {
        assert!(area_to_kvm(&[0; 511], None).is_err());
        let short = Xsave {
            xcr0: XCR0_AVX,
            ymm_high: vec![0; 255],
        };
        assert!(area_to_kvm(&[0; LEGACY_SIZE], Some(&short)).is_err());
    }
}
