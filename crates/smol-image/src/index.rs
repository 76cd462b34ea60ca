//! Which image of an index is for this machine.

use anyhow::{Result, bail};

use crate::manifest::Descriptor;
use crate::platform::Platform;

/// Chooses the image of an index for a machine whose CPU has this level: of several the one that makes
/// the most of it, and of these the first.
///
/// # Errors
/// There is none; the error lists those that there are.
pub fn choose(index: &[Descriptor], level: u32) -> Result<&Descriptor> {
    let mut best: Option<(u32, &Descriptor)> = None;
    for entry in index {
        // An entry without a platform may be anything; its configuration will tell.
        let rank = match &entry.platform {
            Some(platform) => platform.rank(level),
            None => Some(0),
        };
        if let Some(rank) = rank
            && best.is_none_or(|(other, _)| rank > other)
        {
            best = Some((rank, entry));
        }
    }
    if let Some((_, entry)) = best {
        return Ok(entry);
    }
    const SHOWN: usize = 12;
    // What says of itself that it is unknown is no image: tools put attestations there.
    let offered = index.iter().filter_map(|entry| entry.platform.as_ref());
    let offered: Vec<String> = offered
        .filter(|platform| platform.os != "unknown")
        .take(SHOWN)
        .map(Platform::to_string)
        .collect();
    match offered.is_empty() {
        true => bail!("the image index has no image"),
        false => bail!(
            "the image is not offered for linux/amd64 up to v{level}, but for {}",
            offered.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(os: &str, architecture: &str, variant: &str) -> Descriptor {
        Descriptor {
            platform: Some(Platform {
                os: os.into(),
                architecture: architecture.into(),
                variant: (!variant.is_empty()).then(|| variant.into()),
            }),
            ..Descriptor::of(b"x")
        }
    }

    #[test]
    fn the_image_that_makes_the_most_of_the_cpu_is_chosen() {
        let index = [
            entry("unknown", "unknown", ""),
            entry("linux", "arm64", "v8"),
            entry("windows", "amd64", ""),
            entry("linux", "amd64", "v4"),
            entry("linux", "amd64", ""),
            entry("linux", "amd64", "v3"),
            entry("linux", "amd64", "v2"),
        ];
        assert_eq!(choose(&index, 3).unwrap(), &index[5]);
        assert_eq!(choose(&index, 2).unwrap(), &index[6]);
        assert_eq!(choose(&index[..5], 2).unwrap(), &index[4]);
        let error = choose(&index[..4], 2).unwrap_err().to_string();
        assert_eq!(
            error,
            "the image is not offered for linux/amd64 up to v2, but for linux/arm64/v8, windows/amd64, linux/amd64/v4"
        );
        assert!(choose(&index[..1], 2).is_err());
    }
}
