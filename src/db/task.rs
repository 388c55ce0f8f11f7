//! `source_task`: the tasks, their progress and their outcomes.
//!
//! A row is inserted before the task starts. It is RUNNING until an outcome is stored: by the sidecar, which observed it,
//! or by the controller, which concludes it where the sidecar left none.

pub mod description;
pub(super) mod record;
mod stages;

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use postgres::Row;
use postgres::types::Type;
use serde_json::Value;

use super::attempt;
use super::own_tables::ATTEMPT;
use super::pool::{Attempt, AttemptError, Transaction, text, time};
use super::text::{clean_json, shown};
use super::{Db, DbError, Writer};
use crate::failure::{Class, Failure, StoredError};
use crate::task::{StreamReports, Task, TaskMetrics, TaskStatus, to_millis};

/// The longest description in a list, in bytes: some hundred streams.
const MAX_LISTED_DESCRIPTION: usize = 64 * 1024;
/// The longest descriptions in a list together, in bytes: those of the newest tasks.
const MAX_LISTED_DESCRIPTIONS: usize = 4 << 20;

/// The most tasks of one statement.
const BATCH: usize = 1000;

/// The columns of a [`StoredTask`].
fn columns(tx: &mut Transaction<'_>) -> Attempt<String> {
    let columns = "sync_id, task_id, package, version, started_at, updated_at, started_by::text, status, description";
    let metrics = if has_added_columns(tx)? { "metrics::text" } else { "NULL::text" };
    Ok(format!("{columns}, {metrics}, {}", error_column(tx)?))
}

/// Whether the table has the columns `metrics` and `error`, which the console has created since January 2025.
fn has_added_columns(tx: &mut Transaction<'_>) -> Attempt<bool> {
    if tx.has_added_columns() {
        return Ok(true);
    }
    let sql = "SELECT 1 FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass('source_task') AND NOT attisdropped
               AND attname IN ('metrics', 'error') HAVING count(*) = 2";
    let found = tx.exists(sql, &[])?;
    if found {
        tx.set_added_columns();
    }
    Ok(found)
}

/// The column `error`, or the expression for it: without the column the description holds an error where it holds no
/// reports of streams.
fn error_column(tx: &mut Transaction<'_>) -> Attempt<&'static str> {
    Ok(if has_added_columns(tx)? {
        "error"
    } else {
        "CASE WHEN status <> 'RUNNING' AND NOT starts_with(description, '{') THEN description END"
    })
}

/// What a table without the column `error` holds as its description. The console of its time expects a text, and parses
/// that of two statuses. Streams that have failed without an error of their own get that of the task.
fn description_with_error(status: TaskStatus, description: Option<&str>, error: Option<&str>) -> String {
    if let Some(reports) = description.filter(|description| !["", "{}"].contains(description)) {
        return error.map_or_else(|| reports.to_owned(), |error| description::with_error(reports, error));
    }
    let is_parsed = matches!(status, TaskStatus::Partial | TaskStatus::TimeExceeded);
    error.filter(|_| !is_parsed).unwrap_or(if is_parsed { "{}" } else { "" }).to_owned()
}

/// A row of `source_task`.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTask {
    pub sync_id: String,
    pub task_id: String,
    /// The image, without its version.
    pub package: String,
    pub version: String,
    /// When the task was accepted.
    pub started_at: Timestamp,
    /// The last heartbeat, by the clock of the database.
    pub updated_at: Timestamp,
    /// A JSON document.
    pub started_by: Option<String>,
    /// The fingerprint of the request that started it, where that is known. [`Db::task`] and lists do not read it.
    pub request: Option<String>,
    /// The request was a discover, and the read under the same id has not come. Read together with `request`.
    pub is_first_stage: bool,
    /// `None` for a status of another program that we do not know.
    pub status: Option<TaskStatus>,
    /// The status as it is stored.
    pub status_text: String,
    /// Parsed from `description`; empty if that has no stream reports.
    pub streams: StreamReports,
    pub description: Option<String>,
    /// CPU and memory, a JSON document.
    pub metrics: Option<String>,
    /// Why the status is not SUCCESS: of a stream, where the row has none of the task.
    pub error: Option<String>,
}

