//! Tasks of two stages: a discover, and the read that the console starts under the same id.
//!
//! The row is RUNNING from the first stage on. The console may replace it in between, so that it no longer shows what
//! has started it; the request of the first stage is in the own schema.

use serde_json::Value;

use super::{
    StartOutcome, StoredTask, existing, is_own_insert, lock_outcome, lock_sync, read_marked, record, row_deleted,
    update,
};
use crate::db::pool::{Attempt, Transaction, text, time};
use crate::db::task::record::RequestMark;
use crate::db::text::clean_json;
use crate::db::{Db, DbError};
use crate::task::{TOKEN, Task, TaskStatus, to_millis};

impl StoredTask {
    /// Whether the read of a task may still come. Where nothing is known of its request, the console has replaced the row,
    /// and there is no own schema.
    pub fn awaits_read(&self) -> bool {
        self.status == Some(TaskStatus::Running) && (self.is_first_stage || self.request.is_none())
    }
}

impl Db {
    /// Starts the read of a task whose discover has a RUNNING row. `Exists` if the row has changed or a read has been
    /// accepted.
    pub fn start_second_stage(&self, task: &Task, mark: Option<&RequestMark>) -> Result<StartOutcome, DbError> {
        let started_at = to_millis(task.started_at);
        self.run("store the start of a task", |tx| {
            lock_sync(tx, &task.sync_id)?;
            lock_outcome(tx, &task.task_id)?;
            let stored = read_marked(tx, &task.task_id)?.ok_or_else(|| row_deleted(tx))?;
            if is_own_insert(tx, &stored, task) {
                return Ok(StartOutcome::Started);
            }
            if !stored.awaits_read() {
                return Ok(existing(tx, stored, task));
            }
            if let Some(running) = other_running_task(tx, task)? {
                return Ok(StartOutcome::SyncBusy(running));
            }
            // Who started the discover has started the read, too.
            let first: Option<Value> = stored.started_by.as_deref().and_then(|text| serde_json::from_str(text).ok());
            let started_by = with_token(first, task.started_by.as_ref());
            let started_by = record::started_by(tx, &Task { started_by, ..task.clone() }, mark);
            let started_by = started_by.map(|value| clean_json(&value.to_string()).into_owned());
            tx.execute(
                "UPDATE source_task SET package = $2, version = $3, started_at = $4, started_by = $5::text::jsonb,
                   description = NULL, error = NULL, updated_at = CURRENT_TIMESTAMP
                 WHERE task_id = $1",
                &[
                    text(&task.task_id),
                    text(&task.image.package),
                    text(&task.image.version),
                    time(&started_at),
                    text(&started_by),
                ],
            )?;
            record::store(tx, task, mark)?;
            Ok(StartOutcome::Started)
        })
    }

    /// Closes the row of a discover whose read will not come. False if the row is not RUNNING, or a read was accepted.
    pub fn close_first_stage(&self, task_id: &str, status: TaskStatus, error: &str) -> Result<bool, DbError> {
        self.run("store the outcome of a task", |tx| {
            let Some(locked) = lock_outcome(tx, task_id)? else { return Ok(false) };
            let stored = read_marked(tx, task_id)?.ok_or_else(|| row_deleted(tx))?;
            if !stored.awaits_read() {
                return Ok(tx.is_retry && locked.status == status.as_str() && locked.error.as_deref() == Some(error));
            }
            update(tx, task_id, status, None, Some(error))?;
            Ok(true)
        })
    }
}

/// Who has started the discover; with the token of the read where the console has replaced the row, and with it the token.
fn with_token(first: Option<Value>, second: Option<&Value>) -> Option<Value> {
    let Some(mut started_by) = first else { return second.cloned() };
    if let (Value::Object(fields), Some(token)) = (&mut started_by, second.and_then(|second| second.get(TOKEN)))
        && !fields.contains_key(TOKEN)
    {
        fields.insert(TOKEN.to_owned(), token.clone());
    }
    Some(started_by)
}

fn other_running_task(tx: &mut Transaction<'_>, task: &Task) -> Attempt<Option<String>> {
    let sql = "SELECT task_id FROM source_task WHERE sync_id = $1 AND task_id <> $2 AND status = 'RUNNING'
               ORDER BY started_at DESC LIMIT 1";
    tx.row(sql, &[text(&task.sync_id), text(&task.task_id)], |row| row.try_get(0))
}
