//! Runs a command in an emulated host: `l1 [--share DIR]... [--ro DIR]... [--memory MIB] [--forward HOST:INNER] CMD ARG...`.
//!
//! Every shared folder appears inside under its own path. CMD is a static program in one of them,
//! or /smol for this example itself.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "not a program for others"
)]

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Instant;

use smol_host::emulated::{EmulatedHost, Event, init};

fn main() {
    init::main_if_requested();
    let (host, verbose) = parse(std::env::args().skip(1)).unwrap_or_else(|why| {
        eprintln!("l1: {why}\nusage: l1 [-v] [--share DIR]... [--ro DIR]... [--memory MIB] [--env K=V]... [--forward HOST:INNER]... CMD ARG...");
        std::process::exit(2);
    });
    match run(&host, verbose) {
        Ok(code) => std::process::exit(code),
        Err(e) => {
            eprintln!("l1: {e}");
            if let Some(fix) = e.fix {
                eprintln!("l1: to fix it: {fix}");
            }
            std::process::exit(5);
        }
    }
}

fn run(host: &EmulatedHost, verbose: bool) -> Result<i32, smol_host::HostError> {
    use std::io::Write;
    let start = Instant::now();
    let mut running = host.spawn()?;
    loop {
        match running.next_event()? {
            Event::Started if verbose => {
                eprintln!("l1: up after {:.2} s", start.elapsed().as_secs_f64())
            }
            Event::Stdout(bytes) => std::io::stdout().write_all(&bytes).unwrap_or_default(),
            Event::Stderr(bytes) => std::io::stderr().write_all(&bytes).unwrap_or_default(),
            Event::Exited(status) => {
                if verbose {
                    eprintln!(
                        "l1: ended after {:.2} s: {status:?}",
                        start.elapsed().as_secs_f64()
                    );
                    eprintln!("{}", running.console());
                }
                return Ok(status.shell_code());
            }
            _ => {}
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<(EmulatedHost, bool), String> {
    let home = std::env::var_os("HOME")
        .map(PathBuf::from)
        .unwrap_or_default();
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .unwrap_or(home.join(".cache"));
    let mut host = EmulatedHost::new(cache.join("smol"));
    let mut verbose = false;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        host = match argument.as_str() {
            "-v" => {
                verbose = true;
                host
            }
            "--share" | "--ro" => {
                let dir = value()?;
                let dir = std::fs::canonicalize(&dir).map_err(|e| format!("{dir}: {e}"))?;
                host.share(&dir, dir.display().to_string(), argument == "--ro")
            }
            "--memory" => host.memory(value()?.parse().map_err(|e| format!("--memory: {e}"))?),
            "--env" => {
                let pair = value()?;
                let (name, value) = pair.split_once('=').ok_or("--env wants NAME=VALUE")?;
                host.env(name, value)
            }
            "--forward" => {
                let ports = value()?;
                let port = |text: &str| text.parse().map_err(|e| format!("--forward {ports}: {e}"));
                let (outer, inner) = ports.split_once(':').ok_or("--forward wants HOST:INNER")?;
                host.forward(Ipv4Addr::LOCALHOST, port(outer)?, port(inner)?)
            }
            flag if flag.starts_with('-') => return Err(format!("unknown option {flag}")),
            _ => {
                return Ok((
                    host.job(std::iter::once(argument).chain(arguments)),
                    verbose,
                ));
            }
        };
    }
    Err("no command".into())
}
