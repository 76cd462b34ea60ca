//! The identity of a restored machine: random numbers, the time, a machine id.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use smol_protocol::{Entropy, MIN_ENTROPY, MachineId, RestoreParams};

/// Returns random bytes of the operating system.
///
/// # Errors
/// If it has none to give.
pub fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("the operating system gives no random numbers")?;
    Ok(bytes)
}

/// Returns the answer to a restored guest. It must be made anew for each restore, when it is sent.
///
/// # Errors
/// If there are no random numbers: without them two machines would be the same.
pub fn params(cpus: u32) -> anyhow::Result<RestoreParams> {
    let entropy = Entropy::new(random::<MIN_ENTROPY>()?.to_vec()).context("too little entropy")?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    Ok(RestoreParams {
        entropy,
        wall_clock_ns: u64::try_from(now.as_nanos()).context("the clock is after 2554")?,
        machine_id: MachineId::from_random(random()?),
        hostname: None,
        online_cpus: u8::try_from(cpus).unwrap_or(u8::MAX),
        test_restore: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_machines_are_the_same_and_both_have_the_time() {
        let (a, b) = (params(2).unwrap(), params(2).unwrap());
        assert_ne!(a.entropy, b.entropy);
        assert_ne!(a.machine_id, b.machine_id);
        assert_eq!(a.entropy.as_bytes().len(), 64);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_nanos();
        assert!(now.abs_diff(u128::from(a.wall_clock_ns)) < 60_000_000_000);
        assert_eq!(a.online_cpus, 2);
    }
}
