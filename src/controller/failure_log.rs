//! The line of `task_log` that says why a task failed, where the controller found out.

use std::time::Duration;

use jiff::Timestamp;

use crate::db::{Db, LogIds, LogRow};
use crate::failure::{Class, Failure};
use crate::task::Task;

/// The line never delays the end of a task for longer.
const RETRY_TIMEOUT: Duration = Duration::from_secs(3);

/// Writes the line. A cancellation is a warning, everything else an error.
pub fn write(db: &Db, task: &Task, failure: &Failure) {
    let level = if failure.class == Class::Cancelled { "WARN" } else { "ERROR" };
    let (id, timestamp) = LogIds::default().next(Timestamp::now());
    let row = LogRow::own(task, id, level, failure.to_string(), timestamp);
    if let Err(error) = db.with_retry_timeout(RETRY_TIMEOUT).insert_logs(&[row]) {
        tracing::warn!(%error, task = task.task_id, "cannot write to the log of the task why it failed");
    }
}
