//! What bundles say about themselves: configuration, parent, Smolfile, lock.

use anyhow::{Context, Result};
use smol_bundle::Bundle;

use super::values::{self, Change, Numbers};
use crate::error::ResultExt;

/// Compares configurations field by field, the kernel command line word by word, the bundles that
/// these were built on, and the texts line by line.
pub fn compare(a: &Bundle, b: &Bundle) -> Result<Vec<Change>> {
    let config = |bundle: &Bundle| {
        let mut config = serde_json::to_value(bundle.config()).context("a configuration")?;
        config["cmdline"] = bundle.config().cmdline.split(' ').collect();
        anyhow::Ok(config)
    };
    let mut changes = values::compare(&config(a)?, &config(b)?, Numbers::Decimal);
    changes.extend(parent(a, b));
    changes.extend(text("Smolfile", a, b, Bundle::smolfile)?);
    changes.extend(text("Smolfile.lock", a, b, Bundle::lock)?);
    Ok(changes)
}

fn parent(a: &Bundle, b: &Bundle) -> Option<Change> {
    let [a, b] = [a, b].map(|bundle| bundle.parent().map(|digest| digest.to_string()));
    let path = "parent".to_owned();
    (a != b).then_some(Change { path, a, b })
}

fn text(
    name: &str,
    a: &Bundle,
    b: &Bundle,
    read: impl Fn(&Bundle) -> smol_bundle::Result<Option<Vec<u8>>>,
) -> Result<Vec<Change>> {
    let (a, b) = (read(a).classify()?, read(b).classify()?);
    let size = |text: &Vec<u8>| format!("{} bytes", text.len());
    Ok(match (&a, &b) {
        (Some(a), Some(b)) => values::lines(name, a, b),
        (None, None) => Vec::new(),
        (a, b) => vec![Change {
            path: name.to_owned(),
            a: a.as_ref().map(size),
            b: b.as_ref().map(size),
        }],
    })
}
