//! Errors as JSON, for `--progress json`: one object a line.

use std::ffi::OsString;

use serde_json::{Value, json};

use super::{BUG, ErrorReport, ExitKind, Mistake, What, exit_kind};

/// Returns whether errors of this process are to be JSON: its command line has `--progress json`, or
/// the variable SMOL_PROGRESS says so and the command line nothing else. An error may come before the
/// command line is understood, so it is looked at as it is.
pub fn is_wanted() -> bool {
    let variable = std::env::var("SMOL_PROGRESS").ok();
    mode(std::env::args_os().skip(1), variable).as_deref() == Some("json")
}

/// The last `--progress` of a command line, or else the variable's value.
fn mode(words: impl Iterator<Item = OsString>, variable: Option<String>) -> Option<String> {
    let mut mode = variable;
    let words = words.map(|word| word.to_string_lossy().into_owned());
    let mut words = words.take_while(|word| word != "--");
    while let Some(word) = words.next() {
        match word.strip_prefix("--progress") {
            Some("") => mode = words.next(),
            Some(rest) if rest.starts_with('=') => mode = Some(rest[1..].to_owned()),
            _ => {}
        }
    }
    mode
}

/// Returns the lines that [`super::report`] prints: one object, or one for each mistake in an input
/// file.
pub fn lines(error: &anyhow::Error) -> String {
    let objects = match mistakes(error) {
        [] => vec![object(error)],
        mistakes => mistakes
            .iter()
            .map(|mistake| of_mistake(mistake, exit_kind(error)))
            .collect(),
    };
    objects.iter().map(|object| format!("{object}\n")).collect()
}

/// Returns the error as one object: `event`, `message`, `details`, `causes`, `hints`, `kind` and `code`;
/// and for mistakes in an input file the first one's place.
pub fn object(error: &anyhow::Error) -> Value {
    let kind = exit_kind(error);
    match mistakes(error) {
        [first, ..] => of_mistake(first, kind),
        [] => event(&ErrorReport::of(error), kind),
    }
}

/// Returns the object of a panic.
pub fn of_panic(what: &str, place: &str) -> Value {
    let report = ErrorReport {
        message: "internal failure".to_owned(),
        causes: vec![what.to_owned()],
        hints: vec![BUG.to_owned()],
        ..ErrorReport::default()
    };
    let mut object = event(&report, ExitKind::Internal);
    object["at"] = place.into();
    object
}

fn event(report: &ErrorReport, kind: ExitKind) -> Value {
    let ErrorReport {
        message,
        details,
        causes,
        hints,
    } = report;
    json!({
        "event": "error", "message": message, "details": details, "causes": causes, "hints": hints,
        "kind": kind.name(), "code": kind.code(),
    })
}

fn of_mistake(mistake: &Mistake, kind: ExitKind) -> Value {
    let report = ErrorReport {
        message: mistake.message.clone(),
        causes: mistake.cause.iter().cloned().collect(),
        hints: mistake.hints.clone(),
        ..ErrorReport::default()
    };
    let mut object = event(&report, kind);
    object["file"] = mistake.file.clone().into();
    object["line"] = mistake.line.into();
    object["column"] = mistake.column.into();
    object
}

/// The mistakes in an input file that the error consists of, if it does.
pub fn mistakes(error: &anyhow::Error) -> &[Mistake] {
    let mut failures = super::failures(error);
    failures
        .find_map(|failure| match &failure.what {
            What::Mistakes { mistakes, .. } => Some(mistakes.as_slice()),
            _ => None,
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;
    use crate::{ErrorExt, Failure};

    fn no_file() -> anyhow::Error {
        let error = Err::<(), _>(std::io::Error::from_raw_os_error(2));
        let error = error.context("cannot read x").kind(ExitKind::Usage);
        error.hint("look for it").unwrap_err()
    }

    #[test]
    fn an_error_is_one_object_with_causes_hints_and_code() {
        let expected = r#"{"causes":["No such file or directory (os error 2)"],"code":2,"details":[],"event":"error","hints":["look for it"],"kind":"usage","message":"cannot read x"}"#;
        assert_eq!(lines(&no_file()), format!("{expected}\n"));
    }

    #[test]
    fn each_mistake_in_a_file_is_an_object_with_its_place() {
        let mistake = |line| Mistake {
            message: "wrong".into(),
            cause: Some("must be 1 to 2".into()),
            hints: vec!["write 1".into()],
            file: "Smolfile".into(),
            line,
            column: 7,
        };
        let failure = Failure::mistakes(ExitKind::Usage, "drawn", vec![mistake(3), mistake(4)]);
        let text = lines(&failure.into());
        let objects: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(objects.len(), 2);
        assert_eq!(objects[1]["line"], 4);
        assert_eq!(objects[0]["column"], 7);
        assert_eq!(objects[0]["file"], "Smolfile");
        assert_eq!(objects[0]["causes"], json!(["must be 1 to 2"]));
        assert_eq!(objects[0]["code"], 2);
    }

    #[test]
    fn the_mode_is_that_of_the_command_line_or_else_of_the_variable() {
        let of = |line: &str, variable: Option<&str>| {
            let words = line.split_whitespace().map(OsString::from);
            mode(words, variable.map(str::to_owned))
        };
        assert_eq!(of("build --progress json", None), Some("json".into()));
        assert_eq!(of("--progress=json x", None), Some("json".into()));
        assert_eq!(of("x --progress plain", Some("json")), Some("plain".into()));
        assert_eq!(of("x", Some("json")), Some("json".into()));
        assert_eq!(of("x -- --progress json", None), None);
    }
}
