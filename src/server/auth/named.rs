//! A token with a name and limits.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::hash::Hashed;
use super::verb::Verb;
use crate::pattern::{Glob, ImagePattern, list};
use crate::task::Image;

/// The interval of `requestsPerMinute`.
const MINUTE: Duration = Duration::from_mins(1);

/// A token of the file. Each list that is `None` allows everything.
pub struct NamedToken {
    pub name: String,
    pub hash: Hashed,
    pub expires: Option<Timestamp>,
    pub verbs: Option<Vec<Verb>>,
    pub sync_ids: Option<Vec<Glob>>,
    pub storage_keys: Option<Vec<Glob>>,
    pub images: Option<Vec<ImagePattern>>,
    pub max_tasks: Option<u32>,
    pub requests_per_minute: Option<u32>,
    /// Shared with the token of the same name in an earlier version of the file.
    pub recent: Arc<Mutex<VecDeque<Instant>>>,
}

impl NamedToken {
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// Whether it is limited to some syncs, storage keys or images.
    pub fn has_patterns(&self) -> bool {
        self.sync_ids.is_some() || self.storage_keys.is_some() || self.images.is_some()
    }

    /// Metrics are about all callers: a token with patterns needs the verb.
    pub fn allows(&self, verb: Verb) -> bool {
        match &self.verbs {
            Some(verbs) => verbs.contains(&verb),
            None => verb != Verb::Metrics || !self.has_patterns(),
        }
    }

    pub fn check_sync(&self, sync_id: &str) -> Result<(), String> {
        self.check("sync", sync_id, "syncIds", self.sync_ids.as_deref(), |glob| glob.matches(sync_id))
    }

    pub fn check_storage_key(&self, key: &str) -> Result<(), String> {
        self.check("storage key", key, "storageKeys", self.storage_keys.as_deref(), |glob| glob.matches(key))
    }

    pub fn check_image(&self, image: &Image) -> Result<(), String> {
        self.check("image", &image.reference(), "images", self.images.as_deref(), |pattern| pattern.matches(image))
    }

    fn check<T: fmt::Display>(
        &self,
        what: &str,
        value: &str,
        field: &str,
        patterns: Option<&[T]>,
        matches: impl Fn(&T) -> bool,
    ) -> Result<(), String> {
        match patterns {
            Some(patterns) if !patterns.iter().any(matches) => {
                let (name, allowed) = (&self.name, list(patterns));
                Err(format!("token {name:?} may not use the {what} {value:?}: its {field} are {allowed}"))
            }
            _ => Ok(()),
        }
    }

    /// Counts a request. Rejected ones do not count: who repeats them too early waits no longer for it.
    pub fn count_request(&self) -> Result<(), u64> {
        self.count_request_at(Instant::now())
    }

    fn count_request_at(&self, now: Instant) -> Result<(), u64> {
        let Some(limit) = self.requests_per_minute else { return Ok(()) };
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        while recent.front().is_some_and(|request| now.duration_since(*request) >= MINUTE) {
            recent.pop_front();
        }
        // The limit may have been lowered.
        let Some(surplus) = recent.len().checked_sub(limit as usize) else {
            recent.push_back(now);
            return Ok(());
        };
        let wait = recent.get(surplus).map_or(MINUTE, |oldest| MINUTE.saturating_sub(now.duration_since(*oldest)));
        Err(wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::{MINUTE, NamedToken};
    use crate::server::auth::entries;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    fn token(limit: u32) -> NamedToken {
        let hash = format!("salt.{}", "ab".repeat(64));
        let text = format!("- name: a\n  hash: {hash}\n  requestsPerMinute: {limit}\n");
        entries::parse(&text).expect("a token").remove(0)
    }

    #[test]
    fn any_minute_has_at_most_as_many_requests_as_the_limit() {
        let (token, start) = (token(3), Instant::now());
        let at = |seconds: f64| token.count_request_at(start + Duration::from_secs_f64(seconds));
        assert_eq!([at(0.0), at(10.0), at(20.0)], [Ok(()); 3]);
        assert_eq!([at(20.0), at(59.5), at(59.9)], [Err(40), Err(1), Err(1)], "rejected ones do not count");
        assert_eq!([at(60.0), at(60.0)], [Ok(()), Err(10)]);
        assert_eq!([at(71.0), at(72.0)], [Ok(()), Err(8)]);
    }

    #[test]
    fn a_lowered_limit_applies_at_once() {
        let (many, start) = (token(10), Instant::now());
        for second in 0..10 {
            many.count_request_at(start + Duration::from_secs(second)).expect("within the limit");
        }
        let few = NamedToken { recent: Arc::clone(&many.recent), ..token(2) };
        // Eight of the ten and one more must have left the last minute.
        assert_eq!(few.count_request_at(start + Duration::from_secs(10)), Err(58));
        assert_eq!(few.count_request_at(start + MINUTE + Duration::from_secs(8)), Ok(()));
    }
}
