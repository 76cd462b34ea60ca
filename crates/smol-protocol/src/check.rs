//! What a configuration may say: found by the builder before it boots anything, and by the
//! guest once more.

use super::{GuestConfig, MAX_CONFIG, MAX_WORDS, Probe, ProtocolError, Service, is_signal};

impl GuestConfig {
    /// Reads and checks a configuration file's text.
    pub fn parse(text: &[u8]) -> Result<Self, ProtocolError> {
        if text.len() > MAX_CONFIG {
            return Err(ProtocolError::TooLong(MAX_CONFIG));
        }
        let config: GuestConfig =
            serde_json::from_slice(text).map_err(|e| ProtocolError::Json(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Finds what no guest could act on; the builder calls it before it boots anything.
    pub fn check(&self) -> Result<(), ProtocolError> {
        let bad = |key, why: &str| Err(ProtocolError::Value(key, why.to_owned()));
        if check_hostname(&self.hostname).is_err() {
            return bad("hostname", "letters, digits, '-' and '.', 1 to 64 of them");
        }
        self.service.check()?;
        let warm = self.warm.iter().map(|c| ("warm.cmd", "warm.timeout_ms", c));
        let restore = self.restore.iter();
        let restore = restore.map(|c| ("restore.cmd", "restore.timeout_ms", c));
        for (cmd, timeout, command) in warm.chain(restore) {
            check_command(cmd, &command.cmd)?;
            if command.timeout_ms == 0 {
                return bad(timeout, "more than 0");
            }
        }
        for request in &self.warm_restore {
            if let Probe::Log { .. } | Probe::File { .. } | Probe::Notify = request.probe {
                return bad(
                    "warm_restore.probe",
                    "exec, tcp or http: the others ask the service nothing",
                );
            }
            if request.timeout_ms == 0 {
                return bad("warm_restore.timeout_ms", "more than 0");
            }
            request.probe.check()?;
        }
        if self.ready.timeout_ms == 0 || self.ready.interval_ms == 0 || self.ready.successes == 0 {
            return bad(
                "ready",
                "timeout_ms, interval_ms and successes are more than 0",
            );
        }
        self.ready.probe.check()
    }
}

impl Service {
    pub(crate) fn check(&self) -> Result<(), ProtocolError> {
        let bad = |key, why: &str| Err(ProtocolError::Value(key, why.to_owned()));
        check_command("service.cmd", &self.cmd)?;
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return bad(
                    "service.env",
                    "a name is not empty and has no '=', nothing has a NUL",
                );
            }
        }
        if self
            .workdir
            .as_ref()
            .is_some_and(|dir| !dir.starts_with('/') || dir.contains('\0'))
        {
            return bad("service.workdir", "an absolute path");
        }
        if self.stop_signal.is_some_and(|signal| !is_signal(signal)) {
            return bad(
                "service.stop_signal",
                "the number of a signal: 1 to 31, or 34 to 64",
            );
        }
        Ok(())
    }
}

impl Probe {
    fn check(&self) -> Result<(), ProtocolError> {
        let bad = |key, why: &str| Err(ProtocolError::Value(key, why.to_owned()));
        match self {
            Probe::Exec { cmd } => check_command("probe.exec.cmd", cmd),
            Probe::Tcp { port } | Probe::Http { port, .. } if *port == 0 => {
                bad("probe.port", "1 to 65535")
            }
            Probe::Tcp { .. } | Probe::Notify => Ok(()),
            Probe::Http {
                path, status, body, ..
            } => {
                if !path.starts_with('/') || path.bytes().any(|b| b <= b' ' || b == 0x7f) {
                    return bad(
                        "probe.http.path",
                        "starts with '/', without spaces and control characters",
                    );
                }
                if status.is_empty() || status.iter().any(|s| !(100..600).contains(s)) {
                    return bad(
                        "probe.http.status",
                        "at least one status code from 100 to 599",
                    );
                }
                check_length("probe.http.path", path.len())?;
                body.as_ref()
                    .map_or(Ok(()), |pattern| check_pattern("probe.http.body", pattern))
            }
            Probe::Log { pattern } => check_pattern("probe.log.pattern", pattern),
            Probe::File { path } if !path.starts_with('/') || path.contains('\0') => {
                bad("probe.file.path", "an absolute path")
            }
            Probe::File { path } => check_length("probe.file.path", path.len()),
        }
    }
}

fn check_command(key: &'static str, cmd: &[String]) -> Result<(), ProtocolError> {
    if cmd.first().is_none_or(String::is_empty) || cmd.iter().any(|word| word.contains('\0')) {
        let why = "a program, then its arguments, without NUL".to_owned();
        return Err(ProtocolError::Value(key, why));
    }
    check_length(key, cmd.iter().map(String::len).sum())
}

fn check_length(key: &'static str, length: usize) -> Result<(), ProtocolError> {
    if length > MAX_WORDS {
        let why = format!("{length} bytes; at most {MAX_WORDS}: put the rest into a file");
        return Err(ProtocolError::Value(key, why));
    }
    Ok(())
}

/// A pattern must be one that the guest's own engine takes (regex-lite: no Unicode classes).
fn check_pattern(key: &'static str, pattern: &str) -> Result<(), ProtocolError> {
    check_length(key, pattern.len())?;
    regex_lite::Regex::new(pattern)
        .map(drop)
        .map_err(|e| ProtocolError::Value(key, e.to_string()))
}

/// A host name the kernel takes: 1 to 64 letters, digits, `-` and `.`.
pub fn check_hostname(name: &str) -> Result<(), ProtocolError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(good) {
        return Err(ProtocolError::Value(
            "hostname",
            format!("{name:?} is not a host name"),
        ));
    }
    Ok(())
}
