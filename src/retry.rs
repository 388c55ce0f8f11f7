//! The backoff policy of the whole program: delays between attempts double up to a limit, with jitter.
//!
//! Knows no operation and no error: each caller states its limits and decides which failures are worth another attempt.

use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

/// The delays between attempts, without an end.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Delays of about `first`, 2 × `first`, 4 × `first` and so on, never longer than `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The delay before the next attempt, with [jitter](jittered).
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.next.min(self.longest);
        self.next = delay.saturating_mul(2);
        jittered(delay)
    }

    /// Starts over: call it after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// Ends the attempts after `timeout`, counted from now.
    pub fn within(self, timeout: Duration) -> Retry {
        Retry { backoff: self, deadline: Instant::now() + timeout }
    }
}

/// A [`Backoff`] with a deadline, for loops that block their thread.
#[derive(Debug)]
pub struct Retry {
    backoff: Backoff,
    deadline: Instant,
}

impl Retry {
    /// When no further attempt starts.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Sleeps until the next attempt. Returns false at once if that would be after the deadline.
    pub fn wait(&mut self) -> bool {
        let delay = self.backoff.next_delay();
        let in_time = Instant::now() + delay < self.deadline;
        if in_time {
            thread::sleep(delay);
        }
        in_time
    }
}

/// Between 80 and 100 % of a duration, at random: processes that failed together do not retry together.
pub fn jittered(duration: Duration) -> Duration {
    // The last byte of a version 4 UUID is random.
    let random = u32::from(Uuid::new_v4().as_bytes()[15]);
    (duration * 4 + duration / 255 * random) / 5
}

#[cfg(test)]
mod tests {
    use super::{Backoff, jittered};
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn delays_double_up_to_the_longest_and_start_over_after_reset() {
        let mut backoff = Backoff::new(SECOND, SECOND * 4);
        for expected in [1, 2, 4, 4] {
            let ratio = backoff.next_delay().as_secs_f64() / f64::from(expected);
            assert!((0.8..=1.0).contains(&ratio), "{ratio} of {expected} s");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= SECOND);
    }

    #[test]
    fn the_first_delay_does_not_exceed_the_longest() {
        assert!(Backoff::new(SECOND * 9, SECOND).next_delay() <= SECOND);
    }

    #[test]
    fn jitter_keeps_long_durations() {
        let day = SECOND * 86_400;
        assert!((day * 4 / 5..=day).contains(&jittered(day)));
    }

    #[test]
    fn retries_end_before_the_deadline() {
        let mut retry = Backoff::new(Duration::from_millis(1), Duration::from_millis(1)).within(SECOND * 120);
        assert!(retry.wait());
        assert!(!Backoff::new(SECOND, SECOND).within(Duration::ZERO).wait());
    }
}
