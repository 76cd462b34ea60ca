//! `[[copy]]`: its sources, and how they are copied.

use smol_rootfs::ignore::Patterns;
use toml::Spanned;
use toml::de::DeValue;

use super::CopyStep;
use super::diagnostic::Diagnostic;
use super::glob::{self, Source};
use super::table::{Entry, Errors, Table, as_string, parsed, to_u64};
use super::values;

/// A table of `[[copy]]`: a step for each source.
pub(super) fn copy(
    mut table: Table<'_>,
    number: usize,
    errors: &mut Errors,
) -> Option<Vec<CopyStep>> {
    table.require("src", "src = \"app.conf\"", errors);
    table.require("dest", "dest = \"/etc/app.conf\"", errors);
    let sources = sources(&mut table, errors);
    let dest = table.parsed("dest", errors, values::destination);
    let owner = table.parsed("owner", errors, values::user);
    let mode = table
        .take("mode")
        .and_then(|entry| file_mode(entry, errors));
    let exclude = exclude(&mut table, errors);
    table.finish(errors);
    let (sources, dest) = (sources?, dest?);
    let several = sources.len() > 1 || sources.iter().any(|(_, glob)| *glob);
    if several && !dest.get_ref().ends_with('/') {
        let title = "several files need a folder to go into";
        let help = format!("write dest = \"{}/\"", dest.get_ref().escape_debug());
        errors.push(Diagnostic::new(dest.span(), title).help(help));
    }
    let dest = dest.into_inner();
    let steps = sources.into_iter().map(|(src, glob)| CopyStep {
        src,
        glob,
        number,
        dest: dest.clone(),
        mode,
        owner: owner.clone(),
        exclude: exclude.clone(),
    });
    Some(steps.collect())
}

/// The sources of a `[[copy]]`, and whether they are patterns.
fn sources(table: &mut Table<'_>, errors: &mut Errors) -> Option<Vec<(Spanned<String>, bool)>> {
    let texts = match table.list("src") {
        None => vec![table.string("src", errors)?],
        Some([]) => {
            let span = table.value_span("src")?;
            table.take("src");
            errors.push(Diagnostic::new(span, "`src` names nothing"));
            return None;
        }
        Some(_) => {
            let values = table.array("src", "a path, or a list of paths", errors);
            let texts = values.into_iter().map(|value| as_string(value, errors));
            texts
                .collect::<Vec<_>>()
                .into_iter()
                .collect::<Option<_>>()?
        }
    };
    let sources = texts.into_iter().map(|text| source(text, errors));
    sources.collect::<Vec<_>>().into_iter().collect()
}

fn source(text: Spanned<String>, errors: &mut Errors) -> Option<(Spanned<String>, bool)> {
    let path = parsed(text, errors, values::host_path)?;
    let span = path.span();
    match glob::parse(path.get_ref()) {
        _ if path.get_ref() == "." => Some((path, false)),
        Ok(Source::Path(plain)) => Some((Spanned::new(span, plain), false)),
        Ok(Source::Pattern(_)) => Some((path, true)),
        Err(why) => {
            let help = "patterns are those of COPY in a Dockerfile: a backslash takes the meaning of *, ? and [";
            errors.push(Diagnostic::new(span, "not a pattern").label(why).help(help));
            None
        }
    }
}

/// Patterns of what is left out of a folder.
fn exclude(table: &mut Table<'_>, errors: &mut Errors) -> Vec<Spanned<String>> {
    let what = "a list of patterns, such as [\"*.pyc\", \".git\"]";
    let values = table.array("exclude", what, errors);
    let texts = values
        .into_iter()
        .filter_map(|value| as_string(value, errors));
    let patterns: Vec<_> = texts.collect();
    for pattern in &patterns {
        if let Err(broken) = Patterns::new([(1, pattern.get_ref().as_str())]) {
            let wrong = Diagnostic::new(pattern.span(), "not a pattern").label(broken.why);
            errors.push(wrong.help("patterns are those of a .dockerignore file"));
        }
    }
    patterns
}

pub(super) fn file_mode(entry: Entry<'_>, errors: &mut Errors) -> Option<u32> {
    let value = entry.value;
    // 755 in decimal is 0o1363, which nobody means.
    if let DeValue::Integer(number) = value.get_ref()
        && number.radix() == 10
    {
        let help = match values::mode(number.as_str()) {
            Ok(_) => format!("write `0o{}` or \"{}\"", number.as_str(), number.as_str()),
            Err(_) => "write an octal number, such as `0o755`".to_owned(),
        };
        errors.push(Diagnostic::new(value.span(), "a file mode is an octal number").help(help));
        return None;
    }
    if let DeValue::Integer(number) = value.get_ref() {
        let mode = to_u64(number).and_then(|mode| u32::try_from(mode).ok());
        if mode.is_none_or(|mode| mode > 0o7777) {
            errors.push(
                Diagnostic::new(value.span(), "`mode` is out of range")
                    .label("must be 0o0 to 0o7777"),
            );
        }
        return mode;
    }
    let text = as_string(value, errors)?;
    parsed(text, errors, values::mode).map(Spanned::into_inner)
}
