//! The connection pool, and the one path of all statements to the server: a transaction that is retried when its
//! connection was lost, and not when a statement failed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use postgres::types::{ToSql, Type};
use postgres::{Client, Row};
use r2d2::{ManageConnection, NopErrorHandler};
use r2d2_postgres::PostgresConnectionManager;
use sha2::{Digest, Sha256};

use super::connect::Target;
use super::error::{DbError, is_connection_lost, is_transient};
use super::own_tables::OwnSchema;
use super::ping::Ping;
use super::{Db, Options};
use crate::retry::Backoff;

/// The limit of one statement. None takes this long unless it waits for a lock.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// A wait for a connection checks at this interval why there is none yet.
const CHECKOUT_INTERVAL: Duration = Duration::from_secs(1);
/// An operation waits this long for a connection even after its deadline.
const MIN_CHECKOUT_WAIT: Duration = Duration::from_millis(100);
/// Delays before a transaction is retried; the longest bounds how late a database that is back is noticed.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// SQLSTATE of a column that does not exist: an older console has dropped what it does not know.
const COLUMN_LOST: &str = "42703";
/// SQLSTATEs of statements about a schema, table or column that is missing or not permitted.
const OBJECT_LOST: [&str; 4] = ["3F000", "42P01", COLUMN_LOST, "42501"];

/// Shared by all clones of a [`Db`].
pub(super) struct Shared {
    pool: r2d2::Pool<Manager>,
    pub(super) target: Target,
    pub(super) application_name: String,
    state: Arc<State>,
    pub(super) ping: Ping,
    /// See [`Options::own_schema`].
    pub(super) own_schema_name: String,
    /// The own schema, where it was found to be usable.
    pub(super) own_schema: RwLock<Option<Arc<OwnSchema>>>,
    /// Whether `source_task` was found to have all its columns: those of older programs lack some.
    has_added_columns: AtomicBool,
}

/// Shared by the pool's threads and the operations.
#[derive(Default)]
struct State {
    /// Why the last attempt to connect failed; r2d2 keeps only the text.
    connect_error: Mutex<Option<DbError>>,
    /// Incremented with every lost connection: others of the same generation are most probably lost, too.
    generation: AtomicU64,
    /// Whether an outage was logged.
    down: AtomicBool,
    /// Operations that failed or were retried.
    error_count: AtomicU64,
}

/// Opens connections on r2d2's threads. Whether a connection is broken is decided by `r2d2_postgres`; opening one is not,
/// because it neither bounds the handshake nor keeps the typed error.
struct Manager {
    postgres: PostgresConnectionManager<postgres::NoTls>,
    target: Target,
    application_name: String,
    state: Arc<State>,
    /// The connection that [`Db::open`] has made.
    first: Mutex<Option<Client>>,
}

struct Pooled {
    client: Client,
    generation: u64,
    /// Also set while a transaction runs, so that a panic does not return an open transaction to the pool.
    broken: bool,
}

impl ManageConnection for Manager {
    type Connection = Pooled;
    type Error = DbError;

    fn connect(&self) -> Result<Pooled, DbError> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let generation = self.state.generation.load(Ordering::Relaxed);
        let result = first.map_or_else(|| self.target.connect_without_settings(&self.application_name), Ok);
        *self.state.connect_error.lock().unwrap_or_else(PoisonError::into_inner) = result.as_ref().err().cloned();
        Ok(Pooled { client: result?, generation, broken: false })
    }

    fn is_valid(&self, _: &mut Pooled) -> Result<(), DbError> {
        // Never called: it would cost a round trip per operation, and retries cover what it would find.
        Ok(())
    }

    fn has_broken(&self, connection: &mut Pooled) -> bool {
        connection.broken || self.postgres.has_broken(&mut connection.client)
    }
}

/// Why one attempt at a transaction failed.
pub(super) enum AttemptError {
    /// A statement failed or the connection was lost.
    Postgres(postgres::Error),
    /// No connection was available in time; why.
    NoConnection(String),
    /// Another attempt would fail as well.
    Final(DbError),
}

impl From<postgres::Error> for AttemptError {
    fn from(error: postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

/// The result of one attempt.
pub(super) type Attempt<T> = Result<T, AttemptError>;

/// A parameter and its type. With known types one round trip is enough, and no prepared statement stays on the server,
/// which would not work behind a `PgBouncer` that pools transactions.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// A parameter of type `text`.
pub(super) fn text(value: &(dyn ToSql + Sync)) -> Param<'_> {
    (value, Type::TEXT)
}

/// A parameter of type `timestamptz`.
pub(super) fn time(value: &Timestamp) -> Param<'_> {
    (value, Type::TIMESTAMPTZ)
}

/// One attempt at an operation: the statements of one transaction.
pub(super) struct Transaction<'a> {
    client: &'a mut Client,
    pub(super) target: &'a Target,
    /// The own schema, where it is usable.
    pub(super) own: Option<&'a OwnSchema>,
    has_added_columns: &'a AtomicBool,
    /// Whether an earlier attempt may have been committed although its answer was lost.
    pub(super) is_retry: bool,
}