impl StoredTask {
    fn decode(row: &Row) -> Result<Self, postgres::Error> {
        let status_text: String = row.try_get(7)?;
        let description: Option<String> = row.try_get(8)?;
        let streams = description.as_deref().map(description::parse).unwrap_or_default();
        let status: Option<TaskStatus> = status_text.parse().ok();
        // The Go sidecar stores an empty text with a success.
        let error = row.try_get::<_, Option<String>>(10)?.filter(|error| !error.is_empty());
        let error = error.or_else(|| description::error(&streams).filter(|_| status == Some(TaskStatus::Failed)));
        Ok(Self {
            sync_id: row.try_get(0)?,
            task_id: row.try_get(1)?,
            package: row.try_get(2)?,
            version: row.try_get(3)?,
            started_at: row.try_get(4)?,
            updated_at: row.try_get(5)?,
            started_by: row.try_get(6)?,
            request: None,
            is_first_stage: false,
            status,
            status_text,
            streams,
            description,
            metrics: row.try_get(9)?,
            error,
        })
    }
}

pub use record::RequestMark;

/// Whether a task may start while another one of its sync runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConcurrencyPolicy {
    /// Tasks of one sync may run at the same time.
    Allow,
    /// Only one task of a sync runs at a time, also across processes.
    Forbid,
}

/// The outcome of [`Db::start_task`].
#[derive(Debug, Clone, PartialEq)]
pub enum StartOutcome {
    /// The row was inserted.
    Started,
    /// There is a row of this task already.
    Exists(Box<StoredTask>),
    /// The task with this id runs for the same sync.
    SyncBusy(String),
}

impl Db {
    /// Inserts the row of a task as RUNNING, before the task starts. The `mark` identifies the request.
    pub fn start_task(
        &self,
        task: &Task,
        mark: Option<&RequestMark>,
        concurrency: ConcurrencyPolicy,
    ) -> Result<StartOutcome, DbError> {
        self.run("store the start of a task", |tx| {
            if concurrency == ConcurrencyPolicy::Forbid {
                lock_sync(tx, &task.sync_id)?;
                if let Some(stored) = read_marked(tx, &task.task_id)? {
                    return Ok(existing(tx, stored, task));
                }
                if let Some(running) = running_task(tx, &task.sync_id)? {
                    return Ok(StartOutcome::SyncBusy(running));
                }
            }
            let started_by = record::started_by(tx, task, mark);
            if insert(tx, task, started_by.as_ref(), TaskStatus::Running, None, None)? {
                record::store(tx, task, mark)?;
                return Ok(StartOutcome::Started);
            }
            let stored = read_marked(tx, &task.task_id)?.ok_or_else(|| row_deleted(tx))?;
            Ok(existing(tx, stored, task))
        })
    }

    /// Starts a task again that failed with the error `failed` before it ran: its row becomes RUNNING. `Exists` if the
    /// row has changed.
    pub fn restart_task(&self, task: &Task, failed: &str) -> Result<StartOutcome, DbError> {
        let started_at = to_millis(task.started_at);
        self.run("store the start of a task", |tx| {
            lock_sync(tx, &task.sync_id)?;
            let stored = read_marked(tx, &task.task_id)?.ok_or_else(|| row_deleted(tx))?;
            if stored.status == Some(TaskStatus::Running) && is_own_insert(tx, &stored, task) {
                return Ok(StartOutcome::Started);
            }
            if stored.status != Some(TaskStatus::Failed) || stored.error.as_deref() != Some(failed) {
                return Ok(StartOutcome::Exists(Box::new(stored)));
            }
            if let Some(running) = running_task(tx, &task.sync_id)? {
                return Ok(StartOutcome::SyncBusy(running));
            }
            update(tx, &task.task_id, TaskStatus::Running, None, None)?;
            let sql = "UPDATE source_task SET started_at = $2 WHERE task_id = $1";
            tx.execute(sql, &[text(&task.task_id), time(&started_at)])?;
            attempt::forget_read(tx, &task.task_id)?;
            Ok(StartOutcome::Started)
        })
    }

