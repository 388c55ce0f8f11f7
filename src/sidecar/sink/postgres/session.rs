//! A connection that reconnects, and transactions whose outcome is known even if the server restarts during COMMIT.
//!
//! Each transaction asks for its id first. If COMMIT is not answered, a new connection asks the server for the status of
//! that id. So no rows are lost, and none are written twice.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::error::SqlState;
use postgres::{Client, SimpleQueryMessage};

use crate::db::{DbError, Target, is_connection_lost};
use crate::retry::Retry;
use crate::sidecar::sink::{BACKOFF, SinkError};

/// The `application_name` of the connections.
const APPLICATION: &str = "syncctl-sidecar";
/// Locks are waited for this many times longer than connections: a user's long query may hold them.
const LOCK_TIMEOUT_FACTOR: u32 = 12;
/// If the server's configuration turns `synchronous_commit` off, its crash could undo a commit whose state is already
/// saved. This statement turns it on, unless the parameters of the destination set it.
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
    /// What the user should know, since it was last taken.
    pub warnings: Warnings,
}

/// Warnings of any thread: subject and text.
#[derive(Default)]
pub struct Warnings(Mutex<Vec<(String, String)>>);

impl Warnings {
    /// Adds a warning.
    pub fn add(&self, subject: &str, text: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((subject.to_owned(), text.to_owned()));
    }

    /// The warnings since the last call.
    pub fn take(&self) -> Vec<(String, String)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl SessionConfig {
    /// The settings of a run.
    pub fn new(target: Target, run_id: i64, retry_timeout: Duration) -> Self {
        Self { target, run_id, retry_timeout, warnings: Warnings::default() }
    }

    /// Converts an error for the user of the sink. `subject` is what the operation was on.
    pub fn sink_error(&self, subject: &str, error: &SessionError) -> SinkError {
        let reason = self.reason(error);
        let text = match error {
            // Its text names the database.
            SessionError::Connect(_) => reason,
            _ => format!("{subject} in {}: {reason}", self.target.address()),
        };
        SinkError { text, transient: error.is_transient() }
    }

    /// The text of an error, without its subject.
    pub fn reason(&self, error: &SessionError) -> String {
        match error {
            SessionError::Connect(error) => error.to_string(),
            SessionError::Postgres(_) if error.is_lock_timeout() => {
                "another session has held a lock for too long".to_owned()
            }
            SessionError::Postgres(error) => self.target.describe(error),
            SessionError::Disconnected => "the connection was lost".to_owned(),
            SessionError::Final { reason, .. } => reason.clone(),
        }
    }
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
    /// An error that no operation of the session retries.
    Final {
        /// A sentence fragment for the user.
        reason: String,
        /// The next run may succeed.
        transient: bool,
    },
}

impl From<postgres::Error> for SessionError {
    fn from(error: postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl SessionError {
    /// An error that a retry cannot fix.
    pub fn permanent(reason: impl Into<String>) -> Self {
        Self::Final { reason: reason.into(), transient: false }
    }

    /// The SQLSTATE that the server returned.
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Postgres(error) => error.code(),
            Self::Connect(_) | Self::Disconnected | Self::Final { .. } => None,
        }
    }

    /// Whether the connection is lost, so that a retry on a new one may succeed.
    pub fn is_connection_lost(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_transient(),
            Self::Postgres(error) => is_connection_lost(error),
            Self::Disconnected => true,
            Self::Final { .. } => false,
        }
    }

    /// Whether no server is at the address.
    pub fn is_no_server(&self) -> bool {
        matches!(self, Self::Connect(error) if error.is_no_server())
    }

    /// Whether another session holds a lock that the statement needs.
    pub fn is_lock_timeout(&self) -> bool {
        self.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }

    /// Whether rows violate a key or another constraint.
    pub fn is_constraint_violation(&self) -> bool {
        // Several rows with one key in INSERT … ON CONFLICT are a cardinality violation.
        self.code().is_some_and(|code| code.code().starts_with("23") || *code == SqlState::CARDINALITY_VIOLATION)
    }

