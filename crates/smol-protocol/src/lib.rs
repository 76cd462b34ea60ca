//! What the host and `smol-guest` say to each other.
//!
//! ```text
//!            guest (CID 3)                                   host (CID 2)
//! /smol/config.json  GuestConfig, baked into the initramfs
//! control stream     Event, one JSON object a line     ---->  vsock port 1024
//!                    RestoreParams, one line, as the
//!                    answer to Event::Restored         <----
//! log stream         log::encode_frame                 ---->  vsock port 1025
//! vsock port 1026    ForwardRequest, one line, then    <----  one connection for each
//!                    ForwardReply, then raw bytes             forwarded TCP connection
//! vsock port 1027    Request lines, answered by        <----  after a restore, or in a
//!                    Reply lines                              cold boot
//! layer stream       the files that a build step       ---->  vsock port 1028
//!                    changed: see [`step`]
//! network            net: IP packets, both ways        ---->  vsock port 1029, where the
//!                                                             machine is given a network
//! ```
//!
//! While a machine is being built the guest only ever speaks: the host sends it
//! nothing, and nobody answers on 1026 and 1027 before the snapshot.
//!
//! **Who speaks for the guest.** Any process in it may open vsock connections. The host takes one
//! connection to 1024 and one to 1025, the first of each: smol-guest makes them while nothing else
//! runs in the guest, before the service is started or, after a restore, before it is thawed. For the
//! same reason smol-guest listens on 1026 and 1027 from its start on, and serves connections of the
//! host's context id alone.
//!
//! Every type refuses unknown fields: host and guest are always of one version
//! (the guest's binary travels in the bundle, and the manifest says which).

pub mod log;
pub mod net;
pub mod step;

mod check;
mod failure;
mod identity;
mod lines;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

pub use check::check_hostname;
pub use failure::GuestFailure;
pub use identity::{Entropy, MachineId};
pub use lines::{LineBuffer, ProtocolError, decode_line, encode_line};

/// vsock context id of the host.
pub const HOST_CID: u32 = 2;
/// vsock context id of the guest.
pub const GUEST_CID: u32 = 3;
/// Host port that receives [`Event`] lines.
pub const CONTROL_PORT: u32 = 1024;
/// Host port that receives log frames (see [`crate::log`]).
pub const LOG_PORT: u32 = 1025;
/// Guest port that answers [`ForwardRequest`].
pub const FORWARD_PORT: u32 = 1026;
/// Guest port that answers [`Request`].
pub const REQUEST_PORT: u32 = 1027;

/// Where the initramfs holds the [`GuestConfig`].
pub const CONFIG_PATH: &str = "/smol/config.json";
/// Word on the kernel command line that turns any configuration into [`Mode::Run`].
pub const RUN_MODE_WORD: &str = "smol.mode=run";

/// Longest line of the protocol, in bytes, its newline included.
pub const MAX_LINE: usize = 256 * 1024;
/// Longest command, pattern or path of a configuration, in bytes: each must fit into an
/// [`Event`], whatever JSON makes of it.
pub const MAX_WORDS: usize = 16 * 1024;
/// Largest configuration file, in bytes.
pub const MAX_CONFIG: usize = 1024 * 1024;
/// Least entropy the guest accepts at a restore, in bytes.
pub const MIN_ENTROPY: usize = 64;
/// Most entropy the guest takes at a restore, in bytes.
pub const MAX_ENTROPY: usize = 4096;
/// How much of a command's last output travels in an [`Event`], in bytes.
pub const OUTPUT_TAIL: usize = 4096;

/// Everything the guest has to do, decided before it boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    /// Host name during the build, and afterwards unless the restore says otherwise.
    pub hostname: String,
    /// The root file system; without one the service runs from the initramfs.
    #[serde(default)]
    pub rootfs: Option<Rootfs>,
    /// The one service of this machine.
    pub service: Service,
    /// Commands to run after ready, before the snapshot or, in a cold boot, before ports open; in
    /// this order.
    #[serde(default)]
    pub warm: Vec<Warm>,
    /// Commands to run in each restored machine before its service runs on, and at a cold boot
    /// before it starts, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restore: Vec<Warm>,
    /// Requests to make in a test restore once the service has proved ready again, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warm_restore: Vec<WarmRestore>,
    /// When the service counts as ready.
    pub ready: Ready,
    /// TCP ports the service answers on. For the record: forwards are not limited to them.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// What to do to memory before the snapshot.
    #[serde(default)]
    pub snapshot: SnapshotPolicy,
    /// What this boot is for.
    #[serde(default)]
    pub mode: Mode,
}

