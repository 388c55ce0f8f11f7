//! When a scheduled run starts: schedules are due at the same second, and their Pods should not all start in it.
//!
//! A few starts in a row need no delay. Further ones are spread over a minute, each sync at its own place, so that the
//! interval between its runs stays the same.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// Starts without a delay within the longest delay.
const IMMEDIATE: usize = 4;

/// The scheduled starts of this process.
pub struct Spread {
    longest: Duration,
    immediate: Mutex<VecDeque<Instant>>,
}

impl Spread {
    /// Delays starts by up to `longest`, in whole seconds.
    pub fn new(longest: Duration) -> Self {
        Self { longest, immediate: Mutex::default() }
    }

    /// The delay of a scheduled start of this sync.
    pub fn delay(&self, sync_id: &str, now: Instant) -> Duration {
        let mut immediate = self.immediate.lock().unwrap_or_else(PoisonError::into_inner);
        while immediate.front().is_some_and(|start| now.duration_since(*start) >= self.longest) {
            immediate.pop_front();
        }
        if immediate.len() < IMMEDIATE {
            immediate.push_back(now);
            return Duration::ZERO;
        }
        place(sync_id, self.longest)
    }
}

/// The place of a sync between 0 and `longest`.
fn place(sync_id: &str, longest: Duration) -> Duration {
    let hash = Sha256::digest(sync_id);
    let number = hash.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    Duration::from_secs(number % (longest.as_secs() + 1))
}

#[cfg(test)]
mod tests {
    use super::{IMMEDIATE, Spread, place};
    use std::time::{Duration, Instant};

    const MINUTE: Duration = Duration::from_secs(59);

    #[test]
    fn a_few_starts_are_immediate_and_the_others_are_spread() {
        let (spread, now) = (Spread::new(MINUTE), Instant::now());
        let delays: Vec<Duration> = (0..200).map(|n| spread.delay(&format!("sync {n}"), now)).collect();
        assert!(delays[..IMMEDIATE].iter().all(Duration::is_zero));
        assert!(delays.iter().all(|delay| *delay <= MINUTE));
        for quarter in 0..4 {
            let within = |delay: &&Duration| delay.as_secs() / 15 == quarter;
            let count = delays[IMMEDIATE..].iter().filter(within).count();
            assert!((25..75).contains(&count), "{count} of 196 in quarter {quarter}");
        }
        assert_eq!(spread.delay("sync 7", now), delays[7], "a sync keeps its place");
        assert_eq!(spread.delay("sync 7", now + MINUTE), Duration::ZERO, "nothing was due for a minute");
    }

    #[test]
    fn without_a_spread_every_start_is_immediate() {
        let (spread, now) = (Spread::new(Duration::ZERO), Instant::now());
        assert!((0..100).all(|n| spread.delay(&n.to_string(), now).is_zero()));
        assert_eq!(place("x", Duration::ZERO), Duration::ZERO);
    }
}
