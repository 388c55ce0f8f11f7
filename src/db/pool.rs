//! The pool and the one way by which every statement reaches the server: a transaction that is repeated while the
//! connection, not the statement, is what fails.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use postgres::types::{ToSql, Type};
use postgres::{Client, Row};
use r2d2::{ManageConnection, NopErrorHandler};
use r2d2_postgres::PostgresConnectionManager;

use super::connect::Target;
use super::error::{DbError, is_connection_lost, is_transient};
use super::probe::Probe;
use super::{Db, Options};
use crate::retry::Backoff;

/// No statement of ours takes longer unless it waits for a lock that nobody will release.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a wait for a connection looks at why there is none yet.
const CHECKOUT_SLICE: Duration = Duration::from_secs(1);
/// Delays before an operation is repeated; the longest bounds how late a database that is back is noticed.
const BACKOFF: Backoff = Backoff::new(MIN_CHECKOUT_WAIT, Duration::from_secs(5));
/// How long even an operation without time left waits for a connection.
const MIN_CHECKOUT_WAIT: Duration = Duration::from_millis(100);

/// What all clones of a [`Db`] share.
pub(super) struct Shared {
    pool: r2d2::Pool<Manager>,
    target: Target,
    application_name: String,
    state: Arc<State>,
    pub(super) probe: Probe,
}

/// What the pool's threads and the operations tell each other.
#[derive(Default)]
struct State {
    /// Why the last attempt to connect failed; r2d2 keeps the text alone.
    last_error: Mutex<Option<DbError>>,
    /// Raised with every lost connection: the others of that time are most probably dead, too.
    generation: AtomicU64,
    /// Whether an outage was reported.
    down: AtomicBool,
    /// Operations that failed or had to be repeated.
    error_count: AtomicU64,
}

/// Opens connections for r2d2, which does so on threads of its own. Whether one is broken is for `r2d2_postgres` to say;
/// opening is ours, because it can neither bound the handshake nor keep the typed error.
struct Manager {
    judge: PostgresConnectionManager<postgres::NoTls>,
    target: Target,
    application_name: String,
    state: Arc<State>,
    /// The connection by which [`Db::open`] found out that the database answers.
    first: Mutex<Option<Client>>,
}

/// A pooled connection.
struct Pooled {
    client: Client,
    generation: u64,
    /// Also set while a transaction runs, so that a panic in the middle of one does not return it to the pool.
    broken: bool,
}

impl ManageConnection for Manager {
    type Connection = Pooled;
    type Error = DbError;

    fn connect(&self) -> Result<Pooled, DbError> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let generation = self.state.generation.load(Ordering::Relaxed);
        let result = match first {
            Some(client) => Ok(client),
            None => self.target.connect_bare(&self.application_name),
        };
        *self.state.last_error.lock().unwrap_or_else(PoisonError::into_inner) = result.as_ref().err().cloned();
        Ok(Pooled { client: result?, generation, broken: false })
    }

    fn is_valid(&self, _: &mut Pooled) -> Result<(), DbError> {
        // Not asked for: it would cost a round trip per operation, and the repetition covers what it would find.
        Ok(())
    }

    fn has_broken(&self, connection: &mut Pooled) -> bool {
        connection.broken || self.judge.has_broken(&mut connection.client)
    }
}

/// Why one attempt failed.
pub(super) enum Fault {
    /// The server's answer, or the lack of one.
    Postgres(postgres::Error),
    /// No connection could be had.
    NoConnection(DbError),
    /// Our own verdict; final.
    Own(DbError),
}

