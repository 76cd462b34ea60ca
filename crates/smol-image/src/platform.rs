//! Which image of an index is for this machine: one for linux/amd64, up to the level of x86-64
//! instructions that the machine's CPU has (2 for `x86-64-v2`).

use anyhow::{Result, bail};

use crate::manifest::Descriptor;

/// What an image is for: operating system, architecture, and a variant of that (image-index.md,
/// "platform").
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub struct Platform {
    /// `linux`
    #[serde(default)]
    pub os: String,
    /// `amd64`
    #[serde(default)]
    pub architecture: String,
    /// `v2`: the level of x86-64 instructions that its programs need.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// How well it suits a machine whose CPU has this level: the more instructions it uses,
    /// the better; `None` if its programs do not run there.
    fn rank(&self, level: u32) -> Option<u32> {
        if (self.os.as_str(), self.architecture.as_str()) != ("linux", "amd64") {
            return None;
        }
        let needs = match self.variant.as_deref() {
            None | Some("") => 1,
            Some(variant) => variant.strip_prefix('v')?.parse().ok()?,
        };
        (needs <= level).then_some(needs)
    }

    /// Checks that an image which does not come out of an index is for this machine. What it does not
    /// say is not held against it.
    ///
    /// # Errors
    /// It is for another one.
    pub fn require(&self, level: u32) -> Result<()> {
        let or = |said: &str, usual: &str| {
            if said.is_empty() {
                usual.to_owned()
            } else {
                said.to_owned()
            }
        };
        let whole = Platform {
            os: or(&self.os, "linux"),
            architecture: or(&self.architecture, "amd64"),
            variant: self.variant.clone(),
        };
        match whole.rank(level) {
            Some(_) => Ok(()),
            None => bail!(
                "the image is for {whole}, and the machine's CPU is linux/amd64 up to v{level}"
            ),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}/{}",
            self.os.escape_debug(),
            self.architecture.escape_debug()
        )?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(f, "/{}", variant.escape_debug()),
        }
    }
}

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

    #[test]
    fn an_image_for_another_machine_is_refused_and_one_that_says_nothing_is_not() {
        let of = |entry: Descriptor| entry.platform.unwrap();
        of(entry("", "", "")).require(2).unwrap();
        of(entry("linux", "amd64", "v2")).require(2).unwrap();
        for wrong in [
            entry("linux", "arm64", ""),
            entry("windows", "", ""),
            entry("linux", "amd64", "v3"),
        ] {
            assert!(of(wrong).require(2).is_err());
        }
    }
}