impl Transaction<'_> {
    /// The rows of a query.
    pub(super) fn rows<T>(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
        decode: impl FnMut(&Row) -> Result<T, postgres::Error>,
    ) -> Attempt<Vec<T>> {
        Ok(self.client.query_typed(sql, params)?.iter().map(decode).collect::<Result<_, _>>()?)
    }

    /// The first row of a query.
    pub(super) fn row<T>(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
        decode: impl FnOnce(&Row) -> Result<T, postgres::Error>,
    ) -> Attempt<Option<T>> {
        Ok(self.client.query_typed(sql, params)?.first().map(decode).transpose()?)
    }

    /// Whether a query has rows.
    pub(super) fn exists(&mut self, sql: &str, params: &[Param<'_>]) -> Attempt<bool> {
        Ok(self.row(sql, params, |_| Ok(()))?.is_some())
    }

    /// Runs a statement; returns the number of rows.
    pub(super) fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Attempt<u64> {
        Ok(self.client.execute_typed(sql, params)?)
    }

    /// Whether `source_task` is known to have all its columns.
    pub(super) fn has_added_columns(&self) -> bool {
        self.has_added_columns.load(Ordering::Relaxed)
    }

    /// Remembers that `source_task` has all its columns.
    pub(super) fn set_added_columns(&self) {
        self.has_added_columns.store(true, Ordering::Relaxed);
    }

    /// Waits for the lock of this name and holds it until the transaction ends.
    pub(super) fn lock(&mut self, name: &str) -> Attempt<()> {
        // Two names with the same number would only wait for each other.
        let hash = Sha256::digest(name);
        let number = hash.iter().take(8).fold(0, |number: i64, byte| number << 8 | i64::from(*byte));
        Ok(_ = self.execute("SELECT pg_advisory_xact_lock($1)", &[(&number, Type::INT8)])?)
    }

    /// Runs statements without parameters.
    pub(super) fn batch(&mut self, sql: &str) -> Result<(), postgres::Error> {
        self.client.batch_execute(sql)
    }
}

impl Db {
    /// Connects once, without retries.
    pub fn open(target: Target, options: Options) -> Result<Self, DbError> {
        let Options { application_name, pool_size, retry_timeout, own_schema } = options;
        let begin = begin_sql(&target, STATEMENT_TIMEOUT);
        let mut client = target.connect_without_settings(&application_name)?;
        // Fails for a setting that the server does not know.
        client.batch_execute(&format!("{begin}; COMMIT")).map_err(|error| target.unreachable(&error))?;
        let state = Arc::new(State::default());
        let manager = Manager {
            // Checks open connections only, so its own settings do not matter.
            postgres: PostgresConnectionManager::new(postgres::Config::new(), postgres::NoTls),
            target: target.clone(),
            application_name: application_name.clone(),
            state: state.clone(),
            first: Mutex::new(Some(client)),
        };
        let pool = r2d2::Pool::builder()
            .max_size(pool_size.max(1))
            .min_idle(Some(0))
            .test_on_check_out(false)
            // The default handler logs each failed attempt; we log once per outage, without secrets.
            .error_handler(Box::new(NopErrorHandler))
            .build_unchecked(manager);
        let shared = Shared {
            pool,
            target,
            application_name,
            state,
            ping: Ping::default(),
            own_schema_name: own_schema,
            own_schema: RwLock::default(),
            has_added_columns: AtomicBool::default(),
        };
        Ok(Self { shared: Arc::new(shared), retry_timeout, begin: begin.into() })
    }

    /// The same database and pool with another [`Options::retry_timeout`]. It also bounds how long a statement waits for
    /// locks, unless the URL sets a `statement_timeout`.
    #[must_use]
    pub fn with_retry_timeout(&self, retry_timeout: Duration) -> Self {
        let begin = begin_sql(&self.shared.target, retry_timeout.min(STATEMENT_TIMEOUT));
        Self { shared: Arc::clone(&self.shared), retry_timeout, begin: begin.into() }
    }

    /// Operations that failed or were retried since the database was opened, of all clones together.
    pub fn error_count(&self) -> u64 {
        self.shared.state.error_count.load(Ordering::Relaxed)
    }