impl From<postgres::Error> for Fault {
    fn from(error: postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

/// A parameter and its type. With the types known, one round trip does, and no statement stays behind on the server
/// (which a `PgBouncer` that pools transactions could not cope with).
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// One attempt at an operation: statements of one transaction.
pub(super) struct Session<'a> {
    client: &'a mut Client,
    target: &'a Target,
    /// Whether an earlier attempt may have been committed without our knowing.
    pub(super) repeated: bool,
}

impl Session<'_> {
    pub(super) fn query(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, postgres::Error> {
        self.client.query_typed(sql, params)
    }

    pub(super) fn query_opt(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Option<Row>, postgres::Error> {
        Ok(self.client.query_typed(sql, params)?.into_iter().next())
    }

    pub(super) fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Result<u64, postgres::Error> {
        self.client.execute_typed(sql, params)
    }

    /// Runs statements without parameters.
    pub(super) fn batch(&mut self, sql: &str) -> Result<(), postgres::Error> {
        self.client.batch_execute(sql)
    }

    pub(super) fn target(&self) -> &Target {
        self.target
    }
}

impl Db {
    /// Connects once, so that a database that does not answer is told at once and not after [`Options::retry_timeout`].
    pub fn open(target: Target, options: Options) -> Result<Self, DbError> {
        let Options { application_name, pool_size, retry_timeout } = options;
        let begin = begin_sql(&target, STATEMENT_TIMEOUT);
        let state = Arc::new(State::default());
        let mut client = target.connect_bare(&application_name)?;
        // So that a setting that the server does not know is told here, too.
        client.batch_execute(&format!("{begin}; COMMIT")).map_err(|error| target.unreachable(&error))?;
        let first = Mutex::new(Some(client));
        let manager = Manager {
            // Only asked about connections that are open: its own settings do not matter.
            judge: PostgresConnectionManager::new(postgres::Config::new(), postgres::NoTls),
            target: target.clone(),
            application_name: application_name.clone(),
            state: state.clone(),
            first,
        };
        let pool = r2d2::Pool::builder()
            .max_size(pool_size.max(1))
            .min_idle(Some(0))
            .test_on_check_out(false)
            // The default handler logs each failed attempt; ours are logged once per outage, without secrets.
            .error_handler(Box::new(NopErrorHandler))
            .build_unchecked(manager);
        let shared = Shared { pool, target, application_name, state, probe: Probe::default() };
        Ok(Self { shared: Arc::new(shared), retry_timeout, begin: begin.into() })
    }

    /// The same database over the same pool for somebody who is willing to wait this long: for a database that does not
    /// answer, and for locks of others within a statement (unless the URL has a `statement_timeout` of its own).
    #[must_use]
    pub fn with_retry_timeout(&self, retry_timeout: Duration) -> Self {
        let begin = begin_sql(self.target(), retry_timeout.min(STATEMENT_TIMEOUT));
        Self { shared: Arc::clone(&self.shared), retry_timeout, begin: begin.into() }
    }

    /// How many operations failed or had to be repeated since the database was opened, all clones together.
    pub fn error_count(&self) -> u64 {
        self.shared.state.error_count.load(Ordering::Relaxed)
    }

    pub(super) fn target(&self) -> &Target {
        &self.shared.target
    }

    pub(super) fn application_name(&self) -> &str {
        &self.shared.application_name
    }

    /// Runs an operation in a transaction until it succeeds, fails for good, or retry_timeout is over.
    ///
    /// `doing` is a gerund with its object, for messages. `work` may run more than once, also when it succeeded.
    pub(super) fn run<T>(
        &self,
        action: &'static str,
        mut work: impl FnMut(&mut Session<'_>) -> Result<T, Fault>,
    ) -> Result<T, DbError> {
        let started = Instant::now();
        let mut retry = BACKOFF.within(self.retry_timeout);
        let mut repeated = false;
        loop {
            let result = self.attempt(retry.deadline(), repeated, &mut work);
            if result.is_err() && !repeated {
                self.shared.state.error_count.fetch_add(1, Ordering::Relaxed);
            }
            let reason = match result {
                Ok(value) => {
                    self.answered();
                    return Ok(value);
                }
                Err(Fault::Own(error)) => return Err(error),
                Err(Fault::NoConnection(error)) if !error.is_transient() => return Err(error),
                Err(Fault::NoConnection(error)) => error.to_string(),
                Err(Fault::Postgres(error)) if is_transient(&error) => self.target().describe(&error),
                Err(Fault::Postgres(error)) => return Err(self.refused(action, &error)),
            };
            // A connection that was cut off while it was idle is no outage yet.
            if repeated {
                self.silent(action, &reason);
            } else {
                tracing::debug!(action, reason, "the connection was lost");
            }
            if !retry.wait() {
                let waited_seconds = started.elapsed().as_secs();
                return Err(DbError::ConnectionLost {
                    action,
                    address: self.target().address(),
                    reason,
                    waited_seconds,
                });
            }
            repeated = true;
        }
    }

    fn attempt<T>(
        &self,
        deadline: Instant,
        repeated: bool,
        work: &mut impl FnMut(&mut Session<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut pooled = self.checkout(deadline)?;
        pooled.broken = true;
        let result = pooled.client.batch_execute(&self.begin).map_err(Fault::from).and_then(|()| {
            let mut session = Session { client: &mut pooled.client, target: self.target(), repeated };
            let value = work(&mut session)?;
            pooled.client.batch_execute("COMMIT")?;
            Ok(value)
        });
        match &result {
            Ok(_) => pooled.broken = false,
            Err(Fault::Postgres(error)) if is_connection_lost(error) => {
                self.shared.state.generation.fetch_max(pooled.generation + 1, Ordering::Relaxed);
            }
            Err(_) => pooled.broken = pooled.client.batch_execute("ROLLBACK").is_err(),
        }
        result
    }

    fn checkout(&self, deadline: Instant) -> Result<r2d2::PooledConnection<Manager>, Fault> {
        let state = &self.shared.state;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.shared.pool.get_timeout(left.clamp(MIN_CHECKOUT_WAIT, CHECKOUT_SLICE)) {
                Ok(mut pooled) if pooled.generation < state.generation.load(Ordering::Relaxed) => pooled.broken = true,
                Ok(pooled) => return Ok(pooled),
                Err(_) => {
                    let error = state.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    match error {
                        Some(error) if error.is_transient() && Instant::now() < deadline => {
                            self.silent("opening a connection", &error.to_string());
                        }
                        Some(error) => return Err(Fault::NoConnection(error)),
                        None if Instant::now() < deadline => {}
                        None => {
                            return Err(Fault::NoConnection(DbError::Unreachable {
                                address: self.target().address(),
                                reason: format!("all {} connections are busy", self.shared.pool.max_size()),
                                transient: true,
                            }));
                        }
                    }
                }
            }
        }
    }

    pub(super) fn refused(&self, action: &'static str, error: &postgres::Error) -> DbError {
        DbError::ServerError {
            action,
            address: self.target().address(),
            reason: self.target().describe(error),
            code: error.code().map(|code| code.code().to_owned()),
        }
    }

    fn silent(&self, action: &str, reason: &str) {
        if !self.shared.state.down.swap(true, Ordering::Relaxed) {
            let (place, retry_timeout) = (self.target().address(), self.retry_timeout);
            tracing::warn!(%place, action, reason, ?retry_timeout, "the database does not answer; trying again");
        }
    }

    fn answered(&self) {
        if self.shared.state.down.swap(false, Ordering::Relaxed) {
            tracing::info!(place = %self.target().address(), "the database answers again");
        }
    }
}

/// What begins a transaction. Settings are set in each one: behind a `PgBouncer` the next may run on another connection.
/// The isolation level does not depend on the server's default: whoever has waited for a lock sees what was written.
fn begin_sql(target: &Target, statement_timeout: Duration) -> String {
    // 0 would be no limit at all.
    let millis = statement_timeout.as_millis().max(1);
    let settings = target.clone().with_default_setting("statement_timeout", &format!("{millis}ms")).settings_sql(true);
    format!("BEGIN ISOLATION LEVEL READ COMMITTED; {}", settings.unwrap_or_default())
}
