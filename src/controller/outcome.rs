//! Rows ↔ outcome: which table and columns hold the result of which command.

use serde_json::{Value, json};

use crate::db::{ConcurrencyPolicy, Db, DbError, ResultKey, SpecKey, StartOutcome, Writer};
use crate::failure::{Class, Failure, StoredError};
use crate::task::{StreamReports, StreamStatus, Task, TaskKind, TaskStatus};

/// The result of a task.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The ConnectorSpecification.
    Spec(Value),
    /// Whether the connector accepts a configuration.
    Check {
        /// Whether the check succeeded.
        succeeded: bool,
        /// The connector's explanation.
        message: Option<String>,
    },
    /// The catalog.
    Discover(Value),
    /// The row of a read, which may have failed.
    Read {
        /// `source_task.task_id`.
        task_id: String,
        /// `source_task.sync_id`.
        sync_id: String,
        /// `source_task.status`.
        status: TaskStatus,
        /// `source_task.description`.
        streams: StreamReports,
        /// `source_task.error`.
        error: Option<String>,
    },
}

impl Outcome {
    /// The document to print.
    pub fn document(&self) -> Value {
        match self {
            Self::Spec(document) | Self::Discover(document) => document.clone(),
            Self::Check { succeeded, message } => {
                json!({"status": if *succeeded { "SUCCEEDED" } else { "FAILED" }, "message": message})
            }
            Self::Read { task_id, sync_id, status, streams, error } => {
                let mut document = json!({
                    "taskId": task_id,
                    "syncId": sync_id,
                    "status": status,
                    "streams": streams,
                    "error": error,
                });
                if let Some(failure) = self.failure() {
                    document["class"] = json!(failure.class);
                    document["hint"] = json!(failure.hint());
                }
                document
            }
        }
    }

    /// The failure of a check or read that did not succeed.
    pub fn failure(&self) -> Option<Failure> {
        match self {
            Self::Spec(_) | Self::Discover(_) | Self::Check { succeeded: true, .. } => None,
            Self::Check { message, .. } => {
                let text = message.clone().unwrap_or_else(|| "the connector gave no reason".to_owned());
                Some(Failure::new(Class::ConnectorFailed, text))
            }
            Self::Read { status, error, .. } => {
                let stored = error.as_deref().map(Failure::from_stored);
                let or = |class, text: &str| stored.clone().unwrap_or_else(|| Failure::new(class, text));
                match status {
                    TaskStatus::Success => None,
                    TaskStatus::Cancelled => Some(or(Class::Cancelled, "the task was cancelled")),
                    TaskStatus::TimeExceeded => Some(or(Class::TimeExceeded, "the task exceeded its timeout")),
                    TaskStatus::Partial => Some(or(Class::ConnectorFailed, "some streams are incomplete")),
                    TaskStatus::Failed | TaskStatus::Running | TaskStatus::Skipped => {
                        Some(or(Class::ConnectorFailed, "the read failed"))
                    }
                }
            }
        }
    }
}

/// The outcome of a task, or the failure that prevented one.
pub type TaskResult = Result<Outcome, Failure>;

/// Records the start of a task before its Pod exists. Only a read can be rejected.
pub fn record_start(db: &Db, task: &Task, concurrency: ConcurrencyPolicy) -> Result<StartOutcome, DbError> {
    match task.kind {
        TaskKind::Spec | TaskKind::Check => Ok(StartOutcome::Started),
        TaskKind::Discover => db.start_catalog(&ResultKey::of(task), task.started_at).map(|()| StartOutcome::Started),
        TaskKind::Read => db.start_task(task, concurrency),
    }
}

/// Records a failure that the controller found, unless the sidecar has stored a result.
pub fn record_failure(db: &Db, task: &Task, failure: &Failure) -> Result<(), DbError> {
    let text = failure.to_string();
    match task.kind {
        TaskKind::Spec => db.save_spec(&SpecKey::of(task), task.started_at, Err(&text)),
        TaskKind::Check => db.fail_check(&ResultKey::of(task), task.started_at, &text),
        TaskKind::Discover => db.fail_catalog(&ResultKey::of(task), task.started_at, &text, Writer::Controller),
        TaskKind::Read => {
            let status = match failure.class {
                Class::Cancelled => TaskStatus::Cancelled,
                Class::TimeExceeded => TaskStatus::TimeExceeded,
                _ if has_committed_rows(db, task)? => TaskStatus::Partial,
                _ => TaskStatus::Failed,
            };
            db.finish_task(task, Writer::Controller, status, None, Some(&text)).map(|_| ())
        }
    }
}