    /// Stores the progress of a running task, and its resource usage if that is known. False if the task is not RUNNING,
    /// for example because it was cancelled.
    pub fn report_progress(
        &self,
        task_id: &str,
        reports: &StreamReports,
        metrics: Option<&TaskMetrics>,
    ) -> Result<bool, DbError> {
        let description = description::write(reports);
        // Two numbers always serialize.
        let metrics = metrics.and_then(|metrics| serde_json::to_string(metrics).ok());
        self.run("store the progress of a task", |tx| {
            let params = [text(&task_id), text(&description), text(&metrics)];
            let (set_metrics, params) = if has_added_columns(tx)? {
                (", metrics = COALESCE($3::text::jsonb, metrics)", &params[..])
            } else {
                ("", &params[..2])
            };
            let sql = format!(
                "UPDATE source_task SET description = $2{set_metrics}, updated_at = CURRENT_TIMESTAMP
                 WHERE task_id = $1 AND status = 'RUNNING'"
            );
            Ok(tx.execute(&sql, params)? > 0)
        })
    }

    /// Stores a heartbeat of a running task. False if the task is not RUNNING.
    pub fn heartbeat(&self, task_id: &str) -> Result<bool, DbError> {
        let sql = "UPDATE source_task SET updated_at = CURRENT_TIMESTAMP WHERE task_id = $1 AND status = 'RUNNING'";
        self.run("store the heartbeat of a task", |tx| Ok(tx.execute(sql, &[text(&task_id)])? > 0))
    }

    /// Stores heartbeats of those tasks that are RUNNING; returns their number. Skips rows that are locked: they have a
    /// writer.
    pub fn heartbeats(&self, task_ids: &[&str]) -> Result<u64, DbError> {
        // Locked in one order, so that concurrent calls do not deadlock.
        let sql = "UPDATE source_task SET updated_at = CURRENT_TIMESTAMP WHERE task_id IN
               (SELECT task_id FROM source_task WHERE task_id = ANY ($1) AND status = 'RUNNING'
                ORDER BY task_id FOR UPDATE SKIP LOCKED)";
        task_ids.chunks(BATCH).try_fold(0, |sum, ids| {
            Ok(sum + self.run("store heartbeats of tasks", |tx| tx.execute(sql, &[(&ids, Type::TEXT_ARRAY)]))?)
        })
    }

    /// Those tasks that are CANCELLED, or FAILED with this class of failure.
    pub fn cancelled_or_failed(&self, task_ids: &[&str], class: Class) -> Result<HashSet<String>, DbError> {
        let prefix = format!("{class}: ");
        task_ids.chunks(BATCH).try_fold(HashSet::new(), |mut found, ids| {
            found.extend(self.run("find tasks that must not run", |tx| {
                let sql = format!(
                    "SELECT task_id FROM source_task
                     WHERE task_id = ANY ($1) AND (status = 'CANCELLED' OR status = 'FAILED' AND starts_with({}, $2))",
                    error_column(tx)?
                );
                tx.rows(&sql, &[(&ids, Type::TEXT_ARRAY), text(&prefix)], |row| row.try_get::<_, String>(0))
            })?);
            Ok(found)
        })
    }

