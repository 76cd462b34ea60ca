//! The parts of a lock that can be renewed each on its own: its sections.

use clap::ValueEnum;

use super::Lock;

/// A part of a lock, by the name that it has on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// smolbuild itself, and SOURCE_DATE_EPOCH if it is set
    Builder,
    /// The kernel recipe, its source and its compiler
    Kernel,
    /// Debian packages: the newest
    Packages,
    /// The container image: what its tag names now
    Image,
    /// Files and folders that the Smolfile names
    Files,
    /// What [[run]]s with a network have made: the next build runs them
    Runs,
}

impl Part {
    /// All of them, in the order of a lock.
    pub const ALL: [Part; 6] = [
        Part::Builder,
        Part::Kernel,
        Part::Packages,
        Part::Image,
        Part::Files,
        Part::Runs,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Part::Builder => "builder",
            Part::Kernel => "kernel",
            Part::Packages => "packages",
            Part::Image => "image",
            Part::Files => "files",
            Part::Runs => "runs",
        }
    }

    /// Takes this part over from another lock.
    pub fn take(self, lock: &mut Lock, from: &Lock) {
        let from = from.clone();
        match self {
            Part::Builder => lock.builder = from.builder,
            Part::Kernel => lock.kernel = from.kernel,
            Part::Packages => lock.debian = from.debian,
            Part::Image => lock.image = from.image,
            Part::Files => (lock.files, lock.copies) = (from.files, from.copies),
            Part::Runs => lock.runs = from.runs,
        }
    }

    /// The parts in which two locks differ.
    pub fn differing(a: &Lock, b: &Lock) -> Vec<Part> {
        let differs = |part: &Part| {
            let mut other = a.clone();
            part.take(&mut other, b);
            other != *a
        };
        Part::ALL.into_iter().filter(differs).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_command_line() {
        for part in Part::ALL {
            let value = part.to_possible_value().unwrap();
            assert_eq!(value.get_name(), part.name());
        }
    }

    #[test]
    fn a_part_is_taken_over_alone() {
        let (old, mut new) = (Lock::of_epoch(1), Lock::of_epoch(2));
        new.copies.push(crate::lock::CopySource {
            src: "x".into(),
            contents: Vec::new(),
        });
        assert_eq!(Part::differing(&old, &new), [Part::Builder, Part::Files]);
        let mut lock = old.clone();
        Part::Files.take(&mut lock, &new);
        assert_eq!(Part::differing(&old, &lock), [Part::Files]);
        assert_eq!(Part::differing(&lock, &new), [Part::Builder]);
    }
}
