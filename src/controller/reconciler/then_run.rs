//! Asks the console to start the read after a discover, once: a line in `task_log` with an id of its own shows that it was
//! done, to this process and to the next leader.

use jiff::Timestamp;

use super::shared::{Config, Shared};
use super::tracked_tasks::Job;
use crate::controller::console::RunError;
use crate::controller::start_log::{THEN_RUN_STEP, line_id};
use crate::db::{Db, LogRow};
use crate::failure::{Class, Failure};
use crate::task::{Task, TaskKind, TaskStatus};

/// Returns false to be called again later. `is_last`: a temporary error is final.
pub(super) fn ask(shared: &Shared, job: &Job, is_last: bool) -> Result<bool, Failure> {
    let Config { db, backend, console, .. } = &shared.config;
    let task = &*job.task;
    let line = line_id(&job.pod.uid, THEN_RUN_STEP);
    if db.has_log(line)? || !is_wanted(db, task)? {
        return Ok(true);
    }
    let workspace = task.then_run.as_deref().unwrap_or_default();
    let asked = match console {
        Some(console) => console.run(workspace, &task.sync_id, &task.task_id),
        None => Err(RunError { text: "SYNCCTL_CONSOLE_URL is not set".to_owned(), is_temporary: false }),
    };
    let (level, message) = match asked {
        Ok(()) => {
            tracing::info!(task = task.task_id, sync = task.sync_id, "the console starts the read after a discover");
            ("INFO", "the discover has ended, and the console starts the read".to_owned())
        }
        Err(RunError { text, is_temporary: true }) if !is_last => {
            tracing::warn!(task = task.task_id, error = text, "cannot start the read after a discover; retrying");
            return Ok(false);
        }
        Err(RunError { text, .. }) => {
            let failure = Failure::new(Class::ConsoleFailed, text);
            tracing::error!(task = task.task_id, error = %failure, "cannot start the read after a discover");
            // The console may have started the read although its response did not arrive.
            let read = Task { kind: TaskKind::Read, ..task.clone() };
            if backend.watcher.get(&read.pod_name())?.is_none() {
                db.close_first_stage(&task.task_id, TaskStatus::Failed, &failure.to_string())?;
            }
            ("ERROR", failure.to_string())
        }
    };
    db.insert_logs(&[LogRow::own(task, line, level, message, Timestamp::now())])?;
    Ok(true)
}

/// Whether the read is still to come: not where the task was cancelled or closed, or where the read was accepted before a
/// process could record that it had asked for it.
fn is_wanted(db: &Db, task: &Task) -> Result<bool, Failure> {
    let row = db.task_with_request(&task.task_id)?;
    let is_wanted = row.is_none_or(|row| row.awaits_read());
    if !is_wanted {
        tracing::info!(
            task = task.task_id,
            "no read follows the discover: its task has ended or its read was accepted"
        );
    }
    Ok(is_wanted)
}