/// The recorded end of a task.
pub struct Conclusion {
    /// The result.
    pub result: TaskResult,
    /// Whether the sidecar stored it; otherwise this process did.
    pub by_sidecar: bool,
}

/// Loads the result of a task that has ended, or records `failure` as its result.
pub fn conclude(db: &Db, task: &Task, failure: &Failure) -> Result<Conclusion, DbError> {
    if let Some(result) = load(db, task)? {
        return Ok(Conclusion { result, by_sidecar: true });
    }
    record_failure(db, task, failure)?;
    Ok(Conclusion { result: Err(failure.clone()), by_sidecar: false })
}

/// Whether the sidecar has reported committed rows of a stream.
fn has_committed_rows(db: &Db, task: &Task) -> Result<bool, DbError> {
    let row = db.task(&task.task_id)?;
    let is_committed = |status| matches!(status, StreamStatus::Success | StreamStatus::Partial);
    Ok(row.is_some_and(|row| row.streams.values().any(|report| is_committed(report.status))))
}

/// Loads the result of this very task; `None` while it has none.
pub fn load(db: &Db, task: &Task) -> Result<Option<TaskResult>, DbError> {
    match task.kind {
        TaskKind::Spec => {
            let Some(row) = db.spec(&SpecKey::of(task))?.filter(|row| row.timestamp >= task.started_at) else {
                return Ok(None);
            };
            match (row.error, row.specs) {
                (Some(error), _) => Ok(Some(Err(Failure::from_stored(&error)))),
                (None, Some(specs)) => Ok(Some(document(&specs).map(Outcome::Spec))),
                (None, None) => Ok(None),
            }
        }
        TaskKind::Check => {
            let row = db.check(&task.storage_key)?.filter(|row| row.timestamp >= task.started_at);
            Ok(row.map(|row| check_outcome(&row.status, row.description)))
        }
        TaskKind::Discover => {
            let Some(row) = db.catalog(&ResultKey::of(task))?.filter(|row| row.timestamp >= task.started_at) else {
                return Ok(None);
            };
            match (row.status.as_str(), row.catalog) {
                ("SUCCESS", Some(catalog)) => Ok(Some(document(&catalog).map(Outcome::Discover))),
                ("FAILED", _) => {
                    Ok(Some(Err(Failure::from_stored(row.description.as_deref().unwrap_or("no reason given")))))
                }
                _ => Ok(None),
            }
        }
        TaskKind::Read => {
            let Some(row) = db.task(&task.task_id)? else { return Ok(None) };
            let Some(status) = row.status else {
                let text = format!("the row of task {} has the unknown status {:?}", row.task_id, row.status_text);
                return Ok(Some(Err(Failure::new(Class::DatabaseError, text))));
            };
            if status == TaskStatus::Running {
                return Ok(None);
            }
            Ok(Some(Ok(Outcome::Read {
                task_id: row.task_id,
                sync_id: row.sync_id,
                status,
                streams: row.streams,
                error: row.error,
            })))
        }
    }
}

/// A failure of ours is stored with its class, an answer of the connector without one.
fn check_outcome(status: &str, description: Option<String>) -> Result<Outcome, Failure> {
    if status == "SUCCESS" {
        return Ok(Outcome::Check { succeeded: true, message: description });
    }
    match description.as_deref().map(StoredError::parse) {
        Some(StoredError::Failure(failure)) => Err(failure),
        Some(StoredError::Connector(message)) => Ok(Outcome::Check { succeeded: false, message: Some(message) }),
        None => Ok(Outcome::Check { succeeded: false, message: None }),
    }
}

fn document(text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text)
        .map_err(|error| Failure::new(Class::DatabaseError, format!("cannot parse the stored result: {error}")))
}
