//! `source_spec`: the last specification of a connector, and why the last attempt to get it failed.

use jiff::Timestamp;

use super::own_tables::CONNECTOR_SPEC;
use super::pool::{Attempt, AttemptError, Transaction, text, time};
use super::stored_result::{NewResult, Precedence, StoredResult};
use super::text::quote_literal;
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
    /// The row under a key.
    pub fn spec(&self, key: &SpecKey) -> Result<Option<StoredSpec>, DbError> {
        self.run("read a specification", |tx| read(tx, key))
    }
}

/// `error` of a row whose caller waits for its task: written by the console.
const PENDING: &str = "pending";

/// Stores a specification, or why there is none, which keeps the stored one.
pub(super) fn write(tx: &mut Transaction<'_>, new: &NewResult<'_>) -> Attempt<bool> {
    let Table { name, key, values, .. } = Table::of(tx, &new.task.connector_type)?;
    let condition = match new.precedence {
        Precedence::Newest => "TRUE".to_owned(),
        Precedence::ByStart => format!(
            "stored.error = '{PENDING}' OR stored.timestamp < excluded.timestamp
             OR stored.timestamp = excluded.timestamp AND (excluded.error IS NULL OR {})",
            is_provisional("stored.error")
        ),
    };
    let sql = format!(
        "INSERT INTO {name} AS stored ({key}, specs, error, timestamp)
         VALUES ({values}, $3::text::jsonb, $4, $5)
         ON CONFLICT ({key}) DO UPDATE SET
           specs = COALESCE(excluded.specs, stored.specs), error = excluded.error, timestamp = excluded.timestamp
         WHERE {condition}"
    );
    let Task { image, started_at, .. } = new.task;
    let at = to_millis(*started_at);
    let params = [text(&image.package), text(&image.version), text(&new.document), text(&new.description), time(&at)];
    Ok(tx.execute(&sql, &params)? > 0)
}

/// The result in the row of a task, if `is_own` accepts its time.
pub(super) fn result(
    tx: &mut Transaction<'_>,
    task: &Task,
    is_own: impl Fn(Timestamp) -> bool,
) -> Attempt<Option<StoredResult>> {
    let Some(row) = read(tx, &SpecKey::of(task))?.filter(|row| is_own(row.timestamp)) else { return Ok(None) };
    // The Go sidecar stores an empty text with a specification.
    Ok(match (row.error.filter(|error| !error.is_empty()), row.specs) {
        (Some(error), _) if error == PENDING => None,
        (Some(error), _) => Some(StoredResult { succeeded: false, document: None, description: Some(error) }),
        (None, Some(specs)) => Some(StoredResult { succeeded: true, document: Some(specs), description: None }),
        (None, None) => None,
    })
}

/// Restores specifications from rows `ended`.
pub(super) fn restore_sql(tx: &mut Transaction<'_>) -> Attempt<String> {
    let of_type = if has_connector_type(tx)? { " AND spec.connector_type = ended.key" } else { "" };
    Ok(format!(
        "UPDATE source_spec AS spec SET specs = COALESCE(ended.document, spec.specs), error = ended.description,
           timestamp = ended.started_at
         FROM ended WHERE ended.kind = 'spec' AND ended.key = '{CONNECTOR_TYPE_AIRBYTE}'
           AND spec.package = ended.package AND spec.version = ended.version AND spec.error = '{PENDING}'{of_type}
         RETURNING spec.package"
    ))
}

fn read(tx: &mut Transaction<'_>, key: &SpecKey) -> Attempt<Option<StoredSpec>> {
    let SpecKey { connector_type, package, version } = key;
    let Table { name, condition, .. } = Table::of(tx, connector_type)?;
    let sql =
        format!("SELECT specs::text, error, timestamp FROM {name} WHERE package = $1 AND version = $2{condition}");
    tx.row(&sql, &[text(package), text(version)], |row| {
        Ok(StoredSpec { specs: row.try_get(0)?, error: row.try_get(1)?, timestamp: row.try_get(2)? })
    })
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
pub(super) fn has_connector_type(tx: &mut Transaction<'_>) -> Attempt<bool> {
    tx.exists(
        "SELECT 1 FROM pg_catalog.pg_attribute
         WHERE attrelid = to_regclass('source_spec') AND attname = 'connector_type' AND NOT attisdropped",
        &[],
    )
}
