//! Programs that keep credentials: `docker-credential-NAME get` reads a server's name on its stdin,
//! and answers with JSON (github.com/docker/docker-credential-helpers).

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::Credential;
use crate::error::{Error, Kind, Result, shown};

/// Most bytes of an answer.
const MOST: u64 = 64 << 10;
/// How long a program may take, as it may ask its user.
const LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    secret: String,
}

/// Asks a helper for the credentials of a server.
///
/// # Errors
/// Of kind [`Kind::Config`] if it cannot be run or fails; not if it has none.
pub fn get(name: &str, server: &str, go_on: &dyn Fn() -> bool) -> Result<Option<Credential>> {
    let program = format!("docker-credential-{name}");
    let failed = |why: String| {
        let message = format!("{program}, which keeps the credentials of {server}, {why}");
        Error::new(Kind::Config, message)
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !name.chars().all(is_name) {
        return Err(failed("is no name of a program".into()));
    }
    let mut command = Command::new(&program);
    command
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let mut child = command
        .spawn()
        .map_err(|e| failed(format!("cannot be run: {e}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that needs no name may have closed it.
        let _ = stdin.write_all(server.as_bytes());
    }
    let (status, output) = finish(child, go_on).map_err(|e| match e {
        Stopped::Interrupted => Error::interrupted(),
        Stopped::Failed(why) => failed(why),
    })?;
    if !status {
        return match says_none(&output) {
            true => Ok(None),
            false => Err(failed(format!("fails: {}", shown(&output)))),
        };
    }
    answer(output.as_bytes()).map_err(|why| failed(why.into()))
}

/// Reads the answer of a helper.
///
/// # Errors
/// If it is none; without anything of what it is.
pub fn answer(output: &[u8]) -> std::result::Result<Option<Credential>, &'static str> {
    let answer: Answer =
        serde_json::from_slice(output).map_err(|_| "answers with something else")?;
    Ok(match (answer.username.as_str(), answer.secret) {
        (_, secret) if secret.is_empty() => None,
        ("<token>", secret) => Some(Credential::Identity(secret)),
        (user, secret) => Some(Credential::password(user, &secret)),
    })
}

/// Whether a helper that failed has said that it has no credentials.
fn says_none(output: &str) -> bool {
    let output = output.to_lowercase();
    output.contains("credentials not found") || output.contains("no credentials")
}

enum Stopped {
    Interrupted,
    Failed(String),
}

/// Waits for the end of a helper. Returns whether it succeeded, and its output.
fn finish(
    mut child: Child,
    go_on: &dyn Fn() -> bool,
) -> std::result::Result<(bool, String), Stopped> {
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(stdout) = stdout {
            let _ = stdout.take(MOST).read_to_end(&mut bytes);
        }
        bytes
    });
    let begin = Instant::now();
    let stopped = loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                // What it has left behind may hold the pipe open.
                while !reader.is_finished() && go_on() && begin.elapsed() < LIMIT {
                    std::thread::sleep(POLL);
                }
                if !reader.is_finished() {
                    break Stopped::Failed("does not end its output".into());
                }
                let output = reader.join().unwrap_or_default();
                return Ok((
                    status.success(),
                    String::from_utf8_lossy(&output).into_owned(),
                ));
            }
            Err(error) => break Stopped::Failed(format!("cannot be waited for: {error}")),
            Ok(None) if !go_on() => break Stopped::Interrupted,
            Ok(None) if begin.elapsed() >= LIMIT => {
                break Stopped::Failed(format!("does not answer within {} s", LIMIT.as_secs()));
            }
            Ok(None) => std::thread::sleep(POLL),
        }
    };
    let _ = child.kill();
    let _ = child.wait();
    Err(stopped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_passwords_tokens_or_nothing() {
        let password = br#"{"ServerURL":"h","Username":"u","Secret":"s"}"#;
        assert_eq!(answer(password), Ok(Some(Credential::password("u", "s"))));
        let token = br#"{"Username":"<token>","Secret":"s"}"#;
        assert_eq!(answer(token), Ok(Some(Credential::Identity("s".into()))));
        assert_eq!(answer(br#"{"Username":"","Secret":""}"#), Ok(None));
        for wrong in [&b"{}"[..], b"", b"\xff", b"[1]", br#"{"Secret":1}"#] {
            assert!(answer(wrong).is_err());
        }
    }

    #[test]
    fn a_helper_that_is_not_there_is_named() {
        let error = get("smol-nonexistent", "h", &|| true).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        let text = error.to_string();
        assert!(
            text.contains("docker-credential-smol-nonexistent"),
            "{text}"
        );
        let error = get("../x", "h", &|| true).unwrap_err().to_string();
        assert!(error.contains("no name of a program"), "{error}");
    }
}