/// Where the root file system is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rootfs {
    /// Block device that holds an EROFS image, normally `/dev/pmem0`.
    pub device: String,
}

impl Default for Rootfs {
    fn default() -> Self {
        Rootfs {
            device: "/dev/pmem0".to_owned(),
        }
    }
}

/// PATH of commands whose environment has none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whether a process can be sent this signal: it is one of Linux, and none that the C library keeps to
/// itself (signal(7), "Real-time signals").
pub fn is_signal(number: u8) -> bool {
    matches!(number, 1..=31 | 34..=64)
}

/// Whether a path is one at which images have their init. It may be one at other paths, too: the guest
/// also looks where symbolic links lead.
pub fn is_init(path: &str) -> bool {
    const PATHS: [&str; 6] = [
        "/sbin/init",
        "/usr/sbin/init",
        "/bin/init",
        "/init",
        "/lib/systemd/systemd",
        "/usr/lib/systemd/systemd",
    ];
    PATHS.contains(&path)
}

/// The service and the world it runs in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Program and arguments; a program without a slash is looked up in PATH.
    pub cmd: Vec<String>,
    /// Environment, over the defaults PATH, HOME and USER.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// `name`, `name:group`, `uid` or `uid:gid`; root when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Working directory; `/` when absent.
    #[serde(default)]
    pub workdir: Option<String>,
    /// Number of the signal that asks its process to stop; when absent SIGTERM, to its process group, or
    /// what the init understands that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<u8>,
    /// Whether it is an init, which is PID 1 of namespaces of its own. When absent, the guest looks at
    /// the program (see [`is_init`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
}

/// A command beside the service. Before the snapshot it warms the machine up: migrations, seeding,
/// caches. After a restore it makes what each machine must have for itself: host keys. It runs as the service's user, in its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Warm {
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// Longest time it may take, in milliseconds of the guest's clock.
    pub timeout_ms: u64,
}

/// A request to the service in a test restore, so that the pages which it needs are seen. It is made
/// once, and must be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmRestore {
    /// What is asked: an `exec`, `tcp` or `http` probe. The others ask nobody.
    pub probe: Probe,
    /// Longest time until it is answered, in milliseconds of the guest's clock.
    pub timeout_ms: u64,
}

/// When the service counts as ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// What is looked at.
    pub probe: Probe,
    /// Longest time until ready, in milliseconds of the guest's clock.
    pub timeout_ms: u64,
    /// Pause between two attempts, in milliseconds.
    pub interval_ms: u64,
    /// Attempts in a row that must succeed. `log` and `notify` happen once: for them it is 1.
    #[serde(default = "one")]
    pub successes: u32,
}

fn one() -> u32 {
    1
}

/// A question to the service, asked inside the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Probe {
    /// A command, run as the service's user, exits 0.
    Exec {
        /// Program and arguments.
        cmd: Vec<String>,
    },
    /// A TCP connection to 127.0.0.1 or ::1 is accepted.
    Tcp {
        /// Port on the guest's loopback.
        port: u16,
    },
    /// `GET path` over HTTP/1.1 on the loopback answers as expected.
    Http {
        /// Port on the guest's loopback.
        port: u16,
        /// Absolute path with its query, such as `/health`.
        path: String,
        /// Accepted status codes: one number or a list of them.
        #[serde(default = "ok_status", deserialize_with = "one_or_many")]
        status: Vec<u16>,
        /// Regular expression that must match in the first 64 KiB of the body.
        #[serde(default)]
        body: Option<String>,
    },
    /// A line of the service's output matches.
    Log {
        /// Regular expression.
        pattern: String,
    },
    /// A file is there.
    File {
        /// Absolute path in the root file system.
        path: String,
    },
    /// The service sends `READY=1` to `$NOTIFY_SOCKET` (sd_notify(3)).
    Notify,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Probe::Exec { cmd } => write!(f, "exec {}", cmd.join(" ")),
            Probe::Tcp { port } => write!(f, "tcp {port}"),
            Probe::Http { port, path, .. } => write!(f, "http :{port}{path}"),
            Probe::Log { pattern } => write!(f, "log /{pattern}/"),
            Probe::File { path } => write!(f, "file {path}"),
            Probe::Notify => f.write_str("notify"),
        }
    }
}

