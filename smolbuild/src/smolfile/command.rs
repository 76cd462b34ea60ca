//! Commands: a list of words, or a line for the shell; and what goes wrong with the two.

use toml::Spanned;
use toml::de::DeValue;

use super::diagnostic::{Diagnostic, Span};
use super::table::{Errors, Table, as_string, mismatch};

/// Takes a command. Of a line the shell makes the command, as container engines do.
pub(super) fn command(table: &mut Table<'_>, key: &str, errors: &mut Errors) -> Vec<String> {
    let Some(entry) = table.take(key) else {
        return Vec::new();
    };
    let span = entry.value.span();
    let words = match entry.value.into_inner() {
        DeValue::String(line) => {
            let line = as_string(Spanned::new(span.clone(), DeValue::String(line)), errors);
            let Some(line) = line.map(Spanned::into_inner) else {
                return Vec::new();
            };
            // A blank line is as empty as an empty list.
            let program = if line.trim().is_empty() {
                ""
            } else {
                "/bin/sh"
            };
            vec![program.to_owned(), "-c".to_owned(), line]
        }
        DeValue::Array(words) => {
            let count = words.len();
            let words: Vec<Spanned<String>> = words
                .into_iter()
                .filter_map(|word| as_string(word, errors))
                .collect();
            let is_whole = words.len() == count;
            if is_whole {
                errors.0.extend(shell_words(&words));
            }
            let words = words.into_iter().map(Spanned::into_inner).collect();
            // A word that is no string was reported; the rest says nothing about emptiness.
            if !is_whole {
                return words;
            }
            words
        }
        other => {
            let expected = "a command: a list of strings, or a string for /bin/sh";
            errors.push(mismatch(span, &other, expected));
            return Vec::new();
        }
    };
    if words.first().is_none_or(String::is_empty) {
        let help = "write the program and its arguments, such as [\"program\", \"argument\"]";
        errors.push(Diagnostic::new(span, format!("`{key}` is an empty command")).help(help));
    }
    words
}

/// Takes the command of a service, which must stay in the foreground. The words of an image's may be
/// nothing but arguments, or be none.
pub(super) fn service(table: &mut Table<'_>, of_image: bool, errors: &mut Errors) -> Vec<String> {
    if of_image && table.list("cmd").is_some_and(<[_]>::is_empty) {
        table.take("cmd");
        return Vec::new();
    }
    let span = table.value_span("cmd");
    let cmd = command(table, "cmd", errors);
    if let (Some(span), Some(wrong)) = (span, leaves(&cmd)) {
        errors.push(Diagnostic { span, ..wrong });
    }
    cmd
}

/// What is wrong with a list whose words only a shell would understand.
fn shell_words(words: &[Spanned<String>]) -> Option<Diagnostic> {
    let (program, arguments) = words.split_first()?;
    if program.get_ref().trim().contains(char::is_whitespace) {
        return Some(one_word(program, words));
    }
    if interprets(program.get_ref()) {
        return None;
    }
    // Behind `su app -c`, or `timeout 5 sh`, there is somebody who understands them.
    let arguments = arguments.iter();
    let mut own = arguments.take_while(|word| !interprets(word.get_ref()));
    own.find_map(|word| argument(word, words))
}

/// A program whose name holds its arguments, too.
fn one_word(program: &Spanned<String>, words: &[Spanned<String>]) -> Diagnostic {
    let text = program.get_ref();
    let wrong = Diagnostic::new(program.span(), "the name of a program has a space in it");
    let line = quoted(&line(words));
    if text.contains(['\'', '"', '\\', '$', '&', '|', '>', '<', ';']) {
        return wrong.help(format!("write a string, which /bin/sh runs: {line}"));
    }
    let parts = text.split_whitespace().map(quoted);
    let rest = words[1..].iter().map(|word| quoted(word.get_ref()));
    let list: Vec<String> = parts.chain(rest).collect();
    wrong.help(format!(
        "write [{}], or a string, which /bin/sh runs: {line}",
        list.join(", ")
    ))
}

/// An argument that a shell would act on.
fn argument(word: &Spanned<String>, words: &[Spanned<String>]) -> Option<Diagnostic> {
    let text = word.get_ref();
    let operators = ["&&", "||", "|", "&", ">", ">>", "<", "2>&1", "2>", "&>"];
    let title = match (operators.contains(&text.as_str()), variable(text)) {
        (true, _) => format!("no shell reads this list: `{text}` would be an argument"),
        (false, Some(name)) => {
            format!("no shell reads this list: `{name}` would not be replaced")
        }
        (false, None) => return None,
    };
    let line = line(words);
    // The shell is to become the program, where it has nothing else to do.
    let exec = match operators.iter().any(|it| line.contains(it)) {
        true => "",
        false => "exec ",
    };
    let help = format!(
        "write the command as a string, which /bin/sh runs: {}",
        quoted(&format!("{exec}{line}"))
    );
    Some(Diagnostic::new(word.span(), title).help(help))
}

