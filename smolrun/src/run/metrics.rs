//! Where the time of a start went, for benchmarks: the JSON of `--metrics-file`.

use std::io::Write as _;
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use smol_bundle::Output;

/// A moment on the monotonic clock, the same for all processes of a host.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Moment(i64);

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        Self(now.tv_sec * 1_000_000_000 + now.tv_nsec)
    }

    /// Milliseconds since then.
    pub fn elapsed_ms(self) -> f64 {
        Self::now().ms_since(self)
    }

    /// Milliseconds from `earlier` to this moment.
    pub fn ms_since(self, earlier: Moment) -> f64 {
        (self.0 - earlier.0) as f64 / 1e6
    }
}

/// What was measured, all in milliseconds. Absent is what a start does not do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Opening the bundle, checking its structure and its signature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_ms: Option<f64>,
    /// Making its images available: at the first start that may be unpacking them.
    #[serde(rename = "materialise_ms", skip_serializing_if = "Option::is_none")]
    pub images_ms: Option<f64>,
    /// Whether it was restored lazily, while its images were being unpacked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_demand: Option<bool>,
    /// Choosing between KVM and the emulated host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accel_ms: Option<f64>,
    /// Having the emulated host up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emulated_host_ms: Option<f64>,
    /// Whether the snapshot was restored; else the machine was booted cold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored: Option<bool>,
    /// Putting the machine together, up to its first instruction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_ms: Option<f64>,
    /// From the beginning of that to the first byte on a console of the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_output_ms: Option<f64>,
    /// From the same beginning until the service ran on (restored) or was ready (booted).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up_ms: Option<f64>,
    /// From the start of the process until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<f64>,
}

impl Metrics {
    /// Takes over the measurements of `other`.
    pub fn merge(&mut self, other: &Metrics) {
        let fields = [
            (&mut self.open_ms, other.open_ms),
            (&mut self.images_ms, other.images_ms),
            (&mut self.accel_ms, other.accel_ms),
            (&mut self.emulated_host_ms, other.emulated_host_ms),
            (&mut self.machine_ms, other.machine_ms),
            (&mut self.first_output_ms, other.first_output_ms),
            (&mut self.up_ms, other.up_ms),
            (&mut self.total_ms, other.total_ms),
        ];
        for (ours, theirs) in fields {
            *ours = theirs.or(*ours);
        }
        self.restored = other.restored.or(self.restored);
        self.on_demand = other.on_demand.or(self.on_demand);
    }

    /// Writes them to a file that appears whole, or into a pipe or device.
    ///
    /// # Errors
    /// Those of [`Output`].
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let output = Output::create(path)?;
        let mut file = output.file();
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        Ok(output.publish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_process_measured_is_taken_over_and_the_rest_kept() {
        let mut ours = Metrics {
            open_ms: Some(1.0),
            up_ms: Some(2.0),
            ..Metrics::default()
        };
        ours.merge(&Metrics {
            up_ms: Some(3.0),
            restored: Some(true),
            ..Metrics::default()
        });
        let wanted = Metrics {
            open_ms: Some(1.0),
            up_ms: Some(3.0),
            restored: Some(true),
            ..Metrics::default()
        };
        assert_eq!(ours, wanted);
    }

    #[test]
    fn the_file_holds_only_what_was_measured() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.json");
        Metrics {
            open_ms: Some(1.5),
            ..Metrics::default()
        }
        .write(&path)
        .unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\n  \"open_ms\": 1.5\n}\n"
        );
    }
}
