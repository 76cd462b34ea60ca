//! Answers to what users of other tools type by habit: commands, options and arguments that a
//! program does not have, each with what works here, or that it is to come.
//!
//! A program has one table of [`Habit`]s and reads its command line by [`parse`]. Mistakes that are
//! not in the table keep clap's own messages.

use std::ffi::OsString;
use std::path::Path;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error, Parser};

use crate::error::json;
use crate::{ExitKind, Failure};

/// In a table: any argument that the program does not take.
pub const ARGUMENT: &str = "ARGUMENT";

/// What to answer to some words.
#[derive(Clone, Copy, Debug)]
pub struct Habit {
    /// The words, as they are typed:
    /// - `exec`: the first word of the command line, if there is no file of that name (nor a folder with a Smolfile);
    /// - `--rm`: an option, of the program itself or of any command;
    /// - `logs --tail`: an option of that command;
    /// - `-v A:B`: an option without a value, with what looks like one behind it;
    /// - [`ARGUMENT`].
    pub words: &'static [&'static str],
    /// The error. `{word}` stands for what was typed.
    pub message: &'static str,
    /// What to do instead. `{word}` stands for what was typed, `{rest|NAME}` for all that was typed
    /// behind it, or for `NAME` if that is nothing.
    pub hint: &'static str,
}

/// Reads the command line of this process.
///
/// # Errors
/// Of kind [`ExitKind::Usage`] for a word of the table. Other mistakes, `--help` and `--version` are
/// printed by clap, and end the process.
pub fn parse<P: Parser>(table: &[Habit]) -> Result<P, Failure> {
    let words: Vec<OsString> = std::env::args_os().collect();
    read(&words, table).map_err(|mistake| match mistake {
        Mistake::Habit(failure) => failure,
        Mistake::Other(error) if error.use_stderr() && json::is_wanted() => as_failure(&error),
        Mistake::Other(error) => error.exit(),
    })
}

/// Returns clap's error as one of ours, without the usage.
fn as_failure(error: &Error) -> Failure {
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n").map(str::trim);
    let message = paragraphs.next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let tips = paragraphs.flat_map(str::lines);
    let tips = tips.filter_map(|line| line.trim().strip_prefix("tip: "));
    tips.fold(Failure::new(ExitKind::Usage, message), Failure::hint)
}

/// Returns the words of a table that are in it twice, or that the program knows itself: there are to be
/// none.
pub fn clashes(table: &[Habit], command: &Command) -> Vec<String> {
    let words: Vec<&str> = table
        .iter()
        .flat_map(|habit| habit.words)
        .copied()
        .collect();
    let twice = (1..words.len()).filter(|n| words[..*n].contains(&words[*n]));
    let twice = twice.map(|n| format!("{} is there twice", words[n]));
    let known = words.iter().filter(|word| knows(command, word));
    twice
        .chain(known.map(|word| format!("{word} is known")))
        .collect()
}

/// Whether the program has this command, or this option.
fn knows(command: &Command, word: &str) -> bool {
    let (of, option) = match word.split_once(' ') {
        // An option that means something else there.
        Some((_, "A:B")) => return false,
        Some((name, option)) => (command.find_subcommand(name), option),
        None => (Some(command), word),
    };
    let is_option = |arg: &clap::Arg| {
        let long = arg.get_long().map(|long| format!("--{long}"));
        let short = arg.get_short().map(|short| format!("-{short}"));
        [long, short].iter().flatten().any(|name| name == option)
    };
    command.find_subcommand(word).is_some()
        || of.is_some_and(|of| of.get_arguments().any(is_option))
}

/// A command line that is refused.
enum Mistake {
    Habit(Failure),
    Other(Error),
}

fn read<P: Parser>(words: &[OsString], table: &[Habit]) -> Result<P, Mistake> {
    let texts: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let texts: Vec<&str> = texts.iter().skip(1).map(AsRef::as_ref).collect();
    if let [first, rest @ ..] = texts.as_slice()
        && !is_file(Path::new(first))
        && let Some(failure) = answer(table, first, first, rest)
    {
        return Err(Mistake::Habit(failure));
    }
    P::try_parse_from(words).map_err(
        |error| match explain(&P::command(), &error, &texts, table) {
            Some(failure) => Mistake::Habit(failure),
            None => Mistake::Other(without_misleading_tip(error)),
        },
    )
}