    /// Stores the outcome of a task. False if the stored one takes precedence.
    ///
    /// [`Writer`] has the rules. Where a sidecar's outcome does not count, only its reports are stored. Without `reports` the
    /// stored ones stay, and streams without a final status get the outcome of the task
    /// and, if that is a failure, its reason.
    pub fn finish_task(
        &self,
        task: &Task,
        writer: Writer,
        status: TaskStatus,
        reports: Option<&StreamReports>,
        error: Option<&str>,
    ) -> Result<bool, DbError> {
        let error = error.map(shown);
        let error = error.as_deref();
        let written = reports.map(description::write);
        self.run("store the outcome of a task", |tx| {
            if writer != Writer::Sidecar {
                restore(tx, &task.task_id)?;
            }
            let stored = match lock_outcome(tx, &task.task_id)? {
                Some(stored) => stored,
                None if insert(tx, task, task.started_by.as_ref(), status, written.as_deref(), error)? => {
                    attempt::record_read(tx, &task.task_id)?;
                    return Ok(true);
                }
                // Inserted by another writer in between.
                None => lock_outcome(tx, &task.task_id)?.ok_or_else(|| row_deleted(tx))?,
            };
            if !may_finish(writer, &stored) {
                // Only the sidecar knows the progress of each stream, whoever ended the task.
                if let (Writer::Sidecar | Writer::TerminatedSidecar, Some(written)) = (writer, &written) {
                    let outcome = stored.status.parse().unwrap_or(TaskStatus::Failed);
                    let written = description::explain(written, outcome, stored.error.as_deref());
                    tx.execute(
                        "UPDATE source_task SET description = $2, updated_at = CURRENT_TIMESTAMP WHERE task_id = $1",
                        &[text(&task.task_id), text(&written)],
                    )?;
                    attempt::record_read(tx, &task.task_id)?;
                }
                let is_own = tx.is_retry && stored.status == status.as_str() && stored.error.as_deref() == error;
                return Ok(is_own);
            }
            let closed = || {
                let explained = description::explain(stored.description.as_deref()?, status, error);
                Some(description::close(&explained, status, error))
            };
            let description = written.clone().or_else(closed);
            update(tx, &task.task_id, status, description.as_deref(), error)?;
            attempt::record_read(tx, &task.task_id)?;
            Ok(true)
        })
    }

    /// The row of a task, with its outcome: where the console has written RUNNING after the end of the task, the outcome is
    /// restored first.
    pub fn task_with_outcome(&self, task_id: &str) -> Result<Option<StoredTask>, DbError> {
        self.run("read a task", |tx| {
            restore(tx, task_id)?;
            read(tx, task_id)
        })
    }

    /// The row of a task.
    pub fn task(&self, task_id: &str) -> Result<Option<StoredTask>, DbError> {
        self.run("read a task", |tx| read(tx, task_id))
    }

    /// The row of a task with what is known of its request.
    pub fn task_with_request(&self, task_id: &str) -> Result<Option<StoredTask>, DbError> {
        self.run("read a task", |tx| read_marked(tx, task_id))
    }

    /// The tasks of a sync, newest first. Descriptions with a great many streams are omitted.
    pub fn tasks_of_sync(&self, sync_id: &str, limit: u32) -> Result<Vec<StoredTask>, DbError> {
        let listed = format!("CASE WHEN octet_length(description) <= {MAX_LISTED_DESCRIPTION} THEN description END");
        self.run("read the tasks of a sync", |tx| {
            let sql = format!(
                "SELECT {} FROM
                   (SELECT *, sum(octet_length({listed})) OVER (ORDER BY started_at DESC, task_id DESC) AS bytes FROM
                      (SELECT * FROM source_task WHERE sync_id = $1 ORDER BY started_at DESC, task_id DESC LIMIT $2) AS last
                   ) AS sized
                 ORDER BY started_at DESC, task_id DESC",
                columns(tx)?.replacen(
                    "description",
                    &format!("CASE WHEN bytes <= {MAX_LISTED_DESCRIPTIONS} THEN {listed} END AS description"),
                    1
                )
            );
            tx.rows(&sql, &[text(&sync_id), (&i64::from(limit), Type::INT8)], StoredTask::decode)
        })
    }