fn ok_status() -> Vec<u16> {
    vec![200]
}

fn one_or_many<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u16>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(u16),
        Many(Vec<u16>),
    }
    Ok(match OneOrMany::deserialize(from)? {
        OneOrMany::One(status) => vec![status],
        OneOrMany::Many(list) => list,
    })
}

/// What is done to memory before the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotPolicy {
    /// Drop clean page cache, dentries and inodes.
    pub drop_caches: bool,
}

impl Default for SnapshotPolicy {
    fn default() -> Self {
        SnapshotPolicy { drop_caches: true }
    }
}

/// What a boot is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Boot, get ready, warm up, quiesce, ask for the snapshot.
    #[default]
    Build,
    /// A cold boot: boot, get ready, warm up, serve.
    Run,
}

/// What a process left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It called exit with this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

impl ExitStatus {
    /// It executed an instruction that the CPU does not have: SIGILL.
    pub const ILLEGAL_INSTRUCTION: ExitStatus = ExitStatus::Signaled(4);

    /// It was killed: SIGKILL.
    pub const KILLED: ExitStatus = ExitStatus::Signaled(9);

    /// The exit code a shell would report: the code itself, or 128 + the signal.
    pub fn code(self) -> i32 {
        match self {
            ExitStatus::Exited(code) => code,
            ExitStatus::Signaled(signal) => 128i32.saturating_add(signal),
        }
    }

    /// Whether it exited with code 0.
    pub fn success(self) -> bool {
        self == ExitStatus::Exited(0)
    }
}

/// The names of signals that end programs without their will, as Linux numbers them on all processors.
const SIGNALS: [(i32, &str); 8] = [
    (4, "SIGILL"),
    (5, "SIGTRAP"),
    (6, "SIGABRT"),
    (7, "SIGBUS"),
    (8, "SIGFPE"),
    (9, "SIGKILL"),
    (11, "SIGSEGV"),
    (15, "SIGTERM"),
];

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitStatus::Exited(code) => write!(f, "exit code {code}"),
            ExitStatus::Signaled(signal) => {
                write!(f, "signal {signal}")?;
                match SIGNALS.iter().find(|(number, _)| number == signal) {
                    Some((_, name)) => write!(f, " ({name})"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// The part of the guest's life in which something went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Mounts, network, identity.
    Boot,
    /// Starting the service.
    Service,
    /// Waiting for it to be ready.
    Ready,
    /// Warm commands.
    Warm,
    /// A build step's command, and taking its files.
    Step,
    /// Freezing the service and flushing.
    Quiesce,
    /// Taking up the new identity after a restore.
    Restore,
    /// The requests of a test restore.
    TestRestore,
    /// The service is being served.
    Serve,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Boot => "boot",
            Stage::Service => "service",
            Stage::Ready => "ready",
            Stage::Warm => "warm",
            Stage::Step => "run",
            Stage::Quiesce => "quiesce",
            Stage::Restore => "restore",
            Stage::TestRestore => "test restore",
            Stage::Serve => "serve",
        })
    }
}

