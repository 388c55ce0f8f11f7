//! A connection that reconnects, and transactions whose outcome is known even if the server restarts during COMMIT.
//!
//! Each transaction asks for its id first. If COMMIT is not answered, a new connection asks the server for the status of
//! that id. So no rows are lost, and none are written twice.

use std::sync::Arc;
use std::time::Duration;

use postgres::error::SqlState;
use postgres::{Client, SimpleQueryMessage};

use crate::db::{DbError, Target, is_connection_lost};
use crate::retry::Retry;
use crate::sidecar::sink::{BACKOFF, SinkError};

/// The `application_name` of the connections.
const APPLICATION: &str = "syncctl-sidecar";
/// Locks are waited for longer than connections, because a user's long query may hold them.
const LOCK_TIMEOUT_FACTOR: u32 = 12;
/// A server configured to confirm commits that its own crash could undo would let a state outlive its rows. This enables
/// `synchronous_commit` unless the parameters of the destination set it.
const ENABLE_SYNCHRONOUS_COMMIT: &str = "SELECT set_config('synchronous_commit', 'on', false) FROM pg_settings
     WHERE name = 'synchronous_commit' AND setting = 'off' AND source NOT IN ('client', 'session')";

/// What all sessions of a run share.
pub struct SessionConfig {
    /// The database.
    pub target: Target,
    /// Identifies the run: each session holds a shared advisory lock with this key, so that other runs can see whether
    /// the run is alive.
    pub run_id: i64,
    /// How long to retry while the server is unreachable.
    pub retry_timeout: Duration,
}

/// Why a statement failed.
#[derive(Debug)]
pub enum SessionError {
    /// The connection could not be established.
    Connect(DbError),
    /// The server returned an error, or the connection failed.
    Postgres(postgres::Error),
    /// The connection with the open transaction was lost.
    Disconnected,
    /// An error that a retry cannot fix.
    Permanent(String),
}

impl From<postgres::Error> for SessionError {
    fn from(error: postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl SessionError {
    /// The SQLSTATE that the server returned.
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Postgres(error) => error.code(),
            Self::Connect(_) | Self::Disconnected | Self::Permanent(_) => None,
        }
    }

    /// Whether the connection is lost, so that a retry on a new one may succeed.
    pub fn is_connection_lost(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_transient(),
            Self::Postgres(error) => is_connection_lost(error),
            Self::Disconnected => true,
            Self::Permanent(_) => false,
        }
    }

    /// Whether another session holds a lock that the statement needs.
    pub fn is_lock_timeout(&self) -> bool {
        self.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }

    /// Whether concurrent transactions conflicted, so that a retry on the same connection may succeed.
    fn is_conflict(&self) -> bool {
        matches!(self.code(), Some(&(SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED)))
    }
}

/// The time left to retry one operation.
struct RetryBudget {
    /// For an unreachable server and conflicts.
    server: Retry,
    /// For locks.
    lock: Retry,
}

impl RetryBudget {
    fn new(config: &SessionConfig) -> Self {
        Self {
            server: BACKOFF.within(config.retry_timeout),
            lock: BACKOFF.within(config.retry_timeout * LOCK_TIMEOUT_FACTOR),
        }
    }
}

/// Why an attempt at a transaction failed.
enum TransactionError<T> {
    /// Nothing was committed.
    NotCommitted(SessionError),
    /// COMMIT was sent but not answered.
    CommitUnanswered { transaction: i64, value: T },
}

/// A connection to the destination, opened when needed and reopened when lost.
pub struct Session {
    config: Arc<SessionConfig>,
    client: Option<Client>,
}

impl Session {
    /// A session that is not connected yet.
    pub fn new(config: Arc<SessionConfig>) -> Self {
        Self { config, client: None }
    }

    /// The connection. Makes one attempt to connect if there is none.
    pub fn client(&mut self) -> Result<&mut Client, SessionError> {
        if !self.is_connected() {
            self.client = None;
            let mut client = self.config.target.connect(APPLICATION).map_err(SessionError::Connect)?;
            client.batch_execute(&format!(
                "SELECT pg_advisory_lock_shared({}); {ENABLE_SYNCHRONOUS_COMMIT}",
                self.config.run_id
            ))?;
            self.client = Some(client);
        }
        self.connected_client()
    }

    /// Whether there is a connection that has not failed so far.
    pub fn is_connected(&self) -> bool {
        self.client.as_ref().is_some_and(|client| !client.is_closed())
    }

    /// The current connection, without reconnecting: an open transaction lives and ends with it.
    pub fn connected_client(&mut self) -> Result<&mut Client, SessionError> {
        self.client.as_mut().ok_or(SessionError::Disconnected)
    }

    /// Closes the connection; the server rolls back.
    pub fn disconnect(&mut self) {
        self.client = None;
    }

    /// Rolls back the open transaction.
    pub fn rollback(&mut self) {
        let failed = self.client.as_mut().is_some_and(|client| client.batch_execute("ROLLBACK").is_err());
        if failed {
            self.client = None;
        }
    }

    /// Opens a transaction and returns its id.
    pub fn begin(&mut self) -> Result<i64, SessionError> {
        let responses = self.client()?.simple_query("BEGIN; SELECT txid_current()")?;
        first_value(&responses)
            .and_then(|id| id.parse().ok())
            .ok_or_else(|| SessionError::Permanent("the server returned no transaction id".to_owned()))
    }

    /// Commits the open transaction.
    pub fn commit(&mut self) -> Result<(), SessionError> {
        Ok(self.connected_client()?.batch_execute("COMMIT")?)
    }

    /// Runs statements as one transaction; see [`transaction`](Self::transaction).
    pub fn execute(&mut self, subject: &str, statements: &str) -> Result<(), SinkError> {
        self.transaction(subject, |client| Ok(client.batch_execute(statements)?))
    }

