//! Work on the network, from code that waits for its end.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};

use crate::error::{Error, Result};

/// How often it is asked whether to go on.
const WATCH: Duration = Duration::from_millis(50);

/// Whether to go on, which is asked again and again.
pub type GoOn = Arc<dyn Fn() -> bool + Send + Sync>;

/// Runs work until its end, or until the caller wants to stop.
pub struct Worker {
    runtime: tokio::runtime::Runtime,
    go_on: GoOn,
}

impl Worker {
    pub fn new(go_on: GoOn) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(Error::local("cannot prepare for the network"))?;
        Ok(Worker { runtime, go_on })
    }

    /// Runs `work` to its end, or until the caller wants to stop.
    pub fn block_on<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let watch = async {
            while (self.go_on)() {
                tokio::time::sleep(WATCH).await;
            }
        };
        self.runtime.block_on(async {
            match select(pin!(watch), pin!(work)).await {
                Either::Left(_) => Err(Error::interrupted()),
                Either::Right((outcome, _)) => outcome,
            }
        })
    }
}
