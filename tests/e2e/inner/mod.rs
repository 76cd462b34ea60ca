//! The inner half: on real KVM, in the emulated host.

mod builds;
mod first;
mod lifecycle;
mod restore;
mod time;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::suite::Suite;
use crate::tools::Tools;

/// What makes this program the inner half.
pub const ARGUMENT: &str = "inner";
/// Where the outer half shows its folders.
pub const PROGRAMS: &str = "/programs";
/// Bundles and their public key.
pub const BUNDLES: &str = "/bundles";
/// Smolfiles of machines to be built here, with what they name.
pub const MACHINES: &str = "/machines";

/// The emulated host as the tests see it.
pub struct Host {
    /// The programs.
    pub tools: Tools,
}

impl Host {
    /// A bundle that the outer half has built.
    #[track_caller]
    pub fn bundle(&self, name: &str) -> PathBuf {
        let path = Path::new(BUNDLES).join(name).with_extension("smolmachine");
        assert!(path.exists(), "the bundle {name} was not built");
        path
    }

    /// The bundle of our own test service.
    #[track_caller]
    pub fn service(&self) -> PathBuf {
        self.bundle("service")
    }
}

/// Runs the inner tests; the outer half counts their lines.
pub fn main(arguments: &[String]) -> ExitCode {
    let Some((ARGUMENT, words)) = arguments
        .split_first()
        .map(|(first, rest)| (first.as_str(), rest))
    else {
        return ExitCode::from(2);
    };
    let host = Host {
        tools: Tools {
            programs: PROGRAMS.into(),
            home: "/tmp/home".into(),
            key: Path::new(BUNDLES).join("key.pub"),
            accel: "kvm",
        },
    };
    let mut suite = Suite::new(words);
    restore::tests(&mut suite, &host);
    first::tests(&mut suite, &host);
    time::tests(&mut suite, &host);
    lifecycle::tests(&mut suite, &host);
    builds::tests(&mut suite, &host);
    suite.slowest();
    ExitCode::SUCCESS
}