/// Whether the path is a file that a program may be given; or a folder that stands for its Smolfile.
fn is_file(path: &Path) -> bool {
    path.is_file() || path.join("Smolfile").is_file()
}

/// Returns the answer to clap's error, if the table has one.
fn explain(command: &Command, error: &Error, words: &[&str], table: &[Habit]) -> Option<Failure> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let wrong = match error.kind() {
        ErrorKind::UnknownArgument => text(ContextKind::InvalidArg)?,
        // This is how clap calls an argument behind those that a program with commands takes.
        ErrorKind::ArgumentConflict | ErrorKind::InvalidSubcommand => {
            text(ContextKind::InvalidSubcommand)?
        }
        _ => return None,
    };
    let at = words.iter().position(|word| word.starts_with(wrong));
    let rest = at.map_or(&[][..], |at| &words[at + 1..]);
    let is_command = |word: &&&str| command.find_subcommand(word).is_some();
    let first = words.first().filter(is_command);
    if wrong.starts_with('-') {
        let of_command = first.and_then(|first| {
            let both = format!("{first} {wrong}");
            answer(table, &both, wrong, rest)
        });
        return of_command.or_else(|| answer(table, wrong, wrong, rest));
    }
    if first.is_some() {
        return None;
    }
    if let [first, rest @ ..] = words
        && !Path::new(first).exists()
        && let Some(name) = similar(command, first)
    {
        let message = format!("there is no command and no file `{first}`");
        let program = command.get_name();
        let hint = format!("did you mean: {program} {name} {}", rest.join(" "));
        return Some(Failure::new(ExitKind::Usage, message).hint(hint));
    }
    let pairs = words.windows(2).filter(|pair| pair[1].contains(':'));
    let mut answers = pairs.filter_map(|pair| {
        let key = format!("{} A:B", pair[0]);
        answer(table, &key, &pair.join(" "), rest)
    });
    answers
        .next()
        .or_else(|| answer(table, ARGUMENT, wrong, rest))
}

/// Returns the answer to a word of the table.
fn answer(table: &[Habit], key: &str, word: &str, rest: &[&str]) -> Option<Failure> {
    let habit = table.iter().find(|habit| habit.words.contains(&key))?;
    let message = habit.message.replace("{word}", word);
    let mut hint = habit.hint.replace("{word}", word);
    if let Some((before, after)) = hint.split_once("{rest|")
        && let Some((default, after)) = after.split_once('}')
    {
        let rest = match rest.is_empty() {
            true => default.to_owned(),
            false => rest.join(" "),
        };
        hint = format!("{before}{rest}{after}");
    }
    Some(Failure::new(ExitKind::Usage, message).hint(hint))
}

/// For an unknown option clap proposes to pass it as the value of an argument: nobody wants that.
fn without_misleading_tip(mut error: Error) -> Error {
    if let Some(ContextValue::StyledStrs(mut tips)) = error.remove(ContextKind::Suggested) {
        tips.retain(|tip| !tip.to_string().contains(" as a value, use "));
        if !tips.is_empty() {
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
        }
    }
    error
}

