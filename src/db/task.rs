//! `source_task`: which tasks there are, how far they are, how they ended.
//!
//! A row exists before the task's Pod does. It says RUNNING until somebody knows better: the sidecar, which saw the
//! outcome, or the controller, which infers one where the sidecar left none.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use postgres::Row;
use postgres::types::Type;
use serde_json::Value;

use super::pool::{Fault, Session};
use super::text::{clean, clean_json};
use super::{Db, DbError, Writer};
use crate::failure::{Class, Failure};
use crate::task::{StreamReport, StreamReports, StreamStatus, Task, TaskMetrics, TaskStatus, to_millis};

/// A row of `source_task`.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTask {
    /// The sync that the task belongs to.
    pub sync_id: String,
    /// Its id.
    pub task_id: String,
    /// The image without its version.
    pub package: String,
    /// The version of the image.
    pub version: String,
    /// When it was accepted.
    pub started_at: Timestamp,
    /// The last sign of life, by the clock of the database.
    pub updated_at: Timestamp,
    /// Who asked for it, a JSON document.
    pub started_by: Option<String>,
    /// How it is; `None` for a word that another program wrote and we do not know.
    pub status: Option<TaskStatus>,
    /// The same as it is written.
    pub status_text: String,
    /// Per stream; empty unless the description is that of a read.
    pub streams: StreamReports,
    /// What `streams` was read from.
    pub description: Option<String>,
    /// CPU and memory, a JSON document.
    pub metrics: Option<String>,
    /// Why it is not SUCCESS.
    pub error: Option<String>,
}

/// Bytes of a description in a list: some hundred streams.
const LONGEST_LISTED: usize = 64 * 1024;

/// Tasks that one statement is about.
const HEARTBEATS: usize = 1000;

const COLUMNS: &str = "sync_id, task_id, package, version, started_at, updated_at, started_by::text, status, \
                       description, metrics::text, error";

impl StoredTask {
    fn read(row: &Row) -> Result<Self, postgres::Error> {
        let status_text: String = row.try_get(7)?;
        let description: Option<String> = row.try_get(8)?;
        Ok(Self {
            sync_id: row.try_get(0)?,
            task_id: row.try_get(1)?,
            package: row.try_get(2)?,
            version: row.try_get(3)?,
            started_at: row.try_get(4)?,
            updated_at: row.try_get(5)?,
            started_by: row.try_get(6)?,
            status: status_text.parse().ok(),
            status_text,
            streams: description.as_deref().map(parse_reports).unwrap_or_default(),
            description,
            metrics: row.try_get(9)?,
            error: row.try_get(10)?,
        })
    }
}

impl Db {
    /// Stores how far the streams of a running task are, and what it has used if that is known. False if the task is not
    /// (or no longer) RUNNING, for example because it was cancelled.
    pub fn report_progress(
        &self,
        task_id: &str,
        reports: &StreamReports,
        metrics: Option<&TaskMetrics>,
    ) -> Result<bool, DbError> {
        let description = write_reports(reports);
        // Two numbers always serialize.
        let metrics = metrics.and_then(|metrics| serde_json::to_string(metrics).ok());
        self.run("storing the progress of a task", |session| {
            let count = session.execute(
                "UPDATE source_task SET description = $2, metrics = COALESCE($3::text::jsonb, metrics),
                   updated_at = CURRENT_TIMESTAMP
                 WHERE task_id = $1 AND status = 'RUNNING'",
                &[(&task_id, Type::TEXT), (&description, Type::TEXT), (&metrics.as_deref(), Type::TEXT)],
            )?;
            Ok(count > 0)
        })
    }

    /// Says that a running task is alive. False if it is not (or no longer) RUNNING.
    pub fn heartbeat(&self, task_id: &str) -> Result<bool, DbError> {
        self.run("storing a sign of life of a task", |session| {
            let count = session.execute(
                "UPDATE source_task SET updated_at = CURRENT_TIMESTAMP WHERE task_id = $1 AND status = 'RUNNING'",
                &[(&task_id, Type::TEXT)],
            )?;
            Ok(count > 0)
        })
    }