    /// The RUNNING reads that commands have started, without a heartbeat for `idle_for` by the clock of the database,
    /// each with the process of its command.
    pub fn idle_cli_tasks(&self, idle_for: Duration) -> Result<Vec<(StoredTask, String)>, DbError> {
        self.run("read the running tasks", |tx| {
            let sql = format!(
                "SELECT {}, started_by ->> 'process' AS process FROM source_task
                 WHERE status = 'RUNNING' AND started_by ->> 'type' = 'cli' AND started_by ->> 'process' IS NOT NULL
                   AND updated_at <= CURRENT_TIMESTAMP - make_interval(secs => $1)
                 ORDER BY started_at, task_id",
                columns(tx)?
            );
            tx.rows(&sql, &[(&idle_for.as_secs_f64(), Type::FLOAT8)], |row| {
                Ok((StoredTask::decode(row)?, row.try_get("process")?))
            })
        })
    }

    /// The RUNNING tasks that this `installation` has accepted, without a heartbeat for `idle_for` by the clock of the
    /// database.
    pub fn idle_tasks_of(&self, installation: &str, idle_for: Duration) -> Result<Vec<StoredTask>, DbError> {
        self.run("read the running tasks", |tx| {
            let (columns, accepted) = (columns(tx)?, record::accepted_sql(tx, "$1"));
            let sql = format!(
                "SELECT {columns} FROM source_task
                 WHERE status = 'RUNNING' AND {accepted}
                   AND updated_at < CURRENT_TIMESTAMP - make_interval(secs => $2)
                 ORDER BY started_at, task_id"
            );
            tx.rows(&sql, &[text(&installation), (&idle_for.as_secs_f64(), Type::FLOAT8)], StoredTask::decode)
        })
    }

    /// Fails the RUNNING tasks without a heartbeat for `older_than` by the clock of the database. Returns their ids,
    /// without those of an attempt whose answer was lost.
    pub fn fail_stale_tasks(&self, older_than: Duration) -> Result<Vec<String>, DbError> {
        let minutes = older_than.as_secs().div_ceil(60);
        let error = Failure::new(Class::Abandoned, format!("no heartbeat for {minutes} minutes")).to_string();
        // A locked row has a writer and so is not abandoned.
        let sql = "SELECT task_id, description FROM source_task
             WHERE status = 'RUNNING' AND updated_at < CURRENT_TIMESTAMP - make_interval(secs => $1)
             ORDER BY task_id FOR UPDATE SKIP LOCKED";
        self.run("fail abandoned tasks", |tx| {
            let stale: Vec<(String, Option<String>)> =
                tx.rows(sql, &[(&older_than.as_secs_f64(), Type::FLOAT8)], |row| {
                    Ok((row.try_get(0)?, row.try_get(1)?))
                })?;
            for (id, description) in &stale {
                let description =
                    description.as_deref().map(|text| description::close(text, TaskStatus::Failed, Some(&error)));
                update(tx, id, TaskStatus::Failed, description.as_deref(), Some(&error))?;
            }
            Ok(stale.into_iter().map(|(id, _)| id).collect())
        })
    }
}

/// Takes the lock of a sync until the transaction ends.
fn lock_sync(tx: &mut Transaction<'_>, sync_id: &str) -> Attempt<()> {
    tx.lock(&format!("syncctl sync {sync_id}"))
}

/// The running task of a sync.
fn running_task(tx: &mut Transaction<'_>, sync_id: &str) -> Attempt<Option<String>> {
    let sql =
        "SELECT task_id FROM source_task WHERE sync_id = $1 AND status = 'RUNNING' ORDER BY started_at DESC LIMIT 1";
    tx.row(sql, &[text(&sync_id)], |row| row.try_get(0))
}

