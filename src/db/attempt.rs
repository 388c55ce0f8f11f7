//! Attempts at spec, check and discover, in the order in which they were accepted, and how each has ended. The order is a
//! number of the database: clocks of other machines, and those of programs that write into the same rows, decide nothing.
//!
//! Without the own schema an attempt is not recorded, and the time at which it started takes the place of the number.

use std::time::Duration;

use postgres::types::Type;

use super::own_tables::{ATTEMPT, OwnSchema};
use super::pool::{Attempt, Transaction, text};
use crate::task::{Task, TaskKind};

/// A spec, check or discover, and its Pod, take no longer: an attempt without an end after this time has none.
pub(super) const LONGEST: Duration = Duration::from_mins(20);
/// How long attempts that have ended are kept beside a newer one under the same key: an older one may still run.
const SUPERSEDED: Duration = Duration::from_hours(1);

/// The row that holds the result of an attempt.
pub(super) struct ResultRow<'a> {
    kind: &'static str,
    package: &'a str,
    version: &'a str,
    key: &'a str,
}

impl<'a> ResultRow<'a> {
    pub(super) fn of(task: &'a Task) -> Self {
        let (package, version) = (task.image.package.as_str(), task.image.version.as_str());
        let kind = task.kind.as_str();
        match task.kind {
            TaskKind::Spec => Self { kind, package, version, key: &task.connector_type },
            // Its row is found by the storage key alone.
            TaskKind::Check => Self { kind, package: "", version: "", key: &task.storage_key },
            TaskKind::Discover => Self { kind, package, version, key: &task.storage_key },
            TaskKind::Read => Self { kind, package: "", version: "", key: &task.task_id },
        }
    }

    /// Until the transaction ends, no other attempt stores a result in this row.
    pub(super) fn lock(&self, tx: &mut Transaction<'_>) -> Attempt<()> {
        let Self { kind, package, version, key } = self;
        tx.lock(&format!("syncctl result {kind} {package} {version} {key}"))
    }
}

/// The condition that two rows, by their aliases, are attempts under one key.
pub(super) fn same_key(one: &str, other: &str) -> String {
    let columns = ["results_schema", "kind", "package", "version", "key"];
    let equal: Vec<String> = columns.iter().map(|column| format!("{one}.{column} = {other}.{column}")).collect();
    equal.join(" AND ")
}

/// The condition that the attempt with this alias may still end.
pub(super) fn may_run(alias: &str) -> String {
    let seconds = LONGEST.as_secs();
    format!("{alias}.finished_at IS NULL AND {alias}.started_at > CURRENT_TIMESTAMP - make_interval(secs => {seconds})")
}

/// An attempt among those under its key.
pub(super) struct Recorded {
    number: i64,
    /// SUCCESS or FAILED, once it has ended.
    pub(super) status: Option<String>,
    pub(super) document: Option<String>,
    pub(super) description: Option<String>,
    /// A later attempt has ended.
    pub(super) is_superseded: bool,
    /// A later attempt may still end.
    pub(super) is_overtaken: bool,
}

/// Records that an attempt was accepted.
pub(super) fn start(tx: &mut Transaction<'_>, own: &OwnSchema, task: &Task) -> Attempt<()> {
    let ResultRow { kind, package, version, key } = ResultRow::of(task);
    let table = own.table(ATTEMPT);
    let key_params =
        [text(&own.results_schema), text(&kind), text(&package), text(&version), text(&key), text(&task.task_id)];
    let insert = format!(
        "INSERT INTO {table} (results_schema, kind, package, version, key, task_id) VALUES ($1, $2, $3, $4, $5, $6)"
    );
    tx.execute(&insert, &key_params)?;
    // All but the last specification, which a later failure must not lose.
    let prune = format!(
        "DELETE FROM {table} AS old
         WHERE results_schema = $1 AND kind = $2 AND package = $3 AND version = $4 AND key = $5
           AND finished_at < CURRENT_TIMESTAMP - make_interval(secs => $6)
           AND EXISTS (SELECT FROM {table} AS newer WHERE {} AND newer.number > old.number
                       AND (newer.status = 'SUCCESS' OR newer.finished_at IS NOT NULL AND old.status <> 'SUCCESS'))",
        same_key("newer", "old")
    );
    let superseded = SUPERSEDED.as_secs_f64();
    let mut params = key_params[..5].to_vec();
    params.push((&superseded, Type::FLOAT8));
    tx.execute(&prune, &params)?;
    Ok(())
}