    /// Says that tasks are alive, those of them that are RUNNING. Returns how many were; a row that somebody else is just
    /// writing is left to him.
    pub fn heartbeats(&self, task_ids: &[&str]) -> Result<u64, DbError> {
        task_ids.chunks(HEARTBEATS).try_fold(0, |sum, ids| {
            let count = self.run("storing signs of life of tasks", |session| {
                // Locked in one order: two programs that do this at a time would wait for each other in a circle.
                Ok(session.execute(
                    "UPDATE source_task SET updated_at = CURRENT_TIMESTAMP WHERE task_id IN
                       (SELECT task_id FROM source_task WHERE task_id = ANY ($1) AND status = 'RUNNING'
                        ORDER BY task_id FOR UPDATE SKIP LOCKED)",
                    &[(&ids, Type::TEXT_ARRAY)],
                )?)
            })?;
            Ok(sum + count)
        })
    }

    /// Which of these tasks are CANCELLED, or FAILED by this class of failure.
    pub fn cancelled_or_failed(&self, task_ids: &[&str], class: Class) -> Result<HashSet<String>, DbError> {
        let sql = "SELECT task_id FROM source_task
                   WHERE task_id = ANY ($1)
                     AND (status = 'CANCELLED' OR status = 'FAILED' AND starts_with(error, $2))";
        let begins = format!("{class}: ");
        task_ids.chunks(HEARTBEATS).try_fold(HashSet::new(), |mut found, ids| {
            found.extend(self.run("looking for tasks that must not run", |session| {
                let rows = session.query(sql, &[(&ids, Type::TEXT_ARRAY), (&begins, Type::TEXT)])?;
                Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?)
            })?);
            Ok(found)
        })
    }

    /// Stores the outcome of a task and says whether it counts.
    ///
    /// The controller's counts where the row says RUNNING or is missing; the sidecar's unless the row says CANCELLED or
    /// `TIME_EXCEEDED`; then only its reports do. Without reports those that are stored stay, and streams that were not done get the outcome of
    /// the task.
    pub fn finish_task(
        &self,
        task: &Task,
        writer: Writer,
        status: TaskStatus,
        reports: Option<&StreamReports>,
        error: Option<&str>,
    ) -> Result<bool, DbError> {
        let error = error.map(clean);
        let error = error.as_deref();
        let written = reports.map(write_reports);
        self.run("storing the outcome of a task", |session| {
            // Locked, so that of two writers the second one sees what the first one wrote.
            let find = "SELECT status, description, error FROM source_task WHERE task_id = $1 FOR UPDATE";
            let mut row = session.query_opt(find, &[(&task.task_id, Type::TEXT)])?;
            if row.is_none() {
                if insert(session, task, status, written.as_deref(), error)? {
                    return Ok(true);
                }
                row = session.query_opt(find, &[(&task.task_id, Type::TEXT)])?;
            }
            let Some(row) = row else { return Err(Fault::Own(vanished(session))) };
            let stored: &str = row.try_get(0)?;
            if !may_finish(writer, status, stored) {
                // How far each stream came is known to the sidecar alone, whoever ended the task.
                if let (Writer::Sidecar, Some(reports)) = (writer, reports) {
                    describe(session, &task.task_id, &late_reports(reports, stored))?;
                }
                // Our own outcome, of an attempt whose answer got lost, counts.
                return Ok(session.repeated
                    && stored == status.as_str()
                    && row.try_get::<_, Option<&str>>(2)? == error);
            }
            let description = match &written {
                Some(written) => Some(written.clone()),
                None => row.try_get::<_, Option<&str>>(1)?.map(|description| settle(description, status)),
            };
            update(session, &task.task_id, status, description.as_deref(), error)?;
            Ok(true)
        })
    }

    /// The row of a task.
    pub fn task(&self, task_id: &str) -> Result<Option<StoredTask>, DbError> {
        self.run("reading a task", |session| Ok(read(session, task_id)?))
    }

    /// The tasks of a sync, newest first. Of one with very many streams the streams are left out.
    pub fn tasks_of_sync(&self, sync_id: &str, limit: u32) -> Result<Vec<StoredTask>, DbError> {
        let listed = format!("CASE WHEN octet_length(description) <= {LONGEST_LISTED} THEN description END");
        let columns = COLUMNS.replace("description", &listed);
        let sql = format!(
            "SELECT {columns} FROM source_task WHERE sync_id = $1 ORDER BY started_at DESC, task_id DESC LIMIT $2"
        );
        self.run("reading the tasks of a sync", |session| {
            let rows = session.query(&sql, &[(&sync_id, Type::TEXT), (&i64::from(limit), Type::INT8)])?;
            Ok(rows.iter().map(StoredTask::read).collect::<Result<_, _>>()?)
        })
    }

    /// Reads that one-off commands have started and that run as far as their rows tell, without a sign of life for so
    /// long; each with the process of its command.
    pub fn idle_cli_tasks(&self, idle_for: Duration) -> Result<Vec<(StoredTask, String)>, DbError> {
        let sql = format!(
            "SELECT {COLUMNS}, started_by ->> 'process' AS process FROM source_task
             WHERE status = 'RUNNING' AND started_by ->> 'type' = 'cli' AND started_by ->> 'process' IS NOT NULL
               AND updated_at <= CURRENT_TIMESTAMP - make_interval(secs => $1)
             ORDER BY started_at, task_id"
        );
        self.run("reading the running tasks", |session| {
            let params = [(&idle_for.as_secs_f64() as _, Type::FLOAT8)];
            let read = |row: &Row| Ok((StoredTask::read(row)?, row.try_get("process")?));
            Ok(session.query(&sql, &params)?.iter().map(read).collect::<Result<_, postgres::Error>>()?)
        })
    }

    /// The tasks that say RUNNING, were started under a marker (`fleet` of `syncctl` in their `started_by`) and gave no
    /// sign of life for a time, by the clock of the database.
    pub fn idle_tasks_of_fleet(&self, marker: &str, idle_for: Duration) -> Result<Vec<StoredTask>, DbError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM source_task
             WHERE status = 'RUNNING' AND started_by -> 'syncctl' ->> 'fleet' = $1
               AND updated_at < CURRENT_TIMESTAMP - make_interval(secs => $2)
             ORDER BY started_at, task_id"
        );
        self.run("reading the running tasks", |session| {
            let params = [(&marker as _, Type::TEXT), (&idle_for.as_secs_f64() as _, Type::FLOAT8)];
            Ok(session.query(&sql, &params)?.iter().map(StoredTask::read).collect::<Result<_, _>>()?)
        })
    }

    /// Fails the tasks that say RUNNING and gave no sign of life for a time, by the clock of the database. Returns their
    /// ids; those of an attempt whose answer got lost are missing.
    pub fn fail_stale_tasks(&self, older_than: Duration) -> Result<Vec<String>, DbError> {
        let minutes = older_than.as_secs().div_ceil(60);
        let error = Failure::new(Class::Abandoned, format!("no sign of life for {minutes} minutes")).to_string();
        self.run("failing abandoned tasks", |session| {
            // A row that is locked has a writer, and so is not abandoned.
            let rows = session.query(
                "SELECT task_id, description FROM source_task
                 WHERE status = 'RUNNING' AND updated_at < CURRENT_TIMESTAMP - make_interval(secs => $1)
                 ORDER BY task_id FOR UPDATE SKIP LOCKED",
                &[(&older_than.as_secs_f64(), Type::FLOAT8)],
            )?;
            let mut ids = Vec::with_capacity(rows.len());
            for row in &rows {
                let id: String = row.try_get(0)?;
                let description: Option<&str> = row.try_get(1)?;
                let description = description.map(|description| settle(description, TaskStatus::Failed));
                update(session, &id, TaskStatus::Failed, description.as_deref(), Some(&error))?;
                ids.push(id);
            }
            Ok(ids)
        })
    }
}

