//! How long to wait before the next try: longer each time, and never in step with another process.

use std::time::Duration;

use uuid::Uuid;

/// Waits that double up to a limit.
pub(super) struct Pause {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Pause {
    pub(super) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// How long to wait now.
    pub(super) fn next(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.most);
        jittered(now)
    }

    /// It worked: the next failure is a first one.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A fifth more or less, by chance.
pub(super) fn jittered(time: Duration) -> Duration {
    // The last bytes of such an id are random, and no generator is needed for so little.
    let chance = u32::from(Uuid::new_v4().as_bytes()[15]);
    time * (80 + chance * 40 / 255) / 100
}

#[cfg(test)]
mod tests {
    use super::Pause;
    use std::time::Duration;

    #[test]
    fn a_pause_grows_to_its_limit_and_begins_anew_after_success() {
        let second = Duration::from_secs(1);
        let mut pause = Pause::new(second, second * 4);
        for expected in [1, 2, 4, 4] {
            let got = pause.next().as_secs_f64() / f64::from(expected);
            assert!((0.8..=1.2).contains(&got), "{got} of {expected} s");
        }
        pause.reset();
        assert!(pause.next() <= second * 6 / 5);
    }
}
