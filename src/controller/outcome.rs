//! Rows ↔ outcome: which table and columns hold the result of which command.

use serde_json::{Value, json};

use super::failure_log;
use crate::db::{ConcurrencyPolicy, Db, DbError, Finding, RequestMark, StartOutcome, StoredResult, StoredTask, Writer};
use crate::failure::{Class, Failure, NO_REASON, StoredError};
use crate::task::{StreamReport, StreamReports, StreamStatus, Task, TaskKind, TaskStatus};

/// Lines about the streams of a read on the terminal.
const MAX_NOTICES: usize = 100;

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

    /// What the user should know of the streams of a read besides their statuses, in lines.
    pub fn notices(&self) -> Vec<String> {
        let Self::Read { streams, .. } = self else { return Vec::new() };
        let mut lines = Vec::new();
        for (name, report) in streams {
            let details = report.details();
            if !details.is_empty() {
                lines.push(format!("stream {name}: {} rows committed{details}", report.events));
            }
            for (text, count) in report.warnings.iter() {
                let times = if count > 1 { format!(" ({count} times)") } else { String::new() };
                lines.push(format!("warning: stream {name}: {text}{times}"));
            }
        }
        if lines.len() > MAX_NOTICES {
            let more = lines.len() - MAX_NOTICES;
            lines.truncate(MAX_NOTICES);
            lines.push(format!("{more} more lines: see `streams` in the result"));
        }
        lines
    }

    /// The failure of a check or read that did not succeed.
    pub fn failure(&self) -> Option<Failure> {
        match self {
            Self::Spec(_) | Self::Discover(_) | Self::Check { succeeded: true, .. } => None,
            Self::Check { message, .. } => {
                Some(Failure::new(Class::ConnectorFailed, message.as_deref().unwrap_or(NO_REASON)))
            }
            Self::Read { status, error, streams, .. } => {
                let (class, text) = match status {
                    TaskStatus::Success => return None,
                    TaskStatus::Cancelled => (Class::Cancelled, "the task was cancelled"),
                    TaskStatus::TimeExceeded => (Class::TimeExceeded, "the task exceeded its timeout"),
                    TaskStatus::Partial => (Class::ConnectorFailed, "some streams are incomplete"),
                    TaskStatus::Failed | TaskStatus::Running | TaskStatus::Skipped => {
                        (Class::ConnectorFailed, "the read failed")
                    }
                };
                let of_stream = || streams.iter().find_map(|(name, stream)| Some((name, stream.error.as_ref()?)));
                Some(match (error, class) {
                    (Some(error), _) => Failure::from_stored(error),
                    (None, Class::ConnectorFailed) => match of_stream() {
                        Some((stream, error)) => Failure::new(class, format!("{text}: {stream}: {error}")),
                        None => Failure::new(class, text),
                    },
                    (None, _) => Failure::new(class, text),
                })
            }
        }
    }
}

/// The outcome of a task, or the failure that prevented one.
pub type TaskResult = Result<Outcome, Failure>;

/// Records that a spec, check or discover was accepted, before its Pod exists: this orders the results of attempts.
pub fn record_attempt(db: &Db, task: &Task, mark: Option<&RequestMark>) -> Result<(), DbError> {
    if task.kind == TaskKind::Read { Ok(()) } else { db.start_attempt(task, mark) }
}

/// Records the start of a task before its Pod exists. Only a read can be rejected.
pub fn record_start(
    db: &Db,
    task: &Task,
    mark: Option<&RequestMark>,
    concurrency: ConcurrencyPolicy,
) -> Result<StartOutcome, DbError> {
    match task.kind {
        TaskKind::Spec | TaskKind::Check => Ok(StartOutcome::Started),
        TaskKind::Discover => db.start_catalog(task).map(|()| StartOutcome::Started),
        TaskKind::Read => db.start_task(task, mark, concurrency),
    }
}

/// Records a failure that the controller found, and logs it for the task, unless the sidecar has stored a result or another
/// controller a failure.
pub fn record_failure(db: &Db, task: &Task, failure: &Failure) -> Result<(), DbError> {
    let text = failure.to_string();
    let is_recorded = match task.kind {
        TaskKind::Spec | TaskKind::Check | TaskKind::Discover => db.store_result(task, Finding::Failure(&text))?,
        TaskKind::Read => {
            let status = match failure.class {
                Class::Cancelled => TaskStatus::Cancelled,
                Class::TimeExceeded => TaskStatus::TimeExceeded,
                _ if has_committed_rows(db, task)? => TaskStatus::Partial,
                _ => TaskStatus::Failed,
            };
            db.finish_task(task, Writer::Controller, status, None, Some(&text))?
        }
    };
    if is_recorded {
        failure_log::write(db, task, failure);
    }
    Ok(())
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
    let is_loaded = |report: &StreamReport| {
        report.events > 0 || matches!(report.status, StreamStatus::Success | StreamStatus::Partial)
    };
    Ok(row.is_some_and(|row| row.streams.values().any(is_loaded)))
}