pub(super) fn insert(
    session: &mut Session<'_>,
    task: &Task,
    status: TaskStatus,
    description: Option<&str>,
    error: Option<&str>,
) -> Result<bool, postgres::Error> {
    let started_by = task.started_by.as_ref().map(ToString::to_string);
    let started_by = started_by.as_deref().map(clean_json);
    let params = [
        (&task.sync_id as _, Type::TEXT),
        (&task.task_id as _, Type::TEXT),
        (&task.image.package as _, Type::TEXT),
        (&task.image.version as _, Type::TEXT),
        (&to_millis(task.started_at) as _, Type::TIMESTAMPTZ),
        (&started_by.as_deref() as _, Type::TEXT),
        (&status.as_str() as _, Type::TEXT),
        (&description as _, Type::TEXT),
        (&error as _, Type::TEXT),
    ];
    let count = session.execute(
        "INSERT INTO source_task (sync_id, task_id, package, version, started_at, updated_at, started_by, status,
                                  description, error)
         VALUES ($1, $2, $3, $4, $5, CURRENT_TIMESTAMP, $6::text::jsonb, $7, $8, $9)
         ON CONFLICT (task_id) DO NOTHING",
        &params,
    )?;
    Ok(count > 0)
}

fn update(
    session: &mut Session<'_>,
    task_id: &str,
    status: TaskStatus,
    description: Option<&str>,
    error: Option<&str>,
) -> Result<(), postgres::Error> {
    let params = [
        (&task_id as _, Type::TEXT),
        (&status.as_str() as _, Type::TEXT),
        (&description as _, Type::TEXT),
        (&error as _, Type::TEXT),
    ];
    session.execute(
        "UPDATE source_task SET status = $2, description = $3, error = $4, updated_at = CURRENT_TIMESTAMP
         WHERE task_id = $1",
        &params,
    )?;
    Ok(())
}