    /// Whether the next run may succeed.
    fn is_transient(&self) -> bool {
        matches!(self, Self::Final { transient: true, .. })
            || self.is_connection_lost()
            || self.is_conflict()
            || self.is_lock_timeout()
            || self.code().is_some_and(|code| code.code().starts_with("53") || *code == SqlState::QUERY_CANCELED)
    }

    /// Whether concurrent transactions conflicted, so that a retry on the same connection may succeed.
    fn is_conflict(&self) -> bool {
        matches!(self.code(), Some(&(SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED)))
    }
}

/// The time that is left to retry one operation.
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

/// A connection to the destination, opened when needed and reopened when lost.
pub struct Session {
    /// The table that the session is used for, in messages.
    pub subject: String,
    /// The settings of the run.
    pub config: Arc<SessionConfig>,
    client: Option<Client>,
    /// The id of the open transaction.
    transaction: Option<i64>,
}

impl Session {
    /// A session that is not connected yet.
    pub fn new(config: Arc<SessionConfig>) -> Self {
        Self { subject: "session".to_owned(), config, client: None, transaction: None }
    }

    /// The connection. Makes one attempt to connect if there is none.
    pub fn client(&mut self) -> Result<&mut Client, SessionError> {
        if !self.is_connected() {
            self.disconnect();
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
        (self.client, self.transaction) = (None, None);
    }

    /// Opens a transaction.
    pub fn begin(&mut self) -> Result<(), SessionError> {
        let responses = self.client()?.simple_query("BEGIN; SELECT txid_current()")?;
        self.transaction = first_value(&responses).and_then(|id| id.parse().ok());
        match self.transaction {
            Some(_) => Ok(()),
            None => Err(SessionError::permanent("the server returned no transaction id")),
        }
    }

    /// Whether a transaction is open, as far as its connection has not failed.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some() && self.is_connected()
    }

    /// Rolls back the open transaction.
    pub fn rollback(&mut self) {
        self.transaction = None;
        if self.client.as_mut().is_some_and(|client| client.batch_execute("ROLLBACK").is_err()) {
            self.disconnect();
        }
    }

    /// Commits the open transaction. If the connection is lost meanwhile, asks the server whether it was committed.
    pub fn commit(&mut self) -> Result<(), SessionError> {
        // COMMIT without a transaction would succeed with a warning.
        let transaction = self.transaction.take().ok_or(SessionError::Disconnected)?;
        match self.connected_client()?.batch_execute("COMMIT").map_err(SessionError::from) {
            Err(error) if error.is_connection_lost() => {
                self.disconnect();
                if self.was_committed(transaction)? { Ok(()) } else { Err(error) }
            }
            committed => committed,
        }
    }

