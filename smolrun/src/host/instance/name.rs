//! Names of instances: folders' names, which people type.

use std::path::Path;

use smol_cli::{ExitKind, Failure};

use super::folders::check_free;

/// Longest name of an instance, bytes.
const MAX_NAME: usize = 64;

/// Refuses what cannot be the name of an instance.
///
/// # Errors
/// In words.
pub fn check_name(name: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let begins = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    if begins && name.len() <= MAX_NAME && name.bytes().all(good) {
        return Ok(name.to_owned());
    }
    Err(format!(
        "a name has 1 to {MAX_NAME} letters, digits, '.', '_' and '-' and begins with a letter or digit"
    ))
}

/// Returns a free name for an instance of this machine: the machine's and six hexadecimal digits,
/// which are enough for instances that are started at the same moment to get different ones.
///
/// # Errors
/// If there is none, or nothing to draw it from.
pub fn invent_name(root: &Path, machine: &str) -> anyhow::Result<String> {
    draw_name(root, machine, crate::run::identity::random)
}

fn draw_name(
    root: &Path,
    machine: &str,
    mut draw: impl FnMut() -> anyhow::Result<[u8; 3]>,
) -> anyhow::Result<String> {
    const TRIES: usize = 100;
    // A machine's name has ASCII only, so every byte is a place to cut.
    let machine = &machine[..machine.len().min(MAX_NAME - 7)];
    for _ in 0..TRIES {
        let name = format!("{machine}-{}", hex::encode(draw()?));
        // An ended machine is replaced by name only, not by chance.
        if !root.join(&name).exists() && check_free(root, &name).is_ok() {
            return Ok(name);
        }
    }
    let message = format!("{TRIES} names for the machine were drawn, and all are in use");
    Err(Failure::new(ExitKind::Failed, message)
        .hint("name it yourself: --name NAME")
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::instance::{Instance, record};

    #[test]
    fn names_are_short_readable_and_valid() {
        let root = tempfile::tempdir().unwrap();
        let name = invent_name(root.path(), "redis").unwrap();
        assert!(name.starts_with("redis-") && name.len() == 12, "{name}");
        assert_eq!(check_name(&name), Ok(name));
        let long = invent_name(root.path(), &"x".repeat(128)).unwrap();
        assert_eq!(check_name(&long), Ok(long));
    }

    #[test]
    fn a_name_that_is_in_use_is_not_invented() {
        let root = tempfile::tempdir().unwrap();
        let _other = Instance::claim(root.path(), record::sample("r-000000")).unwrap();
        let mut drawn = 0..;
        let name = draw_name(root.path(), "r", || Ok([0, 0, drawn.next().unwrap()]));
        assert_eq!(name.unwrap(), "r-000001");
        let error = draw_name(root.path(), "r", || Ok([0; 3])).unwrap_err();
        assert!(error.to_string().contains("all are in use"), "{error}");
    }

    #[test]
    fn names_that_would_leave_the_folder_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "-x",
            ".x",
            "a b",
            "ä",
            &"x".repeat(65),
        ] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
