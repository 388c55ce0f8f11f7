//! `source_spec`: the last specification of a connector, and why the last attempt to get it failed.

use jiff::Timestamp;

use super::pool::{Attempt, AttemptError, Transaction, text, time};
use super::schema::CONNECTOR_TYPE;
use super::text::{clean, clean_json};
use super::{Db, DbError};
use crate::task::{CONNECTOR_TYPE_AIRBYTE, Task, to_millis};

/// The key of a specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecKey {
    /// `airbyte`.
    pub connector_type: String,
    /// The image, without its version.
    pub package: String,
    pub version: String,
}

impl SpecKey {
    /// The key of a task's specification.
    pub fn of(task: &Task) -> Self {
        let Task { connector_type, image, .. } = task;
        Self { connector_type: connector_type.clone(), package: image.package.clone(), version: image.version.clone() }
    }
}

/// A row of `source_spec`.
///
/// After a failure `specs` is the specification of an earlier attempt, if there was one: the outcome of the attempt that
/// started at `timestamp` is `error` if present, else `specs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSpec {
    /// A JSON document.
    pub specs: Option<String>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// When the attempt started whose outcome is stored.
    pub timestamp: Timestamp,
}

impl Db {
    /// Stores the outcome of the attempt that started at `at`: a specification, or why there is none.
    ///
    /// A specification replaces the stored one; a failure keeps it. Neither overwrites the outcome of a later attempt,
    /// and a failure overwrites no outcome of the same attempt: the sidecar's observation counts more than the
    /// controller's conclusion.
    pub fn save_spec(&self, key: &SpecKey, at: Timestamp, outcome: Result<&str, &str>) -> Result<(), DbError> {
        let SpecKey { connector_type, package, version } = key;
        let at = to_millis(at);
        let (specs, error) = (outcome.ok().map(clean_json), outcome.err().map(clean));
        let (specs, error) = (specs.as_deref(), error.as_deref());
        let params = [text(package), text(version), text(&specs), text(&error), time(&at), text(connector_type)];
        self.run("store a specification", |tx| {
            let typed = has_connector_type(tx)?;
            if !typed && connector_type != CONNECTOR_TYPE_AIRBYTE {
                return Err(AttemptError::Final(DbError::SchemaMismatch {
                    address: tx.target.address(),
                    problems: format!(
                        "table source_spec has no column {CONNECTOR_TYPE}, so it takes only connectors of type \
                         {CONNECTOR_TYPE_AIRBYTE} and not {connector_type:?}"
                    ),
                }));
            }
            let (column, value) = if typed { (", connector_type", ", $6") } else { ("", "") };
            let sql = format!(
                "INSERT INTO source_spec AS stored (package, version, specs, error, timestamp{column})
                 VALUES ($1, $2, $3::text::jsonb, $4, $5{value})
                 ON CONFLICT (package, version{column}) DO UPDATE SET
                   specs = COALESCE(excluded.specs, stored.specs),
                   error = excluded.error,
                   timestamp = excluded.timestamp
                 WHERE stored.timestamp < excluded.timestamp
                    OR stored.timestamp = excluded.timestamp AND excluded.error IS NULL"
            );
            Ok(_ = tx.execute(&sql, &params[..if typed { 6 } else { 5 }])?)
        })
    }

    /// The row under a key.
    pub fn spec(&self, key: &SpecKey) -> Result<Option<StoredSpec>, DbError> {
        let SpecKey { connector_type, package, version } = key;
        let params = [text(package), text(version), text(connector_type)];
        self.run("read a specification", |tx| {
            let typed = has_connector_type(tx)?;
            if !typed && connector_type != CONNECTOR_TYPE_AIRBYTE {
                return Ok(None);
            }
            let condition = if typed { " AND connector_type = $3" } else { "" };
            let sql = format!(
                "SELECT specs::text, error, timestamp FROM source_spec WHERE package = $1 AND version = $2{condition}"
            );
            tx.row(&sql, &params[..if typed { 3 } else { 2 }], |row| {
                Ok(StoredSpec { specs: row.try_get(0)?, error: row.try_get(1)?, timestamp: row.try_get(2)? })
            })
        })
    }
}

/// Whether the table has the column `connector_type`, which other programs do not create.
fn has_connector_type(tx: &mut Transaction<'_>) -> Attempt<bool> {
    tx.exists(
        "SELECT 1 FROM pg_catalog.pg_attribute
         WHERE attrelid = to_regclass('source_spec') AND attname = 'connector_type' AND NOT attisdropped",
        &[],
    )
}