/// What is stored of a task.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored {
    /// No outcome yet.
    Nothing,
    /// A sidecar got TERM, and its controller has not recorded the reason yet.
    Terminated,
    /// The result.
    Result(TaskResult),
}

/// The result of this very task; `None` while it has none, or only that of a sidecar that does not know the cause.
pub fn load(db: &Db, task: &Task) -> Result<Option<TaskResult>, DbError> {
    Ok(match stored(db, task)? {
        Stored::Result(result) => Some(result),
        Stored::Nothing | Stored::Terminated => None,
    })
}

/// What is stored of this very task.
pub fn stored(db: &Db, task: &Task) -> Result<Stored, DbError> {
    let result = read_rows(db, task)?;
    let failure = match &result {
        Some(Err(failure)) => Some(failure.clone()),
        Some(Ok(outcome)) => outcome.failure(),
        None => None,
    };
    Ok(match result {
        _ if failure.is_some_and(|failure| failure.class == Class::Terminated) => Stored::Terminated,
        Some(result) => Stored::Result(result),
        None => Stored::Nothing,
    })
}

/// The stored result of this very task, whoever stored it.
fn read_rows(db: &Db, task: &Task) -> Result<Option<TaskResult>, DbError> {
    if task.kind == TaskKind::Read {
        return Ok(db.task_with_outcome(&task.task_id)?.and_then(read_result));
    }
    Ok(db.result(task)?.map(|stored| {
        let StoredResult { succeeded, document, description } = stored;
        match (task.kind, document) {
            (TaskKind::Check, _) => check_result(succeeded, description),
            (kind, Some(text)) if succeeded => {
                let outcome = if kind == TaskKind::Spec { Outcome::Spec } else { Outcome::Discover };
                parse(&text).map(outcome)
            }
            _ => Err(Failure::from_stored(description.as_deref().unwrap_or_default())),
        }
    }))
}

/// A failure of ours is stored with its class, an answer of the connector without one.
fn check_result(succeeded: bool, description: Option<String>) -> TaskResult {
    let message = match description.as_deref().map(StoredError::parse) {
        _ if succeeded => description,
        Some(StoredError::Failure(failure)) => return Err(failure),
        // The Go sidecar stores its own failures behind this word.
        Some(StoredError::Connector(message)) if message.trim_start_matches("FAILED:").trim().is_empty() => None,
        Some(StoredError::Connector(message)) => Some(message),
        None => None,
    };
    Ok(Outcome::Check { succeeded, message })
}

fn read_result(row: StoredTask) -> Option<TaskResult> {
    let StoredTask { task_id, sync_id, status, status_text, streams, error, .. } = row;
    match status {
        Some(TaskStatus::Running) => None,
        Some(status) => Some(Ok(Outcome::Read { task_id, sync_id, status, streams, error })),
        None => {
            let text = format!("the row of task {task_id} has the unknown status {status_text:?}");
            Some(Err(Failure::new(Class::DatabaseError, text)))
        }
    }
}

pub(super) fn parse(text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text)
        .map_err(|error| Failure::new(Class::DatabaseError, format!("cannot parse the stored result: {error}")))
}

#[cfg(test)]
mod tests {
    use super::{MAX_NOTICES, Outcome};
    use crate::task::{StreamReport, StreamReports, StreamStatus, TaskStatus};

    fn read(streams: StreamReports) -> Outcome {
        let (task_id, sync_id) = ("task".to_owned(), "sync".to_owned());
        Outcome::Read { task_id, sync_id, status: TaskStatus::Success, streams, error: None }
    }

    #[test]
    fn notices_are_the_details_and_warnings_of_streams() {
        let mut report = StreamReport { events: 7, ..StreamReport::new(StreamStatus::Success) };
        let mut streams = StreamReports::from_iter([("plain".to_owned(), report.clone())]);
        assert!(read(streams.clone()).notices().is_empty());
        report.load.merged = 2;
        report.warnings.add("no key", 1);
        report.warnings.add("odd", 3);
        streams.insert("s".to_owned(), report.clone());
        let expected = [
            "stream s: 7 rows committed, 2 merged into rows with the same key",
            "warning: stream s: no key",
            "warning: stream s: odd (3 times)",
        ];
        assert_eq!(read(streams.clone()).notices(), expected);
        streams.extend((0..MAX_NOTICES).map(|index| (index.to_string(), report.clone())));
        let notices = read(streams).notices();
        let more = "203 more lines: see `streams` in the result";
        assert_eq!((notices.len(), notices.last().map(String::as_str)), (MAX_NOTICES + 1, Some(more)));
    }
}