fn read(tx: &mut Transaction<'_>, task_id: &str) -> Attempt<Option<StoredTask>> {
    let sql = format!("SELECT {} FROM source_task WHERE task_id = $1", columns(tx)?);
    tx.row(&sql, &[text(&task_id)], StoredTask::decode)
}

/// The row of a task with what is known of its request.
fn read_marked(tx: &mut Transaction<'_>, task_id: &str) -> Attempt<Option<StoredTask>> {
    let Some(mut stored) = read(tx, task_id)? else { return Ok(None) };
    let accepted = record::accepted(tx, task_id, stored.started_by.as_deref())?;
    (stored.request, stored.is_first_stage) = (accepted.request, accepted.is_discover);
    Ok(Some(stored))
}

fn existing(tx: &Transaction<'_>, stored: StoredTask, task: &Task) -> StartOutcome {
    if is_own_insert(tx, &stored, task) { StartOutcome::Started } else { StartOutcome::Exists(Box::new(stored)) }
}

/// Whether an earlier attempt, whose answer was lost, has inserted the row.
fn is_own_insert(tx: &Transaction<'_>, stored: &StoredTask, task: &Task) -> bool {
    tx.is_retry
        && stored.started_at == to_millis(task.started_at)
        && stored.sync_id == task.sync_id
        && stored.package == task.image.package
        && stored.version == task.image.version
}

/// The columns of a row that decide about another outcome.
struct StoredOutcome {
    status: String,
    description: Option<String>,
    error: Option<String>,
}

/// Reads the outcome of a task and locks the row, so that concurrent writers see each other's outcome.
fn lock_outcome(tx: &mut Transaction<'_>, task_id: &str) -> Attempt<Option<StoredOutcome>> {
    let error = error_column(tx)?;
    let sql = format!("SELECT status, description, {error} FROM source_task WHERE task_id = $1 FOR UPDATE");
    let has_error = has_added_columns(tx)?;
    tx.row(&sql, &[text(&task_id)], |row| {
        let (status, description): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        let of_stream = || description::error(&description::parse(description.as_deref()?)).filter(|_| !has_error);
        let error = row.try_get::<_, Option<String>>(2)?.or_else(of_stream);
        Ok(StoredOutcome { status, description, error })
    })
}

fn row_deleted(tx: &Transaction<'_>) -> AttemptError {
    AttemptError::Final(DbError::ServerError {
        action: "store a task",
        address: tx.target.address(),
        reason: "another program deleted its row at the same moment".to_owned(),
        code: None,
    })
}

/// Inserts a row; false if there is one.
fn insert(
    tx: &mut Transaction<'_>,
    task: &Task,
    started_by: Option<&Value>,
    status: TaskStatus,
    description: Option<&str>,
    error: Option<&str>,
) -> Attempt<bool> {
    let started_by = started_by.map(ToString::to_string);
    let started_by = started_by.as_deref().map(clean_json);
    let has_error = has_added_columns(tx)?;
    let combined = (!has_error).then(|| description_with_error(status, description, error));
    let description = combined.as_deref().or(description);
    let (started_at, status) = (to_millis(task.started_at), status.as_str());
    let params = [
        text(&task.sync_id),
        text(&task.task_id),
        text(&task.image.package),
        text(&task.image.version),
        time(&started_at),
        text(&started_by),
        text(&status),
        text(&description),
        text(&error),
    ];
    let (column, value, params) = if has_error { (", error", ", $9", &params[..]) } else { ("", "", &params[..8]) };
    let sql = format!(
        "INSERT INTO source_task (sync_id, task_id, package, version, started_at, updated_at, started_by, status,
                                  description{column})
         VALUES ($1, $2, $3, $4, $5, CURRENT_TIMESTAMP, $6::text::jsonb, $7, $8{value})
         ON CONFLICT (task_id) DO NOTHING"
    );
    Ok(tx.execute(&sql, params)? > 0)
}

