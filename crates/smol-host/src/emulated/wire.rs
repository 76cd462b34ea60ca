//! The protocol between the host and the emulated host's init: one ordered byte stream (a
//! virtio-serial port) of frames `kind: u8, length: u32 little-endian, payload`.
//!
//! All goes through one stream, so that the exit status cannot overtake the job's last output.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// Longest payload a frame may carry, checked before the allocation.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// The kinds of frames. The first group goes to the host, the second to the emulated host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// The job is running; no payload.
    Started = 1,
    /// Bytes of the job's stdout.
    Stdout = 2,
    /// Bytes of the job's stderr.
    Stderr = 3,
    /// Bytes of the job's own channel, both directions.
    Channel = 4,
    /// The job ended, everything it wrote is on the host; payload: [`JobStatus`] as JSON.
    Exited = 5,
    /// The emulated host could not be set up, or one of its CPUs hangs; payload: a sentence.
    Failed = 6,
    /// The emulated host is alive (see the module `pulse`); no payload.
    Alive = 7,

    /// Ask the job to end (SIGTERM); no payload.
    Stop = 16,
    /// The wall clock: nanoseconds since the Unix epoch, u64 little-endian.
    Clock = 17,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<FrameKind> {
        use FrameKind::*;
        [
            Started, Stdout, Stderr, Channel, Exited, Failed, Alive, Stop, Clock,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// How the job ended: exactly one of the two is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Exit code, if it exited.
    pub code: Option<i32>,
    /// Signal number, if a signal ended it.
    pub signal: Option<i32>,
}

impl JobStatus {
    /// Returns the code a shell would report: the exit code, or 128 + signal.
    pub fn shell_code(self) -> i32 {
        self.code.unwrap_or_else(|| 128 + self.signal.unwrap_or(0))
    }
}

/// The job description for init: the file `/job.json` in the initramfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostJob {
    /// Program (absolute path inside) and its arguments.
    pub argv: Vec<String>,
    /// Environment variables beside the few that init sets.
    pub env: Vec<(String, String)>,
    /// Working folder.
    pub cwd: String,
    /// Module files in loading order (absolute paths inside).
    pub modules: Vec<String>,
    /// Shared folders in mounting order.
    pub shares: Vec<Mount>,
    /// Whether there is an eth0 to bring up.
    pub network: bool,
    /// Seconds after which a CPU that runs nothing counts as hanging.
    pub silence: u64,
}

/// A 9p share as init mounts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// 9p mount tag.
    pub tag: String,
    /// Where to mount it.
    pub target: String,
    /// Whether it is read-only.
    pub read_only: bool,
}

/// Writes one frame with a single `write_all`, so that two writers under one lock never mix.
pub fn write_frame(to: &mut impl Write, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
    debug_assert!(payload.len() <= MAX_PAYLOAD);
    let mut frame = Vec::with_capacity(payload.len() + 5);
    frame.push(kind as u8);
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.extend_from_slice(payload);
    to.write_all(&frame)
}

/// Reads one frame; `None` at a clean end of the stream.
pub fn read_frame(from: &mut impl Read) -> io::Result<Option<(FrameKind, Vec<u8>)>> {
    let mut header = [0; 5];
    let got = loop {
        match from.read(&mut header[..1]) {
            // A signal is no end: with a time limit on a socket, reads are not taken up again.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if got == 0 {
        return Ok(None);
    }
    from.read_exact(&mut header[1..])?;
    let kind = FrameKind::from_byte(header[0]).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("unknown frame kind {}", header[0]),
        )
    })?;
    let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length > MAX_PAYLOAD {
        let why = format!("frame of {length} bytes, the limit is {MAX_PAYLOAD}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload)?;
    Ok(Some((kind, payload)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were_written() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, FrameKind::Stdout, b"hello").unwrap();
        write_frame(&mut bytes, FrameKind::Stop, b"").unwrap();
        let mut from = bytes.as_slice();
        assert_eq!(
            read_frame(&mut from).unwrap(),
            Some((FrameKind::Stdout, b"hello".to_vec()))
        );
        assert_eq!(
            read_frame(&mut from).unwrap(),
            Some((FrameKind::Stop, Vec::new()))
        );
        assert_eq!(read_frame(&mut from).unwrap(), None);
    }

    #[test]
    fn a_frame_of_unknown_kind_is_an_error() {
        let error = read_frame(&mut [99, 0, 0, 0, 0].as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_frame_longer_than_the_limit_is_refused_before_it_is_read() {
        let error = read_frame(&mut [2, 0xff, 0xff, 0xff, 0xff].as_slice()).unwrap_err();
        assert!(error.to_string().contains("limit"), "{error}");
    }

    #[test]
    fn a_frame_cut_short_is_an_error() {
        let error = read_frame(&mut [2, 4, 0, 0, 0, b'a'].as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_job_ended_by_a_signal_counts_as_128_and_the_signal() {
        assert_eq!(
            JobStatus {
                code: None,
                signal: Some(9)
            }
            .shell_code(),
            137
        );
        assert_eq!(
            JobStatus {
                code: Some(7),
                signal: None
            }
            .shell_code(),
            7
        );
    }
}
