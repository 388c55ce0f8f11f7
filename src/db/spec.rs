//! `source_spec`: the last specification of a connector, and why the last attempt to get it failed.

use jiff::Timestamp;

use super::own_tables::CONNECTOR_SPEC;
use super::pool::{Attempt, AttemptError, Transaction, text, time};
use super::text::{clean, clean_json, quote_literal};
use super::{Db, DbError, is_provisional};
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
    /// and a failure overwrites no outcome of the same attempt but that of a terminated sidecar. False if the stored
    /// outcome takes precedence.
    pub fn save_spec(&self, key: &SpecKey, at: Timestamp, outcome: Result<&str, &str>) -> Result<bool, DbError> {
        let SpecKey { connector_type, package, version } = key;
        let at = to_millis(at);
        let (specs, error) = (outcome.ok().map(clean_json), outcome.err().map(clean));
        let (specs, error) = (specs.as_deref(), error.as_deref());
        let params = [text(package), text(version), text(&specs), text(&error), time(&at)];
        self.run("store a specification", |tx| {
            let Table { name, key, values, .. } = Table::of(tx, connector_type)?;
            let sql = format!(
                "INSERT INTO {name} AS stored ({key}, specs, error, timestamp)
                 VALUES ({values}, $3::text::jsonb, $4, $5)
                 ON CONFLICT ({key}) DO UPDATE SET
                   specs = COALESCE(excluded.specs, stored.specs),
                   error = excluded.error,
                   timestamp = excluded.timestamp
                 WHERE stored.timestamp < excluded.timestamp
                    OR stored.timestamp = excluded.timestamp AND (excluded.error IS NULL OR {provisional})",
                provisional = is_provisional("stored.error")
            );
            Ok(tx.execute(&sql, &params)? > 0)
        })
    }

    /// The row under a key.
    pub fn spec(&self, key: &SpecKey) -> Result<Option<StoredSpec>, DbError> {
        let SpecKey { connector_type, package, version } = key;
        self.run("read a specification", |tx| {
            let Table { name, condition, .. } = Table::of(tx, connector_type)?;
            let sql = format!(
                "SELECT specs::text, error, timestamp FROM {name} WHERE package = $1 AND version = $2{condition}"
            );
            tx.row(&sql, &[text(package), text(version)], |row| {
                Ok(StoredSpec { specs: row.try_get(0)?, error: row.try_get(1)?, timestamp: row.try_get(2)? })
            })
        })
    }
}

/// The table that holds the specifications of a connector type.
struct Table {
    name: String,
    key: &'static str,
    /// The values of the columns of the key: package and version are the first two parameters.
    values: String,
    /// Selects the rows of the type.
    condition: String,
}

impl Table {
    /// The table of the contract does not distinguish types: the console would refuse its key. An earlier version created
    /// it with the type in its key, and then it takes every type.
    fn of(tx: &mut Transaction<'_>, connector_type: &str) -> Attempt<Self> {
        let kind = quote_literal(connector_type);
        let in_contract = |key, values, condition| Self { name: "source_spec".to_owned(), key, values, condition };
        if has_connector_type(tx)? {
            let (values, condition) = (format!("$1, $2, {kind}"), format!(" AND connector_type = {kind}"));
            return Ok(in_contract("package, version, connector_type", values, condition));
        }
        if connector_type == CONNECTOR_TYPE_AIRBYTE {
            return Ok(in_contract("package, version", "$1, $2".to_owned(), String::new()));
        }
        let Some(own) = tx.own else {
            let problems = format!(
                "specifications of connectors of type {connector_type:?} need a schema of syncctl's own \
                 (SYNCCTL_OWN_SCHEMA): the table source_spec takes only those of type {CONNECTOR_TYPE_AIRBYTE}"
            );
            return Err(AttemptError::Final(DbError::SchemaMismatch { address: tx.target.address(), problems }));
        };
        let schema = quote_literal(&own.results_schema);
        Ok(Self {
            name: own.table(CONNECTOR_SPEC),
            key: "package, version, connector_type, results_schema",
            values: format!("$1, $2, {kind}, {schema}"),
            condition: format!(" AND connector_type = {kind} AND results_schema = {schema}"),
        })
    }
}

/// Whether the table has the column `connector_type`, which an earlier version created.
fn has_connector_type(tx: &mut Transaction<'_>) -> Attempt<bool> {
    tx.exists(
        "SELECT 1 FROM pg_catalog.pg_attribute
         WHERE attrelid = to_regclass('source_spec') AND attname = 'connector_type' AND NOT attisdropped",
        &[],
    )
}
