//! Errors as JSON, for `--progress json`: one object a line.

use std::ffi::OsString;

use serde_json::{Value, json};

use super::{BUG, ExitKind, Mistake, What, causes, exit_kind, hints, rendered};

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

/// Returns the error as one object: `event`, `message`, `causes`, `hints`, `kind` and `code`; and for
/// mistakes in an input file the first one's place.
pub fn object(error: &anyhow::Error) -> Value {
    let kind = exit_kind(error);
    if let [first, ..] = mistakes(error) {
        return of_mistake(first, kind);
    }
    let (mut texts, mut advice) = match rendered(error) {
        Some(text) => parse(text),
        None => (causes(error), Vec::new()),
    };
    for hint in hints(error) {
        if !advice.contains(&hint) {
            advice.push(hint);
        }
    }
    if kind == ExitKind::Internal {
        advice.push(BUG.to_owned());
    }
    let causes = texts.split_off(1.min(texts.len()));
    let message = texts.pop().unwrap_or_default();
    event(message, &causes, &advice, kind)
}

/// Returns the object of a panic.
pub fn of_panic(what: &str, place: &str) -> Value {
    let message = "internal failure".to_owned();
    let causes = [what.to_owned()];
    let mut object = event(message, &causes, &[BUG.to_owned()], ExitKind::Internal);
    object["at"] = place.into();
    object
}

fn event(message: String, causes: &[String], hints: &[String], kind: ExitKind) -> Value {
    json!({
        "event": "error", "message": message, "causes": causes, "hints": hints,
        "kind": kind.name(), "code": kind.code(),
    })
}

fn of_mistake(mistake: &Mistake, kind: ExitKind) -> Value {
    let causes: Vec<String> = mistake.cause.iter().cloned().collect();
    let mut object = event(mistake.message.clone(), &causes, &mistake.hints, kind);
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
            What::Rendered { mistakes, .. } => Some(mistakes.as_slice()),
            _ => None,
        })
        .unwrap_or_default()
}

/// Message and causes, and hints, of the text that [`super::render`] makes.
fn parse(text: &str) -> (Vec<String>, Vec<String>) {
    let (mut texts, mut hints): (Vec<String>, Vec<String>) = Default::default();
    let mut in_hint = false;
    for line in text.lines() {
        let begin = [
            ("error: ", false),
            ("  because: ", false),
            ("  hint: ", true),
        ];
        let begin = begin.into_iter().find_map(|(label, hint)| {
            let rest = line.strip_prefix(label)?;
            Some((rest.to_owned(), hint))
        });
        match begin {
            Some((rest, hint)) => {
                in_hint = hint;
                if hint { &mut hints } else { &mut texts }.push(rest);
            }
            None => {
                let list = if in_hint { &mut hints } else { &mut texts };
                match list.last_mut() {
                    Some(last) => *last += &format!("\n{}", line.trim_start()),
                    None => list.push(line.to_owned()),
                }
            }
        }
    }
    (texts, hints)
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
        let expected = r#"{"causes":["No such file or directory (os error 2)"],"code":2,"event":"error","hints":["look for it"],"kind":"usage","message":"cannot read x"}"#;
        assert_eq!(lines(&no_file()), format!("{expected}\n"));
        // One that comes rendered from another process is the same.
        let text = crate::error::render(&no_file(), false);
        let again = Failure::rendered(ExitKind::Usage, text).into();
        assert_eq!(lines(&again), format!("{expected}\n"));
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
    fn texts_of_several_lines_stay_one() {
        let text = "error: out of date:\n  a\n  b\n  hint: do\n    this\n  hint: or that\n";
        let (texts, hints) = parse(text);
        assert_eq!(texts, ["out of date:\na\nb"]);
        assert_eq!(hints, ["do\nthis", "or that"]);
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
