//! The synchronous Postgres layer: results, states, statuses and logs in the tables of the wire contract.
//!
//! Owns every SQL statement, the tables' definitions, connections and their pool, and the rule of who may overwrite
//! what. Knows nothing of Kubernetes, HTTP or the command line. The only place with `r2d2`, and beside the Postgres
//! destination the only one with `postgres`.
//!
//! Never use or drop a [`Db`] or a [`Listener`] on a thread of a tokio runtime: the `postgres` crate blocks on a runtime
//! of its own and panics there.
//!
//! [`embedded`] is a server to go with it, for those who have none; the rest of the layer does not know which one it talks
//! to.
//!
//! Every operation is one transaction that is idempotent as a whole, because each may run more than once: when the
//! connection is lost, it is repeated on another one until [`Options::retry_timeout`] is over. Rows carry the time at which
//! their attempt started, and an older attempt never overwrites a newer one.

mod catalog;
mod check;
mod config;
mod connect;
mod error;
pub mod local_server;
mod log;
mod notify;
mod pool;
mod probe;
mod retention;
mod schema;
mod spec;
mod start;
mod state;
mod task;
pub mod text;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use connect::{SslMode, Target};
pub use error::{DbError, is_connection_lost};
pub use log::{LogIds, LogRow};
pub use schema::is_reserved_table;
pub use spec::SpecKey;
pub use start::{ConcurrencyPolicy, StartOutcome};
pub use {log::LogLine, task::StoredTask};

use crate::task::Task;

/// The database of results. Cheap to clone; clones share the pool.
#[derive(Clone)]
pub struct Db {
    shared: Arc<pool::Shared>,
    /// How long an operation is repeated.
    retry_timeout: Duration,
    /// What begins each transaction.
    begin: Arc<str>,
}

/// How a [`Db`] behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the server shows in `pg_stat_activity`.
    pub application_name: String,
    /// The most connections at a time; they are opened when needed.
    pub pool_size: u32,
    /// How long an operation is repeated when the database does not answer.
    pub retry_timeout: Duration,
}

/// The attempt that a check or discover result belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultKey {
    /// The image without its version.
    pub package: String,
    /// The version of the image.
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

/// Who writes an outcome: the sidecar saw it, the controller infers it from the Pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// Its outcome counts, except against a cancellation.
    Sidecar,
    /// Its outcome counts where there is no other.
    Controller,
}
