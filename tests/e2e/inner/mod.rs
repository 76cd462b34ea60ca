//! The inner half: on real KVM, in the emulated host.

mod builds;
mod failures;
mod first;
mod images;
mod inits;
mod lifecycle;
mod restore;
mod steps;
mod time;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::Selection;
use crate::outer;
use smol_tests::suite::{self, Suite};
use smol_tests::tools::Tools;

/// What makes this program the inner half.
const ARGUMENT: &str = "inner";
/// Where the outer half shows its folders.
pub const PROGRAMS: &str = "/programs";
/// Bundles and their public key.
pub const BUNDLES: &str = "/bundles";
/// Smolfiles of machines to be built here, with what they name.
pub const MACHINES: &str = "/machines";

/// The emulated host as the tests see it.
pub struct InnerHost {
    /// The programs.
    pub tools: Tools,
}

impl InnerHost {
    /// The one that [`arguments`] tell a program to be in.
    pub fn new() -> Self {
        let tools = Tools {
            programs: PROGRAMS.into(),
            home: "/tmp/home".into(),
            key: Path::new(BUNDLES).join("key.pub"),
            accel: "kvm",
        };
        Self { tools }
    }

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

/// The tests of this half that are selected, in all their rounds.
pub fn tests<'a>(host: &'a InnerHost, selection: &Selection) -> Suite<'a> {
    let mut suite = Suite::default();
    for _ in 0..selection.rounds {
        restore::tests(&mut suite, host);
        first::tests(&mut suite, host);
        time::tests(&mut suite, host);
        lifecycle::tests(&mut suite, host);
        images::tests(&mut suite, host);
        inits::tests(&mut suite, host);
        builds::tests(&mut suite, host);
        failures::tests(&mut suite, host);
        steps::tests(&mut suite, host);
    }
    suite.filter(&selection.words)
}

/// With these, this program runs the selected tests, but not the first ones, so many of which have been
/// run.
pub fn arguments(selection: &Selection, done: usize) -> impl Iterator<Item = String> {
    let numbers = [selection.rounds, done].map(|number| number.to_string());
    [ARGUMENT.to_owned()]
        .into_iter()
        .chain(numbers)
        .chain(selection.words.clone())
}

/// Runs the inner tests; the outer half counts their lines.
pub fn main(arguments: &[String]) -> ExitCode {
    let (rounds, done, words) = match arguments {
        [first, rounds, done, words @ ..] if first == ARGUMENT => (rounds, done, words),
        _ => return outer::job(arguments),
    };
    let number = |text: &String| text.parse().expect("a number of our own");
    let selection = Selection {
        words: words.to_vec(),
        rounds: number(rounds),
    };
    let host = InnerHost::new();
    for test in tests(&host, &selection).tests().iter().skip(number(done)) {
        println!("{}", suite::line(&test.name, &test.attempt()));
    }
    ExitCode::SUCCESS
}
