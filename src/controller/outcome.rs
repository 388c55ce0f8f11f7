//! From a task to its rows and back: the only place that knows which table holds the result of which command.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::db::{ConcurrencyPolicy, Db, DbError, ResultKey, SpecKey, StartOutcome, Writer};
use crate::failure::{Class, Failure, StoredError};
use crate::task::{StreamReports, StreamStatus, Task, TaskKind, TaskStatus};

/// What came of a task that ran to an end of its own.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The ConnectorSpecification.
    Spec(Value),
    /// The connector's verdict on a configuration.
    Check {
        /// Whether it works.
        succeeded: bool,
        /// The connector's explanation.
        message: Option<String>,
    },
    /// The catalog.
    Discover(Value),
    /// The row of a read, also of one that failed.
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
    /// What is printed.
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

    /// Why the exit code is not 0.
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
                    TaskStatus::TimeExceeded => Some(or(Class::TimeExceeded, "the task ran out of time")),
                    TaskStatus::Partial => Some(or(Class::ConnectorFailed, "some streams are incomplete")),
                    TaskStatus::Failed | TaskStatus::Running | TaskStatus::Skipped => {
                        Some(or(Class::ConnectorFailed, "the read failed"))
                    }
                }
            }
        }
    }
}

/// What became of a task: its own end, or the failure that is recorded.
pub type Verdict = Result<Outcome, Failure>;

/// Records that the task runs, before its Pod exists; says whether it may. Only of reads it may turn out that it must not.
pub fn begin(db: &Db, task: &Task, concurrency: ConcurrencyPolicy) -> Result<StartOutcome, DbError> {
    match task.kind {
        TaskKind::Spec | TaskKind::Check => Ok(StartOutcome::Started),
        TaskKind::Discover => db.start_catalog(&ResultKey::of(task), task.started_at).map(|()| StartOutcome::Started),
        TaskKind::Read => db.start_task(task, concurrency),
    }
}

/// Records a failure that the controller found. What the sidecar wrote stays.
pub fn failure(db: &Db, task: &Task, failure: &Failure) -> Result<(), DbError> {
    let text = failure.to_string();
    match task.kind {
        TaskKind::Spec => db.save_spec(&SpecKey::of(task), task.started_at, Err(&text)),
        TaskKind::Check => db.fail_check(&ResultKey::of(task), task.started_at, &text),
        TaskKind::Discover => db.fail_catalog(&ResultKey::of(task), task.started_at, &text, Writer::Controller),
        TaskKind::Read => {
            let status = match failure.class {
                Class::Cancelled => TaskStatus::Cancelled,
                Class::TimeExceeded => TaskStatus::TimeExceeded,
                _ if arrived_in_part(db, task)? => TaskStatus::Partial,
                _ => TaskStatus::Failed,
            };
            db.finish_task(task, Writer::Controller, status, None, Some(&text)).map(|_| ())
        }
    }
}

/// How a task that is over ended.
pub struct Conclusion {
    /// Its outcome.
    pub outcome: Verdict,
    /// Whether the sidecar stored it; else this process did.
    pub by_sidecar: bool,
}

/// What the rows say of a task that is over; where they say nothing, the failure, which is then recorded.
pub fn conclude(db: &Db, task: &Task, failure: &Failure) -> Result<Conclusion, DbError> {
    if let Some(outcome) = outcome(db, task)? {
        return Ok(Conclusion { outcome, by_sidecar: true });
    }
    self::failure(db, task, failure)?;
    Ok(Conclusion { outcome: Err(failure.clone()), by_sidecar: false })
}

/// Whether the sidecar has reported rows that are in the tables for good.
fn arrived_in_part(db: &Db, task: &Task) -> Result<bool, DbError> {
    let row = db.task(&task.task_id)?;
    let good = |status| matches!(status, StreamStatus::Success | StreamStatus::Partial);
    Ok(row.is_some_and(|row| row.streams.values().any(|report| good(report.status))))
}

/// What the rows say of this very task; `None` while they say nothing final. The outer error is the database's.
pub fn outcome(db: &Db, task: &Task) -> Result<Option<Verdict>, DbError> {
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

/// A failure of ours is told by its class; the connector's own verdict has none.
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
        .map_err(|error| Failure::new(Class::DatabaseError, format!("reading the stored result: {error}")))
}

/// Waits in a thread for the sidecar's word that a row is final. Without it (behind a connection pooler) the end of the
/// Pod tells the same, only later.
pub struct Listener {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How long a listener that is no longer needed may go on.
const LISTEN: Duration = Duration::from_millis(200);

impl Listener {
    /// Calls `tell` at each word about the task.
    pub fn start(db: &Db, task_id: &str, tell: impl Fn() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (db, task_id, stopped) = (db.clone(), task_id.to_owned(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut listener = match db.listen(&task_id) {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::debug!(%error, "results will be seen when the pod ends");
                    return;
                }
            };
            // It may have been written while we connected.
            tell();
            while !stopped.load(Ordering::Relaxed) {
                if listener.wait(LISTEN) {
                    tell();
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Not joined: it ends by itself within its wait, and nobody has to wait for that.
        drop(self.thread.take());
    }
}
