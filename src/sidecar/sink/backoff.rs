//! Waiting for a destination that is away for a moment.

use std::time::{Duration, Instant};

/// The first pause before another attempt, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Pauses that grow until patience ends.
pub struct Backoff {
    until: Instant,
    pause: Duration,
}

impl Backoff {
    /// Nothing was waited for so far.
    pub fn new(patience: Duration) -> Self {
        Self { until: Instant::now() + patience, pause: PAUSES.0 }
    }

    /// Waits; `false` when there is no time left.
    pub fn wait(&mut self) -> bool {
        if Instant::now() + self.pause > self.until {
            return false;
        }
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(PAUSES.1);
        true
    }
}
