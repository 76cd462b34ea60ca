//! What a running machine can be told: from signals, through its control socket, or through the
//! channel into the emulated host. Always as one line of JSON.

use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smol_cli::Interrupt;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Order {
    /// Stop the service: SIGTERM, after the grace time SIGKILL.
    Stop {
        /// Time between the two, ms.
        grace_ms: u64,
    },
}

/// Grace time of a stop by a signal, and of `smolrun stop` unless told otherwise.
pub const GRACE: Duration = Duration::from_secs(10);
/// Longest order, bytes.
const MAX_LINE: u64 = 4096;

impl Order {
    /// A stop with this grace time.
    pub fn stop(grace: Duration) -> Self {
        Order::Stop {
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// As a line.
    pub fn line(self) -> String {
        let Order::Stop { grace_ms } = self;
        format!("{{\"stop\":{{\"grace_ms\":{grace_ms}}}}}\n")
    }

    /// The order of a line.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(line: &str) -> Result<Self, String> {
        serde_json::from_str(line).map_err(|e| format!("no order: {e}"))
    }
}

/// Reads one order.
///
/// # Errors
/// If the stream ends or breaks before there is one, or if it is something else.
pub fn read(stream: impl Read) -> Result<Order, String> {
    let mut line = String::new();
    match BufReader::new(stream.take(MAX_LINE)).read_line(&mut line) {
        Ok(0) => Err("no order came".into()),
        Ok(_) => Order::parse(&line),
        Err(e) => Err(e.to_string()),
    }
}

/// On a thread of its own: the first SIGINT or SIGTERM becomes an order to stop. (A second SIGINT
/// ends the process, and with it the machine.)
pub fn from_signals(interrupt: &Interrupt, give: impl Fn(Order) + Send + 'static) {
    let interrupt = interrupt.clone();
    std::thread::spawn(move || {
        while let Ok(false) = interrupt.wait(None) {}
        give(Order::stop(GRACE));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_survives_its_line() {
        let order = Order::stop(Duration::from_millis(2500));
        assert_eq!(order.line(), "{\"stop\":{\"grace_ms\":2500}}\n");
        assert_eq!(read(order.line().as_bytes()), Ok(order));
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
