//! The two programs, and the machines that they run.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{self, LIMIT, Outcome, Running};

/// The programs under test, with folders of their own.
pub struct Tools {
    /// Folder of the programs.
    pub programs: PathBuf,
    /// Their cache, config and runtime folders go in here.
    pub home: PathBuf,
    /// Public key of the bundles.
    pub key: PathBuf,
    /// `--accel` of everything.
    pub accel: &'static str,
}

impl Tools {
    fn program(&self, name: &str) -> Command {
        self.environment(Command::new(self.programs.join(name)))
    }

    fn environment(&self, mut command: Command) -> Command {
        for (variable, folder) in [("CACHE", "cache"), ("RUNTIME", "run"), ("CONFIG", "config")] {
            command.env(format!("SMOL_{variable}_DIR"), self.home.join(folder));
        }
        command
            .env("NO_COLOR", "1")
            .env("SMOL_PROGRESS", "plain")
            .env("SMOL_ACCEL", self.accel);
        command
    }

    /// `smolbuild`.
    pub fn smolbuild(&self) -> Command {
        self.program("smolbuild")
    }

    /// `smolrun`.
    pub fn smolrun(&self) -> Command {
        self.program("smolrun")
    }

    /// `smolrun BUNDLE --key KEY --name NAME`.
    pub fn run(&self, bundle: &Path, name: &str) -> Command {
        self.run_by(&self.programs.join("smolrun"), bundle, name)
    }

    /// As [`Tools::run`], by another program than smolrun.
    pub fn run_by(&self, program: &Path, bundle: &Path, name: &str) -> Command {
        let mut command = self.environment(Command::new(program));
        command
            .arg(bundle)
            .arg("--key")
            .arg(&self.key)
            .args(["--name", name]);
        command
    }

    /// Starts a machine in the background, with these ports of the guest forwarded.
    #[track_caller]
    pub fn start(&self, bundle: &Path, name: &str, ports: &[u16]) -> RunningMachine<'_> {
        self.start_with(bundle, name, ports, &[])
    }

    /// As [`Tools::start`], with options.
    #[track_caller]
    pub fn start_with(
        &self,
        bundle: &Path,
        name: &str,
        ports: &[u16],
        options: &[&str],
    ) -> RunningMachine<'_> {
        let mut command = self.run(bundle, name);
        command.arg("-d").args(options);
        for port in ports {
            command.args(["-p", &format!("0:{port}")]);
        }
        assert_eq!(support::run(&mut command).succeed().trim(), name);
        RunningMachine {
            tools: self,
            name: name.to_owned(),
        }
    }

    /// Presses Ctrl-C at a smolrun in the foreground, the only machine: its service is to say that it
    /// stops, the exit code that it was Ctrl-C, and nothing is left of it.
    #[track_caller]
    pub fn ctrl_c_stops(&self, running: Running) {
        running.signal(Signal::INT);
        let outcome = running.finish(LIMIT);
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(130), "stopping\n"),
            "{}",
            outcome.stderr
        );
        assert_eq!(self.ps(), Vec::<Value>::new());
        self.assert_left(&[]);
    }

    /// Returns what `smolrun ps --json` lists.
    #[track_caller]
    pub fn ps(&self) -> Vec<Value> {
        let text = support::run(self.smolrun().args(["ps", "--json"])).succeed();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// Asserts that these machines, which have ended, and no others have left something; removes them.
    #[track_caller]
    pub fn assert_left(&self, names: &[&str]) {
        assert_eq!(support::names(&self.home.join("run/instances")), names);
        if names.is_empty() {
            return; // they may be another user's
        }
        let removed = support::run(self.smolrun().args(["rm", "--all"])).succeed();
        assert_eq!(removed.lines().collect::<Vec<_>>(), names);
    }
}

/// A machine in the background; stopped and removed on drop.
pub struct RunningMachine<'a> {
    tools: &'a Tools,
    /// Its name.
    pub name: String,
}

impl RunningMachine<'_> {
    /// Returns its record in `ps`.
    #[track_caller]
    pub fn record(&self) -> Value {
        let records = self.tools.ps();
        let ours = records
            .iter()
            .find(|record| record["name"] == self.name.as_str());
        ours.unwrap_or_else(|| panic!("{} is not in {records:?}", self.name))
            .clone()
    }

    /// Returns its record in `ps --all`, once it has ended.
    #[track_caller]
    pub fn ended(&self) -> Value {
        let mut command = self.tools.smolrun();
        let text = support::run(command.args(["ps", "--all", "--json"])).succeed();
        let records: Vec<Value> = serde_json::from_str(&text).expect("it is JSON");
        let is_ours = |r: &&Value| r["name"] == self.name.as_str() && r["state"] == "ended";
        let ours = records.iter().find(is_ours);
        ours.unwrap_or_else(|| panic!("{} has not ended: {text}", self.name))
            .clone()
    }

    /// Returns the number of the process that runs it.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.record()["pid"].as_u64().expect("a number") as u32
    }

    /// Returns the port of this host that is forwarded to this one of the guest.
    #[track_caller]
    pub fn port(&self, guest: u16) -> u16 {
        let record = self.record();
        let ports = record["ports"].as_array().expect("a list");
        let ours = ports
            .iter()
            .find(|port| port["guest"] == guest)
            .expect("it was forwarded");
        let host = ours["host"].as_str().expect("an address");
        host.rsplit(':')
            .next()
            .and_then(|port| port.parse().ok())
            .unwrap_or_else(|| panic!("{host}"))
    }

    /// Returns what its service has written.
    #[track_caller]
    pub fn log(&self) -> String {
        support::run(self.tools.smolrun().args(["logs", &self.name])).succeed()
    }

    /// `smolrun stop`, with this time between SIGTERM and SIGKILL.
    pub fn stop(&self, seconds: u32) -> Outcome {
        support::run(self.tools.smolrun().args([
            "stop",
            &self.name,
            "--time",
            &seconds.to_string(),
        ]))
    }
}

impl Drop for RunningMachine<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.tools.smolrun().args(["logs", &self.name]).output();
            let log = log.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            eprintln!("the log of {}: {}", self.name, log.unwrap_or_default());
        }
        let _ = self
            .tools
            .smolrun()
            .args(["stop", &self.name, "--time", "0"])
            .output();
        let _ = self.tools.smolrun().args(["rm", &self.name]).output();
    }
}
