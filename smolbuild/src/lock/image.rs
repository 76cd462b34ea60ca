//! A container image in a lock.
//!
//! It is named by the digest of its configuration (its *id*), which stands for every byte of it,
//! whichever way it came. Where it came from is written into the lock file alone, so that the bundle of
//! an image is the same out of a registry, a layout or an archive.

use serde::{Deserialize, Serialize};
use smol_bundle::Digest;
use smol_image::{ImageConfig, RunConfig};

use super::text::Text;

/// A container image, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LockedImage {
    /// Where it can be had again; absent for files, which the Smolfile names, and in a bundle.
    #[serde(default, skip_serializing)]
    pub origin: Option<Origin>,
    /// Digest of its configuration.
    pub id: Digest,
    /// The variant of x86-64 that it is for, if it says one: `v3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Digests of its layers when they are unpacked, the lowest first.
    pub diff_ids: Vec<Digest>,
    /// What its configuration says of the service.
    pub config: RunConfig,
}

/// Where an image is in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Origin {
    /// Its name, as in the Smolfile.
    pub reference: String,
    /// Digest of its manifest.
    pub manifest: Digest,
}

impl LockedImage {
    /// The lock of an image.
    pub fn new(id: Digest, config: &ImageConfig, origin: Option<Origin>) -> Self {
        Self {
            origin,
            id,
            variant: config.platform.variant.clone(),
            diff_ids: config.diff_ids.clone(),
            config: config.run.clone(),
        }
    }

    /// Writes it.
    pub(super) fn write(&self, text: &mut Text) {
        text.table("[image]");
        text.string("id", &self.id.to_string());
        if let Some(variant) = &self.variant {
            text.string("variant", variant);
        }
        text.strings("diff-ids", self.diff_ids.iter().map(Digest::to_string));
        if let Some(origin) = &self.origin {
            text.table("[image.origin]");
            text.string("reference", &origin.reference);
            text.string("manifest", &origin.manifest.to_string());
        }
        self.write_config(text);
    }

    fn write_config(&self, text: &mut Text) {
        let config = &self.config;
        text.table("[image.config]");
        let lists = [
            ("entrypoint", &config.entrypoint),
            ("cmd", &config.cmd),
            ("env", &config.env),
            ("ports", &config.ports),
            ("volumes", &config.volumes),
        ];
        for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            text.strings(key, list.iter().cloned());
        }
        for (key, value) in [
            ("user", &config.user),
            ("workdir", &config.workdir),
            ("stop-signal", &config.stop_signal),
        ] {
            if let Some(value) = value {
                text.string(key, value);
            }
        }
        if let Some(check) = &config.healthcheck {
            text.table("[image.config.healthcheck]");
            text.strings("cmd", check.cmd.iter().cloned());
            text.number("start-period-ms", check.start_period_ms);
        }
    }
}