/// Returns the command of the program whose name is most like the word, if one is.
pub fn similar(command: &Command, word: &str) -> Option<String> {
    let visible = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    // Clap compares names only where nothing but a command can stand.
    let error = Command::new("")
        .subcommands(visible.cloned())
        .try_get_matches_from(["", word])
        .err()?;
    match error.get(ContextKind::SuggestedSubcommand)? {
        ContextValue::Strings(names) => names.last().cloned(),
        ContextValue::String(name) => Some(name.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Subcommand};

    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "tool", args_conflicts_with_subcommands = true)]
    struct Tool {
        #[command(subcommand)]
        _command: Option<ToolCommand>,
        _file: Option<String>,
        #[arg(short)]
        _verbose: bool,
    }

    #[derive(Debug, Subcommand)]
    enum ToolCommand {
        List {
            name: Option<String>,
        },
        Logs,
        #[command(hide = true)]
        Internal,
    }

    const TABLE: &[Habit] = &[
        Habit {
            words: &["exec", "attach"],
            message: "no {word} yet",
            hint: "try {word} of {rest|NAME}!",
        },
        Habit {
            words: &["--rm", "-i"],
            message: "no option {word}",
            hint: "not needed",
        },
        Habit {
            words: &["logs --tail"],
            message: "no {word} of logs",
            hint: "h",
        },
        Habit {
            words: &["-v A:B"],
            message: "no volumes: {word}",
            hint: "h",
        },
        Habit {
            words: &[ARGUMENT],
            message: "what is {word}?",
            hint: "h",
        },
    ];

    fn refused(line: &str) -> String {
        let words: Vec<_> = line.split(' ').map(OsString::from).collect();
        match read::<Tool>(&words, TABLE) {
            Ok(tool) => panic!("{line}: {tool:?}"),
            Err(Mistake::Habit(failure)) => crate::error::render(&failure.into(), false),
            Err(Mistake::Other(error)) => error.to_string(),
        }
    }

    #[test]
    fn words_of_the_table_are_answered_wherever_they_stand() {
        for (line, wanted) in [
            ("tool exec x -p", "no exec yet\n  hint: try exec of x -p!"),
            ("tool attach", "no attach yet\n  hint: try attach of NAME!"),
            ("tool --rm f", "no option --rm\n  hint: not needed"),
            ("tool f --rm", "no option --rm\n"),
            ("tool f --rm=true", "no option --rm\n"),
            ("tool f -vit", "no option -i\n"),
            ("tool list --rm", "no option --rm\n"),
            ("tool logs --tail 5", "no --tail of logs\n"),
            ("tool f -v /a:/b", "no volumes: -v /a:/b\n"),
            ("tool -v /a:/b f", "no volumes: -v /a:/b\n"),
            ("tool f g", "what is g?\n"),
            (
                "tool lst f",
                "there is no command and no file `lst`\n  hint: did you mean: tool list f",
            ),
            ("tool f list", "what is list?\n"),
            ("tool f -- list", "what is list?\n"),
        ] {
            let told = refused(line);
            assert!(
                told.starts_with(&format!("error: {wanted}")),
                "{line}: {told}"
            );
        }
    }

    #[test]
    fn other_mistakes_keep_the_messages_of_clap_but_for_a_tip_that_misleads() {
        for (line, wanted) in [
            ("tool f --tail", "unexpected argument '--tail' found"),
            ("tool list a b", "unexpected argument 'b' found"),
        ] {
            let told = refused(line);
            assert!(told.contains(wanted), "{line}: {told}");
            assert!(!told.contains("as a value"), "{told}");
        }
    }

    #[test]
    fn a_mistake_that_clap_words_is_a_failure_with_its_tips() {
        let error = Tool::try_parse_from(["tool", "lst", "x"]).unwrap_err();
        let error = as_failure(&error).hint("last");
        let text = crate::error::render(&error.into(), false);
        assert!(text.starts_with("error: ") && text.ends_with("\n  hint: last\n"));
        assert!(
            !text.contains("Usage") && !text.contains("--help"),
            "{text}"
        );
    }

    #[test]
    fn a_file_of_that_name_is_no_habit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exec");
        let word = path.to_str().unwrap().to_owned();
        let word: &'static str = word.leak();
        let table = [Habit {
            words: vec![word].leak(),
            ..TABLE[0]
        }];
        let words = ["tool".into(), word.into()];
        assert!(read::<Tool>(&words, &table).is_err());
        std::fs::create_dir(&path).unwrap();
        assert!(read::<Tool>(&words, &table).is_err());
        std::fs::write(path.join("Smolfile"), "").unwrap();
        assert!(read::<Tool>(&words, &table).is_ok());
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::write(path, "").unwrap();
        assert!(read::<Tool>(&words, &table).is_ok());
    }

    #[test]
    fn a_word_that_is_nearly_a_command_leads_to_it() {
        let tool = Tool::command();
        assert_eq!(similar(&tool, "lst"), Some("list".into()));
        assert_eq!(similar(&tool, "log"), Some("logs".into()));
        for word in ["redis", "internall", "list", "--help"] {
            assert_eq!(similar(&tool, word), None, "{word}");
        }
    }
}
