//! One connection that comes back: transactions whose outcome is known even when the server restarts in the middle.
//!
//! The trick is the transaction's number, asked for at its beginning: when the answer to COMMIT is lost, the server is
//! asked afterwards what became of that transaction. So nothing is lost and nothing is there twice.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use postgres::error::SqlState;
use postgres::{Client, SimpleQueryMessage};

use super::{LOCK_PATIENCE, binary};
use crate::db::{DbError, Target};
use crate::retry::Retry;
use crate::sidecar::sink::{BACKOFF, SinkError};

/// How the server lists our connections.
const APPLICATION: &str = "syncctl-sidecar";
/// How much is handed to the connection at a time: enough for a full socket, little beside a chunk.
const PIECE: usize = 64 * 1024;
/// Where the server was told to report commits that a crash of its own could undo, a state could outlive its rows. Who
/// asks for that in the parameters of the destination gets it.
const COMMITS_ARE_DURABLE: &str = "SELECT set_config('synchronous_commit', 'on', false) FROM pg_settings
     WHERE name = 'synchronous_commit' AND setting = 'off' AND source NOT IN ('client', 'session')";

/// What all sessions of one run have in common.
pub struct Place {
    /// The database.
    pub target: Target,
    /// Names this run: each session holds a shared advisory lock of this number, so that others can tell whether the
    /// run is alive.
    pub run: i64,
    /// How long a lost connection is waited for.
    pub patience: Duration,
}

/// Why a statement failed.
#[derive(Debug)]
pub enum Trouble {
    /// No connection could be made.
    Connect(DbError),
    /// The server, or the way to it.
    Server(postgres::Error),
    /// The connection that was needed is gone.
    Lost(String),
    /// Something that we found ourselves; it will not heal.
    Other(String),
}

impl From<postgres::Error> for Trouble {
    fn from(error: postgres::Error) -> Self {
        Self::Server(error)
    }
}

impl Trouble {
    /// The server's code.
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Server(error) => error.code(),
            Self::Connect(_) | Self::Lost(_) | Self::Other(_) => None,
        }
    }

    /// Whether the connection is gone, so that another one may do better.
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_transient(),
            // What is not the server's answer is the connection's end.
            Self::Server(error) => error.as_db_error().is_none_or(|answer| {
                let code = answer.code().code();
                code.starts_with("57P") || code.starts_with("08") || code == "25P03" || code == "53300"
            }),
            Self::Lost(_) => true,
            Self::Other(_) => false,
        }
    }

    /// Whether somebody else holds a lock that was waited for.
    pub fn is_locked(&self) -> bool {
        self.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }

    /// Whether the same statement may succeed on the same connection.
    fn is_passing(&self) -> bool {
        matches!(self.code(), Some(&(SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED)))
    }
}

/// What is left of the patience with one piece of work.
struct Patience {
    /// For what keeps the server from doing it.
    server: Retry,
    /// For whoever holds a lock.
    lock: Retry,
}

impl Patience {
    fn new(place: &Place) -> Self {
        Self { server: BACKOFF.within(place.patience), lock: BACKOFF.within(place.patience * LOCK_PATIENCE) }
    }
}

/// Why an attempt at a transaction failed.
enum Failed<T> {
    /// It did not come to COMMIT.
    Before(Trouble),
    /// COMMIT was sent, and no answer came.
    InDoubt { transaction: i64, value: T },
}

/// A connection to the destination, opened when needed and again when lost.
pub struct Session {
    place: Arc<Place>,
    client: Option<Client>,
}

impl Session {
    /// A session that is not connected yet.
    pub fn new(place: Arc<Place>) -> Self {
        Self { place, client: None }
    }

