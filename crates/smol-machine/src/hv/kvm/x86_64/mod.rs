//! KVM on x86-64.
//!
//! | module | purpose |
//! |---|---|
//! | [`vm`] | interrupt controllers, timers, what a vCPU shows of its processor |
//! | [`vcpu`] | a vCPU captured and restored |
//! | `fpu` | the registers of x87, SSE and AVX |
//! | `msrs` | the model-specific registers of the pinned CPU |
//! | [`probe`] | the guest that tries KVM |
//! | `boot` | registers for the first instruction of a kernel |
//! | `convert`, `irqchip` | KVM's structures to and from our wire types |

mod boot;
mod convert;
mod fpu;
mod irqchip;
mod msrs;
pub(super) mod probe;
pub(super) mod vcpu;
pub(super) mod vm;

/// Defines the functions between one of our wire types and a structure of KVM whose fields have
/// the same names. What KVM's has besides is zero.
macro_rules! same_fields {
    ($from:ident, $to:ident: $ours:ident = $theirs:ident { $($field:ident),* $(,)? }) => {
        pub(super) fn $from(theirs: &$theirs) -> $ours {
            $ours { $($field: theirs.$field),* }
        }

        #[allow(clippy::needless_update)]
        pub(super) fn $to(ours: &$ours) -> $theirs {
            $theirs { $($field: ours.$field,)* ..Default::default() }
        }
    };
}
use same_fields;