    fn was_committed(&mut self, transaction: i64) -> Result<bool, SessionError> {
        let mut retry = BACKOFF.within(self.config.retry_timeout);
        let unknown = format!("cannot determine whether transaction {transaction} was committed");
        loop {
            let responses = self
                .retry(|session| Ok(session.client()?.simple_query(&format!("SELECT txid_status({transaction})"))?));
            match responses {
                Ok(responses) => match first_value(&responses) {
                    Some("committed") => return Ok(true),
                    Some("aborted") => return Ok(false),
                    // The server process of the old connection is still working on it.
                    Some(_) if retry.wait() => {}
                    _ => return Err(SessionError::permanent(unknown)),
                },
                // After a crash the server does not know the id if nothing of the transaction was written to disk.
                Err(error) if error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) => return Ok(false),
                // Final, because repeating the transaction could write its rows twice.
                Err(error) => {
                    let reason = format!("{unknown}: {}", self.config.reason(&error));
                    return Err(SessionError::Final { reason, transient: error.is_transient() });
                }
            }
        }
    }

    /// Runs statements as one [`transaction`](Self::transaction).
    pub fn execute(&mut self, statements: &str) -> Result<(), SessionError> {
        self.transaction(|client| Ok(client.batch_execute(statements)?))
    }

    /// Makes one attempt to run a statement that cannot be part of a transaction.
    pub fn execute_alone(&mut self, statement: &str, timeout: Option<Duration>) -> Result<(), SessionError> {
        let client = self.client()?;
        let Some(timeout) = timeout else { return Ok(client.batch_execute(statement)?) };
        let before: String = client.query_one("SELECT current_setting('statement_timeout')", &[])?.get(0);
        client.batch_execute(&format!("SET statement_timeout TO {}", timeout.as_millis()))?;
        let executed = client.batch_execute(statement);
        if client.batch_execute(&format!("SET statement_timeout TO '{before}'")).is_err() {
            self.disconnect();
        }
        Ok(executed?)
    }

    /// Runs `body` in a transaction that is committed exactly once. Retries while the connection is lost, another
    /// session holds a lock, or transactions conflict.
    pub fn transaction<T>(
        &mut self,
        mut body: impl FnMut(&mut Client) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let result = self.retry_if(
            |_| true,
            |session| {
                session.begin()?;
                let value = session.connected_client().and_then(&mut body)?;
                session.commit()?;
                Ok(value)
            },
        );
        if result.is_err() {
            self.rollback();
        }
        result
    }

    /// Calls `body` again while the connection is lost or another session holds a lock. Each retry starts without an
    /// open transaction.
    pub fn retry<T>(&mut self, body: impl FnMut(&mut Self) -> Result<T, SessionError>) -> Result<T, SessionError> {
        self.retry_if(|error| !error.is_conflict(), body)
    }

    fn retry_if<T>(
        &mut self,
        condition: impl Fn(&SessionError) -> bool,
        mut body: impl FnMut(&mut Self) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let mut budget = RetryBudget::new(&self.config);
        loop {
            match body(self) {
                Err(error) if condition(&error) && self.wait_for_retry(&error, &mut budget) => {}
                result => return result,
            }
        }
    }

    /// Cleans up and waits. Returns `false` if a retry is pointless or the time is over.
    fn wait_for_retry(&mut self, error: &SessionError, budget: &mut RetryBudget) -> bool {
        if error.is_connection_lost() {
            self.disconnect();
            tracing::warn!(destination = %self.config.target.address(), "connection lost, retrying");
            return budget.server.wait();
        }
        let is_lock_timeout = error.is_lock_timeout();
        if !is_lock_timeout && !error.is_conflict() {
            return false;
        }
        self.rollback();
        if is_lock_timeout {
            self.warn_of_lock();
            return budget.lock.wait();
        }
        budget.server.wait()
    }

    /// Runs statements within the open transaction. Retries while another session holds a lock; a savepoint preserves
    /// the transaction meanwhile.
    pub fn execute_in_open_transaction(&mut self, statements: &str) -> Result<(), SessionError> {
        let mut budget = RetryBudget::new(&self.config);
        loop {
            let client = self.connected_client()?;
            let executed = client.batch_execute(&format!("SAVEPOINT attempt; {statements} ; RELEASE attempt"));
            match executed.map_err(SessionError::from) {
                Err(error) if error.is_lock_timeout() => {
                    client.batch_execute("ROLLBACK TO attempt; RELEASE attempt")?;
                    self.warn_of_lock();
                    if !budget.lock.wait() {
                        return Err(error);
                    }
                }
                executed => return executed,
            }
        }
    }

    /// Converts an error for the user of the sink.
    pub fn sink_error(&self, error: &SessionError) -> SinkError {
        self.config.sink_error(&self.subject, error)
    }

    /// Adds a warning about the subject for the user: the task's log and the report of the stream get it.
    pub fn warn(&self, text: &str) {
        self.config.warnings.add(&self.subject, text);
    }

    fn warn_of_lock(&self) {
        tracing::warn!(on = %self.subject, "waiting for a lock that another session holds");
    }
}

/// The first column of the first row.
fn first_value(responses: &[SimpleQueryMessage]) -> Option<&str> {
    responses.iter().find_map(|response| match response {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    })
}
