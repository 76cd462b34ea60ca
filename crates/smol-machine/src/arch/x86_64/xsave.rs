//! The area of XSAVE, as far as the pinned CPU has it: x87, SSE and AVX, in the standard format
//! (Intel SDM volume 1, section 13.4).

/// XCR0 with x87 alone, as after a reset.
pub const XCR0_RESET: u64 = 1;
/// XCR0 with x87, SSE and AVX.
pub const XCR0_AVX: u64 = 7;
/// The bit of AVX in XCR0 and XSTATE_BV.
pub const AVX: u64 = 4;
/// Bytes of the legacy region: that of FXSAVE.
pub const LEGACY_SIZE: usize = 512;
/// Where the upper halves of YMM0 to YMM15 begin, in bytes.
pub const AVX_OFFSET: usize = 576;
/// Bytes of these halves.
pub const AVX_SIZE: usize = 256;
