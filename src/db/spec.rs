//! `source_spec`: the last specification of a connector, and why the last attempt to get it failed.

use jiff::Timestamp;
use postgres::types::Type;

use super::pool::{Fault, Session};
use super::text::{clean, clean_json};
use super::{Db, DbError};
use crate::task::{CONNECTOR_TYPE_AIRBYTE, Task, to_millis};

/// What a specification is stored under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecKey {
    /// `airbyte`.
    pub connector_type: String,
    /// The image without its version.
    pub package: String,
    /// The version of the image.
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
/// After a failure `specs` still holds the specification of an earlier attempt, if there was one: the outcome of the
/// attempt that started at `timestamp` is `error` where there is one, else `specs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSpec {
    /// The specification, a JSON document.
    pub specs: Option<String>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// When the last attempt started whose outcome is stored.
    pub timestamp: Timestamp,
}

impl Db {
    /// Stores the outcome of the attempt that started at `at`: a specification, or why there is none.
    ///
    /// A specification takes the place of the stored one; a failure leaves it there. Neither counts against a later
    /// attempt, nor a failure against an outcome of the same attempt: what the sidecar saw comes before what the
    /// controller infers.
    pub fn save_spec(&self, key: &SpecKey, at: Timestamp, outcome: Result<&str, &str>) -> Result<(), DbError> {
        let at = to_millis(at);
        let specs = outcome.ok().map(clean_json);
        let error = outcome.err().map(clean);
        self.run("storing a specification", |session| {
            let typed = has_connector_type(session)?;
            if !typed && key.connector_type != CONNECTOR_TYPE_AIRBYTE {
                return Err(Fault::Own(DbError::SchemaMismatch {
                    address: session.target().address(),
                    problems: format!(
                        "table source_spec has no column connector_type, so it takes connectors of type \
                         {CONNECTOR_TYPE_AIRBYTE} alone and not {:?}",
                        key.connector_type
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
            let specs = specs.as_deref();
            let error = error.as_deref();
            let params = [
                (&key.package as _, Type::TEXT),
                (&key.version as _, Type::TEXT),
                (&specs as _, Type::TEXT),
                (&error as _, Type::TEXT),
                (&at as _, Type::TIMESTAMPTZ),
                (&key.connector_type as _, Type::TEXT),
            ];
            session.execute(&sql, &params[..if typed { 6 } else { 5 }])?;
            Ok(())
        })
    }

    /// What is stored under a key.
    pub fn spec(&self, key: &SpecKey) -> Result<Option<StoredSpec>, DbError> {
        self.run("reading a specification", |session| {
            let typed = has_connector_type(session)?;
            if !typed && key.connector_type != CONNECTOR_TYPE_AIRBYTE {
                return Ok(None);
            }
            let condition = if typed { " AND connector_type = $3" } else { "" };
            let sql = format!(
                "SELECT specs::text, error, timestamp FROM source_spec WHERE package = $1 AND version = $2{condition}"
            );
            let params = [
                (&key.package as _, Type::TEXT),
                (&key.version as _, Type::TEXT),
                (&key.connector_type as _, Type::TEXT),
            ];
            let row = session.query_opt(&sql, &params[..if typed { 3 } else { 2 }])?;
            row.map(|row| Ok(StoredSpec { specs: row.try_get(0)?, error: row.try_get(1)?, timestamp: row.try_get(2)? }))
                .transpose()
        })
    }
}

/// A table that another program made may lack the column.
fn has_connector_type(session: &mut Session<'_>) -> Result<bool, postgres::Error> {
    let found = session.query_opt(
        "SELECT 1 FROM pg_catalog.pg_attribute
         WHERE attrelid = to_regclass('source_spec') AND attname = 'connector_type' AND NOT attisdropped",
        &[],
    )?;
    Ok(found.is_some())
}
