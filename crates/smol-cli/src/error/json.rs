//! Errors as JSON, for `--progress json`: one object a line.

use std::ffi::OsString;

use serde_json::{Value, json};

use super::{BUG, ErrorReport, ExitKind, Mistake, What, exit_kind};
use crate::human::is_hidden;

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
    objects.iter().map(line).collect()
}

/// Returns the object as a line of text.
pub fn line(object: &Value) -> String {
    visible(&object.to_string()) + "\n"
}

/// Returns the JSON text with everything escaped that a terminal does not show: serde_json leaves what
/// JSON allows as it is, DEL and C1 controls among it.
pub fn visible(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || !is_hidden(c) {
            out.push(c);
            continue;
        }
        let mut units = [0; 2];
        for unit in c.encode_utf16(&mut units) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    }
    out
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
    fn what_a_terminal_does_not_show_is_escaped_and_means_the_same() {
        let hostile = "a\u{9b}1A\u{202e}\u{7f}\u{e0041}\n\x1b \u{e9}";
        let text = line(&json!({ "name": hostile }));
        let hidden: Vec<_> = text.trim_end().chars().filter(|c| is_hidden(*c)).collect();
        assert_eq!(hidden, [], "{text:?}");
        let back: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back["name"], hostile);
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