    /// The connection, made now if there is none; one attempt.
    pub fn client(&mut self) -> Result<&mut Client, Trouble> {
        if self.client.as_ref().is_none_or(Client::is_closed) {
            self.client = None;
            let mut client = self.place.target.connect(APPLICATION).map_err(Trouble::Connect)?;
            client
                .batch_execute(&format!("SELECT pg_advisory_lock_shared({}); {COMMITS_ARE_DURABLE}", self.place.run))?;
            self.client = Some(client);
        }
        self.client_in_transaction()
    }

    /// Whether there is a connection, as far as one can tell without asking the server.
    pub fn is_connected(&self) -> bool {
        self.client.as_ref().is_some_and(|client| !client.is_closed())
    }

    /// The connection that holds the open transaction; another one would not do.
    pub fn client_in_transaction(&mut self) -> Result<&mut Client, Trouble> {
        self.client.as_mut().ok_or_else(|| Trouble::Lost("the connection was lost".to_owned()))
    }

    /// Gives the connection up; the server rolls back.
    pub fn drop_client(&mut self) {
        self.client = None;
    }

    /// Ends an open transaction without its changes.
    pub fn roll_back(&mut self) {
        let failed = self.client.as_mut().is_some_and(|client| client.batch_execute("ROLLBACK").is_err());
        if failed {
            self.client = None;
        }
    }