fn describe(session: &mut Session<'_>, task_id: &str, description: &str) -> Result<(), postgres::Error> {
    session.execute(
        "UPDATE source_task SET description = $2, updated_at = CURRENT_TIMESTAMP WHERE task_id = $1",
        &[(&task_id as _, Type::TEXT), (&description as _, Type::TEXT)],
    )?;
    Ok(())
}

pub(super) fn read(session: &mut Session<'_>, task_id: &str) -> Result<Option<StoredTask>, postgres::Error> {
    let sql = format!("SELECT {COLUMNS} FROM source_task WHERE task_id = $1");
    session.query_opt(&sql, &[(&task_id, Type::TEXT)])?.as_ref().map(StoredTask::read).transpose()
}

pub(super) fn is_same_start(stored: &StoredTask, task: &Task) -> bool {
    stored.started_at == to_millis(task.started_at)
        && stored.sync_id == task.sync_id
        && stored.package == task.image.package
        && stored.version == task.image.version
}

pub(super) fn vanished(session: &Session<'_>) -> DbError {
    DbError::ServerError {
        action: "storing a task",
        address: session.target().address(),
        reason: "another program deleted its row in the same moment".to_owned(),
        code: None,
    }
}

/// Whose outcome counts against which status.
fn may_finish(writer: Writer, outcome: TaskStatus, stored: &str) -> bool {
    match (writer, outcome) {
        (Writer::Controller, _) => stored == TaskStatus::Running.as_str(),
        // It was ended by whoever wrote why.
        (Writer::Sidecar, TaskStatus::Cancelled) if controller_failure(stored).is_some() => false,
        // Also against FAILED: a sidecar that was cut off for an hour knows better than the sweep.
        (Writer::Sidecar, _) => {
            ![TaskStatus::Cancelled, TaskStatus::TimeExceeded].map(TaskStatus::as_str).contains(&stored)
        }
    }
}

/// What a stream that was cut off is when a controller has closed its task with this status.
fn controller_failure(stored: &str) -> Option<StreamStatus> {
    match stored.parse().ok()? {
        TaskStatus::TimeExceeded => Some(StreamStatus::TimeExceeded),
        TaskStatus::Failed | TaskStatus::Partial => Some(StreamStatus::Failed),
        TaskStatus::Running | TaskStatus::Success | TaskStatus::Cancelled | TaskStatus::Skipped => None,
    }
}

fn write_reports(reports: &StreamReports) -> String {
    // Names, numbers and words always serialize.
    let json = serde_json::to_string(reports).unwrap_or_default();
    clean(&json).into_owned()
}

/// Reports of a sidecar that was ended: it knows of the signal alone, and not of the reason.
fn late_reports(reports: &StreamReports, stored: &str) -> String {
    let mut reports = reports.clone();
    if let Some(status) = controller_failure(stored) {
        for report in reports.values_mut().filter(|report| report.status == StreamStatus::Cancelled) {
            report.status = status;
        }
    }
    write_reports(&reports)
}