fn update(
    tx: &mut Transaction<'_>,
    task_id: &str,
    status: TaskStatus,
    description: Option<&str>,
    error: Option<&str>,
) -> Attempt<()> {
    let has_error = has_added_columns(tx)?;
    let combined = (!has_error).then(|| description_with_error(status, description, error));
    let description = combined.as_deref().or(description);
    let status = status.as_str();
    let params = [text(&task_id), text(&status), text(&description), text(&error)];
    let (set_error, params) = if has_error { (", error = $4", &params[..]) } else { ("", &params[..3]) };
    let sql = format!(
        "UPDATE source_task SET status = $2, description = $3{set_error}, updated_at = CURRENT_TIMESTAMP
         WHERE task_id = $1"
    );
    Ok(_ = tx.execute(&sql, params)?)
}

/// Restores the outcome of a task whose row the console has set to RUNNING since.
fn restore(tx: &mut Transaction<'_>, task_id: &str) -> Attempt<()> {
    let Some(own) = tx.own else { return Ok(()) };
    let sql = format!(
        "WITH ended AS (SELECT * FROM {} WHERE results_schema = $1 AND task_id = $2 AND kind = 'read') {}",
        own.table(ATTEMPT),
        restore_sql(tx)?
    );
    Ok(_ = tx.execute(&sql, &[text(&own.results_schema), text(&task_id)])?)
}

/// Restores outcomes from rows `ended`.
pub(super) fn restore_sql(tx: &mut Transaction<'_>) -> Attempt<String> {
    let set_error = if has_added_columns(tx)? { ", error = ended.document ->> 'error'" } else { "" };
    Ok(format!(
        "UPDATE source_task AS task SET status = ended.status, description = ended.document ->> 'description'{set_error},
           updated_at = CURRENT_TIMESTAMP
         FROM ended WHERE ended.kind = 'read' AND task.task_id = ended.key AND task.status = 'RUNNING'
         RETURNING task.task_id"
    ))
}

/// Whether an outcome replaces the stored one.
fn may_finish(writer: Writer, stored: &StoredOutcome) -> bool {
    let is_running = stored.status == TaskStatus::Running.as_str();
    match writer {
        // Replaces even FAILED: a sidecar that was disconnected for an hour knows more than the check for stale tasks.
        Writer::Sidecar => {
            ![TaskStatus::Cancelled, TaskStatus::TimeExceeded].map(TaskStatus::as_str).contains(&stored.status.as_str())
        }
        Writer::TerminatedSidecar => is_running,
        Writer::Controller => is_running || stored.error.as_deref().is_some_and(StoredError::is_provisional),
    }
}

#[cfg(test)]
mod tests {
    use super::{StoredOutcome, may_finish};
    use crate::db::Writer::{Controller, Sidecar, TerminatedSidecar};
    use crate::failure::Failure;

    #[test]
    fn may_finish_depends_on_writer_and_stored_outcome() {
        let provisional = Failure::terminated().to_string();
        for (status, error, sidecar, terminated_sidecar, controller) in [
            ("RUNNING", None, true, true, true),
            ("SUCCESS", None, true, false, false),
            ("PARTIAL", Some("IMAGE_PULL: x"), true, false, false),
            ("FAILED", Some("TERMINATED by the vendor"), true, false, false),
            ("FAILED", Some(provisional.as_str()), true, false, true),
            ("CANCELLED", None, false, false, false),
            ("TIME_EXCEEDED", None, false, false, false),
            ("a status of another program", None, true, false, false),
        ] {
            let error = error.map(str::to_owned);
            let stored = StoredOutcome { status: status.to_owned(), description: None, error };
            let expected = [(Sidecar, sidecar), (TerminatedSidecar, terminated_sidecar), (Controller, controller)];
            for (writer, expected) in expected {
                assert_eq!(may_finish(writer, &stored), expected, "{writer:?}, {status}");
            }
        }
    }
}