    /// Opens a transaction and tells its number.
    pub fn begin(&mut self) -> Result<i64, Trouble> {
        let answers = self.client()?.simple_query("BEGIN; SELECT txid_current()")?;
        first_value(&answers)
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| Trouble::Other("the server told no transaction number".to_owned()))
    }

    /// Runs statements as one transaction, again if the connection is lost, exactly once as seen from the tables.
    pub fn atomically<T>(
        &mut self,
        subject: &str,
        mut body: impl FnMut(&mut Client) -> Result<T, Trouble>,
    ) -> Result<T, SinkError> {
        self.attempt_atomically(subject, &mut body).map_err(|trouble| self.error(subject, &trouble))
    }

    /// [`atomically`](Self::atomically), for callers that want to look at the cause.
    pub fn attempt_atomically<T>(
        &mut self,
        subject: &str,
        mut body: impl FnMut(&mut Client) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let mut patience = Patience::new(&self.place);
        loop {
            match self.once(&mut body) {
                Ok(value) => return Ok(value),
                Err(Failed::InDoubt { transaction, value }) => {
                    self.client = None;
                    if self.was_committed(transaction)? {
                        return Ok(value);
                    }
                }
                Err(Failed::Before(trouble)) => {
                    if !self.may_retry(subject, &trouble, &mut patience) {
                        return Err(trouble);
                    }
                }
            }
        }
    }

    fn once<T>(&mut self, body: &mut impl FnMut(&mut Client) -> Result<T, Trouble>) -> Result<T, Failed<T>> {
        let transaction = self.begin().map_err(Failed::Before)?;
        let value = self.client_in_transaction().and_then(body).map_err(Failed::Before)?;
        match self.commit() {
            Ok(()) => Ok(value),
            Err(trouble) if trouble.is_lost() => Err(Failed::InDoubt { transaction, value }),
            Err(trouble) => Err(Failed::Before(trouble)),
        }
    }

    /// Sends COMMIT.
    pub fn commit(&mut self) -> Result<(), Trouble> {
        Ok(self.client_in_transaction()?.batch_execute("COMMIT")?)
    }

    /// Cleans up after a failure and waits; `false` if another attempt is pointless.
    fn may_retry(&mut self, subject: &str, trouble: &Trouble, patience: &mut Patience) -> bool {
        if trouble.is_lost() {
            self.client = None;
            tracing::warn!(destination = %self.place.target.address(), "lost the connection, trying again");
            return patience.server.wait();
        }
        self.roll_back();
        if trouble.is_locked() {
            warn_of_lock(subject);
            return patience.lock.wait();
        }
        trouble.is_passing() && patience.server.wait()
    }

    /// Like a loop around `body`, which is called again whenever the connection was lost or a lock was not to be had,
    /// until patience ends. An open transaction is over then.
    pub fn persist<T>(
        &mut self,
        subject: &str,
        mut body: impl FnMut(&mut Self) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let mut patience = Patience::new(&self.place);
        loop {
            match body(self) {
                Ok(value) => return Ok(value),
                Err(trouble)
                    if (trouble.is_lost() || trouble.is_locked())
                        && self.may_retry(subject, &trouble, &mut patience) => {}
                Err(trouble) => return Err(trouble),
            }
        }
    }

    /// Runs statements within the open transaction, which outlives a lock that is not to be had at once.
    pub fn within_transaction(&mut self, subject: &str, statements: &str) -> Result<(), Trouble> {
        let mut patience = Patience::new(&self.place);
        loop {
            let client = self.client_in_transaction()?;
            let done = client.batch_execute(&format!("SAVEPOINT attempt; {statements} ; RELEASE attempt"));
            match done.map_err(Trouble::from) {
                Ok(()) => return Ok(()),
                Err(trouble) if trouble.is_locked() => {
                    client.batch_execute("ROLLBACK TO attempt; RELEASE attempt")?;
                    warn_of_lock(subject);
                    if !patience.lock.wait() {
                        return Err(trouble);
                    }
                }
                Err(trouble) => return Err(trouble),
            }
        }
    }

    /// Whether a transaction whose COMMIT was not answered took place.
    pub fn was_committed(&mut self, transaction: i64) -> Result<bool, Trouble> {
        let mut retry = BACKOFF.within(self.place.patience);
        loop {
            let answer = self.persist("the last transaction", |session| {
                Ok(session.client()?.simple_query(&format!("SELECT txid_status({transaction})"))?)
            });
            match answer {
                Ok(answers) => match first_value(&answers) {
                    Some("committed") => return Ok(true),
                    Some("aborted") => return Ok(false),
                    // The old connection's process is still at it.
                    Some(_) if retry.wait() => {}
                    _ => {
                        return Err(Trouble::Other(format!(
                            "cannot tell whether transaction {transaction} took place"
                        )));
                    }
                },
                // After a crash the server does not know the number: then nothing of the transaction was ever on disk.
                Err(trouble) if trouble.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) => return Ok(false),
                Err(trouble) => return Err(trouble),
            }
        }
    }

    /// The error for the sink's user.
    pub fn error(&self, subject: &str, trouble: &Trouble) -> SinkError {
        let reason = match trouble {
            Trouble::Connect(error) => return SinkError { text: error.to_string(), transient: error.is_transient() },
            Trouble::Server(_) if trouble.is_locked() => {
                "another session holds a lock on it, and does so for too long".to_owned()
            }
            Trouble::Server(error) => self.place.target.describe(error),
            Trouble::Lost(reason) | Trouble::Other(reason) => reason.clone(),
        };
        let transient = trouble.is_lost()
            || trouble.is_passing()
            || trouble.is_locked()
            || trouble.code().is_some_and(|code| code.code().starts_with("53") || *code == SqlState::QUERY_CANCELED);
        SinkError { text: format!("{subject} in {}: {reason}", self.place.target.address()), transient }
    }
}

/// Says that somebody else is waited for.
fn warn_of_lock(subject: &str) {
    tracing::warn!(on = %subject, "waiting for a lock that another session holds");
}

/// Loads rows of COPY's binary format.
pub fn copy(client: &mut Client, sql: &str, rows: &[u8]) -> Result<(), Trouble> {
    let mut writer = client.copy_in(sql)?;
    for piece in [binary::HEADER].into_iter().chain(rows.chunks(PIECE)).chain([binary::TRAILER]) {
        if writer.write_all(piece).is_err() {
            // Why is only told at the end.
            break;
        }
    }
    writer.finish()?;
    Ok(())
}

/// The first column of the first row.
fn first_value(answers: &[SimpleQueryMessage]) -> Option<&str> {
    answers.iter().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    })
}
