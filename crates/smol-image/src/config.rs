//! The configuration of an image: its layers, and what a container of it runs (config.md).
//!
//! It is read leniently, as engines do: fields are missing, `null`, or from another engine.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use smol_bundle::Digest;

use crate::platform::Platform;
use crate::{MAX_DOCUMENT, MAX_LAYERS};

/// The configuration of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// What it is for.
    pub platform: Platform,
    /// Digests of its layers as they are unpacked, the lowest first.
    pub diff_ids: Vec<Digest>,
    /// What a container of it runs.
    pub run: RunConfig,
}

/// What a container of an image runs, in which environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct RunConfig {
    /// First words of the command.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The other words, in whose place others may be given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Environment, `NAME=VALUE` each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`; root when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working directory; `/` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Ports, sorted: `80/tcp`, `53/udp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// Signal that stops it: `SIGQUIT`, `3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Folders for data, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// How to tell that it is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
}

/// A check of a container (`HEALTHCHECK` of Docker).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Healthcheck {
    /// Command that exits with 0.
    pub cmd: Vec<String>,
    /// Milliseconds in which its failures do not count, from the start; 0 if none is given.
    #[serde(default)]
    pub start_period_ms: u64,
}

impl RunConfig {
    /// The TCP ports.
    pub fn tcp_ports(&self) -> Vec<u16> {
        let port = |text: &String| match text.split_once('/') {
            None => text.parse().ok(),
            Some((port, "tcp")) => port.parse().ok(),
            Some(_) => None,
        };
        self.ports
            .iter()
            .filter_map(port)
            .filter(|port| *port != 0)
            .collect()
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawConfig {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    rootfs: Option<RawRootfs>,
    config: Option<RawRun>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawRootfs {
    diff_ids: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct RawRun {
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    exposed_ports: Option<BTreeMap<String, Value>>,
    stop_signal: Option<String>,
    volumes: Option<BTreeMap<String, Value>>,
    healthcheck: Option<RawHealthcheck>,
    shell: Option<Vec<String>>,
}

/// A command: engines before 2014 wrote a line.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    List(Vec<String>),
    Line(String),
}

impl Words {
    fn into_list(words: Option<Words>) -> Vec<String> {
        match words {
            None => Vec::new(),
            Some(Words::List(words)) => words,
            Some(Words::Line(line)) if line.trim().is_empty() => Vec::new(),
            Some(Words::Line(line)) => vec!["/bin/sh".into(), "-c".into(), line],
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct RawHealthcheck {
    test: Option<Vec<String>>,
    /// Nanoseconds.
    start_period: Option<i64>,
}

impl ImageConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// It is too long or no JSON; a digest of a layer is none; more than [`MAX_LAYERS`] layers.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        ensure!(
            bytes.len() as u64 <= MAX_DOCUMENT,
            "the configuration of the image is longer than {} MiB",
            MAX_DOCUMENT >> 20
        );
        let raw: RawConfig = serde_json::from_slice(bytes)
            .context("the configuration of the image cannot be read")?;
        let diff_ids = raw.rootfs.unwrap_or_default().diff_ids.unwrap_or_default();
        ensure!(
            diff_ids.len() <= MAX_LAYERS,
            "the image has more than {MAX_LAYERS} layers"
        );
        let digest = |text: &String| {
            text.parse()
                .map_err(|why: String| anyhow::anyhow!("the digest of a layer is {why}"))
        };
        Ok(Self {
            platform: Platform {
                os: raw.os.unwrap_or_default(),
                architecture: raw.architecture.unwrap_or_default(),
                variant: raw.variant,
            },
            diff_ids: diff_ids.iter().map(digest).collect::<Result<_>>()?,
            run: run(raw.config.unwrap_or_default()),
        })
    }
}

fn run(raw: RawRun) -> RunConfig {
    let text = |text: Option<String>| text.filter(|text| !text.is_empty());
    let shell = raw.shell.filter(|shell| !shell.is_empty());
    let shell = shell.unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()]);
    RunConfig {
        entrypoint: Words::into_list(raw.entrypoint),
        cmd: Words::into_list(raw.cmd),
        env: raw.env.unwrap_or_default(),
        user: text(raw.user),
        workdir: text(raw.working_dir),
        ports: raw.exposed_ports.unwrap_or_default().into_keys().collect(),
        stop_signal: text(raw.stop_signal),
        volumes: raw.volumes.unwrap_or_default().into_keys().collect(),
        healthcheck: raw.healthcheck.and_then(|check| healthcheck(check, shell)),
    }
}

/// The command of a check: `["CMD", ...]`, `["CMD-SHELL", LINE]`; `["NONE"]` and an empty list are none.
fn healthcheck(raw: RawHealthcheck, shell: Vec<String>) -> Option<Healthcheck> {
    let test = raw.test?;
    let (kind, words) = test.split_first()?;
    let cmd = match kind.as_str() {
        "CMD" => words.to_vec(),
        "CMD-SHELL" => [shell, vec![words.join(" ")]].concat(),
        _ => return None,
    };
    let start = raw.start_period.and_then(|ns| u64::try_from(ns).ok());
    let start = Duration::from_nanos(start.unwrap_or_default());
    (!words.is_empty()).then(|| Healthcheck {
        cmd,
        start_period_ms: u64::try_from(start.as_millis()).unwrap_or(u64::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ImageConfig {
        ImageConfig::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_a_container_runs_is_read() {
        let config = parse(
            r#"{"architecture":"amd64","os":"linux","history":[{}],"rootfs":{"type":"layers","diff_ids":
            ["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]},
            "config":{"Entrypoint":["/e"],"Cmd":["a","b"],"Env":["A=1","B=x=y"],"User":"app:web","WorkingDir":"/srv",
            "ExposedPorts":{"80/tcp":{},"53/udp":{},"443":{},"0/tcp":{}},"StopSignal":"SIGQUIT","Volumes":{"/data":{}},
            "Healthcheck":{"Test":["CMD-SHELL","curl -f localhost"],"StartPeriod":5000000000},"Labels":{"x":"y"}}}"#,
        );
        assert_eq!(config.diff_ids, [Digest::of(b"")]);
        assert_eq!(config.platform.to_string(), "linux/amd64");
        let run = &config.run;
        assert_eq!(
            (&run.entrypoint[..], &run.cmd[..]),
            (&["/e".to_owned()][..], &["a".to_owned(), "b".into()][..])
        );
        assert_eq!(
            (run.user.as_deref(), run.workdir.as_deref()),
            (Some("app:web"), Some("/srv"))
        );
        assert_eq!(run.tcp_ports(), [443, 80]);
        assert_eq!(
            (run.stop_signal.as_deref(), &run.volumes[..]),
            (Some("SIGQUIT"), &["/data".to_owned()][..])
        );
        let check = run.healthcheck.as_ref().unwrap();
        assert_eq!(
            (check.cmd.join(" "), check.start_period_ms),
            ("/bin/sh -c curl -f localhost".into(), 5000)
        );
    }

    #[test]
    fn what_is_missing_or_null_is_absent() {
        let null = r#"{"os":null,"rootfs":{"diff_ids":null},"config":{"Entrypoint":null,"Cmd":null,"Env":null,
            "User":"","WorkingDir":"","ExposedPorts":null,"Volumes":null,"Healthcheck":null,"Shell":null}}"#;
        for text in ["{}", r#"{"config":null,"rootfs":null}"#, null] {
            let config = parse(text);
            assert_eq!(
                (config.run, config.diff_ids),
                (RunConfig::default(), Vec::new()),
                "{text}"
            );
        }
    }

    #[test]
    fn commands_and_checks_come_in_several_shapes() {
        let run = |text: &str| parse(&format!(r#"{{"config":{text}}}"#)).run;
        assert_eq!(run(r#"{"Cmd":"a b"}"#).cmd, ["/bin/sh", "-c", "a b"]);
        assert!(run(r#"{"Cmd":""}"#).cmd.is_empty());
        let check = |test: &str| {
            run(&format!(
                r#"{{"Shell":["/bin/bash","-c"],"Healthcheck":{{"Test":{test}}}}}"#
            ))
            .healthcheck
        };
        assert_eq!(check(r#"["CMD","a","b"]"#).unwrap().cmd, ["a", "b"]);
        assert_eq!(
            check(r#"["CMD-SHELL","a"]"#).unwrap().cmd,
            ["/bin/bash", "-c", "a"]
        );
        for none in [r#"["NONE"]"#, "[]", "null", r#"["CMD"]"#] {
            assert_eq!(check(none), None, "{none}");
        }
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for (text, told) in [
            ("[", "cannot be read"),
            (
                r#"{"rootfs":{"diff_ids":["sha256:1"]}}"#,
                "the digest of a layer",
            ),
        ] {
            let error = format!("{:#}", ImageConfig::parse(text.as_bytes()).unwrap_err());
            assert!(error.contains(told), "{error}");
        }
    }
}
