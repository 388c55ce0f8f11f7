//! Whether the database answers, within a fixed time whatever the connections and the server do.
//!
//! The retry timeout bounds only retries: a server that accepts a statement and does not answer blocks the operation. So
//! a thread of its own sends the query, one at a time, however many callers wait for the result.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::{Db, DbError};

/// How long a caller waits.
const LIMIT: Duration = Duration::from_secs(2);
/// The retry timeout of the query: shorter, so that the caller gets the reason of a failure.
const RETRY_TIMEOUT: Duration = Duration::from_millis(1500);

const ACTION: &str = "run a query";

/// Shared by all callers.
#[derive(Default)]
pub(super) struct Ping {
    state: Mutex<State>,
    finished: Condvar,
}

#[derive(Default)]
struct State {
    /// Whether a thread runs the query.
    running: bool,
    /// The number of finished queries.
    count: u64,
    /// The result of the last one; `None` before the first, or after a panic.
    result: Option<Result<(), DbError>>,
}

/// One query; reports its result when dropped, also in a panic.
struct Query {
    db: Db,
    result: Option<Result<(), DbError>>,
}

impl Drop for Query {
    fn drop(&mut self) {
        let ping = &self.db.shared.ping;
        let mut state = ping.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State { running: false, count: state.count + 1, result: self.result.take() };
        ping.finished.notify_all();
    }
}

impl Db {
    /// Runs a trivial query, for two seconds at most, whatever [`Options::retry_timeout`](super::Options) is. A pool
    /// whose connections are busy for all of that time counts as a failure.
    pub fn ping(&self) -> Result<(), DbError> {
        let ping = &self.shared.ping;
        let mut state = ping.state.lock().unwrap_or_else(PoisonError::into_inner);
        let count = state.count;
        if !state.running {
            state.running = true;
            // If the thread cannot be started, the query is dropped here and takes the lock.
            drop(state);
            let mut query = Query { db: self.with_retry_timeout(RETRY_TIMEOUT), result: None };
            let run = move || query.result = Some(query.db.run(ACTION, |tx| Ok(_ = tx.execute("SELECT 1", &[])?)));
            thread::Builder::new()
                .name("db-ping".to_owned())
                .spawn(run)
                .map_err(|error| self.ping_error(format!("cannot start a thread: {error}")))?;
            state = ping.state.lock().unwrap_or_else(PoisonError::into_inner);
        }
        let (state, wait) = ping
            .finished
            .wait_timeout_while(state, LIMIT, |state| state.count == count)
            .unwrap_or_else(PoisonError::into_inner);
        match &state.result {
            Some(result) if !wait.timed_out() => result.clone(),
            _ => Err(self.ping_error("no answer".to_owned())),
        }
    }

    fn ping_error(&self, reason: String) -> DbError {
        let (address, waited_seconds) = (self.shared.target.address(), LIMIT.as_secs());
        DbError::ConnectionLost { action: ACTION, address, reason, waited_seconds }
    }
}