/// Guest to host, one JSON object a line on [`CONTROL_PORT`].
///
/// A build: `Booted ServiceStarted ProbeFailed* Ready (WarmStarted WarmFinished)* Quiesced`,
/// then the stream is closed and the snapshot asked for (through `/dev/smol`, or by
/// `Snapshot` on the still open stream where the kernel has no such device).
/// A build whose snapshot cannot be taken tells so on a second stream.
/// A restore, on a new stream: `Restored`, the host's [`RestoreParams`], `Resumed`; in a test restore
/// then `Ready` (unless readiness is told once only), and `TestRestored` when all requests were answered.
/// A cold boot: `Booted ServiceStarted ProbeFailed* Ready (WarmStarted WarmFinished)*`.
/// A build step: `Booted StepFinished`, before which its layer was sent.
/// Any of them may end with `Failed`, or with `Stopping` and `ServiceExited`; after these
/// the guest resets itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Event {
    /// Mounts, network and host name are in place.
    Booted,
    /// The service was started.
    ServiceStarted {
        /// Its process id in the guest.
        pid: i32,
    },
    /// A probe failed in another way than the time before.
    ProbeFailed {
        /// Which attempt, from 1.
        attempt: u32,
        /// What came instead: `connection refused`, `HTTP 503`, `exit code 1: ...`.
        saw: String,
    },
    /// The service is ready.
    Ready {
        /// How many attempts it took.
        attempts: u32,
    },
    /// A warm command starts.
    WarmStarted {
        /// Its place in [`GuestConfig::warm`], from 1.
        number: u32,
    },
    /// A warm command ended.
    WarmFinished {
        /// Its place in [`GuestConfig::warm`], from 1.
        number: u32,
        /// How it ended.
        status: ExitStatus,
        /// The last of its output (at most [`OUTPUT_TAIL`] bytes).
        output_tail: String,
    },
    /// The command of a build step has succeeded, and its layer was sent. The guest resets itself after
    /// this.
    StepFinished {
        /// Length of the layer, in bytes.
        layer_bytes: u64,
    },
    /// The service is frozen and everything is flushed; the snapshot comes next.
    Quiesced,
    /// Take the snapshot now (only where the kernel has no `/dev/smol`): the guest waits
    /// until this stream breaks or is closed.
    Snapshot,
    /// The guest was restored and waits for one line of [`RestoreParams`].
    Restored,
    /// The new identity is in place and the service runs on.
    Resumed {
        /// 16 bytes of the reseeded random number generator as hex digits: no two restored
        /// machines tell the same.
        sample: String,
    },
    /// In a test restore: the service was asked once more whether it is ready, and was, and has
    /// answered every request of [`GuestConfig::warm_restore`].
    TestRestored,
    /// The service ended. The guest resets itself after this.
    ServiceExited {
        /// How it ended.
        status: ExitStatus,
    },
    /// It goes on, but not as well as it should.
    Warning {
        /// Where.
        stage: Stage,
        /// What, and why.
        reason: String,
    },
    /// It cannot go on. The guest resets itself after this.
    Failed(GuestFailure),
    /// The service is being stopped, because it was asked for.
    Stopping,
}

/// What makes a restored clone itself: sent by the host as one line in answer to
/// [`Event::Restored`], applied before anything of the service runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreParams {
    /// Fresh random bytes, [`MIN_ENTROPY`] to [`MAX_ENTROPY`] of them, as hex digits.
    pub entropy: Entropy,
    /// Wall clock, in nanoseconds since the Unix epoch.
    pub wall_clock_ns: u64,
    /// The new machine id.
    pub machine_id: MachineId,
    /// A new host name; the build's stays when absent.
    #[serde(default)]
    pub hostname: Option<String>,
    /// How many CPUs shall be online in all, the first one included.
    #[serde(default = "one_cpu")]
    pub online_cpus: u8,
    /// The builder looks what a restore touches: the guest shows what it does first, once, and
    /// tells [`Event::TestRestored`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub test_restore: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn one_cpu() -> u8 {
    1
}

/// Host to guest, one JSON object a line on [`REQUEST_PORT`]; each is answered by a [`Reply`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Request {
    /// Are you there?
    Ping,
    /// Stop the service: SIGTERM, then SIGKILL after the grace time. The control stream
    /// then tells [`Event::Stopping`] and [`Event::ServiceExited`].
    Shutdown {
        /// Time between the two signals, in milliseconds.
        grace_ms: u64,
    },
}

/// The guest's answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Reply {
    /// Answer to [`Request::Ping`].
    Pong,
    /// It is being done.
    Ok,
    /// The request was not understood; the connection is closed.
    Error {
        /// Why.
        reason: String,
    },
}

/// First line the host sends on a [`FORWARD_PORT`] connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardRequest {
    /// TCP port on the guest's loopback.
    pub port: u16,
}

/// The guest's line in return. Bytes flow only after `ok: true`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardReply {
    /// Whether the service accepted the connection.
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A time limit for people: in the largest unit that needs no fraction. What passes until then is the
/// guest's time, of which a build has more than the host.
pub fn guest_time(ms: u64) -> String {
    let (number, unit) = match ms {
        _ if ms.is_multiple_of(3_600_000) => (ms / 3_600_000, "h"),
        _ if ms.is_multiple_of(60_000) => (ms / 60_000, "min"),
        _ if ms.is_multiple_of(1000) => (ms / 1000, "s"),
        _ => (ms, "ms"),
    };
    format!("{number} {unit} (guest time)")
}

#[cfg(test)]
mod tests;