/// The last attempt of a task; `None` if it is not recorded.
pub(super) fn find(tx: &mut Transaction<'_>, task: &Task) -> Attempt<Option<Recorded>> {
    let Some(own) = tx.own else { return Ok(None) };
    let (table, kind) = (own.table(ATTEMPT), task.kind.as_str());
    let sql = format!(
        "SELECT number, status, document::text, description,
           EXISTS (SELECT FROM {table} AS newer WHERE {same_key} AND newer.number > mine.number
                   AND newer.finished_at IS NOT NULL),
           EXISTS (SELECT FROM {table} AS newer WHERE {same_key} AND newer.number > mine.number AND {may_run})
         FROM {table} AS mine
         WHERE results_schema = $1 AND task_id = $2 AND kind = $3 ORDER BY number DESC LIMIT 1",
        same_key = same_key("newer", "mine"),
        may_run = may_run("newer"),
    );
    tx.row(&sql, &[text(&own.results_schema), text(&task.task_id), text(&kind)], |row| {
        Ok(Recorded {
            number: row.try_get(0)?,
            status: row.try_get(1)?,
            document: row.try_get(2)?,
            description: row.try_get(3)?,
            is_superseded: row.try_get(4)?,
            is_overtaken: row.try_get(5)?,
        })
    })
}

impl Recorded {
    pub(super) fn is_failed(&self) -> bool {
        self.status.as_deref() == Some("FAILED")
    }

    /// Records how it has ended.
    pub(super) fn finish(
        &self,
        tx: &mut Transaction<'_>,
        status: &str,
        document: Option<&str>,
        description: Option<&str>,
    ) -> Attempt<()> {
        let Some(own) = tx.own else { return Ok(()) };
        let sql = format!(
            "UPDATE {} SET status = $3, document = $4::text::jsonb, description = $5, finished_at = CURRENT_TIMESTAMP
             WHERE results_schema = $1 AND number = $2",
            own.table(ATTEMPT)
        );
        let params =
            [text(&own.results_schema), (&self.number, Type::INT8), text(&status), text(&document), text(&description)];
        Ok(_ = tx.execute(&sql, &params)?)
    }
}

/// Records the outcome in the row of a read, from which it can be restored.
pub(super) fn record_read(tx: &mut Transaction<'_>, task_id: &str) -> Attempt<()> {
    forget_read(tx, task_id)?;
    let Some(own) = tx.own else { return Ok(()) };
    let sql = format!(
        "INSERT INTO {} (results_schema, kind, package, version, key, task_id, status, document, finished_at)
         SELECT $1, 'read', '', '', task_id, task_id, status,
           jsonb_build_object('description', description, 'error', to_jsonb(source_task) -> 'error'), CURRENT_TIMESTAMP
         FROM source_task WHERE task_id = $2",
        own.table(ATTEMPT)
    );
    Ok(_ = tx.execute(&sql, &[text(&own.results_schema), text(&task_id)])?)
}

/// Forgets the outcome of a read, which starts again.
pub(super) fn forget_read(tx: &mut Transaction<'_>, task_id: &str) -> Attempt<()> {
    let Some(own) = tx.own else { return Ok(()) };
    let sql =
        format!("DELETE FROM {} WHERE results_schema = $1 AND task_id = $2 AND kind = 'read'", own.table(ATTEMPT));
    Ok(_ = tx.execute(&sql, &[text(&own.results_schema), text(&task_id)])?)
}