    /// Runs `body` in a transaction that is committed exactly once. Retries while the connection is lost, another
    /// session holds a lock, or transactions conflict. `subject` is the table or stream for messages.
    pub fn transaction<T>(
        &mut self,
        subject: &str,
        body: impl FnMut(&mut Client) -> Result<T, SessionError>,
    ) -> Result<T, SinkError> {
        self.try_transaction(subject, body).map_err(|error| self.sink_error(subject, &error))
    }

    /// [`transaction`](Self::transaction) for callers that need the cause of a failure.
    pub fn try_transaction<T>(
        &mut self,
        subject: &str,
        mut body: impl FnMut(&mut Client) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let mut budget = RetryBudget::new(&self.config);
        loop {
            match self.attempt(&mut body) {
                Ok(value) => return Ok(value),
                Err(TransactionError::CommitUnanswered { transaction, value }) => {
                    self.client = None;
                    if self.was_committed(transaction)? {
                        return Ok(value);
                    }
                }
                Err(TransactionError::NotCommitted(error)) => {
                    if !self.wait_for_retry(subject, &error, &mut budget) {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn attempt<T>(
        &mut self,
        body: &mut impl FnMut(&mut Client) -> Result<T, SessionError>,
    ) -> Result<T, TransactionError<T>> {
        let transaction = self.begin().map_err(TransactionError::NotCommitted)?;
        let value = self.connected_client().and_then(body).map_err(TransactionError::NotCommitted)?;
        match self.commit() {
            Ok(()) => Ok(value),
            Err(error) if error.is_connection_lost() => Err(TransactionError::CommitUnanswered { transaction, value }),
            Err(error) => Err(TransactionError::NotCommitted(error)),
        }
    }

    /// Cleans up after a failure and waits. Returns `false` if a retry is pointless or the time is over.
    fn wait_for_retry(&mut self, subject: &str, error: &SessionError, budget: &mut RetryBudget) -> bool {
        if error.is_connection_lost() {
            self.client = None;
            tracing::warn!(destination = %self.config.target.address(), "connection lost, retrying");
            return budget.server.wait();
        }
        self.rollback();
        if error.is_lock_timeout() {
            warn_of_lock(subject);
            return budget.lock.wait();
        }
        error.is_conflict() && budget.server.wait()
    }

    /// Calls `body` again while the connection is lost or another session holds a lock. Each retry starts without an
    /// open transaction.
    pub fn retry<T>(
        &mut self,
        subject: &str,
        mut body: impl FnMut(&mut Self) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let mut budget = RetryBudget::new(&self.config);
        loop {
            match body(self) {
                Ok(value) => return Ok(value),
                Err(error)
                    if (error.is_connection_lost() || error.is_lock_timeout())
                        && self.wait_for_retry(subject, &error, &mut budget) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Runs statements within the open transaction. Retries while another session holds a lock; a savepoint preserves
    /// the transaction meanwhile.
    pub fn execute_in_open_transaction(&mut self, subject: &str, statements: &str) -> Result<(), SessionError> {
        let mut budget = RetryBudget::new(&self.config);
        loop {
            let client = self.connected_client()?;
            let executed = client.batch_execute(&format!("SAVEPOINT attempt; {statements} ; RELEASE attempt"));
            match executed.map_err(SessionError::from) {
                Err(error) if error.is_lock_timeout() => {
                    client.batch_execute("ROLLBACK TO attempt; RELEASE attempt")?;
                    warn_of_lock(subject);
                    if !budget.lock.wait() {
                        return Err(error);
                    }
                }
                executed => return executed,
            }
        }
    }

    /// Whether a transaction was committed whose COMMIT was not answered.
    pub fn was_committed(&mut self, transaction: i64) -> Result<bool, SessionError> {
        let mut retry = BACKOFF.within(self.config.retry_timeout);
        loop {
            let responses = self.retry("the last transaction", |session| {
                Ok(session.client()?.simple_query(&format!("SELECT txid_status({transaction})"))?)
            });
            match responses {
                Ok(responses) => match first_value(&responses) {
                    Some("committed") => return Ok(true),
                    Some("aborted") => return Ok(false),
                    // The server process of the old connection is still working on it.
                    Some(_) if retry.wait() => {}
                    _ => {
                        return Err(SessionError::Permanent(format!(
                            "cannot determine whether transaction {transaction} was committed"
                        )));
                    }
                },
                // After a crash the server does not know the id if nothing of the transaction was written to disk.
                Err(error) if error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Converts an error for the user of the sink. `subject` is the table or stream.
    pub fn sink_error(&self, subject: &str, error: &SessionError) -> SinkError {
        let reason = match error {
            SessionError::Connect(error) => {
                return SinkError { text: error.to_string(), transient: error.is_transient() };
            }
            SessionError::Postgres(_) if error.is_lock_timeout() => {
                "another session has held a lock for too long".to_owned()
            }
            SessionError::Postgres(error) => self.config.target.describe(error),
            SessionError::Disconnected => "the connection was lost".to_owned(),
            SessionError::Permanent(reason) => reason.clone(),
        };
        let transient = error.is_connection_lost()
            || error.is_conflict()
            || error.is_lock_timeout()
            || error.code().is_some_and(|code| code.code().starts_with("53") || *code == SqlState::QUERY_CANCELED);
        SinkError { text: format!("{subject} in {}: {reason}", self.config.target.address()), transient }
    }
}

fn warn_of_lock(subject: &str) {
    tracing::warn!(on = %subject, "waiting for a lock that another session holds");
}

/// The first column of the first row.
fn first_value(responses: &[SimpleQueryMessage]) -> Option<&str> {
    responses.iter().find_map(|response| match response {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    })
}
