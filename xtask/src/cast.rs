//! `cargo xtask cast`: runs the commands of the README's first minute, and draws what a terminal shows
//! of them as an animated picture, `docs/cast.svg`.
//!
//! Everything in it is real: the commands run here, and their output appears when it came, except that
//! waits are cut to [`LONGEST_WAIT`].

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::shell::{self, build_folder, cargo, workspace};

/// What is run, in an empty folder with a copy of `recipes/hello`.
const COMMANDS: [&str; 8] = [
    "cat hello/Smolfile",
    "smolbuild keygen -o me.key",
    "smolbuild hello --sign me.key --rebuild",
    "smolrun hello.smolmachine --key me.pub -d --name one -p 18080:8080",
    "smolrun hello.smolmachine --key me.pub -d --name two -p 18081:8080",
    "curl -s localhost:18080/frozen.txt localhost:18081/frozen.txt",
    "smolrun stop --all",
    "smolbuild reproduce hello.smolmachine",
];
/// Longer waits are cut to this.
const LONGEST_WAIT: Duration = Duration::from_millis(1200);
/// How long the whole stays on the screen before it begins anew.
const HOLD: Duration = Duration::from_secs(8);
/// Columns of the screen; longer lines are cut.
const COLUMNS: usize = 112;
/// Rows of the screen; then it scrolls.
const ROWS: usize = 32;
/// Height of a row, pixels.
const HEIGHT: usize = 17;
/// Around the screen, pixels.
const MARGIN: usize = 16;

/// A line on the screen.
struct Line {
    /// When it appears, from the beginning of the recording.
    at: Duration,
    text: String,
    /// Whether it was typed.
    command: bool,
}

/// Records, and writes the picture.
///
/// # Errors
/// If a command fails.
pub fn run() -> Result<()> {
    shell::run(cargo().args([
        "build",
        "--release",
        "--locked",
        "-p",
        "smolbuild",
        "-p",
        "smolrun",
    ]))?;
    let folder = tempfile::tempdir()?;
    let mut copy = Command::new("cp");
    copy.args(["-r", "recipes/hello"]).arg(folder.path());
    shell::run(copy.current_dir(workspace()))?;
    let mut lines = Vec::new();
    for command in COMMANDS {
        record(command, folder.path(), &mut lines)?;
    }
    let picture = workspace().join("docs/cast.svg");
    fs::write(&picture, draw(&lines)).with_context(|| format!("cannot write {}", picture.display()))
}

/// Runs a command, and appends it and its output to the lines.
fn record(command: &str, folder: &Path, lines: &mut Vec<Line>) -> Result<()> {
    let mut at = lines
        .last()
        .map_or(Duration::ZERO, |line| line.at + LONGEST_WAIT);
    println!("$ {command}");
    lines.push(Line {
        at,
        text: format!("$ {command}"),
        command: true,
    });
    let (output, both) = std::io::pipe()?;
    let mut words = command.split(' ');
    let program = words.next().context("a command without a program")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = Command::new(program)
        .args(words)
        .current_dir(folder)
        .env(
            "PATH",
            format!("{}:{path}", build_folder("release")?.display()),
        )
        .env("SMOL_RUNTIME_DIR", folder.join("run"))
        .env("SMOL_PROGRESS", "plain")
        .stdin(Stdio::null())
        .stdout(both.try_clone()?)
        .stderr(both)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let mut before = Instant::now();
    for line in BufReader::new(output).lines() {
        let text = line?;
        println!("{text}");
        at += before.elapsed().min(LONGEST_WAIT);
        before = Instant::now();
        lines.push(Line {
            at,
            text,
            command: false,
        });
    }
    let status = child.wait()?;
    ensure!(status.success(), "{command}: {status}");
    Ok(())
}

/// Returns the picture: each line appears at its time, and the screen scrolls. Where nothing moves, the
/// last lines are shown.
fn draw(lines: &[Line]) -> String {
    let total = lines
        .last()
        .map_or(HOLD, |line| line.at + HOLD)
        .as_secs_f64();
    let percent = |line: &Line| 100.0 * line.at.as_secs_f64() / total;
    let (mut style, mut scroll, mut body) = (String::new(), String::new(), String::new());
    for (n, line) in lines.iter().enumerate() {
        let at = percent(line);
        let offset = HEIGHT * (n + 1).saturating_sub(ROWS);
        let _ = write!(scroll, "{at:.2}% {{ transform: translateY(-{offset}px) }} ");
        let _ = writeln!(
            style,
            "@keyframes k{n} {{ 0% {{ opacity: 0 }} {at:.2}% {{ opacity: 1 }} }} .k{n} {{ animation-name: k{n} }}"
        );
        let class = if line.command { "command" } else { "output" };
        let _ = writeln!(
            body,
            "<text class=\"{class} k{n}\" y=\"{}\">{}</text>",
            HEIGHT * (n + 1) - 4,
            escape(&line.text)
        );
    }
    let (width, height) = (2 * MARGIN + COLUMNS * 8, 2 * MARGIN + ROWS * HEIGHT);
    let end = HEIGHT * lines.len().saturating_sub(ROWS);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\">\n\
         <style>\n\
         text {{ font: 13px ui-monospace, Menlo, Consolas, monospace; white-space: pre }}\n\
         .command {{ fill: #7ee787 }} .output {{ fill: #c9d1d9 }}\n\
         text, .lines {{ animation: {total:.1}s step-end infinite }}\n\
         .lines {{ transform: translateY(-{end}px); animation-name: scroll }}\n\
         @keyframes scroll {{ {scroll}}}\n\
         {style}\
         @media (prefers-reduced-motion: reduce) {{ text, .lines {{ animation: none }} }}\n\
         </style>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#0d1117\"/>\n\
         <svg x=\"{MARGIN}\" y=\"{MARGIN}\" width=\"{}\" height=\"{}\">\n\
         <g class=\"lines\" xml:space=\"preserve\">\n{body}</g>\n</svg>\n</svg>\n",
        COLUMNS * 8,
        ROWS * HEIGHT,
    )
}

/// Cuts a line to the screen and escapes it for XML.
fn escape(line: &str) -> String {
    let line = line.replace('\t', "    ");
    let mut cut: String = line
        .chars()
        .filter(|c| !c.is_control())
        .take(COLUMNS)
        .collect();
    if line.chars().count() > COLUMNS {
        cut.pop();
        cut.push('…');
    }
    cut.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_holds_each_line_once_escaped_and_cut() {
        let line = |at, text: &str| Line {
            at: Duration::from_secs(at),
            text: text.into(),
            command: false,
        };
        let picture = draw(&[line(0, "a < b & c"), line(2, &"x".repeat(200))]);
        assert!(picture.contains(">a &lt; b &amp; c</text>"), "{picture}");
        assert!(picture.contains(&format!(">{}…</text>", "x".repeat(COLUMNS - 1))));
        assert!(picture.contains("@keyframes k1 { 0% { opacity: 0 } 20.00% { opacity: 1 } }"));
        assert_eq!(picture.matches("<text ").count(), 2);
    }
}
