//! Whether the database answers, told in time whatever the connections and the server do.
//!
//! Patience bounds repetitions alone: a server that is there and says nothing holds an operation for as long as it
//! likes. So the question is asked on a thread, of which there is one at a time, however many wait for its answer.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::{Db, DbError};

/// How long an answer is waited for.
const LIMIT: Duration = Duration::from_secs(2);
/// How long the question is repeated: less, so that the reason of a failure is told and not only the delay.
const PATIENCE: Duration = Duration::from_millis(1500);

const DOING: &str = "asking whether the database answers";

/// What those who ask share.
#[derive(Default)]
pub(super) struct Probe {
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Default)]
struct State {
    /// Whether a thread is asking.
    asking: bool,
    /// How many have ended.
    rounds: u64,
    /// What the last one found; `None` before the first, or when it panicked.
    answer: Option<Result<(), DbError>>,
}

/// One thread's turn; ends with the value, also in a panic.
struct Turn {
    db: Db,
    answer: Option<Result<(), DbError>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let probe = &self.db.shared.probe;
        let mut state = probe.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State { asking: false, rounds: state.rounds + 1, answer: self.answer.take() };
        probe.answered.notify_all();
    }
}

impl Db {
    /// Asks the database for a sign of life, for two seconds at most, whatever the retry_timeout of this [`Db`] is. Busy
    /// connections for all of that time are a failure, too: nobody else gets one either.
    pub fn ping(&self) -> Result<(), DbError> {
        let probe = &self.shared.probe;
        let mut state = probe.state.lock().unwrap_or_else(PoisonError::into_inner);
        // An answer to an earlier question will do: it comes now.
        let round = state.rounds;
        if !state.asking {
            state.asking = true;
            // A thread that cannot be started ends its turn right here, and that takes the lock.
            drop(state);
            let mut turn = Turn { db: self.with_retry_timeout(PATIENCE), answer: None };
            let ask = move || turn.answer = Some(turn.db.run(DOING, |session| Ok(_ = session.query("SELECT 1", &[])?)));
            thread::Builder::new()
                .name("db-ping".to_owned())
                .spawn(ask)
                .map_err(|error| self.no_answer(format!("starting a thread: {error}")))?;
            state = probe.state.lock().unwrap_or_else(PoisonError::into_inner);
        }
        let (state, wait) = probe
            .answered
            .wait_timeout_while(state, LIMIT, |state| state.rounds == round)
            .unwrap_or_else(PoisonError::into_inner);
        match &state.answer {
            Some(answer) if !wait.timed_out() => answer.clone(),
            _ => Err(self.no_answer("no answer".to_owned())),
        }
    }

    fn no_answer(&self, reason: String) -> DbError {
        DbError::ConnectionLost {
            action: DOING,
            address: self.target().address(),
            reason,
            waited_seconds: LIMIT.as_secs(),
        }
    }
}
