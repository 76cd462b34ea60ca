//! Who this machine is: host name, machine id, clock, entropy. Set up without an identity
//! for the build, and with a fresh one for every restored clone, before its service runs.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

use super::mounts;
use super::platform::{Platform, ioctl};
use smol_protocol::{MAX_ENTROPY, MIN_ENTROPY, MachineId, RestoreParams, check_hostname};

const MACHINE_ID: &str = "/etc/machine-id";
const DBUS_MACHINE_ID: &str = "/var/lib/dbus/machine-id";
/// What machine-id(5) wants to see until there is one.
const NO_MACHINE_ID: &str = "uninitialized";
const NO_RESOLVER: &str = "# No name server: this machine has no network.\n";

/// Host name and the files that programs expect, in the final root.
pub(super) fn set_up(hostname: &str) -> Result<(), String> {
    make_dir("/etc")?;
    set_hostname(hostname)?;
    write_if_missing("/etc/hosts", &hosts(hostname))?;
    write_if_missing("/etc/resolv.conf", NO_RESOLVER)?;
    // An id from the image would be shared by all its clones.
    write_machine_id(NO_MACHINE_ID)
}

/// Takes up the identity that the host gave. Errors say what could not be set: then the
/// service must not run.
pub(super) fn apply(params: &RestoreParams, platform: &Platform) -> Result<(), String> {
    reseed(params.entropy.as_bytes())
        .map_err(|e| format!("cannot reseed the random number generator: {e}"))?;
    (platform.set_clock)(Duration::from_nanos(params.wall_clock_ns))
        .map_err(|e| format!("cannot set the clock: {e}"))?;
    if let Some(hostname) = &params.hostname {
        rename(hostname)?;
    }
    write_machine_id(&params.machine_id.to_string())
}

/// 16 bytes of the kernel's random number generator as hex digits, to be told to the host.
pub(super) fn random_sample() -> String {
    let mut bytes = [0; 16];
    // So few bytes come at once or not at all, and then the zeros tell that something is wrong.
    let _ = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Gives an init a machine id while the machine is built: without one, systemd takes the boot for the
/// first of an installation, and enables what its presets say. It comes from the seeded generator, so it
/// is the same in each build; no machine that is restored keeps it.
pub(super) fn make_build_machine_id() -> Result<(), String> {
    write_machine_id(&random_machine_id()?.to_string())
}

/// The machine id, as it is in its file.
pub(super) fn machine_id() -> String {
    let text = fs::read_to_string(MACHINE_ID).unwrap_or_default();
    text.trim_end().to_owned()
}

/// A cold boot makes its own machine id. What the kernel was seeded with at its start may be
/// the same for every boot of an image, so the host's random device is asked first.
pub(super) fn make_machine_id() -> Result<(), String> {
    let mut fresh = [0; MIN_ENTROPY];
    let read = fs::File::open("/dev/hwrng").and_then(|mut device| device.read_exact(&mut fresh));
    if read.is_ok() {
        reseed(&fresh).map_err(|e| format!("cannot reseed the random number generator: {e}"))?;
    }
    write_machine_id(&random_machine_id()?.to_string())
}

fn random_machine_id() -> Result<MachineId, String> {
    let mut bytes = [0; 16];
    let n = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|e| format!("no random bytes for {MACHINE_ID}: {e}"))?;
    if n != bytes.len() {
        return Err(format!("only {n} random bytes for {MACHINE_ID}"));
    }
    Ok(MachineId::from_random(bytes))
}

/// The host name, and the files that programs expect, over those of the root file system: nothing is
/// written to it.
pub(super) fn set_up_step(hostname: &str, has_network: bool) -> Result<(), String> {
    tell_kernel(hostname)?;
    let resolver = match has_network {
        true => smol_protocol::net::RESOLV_CONF,
        false => NO_RESOLVER,
    };
    mounts::cover(&[
        ("/etc/hostname", format!("{hostname}\n")),
        ("/etc/hosts", hosts(hostname)),
        ("/etc/resolv.conf", resolver.to_owned()),
    ])
}

fn set_hostname(name: &str) -> Result<(), String> {
    tell_kernel(name)?;
    write("/etc/hostname", &format!("{name}\n"))
}

fn tell_kernel(hostname: &str) -> Result<(), String> {
    check_hostname(hostname).map_err(|e| e.to_string())?;
    rustix::system::sethostname(hostname.as_bytes())
        .map_err(|e| format!("cannot set the host name {hostname}: {e}"))
}

/// Gives the machine a new name; /etc/hosts follows if it was ours.
fn rename(name: &str) -> Result<(), String> {
    let old = fs::read_to_string("/etc/hostname").unwrap_or_default();
    set_hostname(name)?;
    if fs::read_to_string("/etc/hosts").is_ok_and(|text| text == hosts(old.trim_end())) {
        write("/etc/hosts", &hosts(name))?;
    }
    Ok(())
}

fn hosts(hostname: &str) -> String {
    format!("127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost ip6-loopback {hostname}\n")
}

/// Writes the machine id; D-Bus gets a link to it where it has a file of its own.
fn write_machine_id(id: &str) -> Result<(), String> {
    // Not through a link, and not into a file that something else has mapped or linked.
    remove(MACHINE_ID)?;
    write(MACHINE_ID, &format!("{id}\n"))?;
    if fs::symlink_metadata(DBUS_MACHINE_ID).is_ok_and(|m| m.is_file()) {
        remove(DBUS_MACHINE_ID)?;
        std::os::unix::fs::symlink(MACHINE_ID, DBUS_MACHINE_ID)
            .map_err(|e| format!("{DBUS_MACHINE_ID}: {e}"))?;
    }
    Ok(())
}

/// struct rand_pool_info of linux/random.h, with room for the most that is taken.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; MAX_ENTROPY],
}

const RND_ADD_ENTROPY: libc::Ioctl = 0x4008_5203;
const RND_RESEED_CRNG: libc::Ioctl = 0x5207;

/// Mixes host entropy in, credits it, and makes the generator use it at once (random(4)).
fn reseed(entropy: &[u8]) -> io::Result<()> {
    let random = fs::OpenOptions::new().write(true).open("/dev/urandom")?;
    let mut info = RandPoolInfo {
        entropy_bits: 0,
        bytes: 0,
        buffer: [0; MAX_ENTROPY],
    };
    info.buffer
        .get_mut(..entropy.len())
        .ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(entropy);
    // At most MAX_ENTROPY bytes, as the slice above has shown: the casts are exact.
    info.bytes = entropy.len() as libc::c_int;
    info.entropy_bits = info.bytes * 8;
    ioctl(&random, RND_ADD_ENTROPY, &mut info)?;
    ioctl(&random, RND_RESEED_CRNG, &mut ())
}

fn write_if_missing(path: &str, text: &str) -> Result<(), String> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => write(path, text),
        _ => Ok(()),
    }
}

fn write(path: &str, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("cannot write {path}: {e}"))
}

fn remove(path: &str) -> Result<(), String> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(format!("cannot replace {path}: {e}")),
        _ => Ok(()),
    }
}

fn make_dir(path: &str) -> Result<(), String> {
    fs::create_dir_all(Path::new(path)).map_err(|e| format!("cannot make {path}: {e}"))
}
