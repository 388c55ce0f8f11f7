//! How slowly a client may send a body or read a response.

use std::time::Duration;

use tokio::time::Instant;

use super::limits::Limits;

/// A transfer in progress.
pub struct Pace {
    started: Instant,
    bytes: u64,
}

impl Pace {
    /// It starts now.
    pub fn start() -> Self {
        Self { started: Instant::now(), bytes: 0 }
    }

    /// Counts bytes that were transferred.
    pub fn count(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// Leaves out a time in which the client did not have to do anything.
    pub fn pause(&mut self, time: Duration) {
        self.started += time;
    }

    /// When the next byte must have been transferred.
    pub fn deadline(&self, limits: &Limits) -> Instant {
        let allowed = Duration::from_millis(self.bytes * 1000 / u64::from(limits.min_rate.max(1)));
        let idle = Instant::now() + limits.idle_timeout;
        idle.min(self.started + limits.idle_timeout + allowed)
    }
}
