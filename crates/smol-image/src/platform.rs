//! What an image is for, and whether this machine is that: linux/amd64, up to the level of x86-64
//! instructions that the machine's CPU has (2 for `x86-64-v2`).

use anyhow::{Result, bail};

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
    pub(crate) fn rank(&self, level: u32) -> Option<u32> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(os: &str, architecture: &str, variant: &str) -> Platform {
        Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: (!variant.is_empty()).then(|| variant.into()),
        }
    }

    #[test]
    fn an_image_for_another_machine_is_refused_and_one_that_says_nothing_is_not() {
        platform("", "", "").require(2).unwrap();
        platform("linux", "amd64", "v2").require(2).unwrap();
        for wrong in [
            platform("linux", "arm64", ""),
            platform("windows", "", ""),
            platform("linux", "amd64", "v3"),
        ] {
            assert!(wrong.require(2).is_err());
        }
    }
}