/// The variable that stands in an argument such as `$PORT`, `${PORT}` or `0.0.0.0:$PORT`. Anything
/// with a space may be a program of another language.
fn variable(text: &str) -> Option<&str> {
    if text.contains(char::is_whitespace) {
        return None;
    }
    let start = text.find('$')?;
    let rest = &text[start + 1..];
    let (braces, name) = match rest.strip_prefix('{') {
        Some(name) => (true, name),
        None => (false, rest),
    };
    let is_first = |c: char| c.is_ascii_uppercase() || c == '_';
    let end = name.find(|c: char| !is_first(c) && !c.is_ascii_digit());
    let end = end.unwrap_or(name.len());
    if end < 2 || !name.starts_with(is_first) || (braces && !name[end..].starts_with('}')) {
        return None;
    }
    let length = if braces { end + 3 } else { end + 1 };
    text.get(start..start + length)
}

/// Whether a word is a program that takes such words as what they are (a shell, a language of its
/// own), or the option before a piece of its language.
fn interprets(word: &str) -> bool {
    const NAMES: [&str; 20] = [
        "sh", "bash", "dash", "ash", "busybox", "zsh", "ksh", "fish", "env", "envsubst", "awk",
        "gawk", "mawk", "perl", "php", "ruby", "jq", "test", "[", "expr",
    ];
    const OPTIONS: [&str; 4] = ["-c", "-e", "-r", "--eval"];
    NAMES.contains(&name(word)) || OPTIONS.contains(&word)
}

/// The name of a program without its folder.
fn name(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

/// A command of a service that ends at once, while the service runs on behind it, or does not run at
/// all.
fn leaves(cmd: &[String]) -> Option<Diagnostic> {
    let stays = "a service stays in the foreground: the machine ends with this command";
    if let [shell, option, line] = cmd
        && (shell.as_str(), option.as_str()) == ("/bin/sh", "-c")
        && let Some(line) = line.trim_end().strip_suffix('&')
        && !line.ends_with(['&', '>'])
    {
        let line = line.trim_end();
        let wrong = Diagnostic::new(0..0, "this puts the service into the background");
        return Some(wrong.help(stays).help(format!("write {}", quoted(line))));
    }
    let words: Vec<&str> = match cmd {
        [shell, _, line] if shell == "/bin/sh" => line.split_whitespace().collect(),
        words => words.iter().map(String::as_str).collect(),
    };
    let (program, rest) = words.split_first()?;
    let background = "this starts a service in the background";
    let (title, unit) = match (name(program), rest) {
        ("systemctl", [.., unit]) => ("this asks a systemd that does not run", *unit),
        // A program of one's own may have this name.
        ("service" | "rc-service", [unit, "start" | "restart"]) => (background, *unit),
        (unit, ["start" | "restart"]) if program.contains("/init.d/") => (background, unit),
        _ => return None,
    };
    let what = unit.trim_end_matches(".service");
    let mut wrong = Diagnostic::new(0..0, title).help(stays);
    if name(program) == "systemctl" {
        wrong = wrong.help(format!(
            "write cmd = [\"/sbin/init\"] for a machine with systemd, in whose root file system the unit {what} is enabled"
        ));
    }
    Some(wrong.help(format!(
        "name the program of {what} itself, with the option that keeps it in the foreground"
    )))
}

/// The words of a list as a line.
fn line(words: &[Spanned<String>]) -> String {
    let words: Vec<&str> = words.iter().map(|word| word.get_ref().as_str()).collect();
    words.join(" ")
}

/// A string as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// The help for environment variables as a list, as compose files have them: the same as a table.
pub(super) fn env_list(words: &[Spanned<DeValue<'_>>]) -> Option<String> {
    let mut pairs = Vec::new();
    for word in words {
        let DeValue::String(text) = word.get_ref() else {
            return None;
        };
        let Some((name, value)) = text.split_once('=') else {
            return Some("write { NAME = \"value\" }; nothing is taken over from the host".into());
        };
        pairs.push(format!("{name} = {}", quoted(value)));
    }
    Some(format!("write {{ {} }}", pairs.join(", ")))
}

/// The help for a port as container engines write it: `8080:80`, `80/tcp`.
pub(super) fn port_help(text: &str, span: Span) -> Option<Diagnostic> {
    let number = |text: &str| text.parse::<u16>().ok();
    let (plain, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if protocol == "udp" {
        let wrong = Diagnostic::new(span, "UDP ports are not possible yet");
        return Some(wrong.help("only TCP ports can be forwarded"));
    }
    let (host, guest) = match plain.rsplit_once(':') {
        Some((host, guest)) => (Some(host), guest),
        None => (None, plain),
    };
    let guest = number(guest)?;
    let help = match host {
        Some(host) => format!(
            "write {guest}; the port of the host is chosen when the machine runs: smolrun -p {host}:{guest}"
        ),
        None if protocol == "tcp" && plain != text => format!("write {guest}: all ports are TCP"),
        None => return None,
    };
    Some(Diagnostic::new(span, "a port of the service alone is wanted here").help(help))
}
