//! What the environment adds to a Smolfile: SOURCE_DATE_EPOCH, the kernel source, and kernels that
//! are ready.

use std::path::PathBuf;

use anyhow::Result;
use smol_cli::{ExitKind, Failure};

use crate::kernel::{self, ReadyKernels};

/// What the environment adds to the Smolfile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnvironmentInputs {
    /// SOURCE_DATE_EPOCH; without, the lock's stays.
    pub epoch: Option<u32>,
    /// A source tarball for kernels; without, the lock's stays.
    pub kernel_source: Option<PathBuf>,
    /// Kernels that need not be compiled.
    pub kernels: ReadyKernels,
    /// Registries that may be spoken to without TLS, or whose certificate is not checked.
    pub insecure_registries: Vec<String>,
}

impl EnvironmentInputs {
    /// Returns those of this process, with these kernels.
    ///
    /// # Errors
    /// A SOURCE_DATE_EPOCH that is no time.
    pub fn of_process(kernels: ReadyKernels) -> Result<EnvironmentInputs> {
        let epoch = std::env::var("SOURCE_DATE_EPOCH").ok();
        Ok(EnvironmentInputs {
            epoch: epoch.map(|text| parse_epoch(&text)).transpose()?,
            kernel_source: kernel::source_variable(),
            kernels,
            insecure_registries: Vec::new(),
        })
    }
}

/// The value of SOURCE_DATE_EPOCH: seconds since the Unix epoch, up to 2106, which is as far as
/// the time fields of a cpio archive reach.
fn parse_epoch(text: &str) -> Result<u32, Failure> {
    match text.parse::<u32>() {
        Ok(seconds) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(seconds),
        _ => Err(Failure::new(
            ExitKind::Usage,
            format!("SOURCE_DATE_EPOCH is {text:?}, which is not a valid timestamp"),
        )
        .hint(format!(
            "set it to seconds since 1970 (0 to {}), or unset it",
            u32::MAX
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::DEFAULT_EPOCH;

    #[test]
    fn an_epoch_that_is_no_time_is_refused() {
        assert_eq!(parse_epoch("0").unwrap(), 0);
        assert_eq!(parse_epoch("1767225600").unwrap(), DEFAULT_EPOCH);
        for bad in ["", "-1", "+1", "1e9", "4294967296", "yesterday"] {
            let message = parse_epoch(bad).unwrap_err().to_string();
            assert_eq!(
                message,
                format!("SOURCE_DATE_EPOCH is {bad:?}, which is not a valid timestamp")
            );
        }
    }
}
