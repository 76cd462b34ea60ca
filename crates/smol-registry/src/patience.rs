//! Requests that fail, repeated: how often, and after which wait.

use std::time::Duration;

use crate::error::{Again, Error, Result};
use crate::options::Options;

/// Most of our own waits.
const MOST_DELAY: Duration = Duration::from_secs(60);

/// Counts the repetitions of a request, and waits between them.
#[derive(Debug, Default)]
pub struct Patience {
    tried: u32,
}

impl Patience {
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts anew: there was progress.
    pub fn renew(&mut self) {
        self.tried = 0;
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// The error itself, if there is to be none.
    pub async fn wait(&mut self, error: Error, options: &Options) -> Result<()> {
        let own = options.retry_delay.saturating_mul(1 << self.tried.min(16));
        let delay = match error.again() {
            Again::No => return Err(error),
            _ if self.tried >= options.retries => return Err(error),
            Again::Yes => own.min(MOST_DELAY),
            Again::After(delay) if delay > options.most_retry_after => {
                let seconds = delay.as_secs();
                return Err(error.with_hint(format!("it wants us to wait for {seconds} s")));
            }
            Again::After(delay) => delay,
        };
        self.tried += 1;
        tokio::time::sleep(delay).await;
        Ok(())
    }
}
