//! KVM on x86-64.

pub(super) mod convert;
