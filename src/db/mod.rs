//! The synchronous Postgres layer: results, states, statuses and logs in the tables of the wire contract.
//!
//! Owns every SQL statement, the definitions of the tables, connections and their pool, and the rules of who may
//! overwrite what. Knows nothing of Kubernetes, HTTP or the command line. The only place with `r2d2`, and besides the
//! Postgres destination the only one with `postgres`. [`local_server`] runs a server on this machine; the rest of the
//! layer does not depend on it.
//!
//! Never use or drop a [`Db`] or a [`Listener`](notify::Listener) on a thread of a tokio runtime: the `postgres` crate
//! blocks on a runtime of its own and panics there.
//!
//! Every operation is one transaction that is idempotent as a whole, because it may run more than once: when the
//! connection is lost, it is retried on another one until [`Options::retry_timeout`] ends. Rows carry the time at which
//! their attempt started, and an older attempt never overwrites a newer one.

mod attempt;
mod catalog;
mod check;
mod config;
mod connect;
mod delayed_start;
mod error;
pub mod local_server;
mod log;
mod log_batches;
mod notify;
mod own_schema;
mod own_tables;
mod ping;
mod pool;
mod reserved;
mod result;
mod retention;
mod schema;
mod spec;
mod state;
mod stored_result;
pub mod task;
pub mod text;
mod token_tasks;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use connect::{SslMode, Target, read_pem_file};
pub use delayed_start::OpenAttempt;
pub use error::{DbError, is_connection_lost, is_no_server_io};
pub use log::{LogIds, LogLine, LogRow, OWN_LOGGER};
pub use log_batches::store_log_batches;
pub use reserved::{ReservedTable, ResultsDatabase, reserved_tables};
pub use result::Finding;
pub use retention::Retention;
pub use spec::SpecKey;
pub use stored_result::StoredResult;
pub use task::{ConcurrencyPolicy, RequestMark, StartOutcome, StoredTask};
pub use token_tasks::Place;

use crate::failure::Class;
use crate::task::Task;

/// The database of results. Cheap to clone; clones share the pool.
#[derive(Clone)]
pub struct Db {
    shared: Arc<pool::Shared>,
    /// See [`Options::retry_timeout`].
    retry_timeout: Duration,
    /// The statements that begin each transaction.
    begin: Arc<str>,
}

/// The options of a [`Db`].
#[derive(Debug, Clone)]
pub struct Options {
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
    /// The most connections at a time. They are opened when needed.
    pub pool_size: u32,
    /// How long an operation is retried while the database does not answer.
    pub retry_timeout: Duration,
    /// The schema for tables that other programs do not know, by its exact name.
    pub own_schema: String,
}

/// The attempt that a check or discover result belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultKey {
    /// The image, without its version.
    pub package: String,
    pub version: String,
    /// The storage key.
    pub key: String,
}

impl ResultKey {
    /// The key of a task's check or catalog.
    pub fn of(task: &Task) -> Self {
        let Task { image, storage_key, .. } = task;
        Self { package: image.package.clone(), version: image.version.clone(), key: storage_key.clone() }
    }
}

/// Who stores an outcome. The one who knows the cause has precedence, whatever the order of the writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// The sidecar, which observed the outcome. Replaces other outcomes, except a cancellation or an exceeded timeout.
    Sidecar,
    /// A sidecar that got TERM and cannot know why. Replaces no other outcome, and is replaced by any.
    TerminatedSidecar,
    /// The controller, which knows what it did, and otherwise concludes the outcome from the Pod. Replaces only the outcome
    /// of a terminated sidecar.
    Controller,
}

/// The SQL condition that a column holds the outcome of a terminated sidecar.
fn is_provisional(column: &str) -> String {
    format!("COALESCE(starts_with({column}, '{}: '), false)", Class::Terminated)
}
