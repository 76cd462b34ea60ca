//! What a running machine can be told: from signals, through its control socket, or through the
//! channel into the emulated host. Always as one line of JSON.

use std::io::{BufRead, BufReader, Read};

use smol_cli::Interrupt;

use crate::run::request::{ControlRequest, GRACE};

/// Longest order, bytes.
const MAX_LINE: u64 = 4096;

/// The line of a request.
pub fn encode(request: ControlRequest) -> String {
    let ControlRequest::Stop { grace_ms } = request;
    format!("{{\"stop\":{{\"grace_ms\":{grace_ms}}}}}\n")
}

/// The request of a line.
///
/// # Errors
/// If it is none.
pub fn decode(line: &str) -> Result<ControlRequest, String> {
    serde_json::from_str(line).map_err(|e| format!("no order: {e}"))
}

/// Reads one order.
///
/// # Errors
/// If the stream ends or breaks before there is one, or if it is something else.
pub fn read(stream: impl Read) -> Result<ControlRequest, String> {
    let mut line = String::new();
    match BufReader::new(stream.take(MAX_LINE)).read_line(&mut line) {
        Ok(0) => Err("no order came".into()),
        Ok(_) => decode(&line),
        Err(e) => Err(e.to_string()),
    }
}

/// On a thread of its own: the first SIGINT or SIGTERM becomes an order to stop. (A second SIGINT
/// ends the process, and with it the machine.)
pub fn from_signals(interrupt: &Interrupt, give: impl Fn(ControlRequest) + Send + 'static) {
    let interrupt = interrupt.clone();
    std::thread::spawn(move || {
        while let Ok(false) = interrupt.wait(None) {}
        give(ControlRequest::stop(GRACE));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_order_survives_its_line() {
        let order = ControlRequest::stop(Duration::from_millis(2500));
        assert_eq!(encode(order), "{\"stop\":{\"grace_ms\":2500}}\n");
        assert_eq!(read(encode(order).as_bytes()), Ok(order));
    }

    #[test]
    fn what_is_no_order_is_refused() {
        for line in [
            "",
            "{}",
            "{\"stop\":{}}",
            "{\"stop\":{\"grace_ms\":-1}}",
            "stop",
            "{\"go\":1}",
        ] {
            assert!(read(line.as_bytes()).is_err(), "{line}");
        }
        assert!(read(vec![b' '; 10_000].as_slice()).is_err());
    }
}