/// Reads a description as far as it is one of streams; other programs may have written it.
fn parse_reports(description: &str) -> StreamReports {
    let Ok(Value::Object(streams)) = serde_json::from_str(description) else { return StreamReports::new() };
    let number = |report: &Value, key: &str| report.get(key).and_then(Value::as_u64).unwrap_or(0);
    streams
        .into_iter()
        .filter_map(|(name, report)| {
            let status = report.get("status")?.clone();
            let report = StreamReport {
                events: number(&report, "events"),
                bytes: number(&report, "bytes"),
                status: serde_json::from_value(status).unwrap_or(StreamStatus::Pending),
                error: report.get("error").and_then(Value::as_str).map(str::to_owned),
                estimate: report.get("estimate").and_then(|estimate| serde_json::from_value(estimate.clone()).ok()),
            };
            Some((name, report))
        })
        .collect()
}

/// The description with the outcome of the task for streams that were not done. Whatever else it holds stays.
fn settle(description: &str, outcome: TaskStatus) -> String {
    let Ok(Value::Object(mut streams)) = serde_json::from_str(description) else { return description.to_owned() };
    let outcome = match outcome {
        TaskStatus::Running => return description.to_owned(),
        TaskStatus::Success => StreamStatus::Success,
        TaskStatus::Partial => StreamStatus::Partial,
        TaskStatus::Failed => StreamStatus::Failed,
        TaskStatus::Cancelled | TaskStatus::Skipped => StreamStatus::Cancelled,
        TaskStatus::TimeExceeded => StreamStatus::TimeExceeded,
    };
    let outcome = serde_json::to_value(outcome).unwrap_or_default();
    let open = streams.values_mut().filter_map(|report| report.get_mut("status"));
    for status in open.filter(|status| ["PENDING", "RUNNING"].contains(&status.as_str().unwrap_or_default())) {
        *status = outcome.clone();
    }
    Value::Object(streams).to_string()
}

#[cfg(test)]
mod tests {
    use super::{may_finish, parse_reports, settle};
    use crate::db::Writer;
    use crate::task::{StreamStatus, TaskStatus};

    #[test]
    fn whose_outcome_counts_depends_on_what_is_stored() {
        for (stored, sidecar, ended_sidecar, controller) in [
            ("RUNNING", true, true, true),
            ("SUCCESS", true, true, false),
            ("PARTIAL", true, false, false),
            ("FAILED", true, false, false),
            ("CANCELLED", false, false, false),
            ("TIME_EXCEEDED", false, false, false),
            ("a word of another program", true, true, false),
        ] {
            let (success, cancelled, failed) = (TaskStatus::Success, TaskStatus::Cancelled, TaskStatus::Failed);
            assert_eq!(may_finish(Writer::Sidecar, success, stored), sidecar, "sidecar, {stored}");
            assert_eq!(may_finish(Writer::Sidecar, cancelled, stored), ended_sidecar, "ended sidecar, {stored}");
            assert_eq!(may_finish(Writer::Controller, failed, stored), controller, "controller, {stored}");
        }
    }

    #[test]
    fn streams_that_were_not_done_get_the_outcome_of_the_task() {
        let description = r#"{"b":{"status":"RUNNING","events":1,"extra":true},"a":{"status":"SUCCESS"},"c":{"status":"PENDING"},"d":3}"#;
        assert_eq!(
            settle(description, TaskStatus::Cancelled),
            r#"{"b":{"status":"CANCELLED","events":1,"extra":true},"a":{"status":"SUCCESS"},"c":{"status":"CANCELLED"},"d":3}"#
        );
        assert_eq!(settle("a text", TaskStatus::Failed), "a text");
    }

    #[test]
    fn a_description_of_another_program_is_read_as_far_as_it_goes() {
        let description = r#"{"b":{"status":"PARTIAL","events":3,"bytes":-1,"error":"e"},"a":{"status":"NEW"},"x":1}"#;
        let streams = parse_reports(description);
        let names: Vec<&str> = streams.keys().map(String::as_str).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!((streams["b"].events, streams["b"].bytes, streams["b"].status), (3, 0, StreamStatus::Partial));
        assert_eq!(streams["a"].status, StreamStatus::Pending);
        assert!(parse_reports("not JSON").is_empty());
    }
}