    /// Runs an operation in a transaction until it succeeds, fails for good, or the retry timeout ends.
    ///
    /// `action` completes "cannot …" in messages. `work` may run more than once, even after a successful commit.
    pub(super) fn run<T>(
        &self,
        action: &'static str,
        mut work: impl FnMut(&mut Transaction<'_>) -> Attempt<T>,
    ) -> Result<T, DbError> {
        let own = self.own_schema();
        let mut result = self.run_with(action, own.as_deref(), &mut work);
        if matches!(&result, Err(DbError::ServerError { code: Some(code), .. }) if code == COLUMN_LOST)
            && self.shared.has_added_columns.swap(false, Ordering::Relaxed)
        {
            result = self.run_with(action, own.as_deref(), &mut work);
        }
        match result {
            // A result must be stored even if the own schema was dropped.
            Err(DbError::ServerError { code: Some(code), reason, .. })
                if own.is_some() && OBJECT_LOST.contains(&code.as_str()) && self.has_lost_own_schema(&reason) =>
            {
                self.run_with(action, None, &mut work)
            }
            result => result,
        }
    }

    /// The same in the tables of the contract alone.
    pub(super) fn run_without_own_schema<T>(
        &self,
        action: &'static str,
        mut work: impl FnMut(&mut Transaction<'_>) -> Attempt<T>,
    ) -> Result<T, DbError> {
        self.run_with(action, None, &mut work)
    }

    fn run_with<T>(
        &self,
        action: &'static str,
        own: Option<&OwnSchema>,
        work: &mut impl FnMut(&mut Transaction<'_>) -> Attempt<T>,
    ) -> Result<T, DbError> {
        let Shared { target, state, .. } = &*self.shared;
        let started = Instant::now();
        let mut retry = BACKOFF.within(self.retry_timeout);
        let mut is_retry = false;
        loop {
            let error = match self.attempt(retry.deadline(), own, is_retry, work) {
                Ok(value) => {
                    self.log_recovery();
                    return Ok(value);
                }
                Err(error) => error,
            };
            if !is_retry {
                state.error_count.fetch_add(1, Ordering::Relaxed);
            }
            let reason = match error {
                AttemptError::Final(error) => return Err(error),
                AttemptError::Postgres(error) if !is_transient(&error) => {
                    return Err(DbError::ServerError {
                        action,
                        address: target.address(),
                        reason: target.describe(&error),
                        code: error.code().map(|code| code.code().to_owned()),
                    });
                }
                AttemptError::Postgres(error) => target.describe(&error),
                AttemptError::NoConnection(reason) => reason,
            };
            // An idle connection that was closed is no outage yet.
            if is_retry {
                self.log_outage(&reason);
            } else {
                tracing::debug!(action, reason, "lost the database connection; trying again");
            }
            if !retry.wait() {
                let waited_seconds = started.elapsed().as_secs();
                return Err(DbError::ConnectionLost { action, address: target.address(), reason, waited_seconds });
            }
            is_retry = true;
        }
    }

    fn attempt<T>(
        &self,
        deadline: Instant,
        own: Option<&OwnSchema>,
        is_retry: bool,
        work: &mut impl FnMut(&mut Transaction<'_>) -> Attempt<T>,
    ) -> Attempt<T> {
        let mut pooled = self.checkout(deadline)?;
        pooled.broken = true;
        let result = pooled.client.batch_execute(&self.begin).map_err(AttemptError::from).and_then(|()| {
            let Shared { target, has_added_columns, .. } = &*self.shared;
            let client = &mut pooled.client;
            let value = work(&mut Transaction { client, target, own, has_added_columns, is_retry })?;
            pooled.client.batch_execute("COMMIT")?;
            Ok(value)
        });
        match &result {
            Ok(_) => pooled.broken = false,
            Err(AttemptError::Postgres(error)) if is_connection_lost(error) => {
                self.shared.state.generation.fetch_max(pooled.generation + 1, Ordering::Relaxed);
            }
            Err(_) => pooled.broken = pooled.client.batch_execute("ROLLBACK").is_err(),
        }
        result
    }

    fn checkout(&self, deadline: Instant) -> Attempt<r2d2::PooledConnection<Manager>> {
        let Shared { pool, state, .. } = &*self.shared;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Ok(mut pooled) = pool.get_timeout(left.clamp(MIN_CHECKOUT_WAIT, CHECKOUT_INTERVAL)) {
                if pooled.generation == state.generation.load(Ordering::Relaxed) {
                    return Ok(pooled);
                }
                pooled.broken = true;
                continue;
            }
            let error = state.connect_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let reason = match error {
                Some(error) if !error.is_transient() => return Err(AttemptError::Final(error)),
                Some(error) => {
                    self.log_outage(&error.to_string());
                    error.to_string()
                }
                None => format!("all {} connections are busy", pool.max_size()),
            };
            if Instant::now() >= deadline {
                return Err(AttemptError::NoConnection(reason));
            }
        }
    }

    fn log_outage(&self, reason: &str) {
        if !self.shared.state.down.swap(true, Ordering::Relaxed) {
            let (address, retry_timeout) = (self.shared.target.address(), self.retry_timeout);
            tracing::warn!(%address, reason, ?retry_timeout, "the database does not answer; trying again");
        }
    }

    fn log_recovery(&self) {
        if self.shared.state.down.swap(false, Ordering::Relaxed) {
            tracing::info!(address = %self.shared.target.address(), "the database answers again");
        }
    }
}

/// The start of each transaction. It includes the settings, because behind a `PgBouncer` the next transaction may run on
/// another connection. READ COMMITTED, whatever the server's default is: an operation that has waited for a lock must
/// read what the holder wrote.
fn begin_sql(target: &Target, statement_timeout: Duration) -> String {
    // 0 would disable the limit.
    let millis = statement_timeout.as_millis().max(1);
    let settings = target.clone().with_default_setting("statement_timeout", &format!("{millis}ms")).settings_sql(true);
    format!("BEGIN ISOLATION LEVEL READ COMMITTED; {}", settings.unwrap_or_default())
}
