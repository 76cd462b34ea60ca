//! A machine by hand, for bringing up kernels and measuring: boot, snapshot, restore.
//!
//! ```text
//! lab boot    --kernel F [--initramfs F] [--rootfs F] [--memory MiB] [--cpus N] [--cmdline S] [--host-clock] [--stop-at TEXT] --out DIR
//! lab restore --in DIR [--rootfs F] [--stop-at TEXT]
//! ```

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "not a program for others"
)]

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use smol_machine::config::{Clock, MachineConfig};
use smol_machine::cpu::Level;
use smol_machine::machine::{Hooks, Machine, RestoreConfig};
use smol_machine::{MachineState, Stop, StopHandle, memory};

type Failure = Box<dyn std::error::Error>;

/// Prints what the guest prints, and stops the machine when a text comes by.
#[derive(Clone)]
struct Console {
    stop_at: Option<Vec<u8>>,
    seen: Arc<Mutex<Vec<u8>>>,
    handle: Arc<Mutex<Option<StopHandle>>>,
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::io::stdout().write_all(bytes)?;
        std::io::stdout().flush()?;
        if let Some(text) = &self.stop_at {
            let mut seen = self.seen.lock().unwrap();
            seen.extend(bytes);
            if seen.windows(text.len()).any(|w| w == text) {
                seen.clear();
                if let Some(handle) = &*self.handle.lock().unwrap() {
                    handle.request(Stop::Snapshot);
                }
            }
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Args(Vec<String>);

impl Args {
    fn get(&self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|a| a == name)?;
        self.0.get(at + 1).cloned()
    }
    fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|a| a == name)
    }
}

fn main() -> Result<(), Failure> {
    let mut words = std::env::args().skip(1);
    let verb = words.next().unwrap_or_default();
    let args = Args(words.collect());
    let console = Console {
        stop_at: args.get("--stop-at").map(String::into_bytes),
        seen: Arc::default(),
        handle: Arc::default(),
    };
    match verb.as_str() {
        "boot" => boot(&args, console),
        "restore" => restore(&args, console),
        _ => Err("usage: lab boot|restore ... (see the source)".into()),
    }
}

fn hooks(console: &Console) -> Hooks {
    Hooks {
        console: Box::new(console.clone()),
        serial: Box::new(console.clone()),
        vsock: None,
    }
}

fn boot(args: &Args, console: Console) -> Result<(), Failure> {
    let out = PathBuf::from(args.get("--out").unwrap_or_else(|| "snapshot".into()));
    let number = |name: &str, default: u64| args.get(name).map_or(Ok(default), |v| v.parse());
    let config = MachineConfig {
        vcpus: number("--cpus", 1)? as u8,
        cpu: Level::default(),
        memory: number("--memory", 256)? << 20,
        kernel: args.get("--kernel").ok_or("--kernel is missing")?.into(),
        initramfs: args.get("--initramfs").map(PathBuf::from),
        cmdline: args.get("--cmdline").unwrap_or_default(),
        rootfs: args.get("--rootfs").map(PathBuf::from),
        clock: if args.flag("--host-clock") {
            Clock::Host
        } else {
            Clock::Virtual {
                epoch: 1_700_000_000,
                watchdog: std::time::Duration::from_secs(60),
            }
        },
        seed: [7; 32],
        kernel_seed: [7; 32],
    };
    let mut machine = Machine::boot(&config, hooks(&console))?;
    *console.handle.lock().unwrap() = Some(machine.stop_handle());
    let start = Instant::now();
    let stop = machine.run()?;
    println!(
        "\n[lab] {stop:?} after {:?}, {} exits, virtual time {:?} ns",
        start.elapsed(),
        machine.exits(),
        machine.virtual_time()
    );
    if stop == Stop::Snapshot {
        std::fs::create_dir_all(&out)?;
        std::fs::write(out.join("state.json"), machine.capture()?.to_json())?;
        let image = File::create(out.join("memory"))?;
        println!("[lab] {:?}", memory::write_image(machine.ram(), &image)?);
    }
    Ok(())
}

fn restore(args: &Args, console: Console) -> Result<(), Failure> {
    let dir = PathBuf::from(args.get("--in").unwrap_or_else(|| "snapshot".into()));
    let start = Instant::now();
    let state = MachineState::from_json(&std::fs::read(dir.join("state.json"))?)?;
    let config = RestoreConfig {
        memory: dir.join("memory"),
        rootfs: args.get("--rootfs").map(PathBuf::from),
        memory_first: Vec::new(),
        rootfs_first: Vec::new(),
    };
    let mut machine = Machine::restore(&config, &state, hooks(&console))?;
    *console.handle.lock().unwrap() = Some(machine.stop_handle());
    println!("[lab] restored in {:?}", start.elapsed());
    let stop = machine.run()?;
    println!(
        "\n[lab] {stop:?} after {:?}, {} exits",
        start.elapsed(),
        machine.exits()
    );
    Ok(())
}
