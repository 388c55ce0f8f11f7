//! The start of a task in `source_task`: who may begin, and who is in whose way.

use postgres::types::Type;
use sha2::{Digest, Sha256};

use super::pool::{Fault, Session};
use super::task::{insert, is_same_start, read, vanished};
use super::{Db, DbError, StoredTask};
use crate::task::{Task, TaskStatus, to_millis};

/// Whether a task may start beside another running one of its sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConcurrencyPolicy {
    /// It may.
    Allow,
    /// It may not.
    Forbid,
}

/// What became of the wish to start a task.
#[derive(Debug, Clone, PartialEq)]
pub enum StartOutcome {
    /// The row is ours.
    Started,
    /// A task of this id was there before.
    Exists(Box<StoredTask>),
    /// The task of this id runs for the same sync.
    SyncBusy(String),
}

impl Db {
    /// Inserts the row of a task that has no Pod yet, as RUNNING. Where no other one may run beside it, also two that
    /// come at the same moment to two programs do not.
    pub fn start_task(&self, task: &Task, concurrency: ConcurrencyPolicy) -> Result<StartOutcome, DbError> {
        self.run("storing the start of a task", |session| {
            if concurrency == ConcurrencyPolicy::Forbid
                && let Some(refusal) = refuse(session, task)?
            {
                return Ok(refusal);
            }
            if insert(session, task, TaskStatus::Running, None, None)? {
                return Ok(StartOutcome::Started);
            }
            let stored = read(session, &task.task_id)?;
            Ok(match stored {
                // Our own insert of an attempt whose answer got lost.
                Some(stored) if session.repeated && is_same_start(&stored, task) => StartOutcome::Started,
                Some(stored) => StartOutcome::Exists(Box::new(stored)),
                // Deleted in between.
                None => return Err(Fault::Own(vanished(session))),
            })
        })
    }

    /// Starts a task once more that failed with this error before it had a Pod: its row says RUNNING again. `Exists`
    /// where the row is not (or no longer) what it was.
    pub fn restart_task(&self, task: &Task, failed: &str) -> Result<StartOutcome, DbError> {
        self.run("storing the start of a task", |session| {
            lock(session, &task.sync_id)?;
            let Some(stored) = read(session, &task.task_id)? else { return Err(Fault::Own(vanished(session))) };
            if session.repeated && stored.status == Some(TaskStatus::Running) && is_same_start(&stored, task) {
                return Ok(StartOutcome::Started);
            }
            if stored.status != Some(TaskStatus::Failed) || stored.error.as_deref() != Some(failed) {
                return Ok(StartOutcome::Exists(Box::new(stored)));
            }
            if let Some(other) = running(session, &task.sync_id)? {
                return Ok(StartOutcome::SyncBusy(other));
            }
            session.execute(
                "UPDATE source_task SET status = 'RUNNING', error = NULL, description = NULL, started_at = $2,
                                        updated_at = CURRENT_TIMESTAMP
                 WHERE task_id = $1",
                &[(&task.task_id as _, Type::TEXT), (&to_millis(task.started_at) as _, Type::TIMESTAMPTZ)],
            )?;
            Ok(StartOutcome::Started)
        })
    }
}

/// Why a task may not start where none may run beside it. Until the transaction ends, nobody else gets past this for the
/// same sync.
fn refuse(session: &mut Session<'_>, task: &Task) -> Result<Option<StartOutcome>, postgres::Error> {
    lock(session, &task.sync_id)?;
    if let Some(stored) = read(session, &task.task_id)? {
        // Unless it is our own insert of an attempt whose answer got lost.
        let own = session.repeated && is_same_start(&stored, task);
        return Ok(Some(if own { StartOutcome::Started } else { StartOutcome::Exists(Box::new(stored)) }));
    }
    Ok(running(session, &task.sync_id)?.map(StartOutcome::SyncBusy))
}

/// The task of a sync that runs.
fn running(session: &mut Session<'_>, sync_id: &str) -> Result<Option<String>, postgres::Error> {
    let running = session.query_opt(
        "SELECT task_id FROM source_task WHERE sync_id = $1 AND status = 'RUNNING' ORDER BY started_at DESC LIMIT 1",
        &[(&sync_id, Type::TEXT)],
    )?;
    running.map(|row| row.try_get(0)).transpose()
}

/// Held until the transaction ends.
fn lock(session: &mut Session<'_>, sync_id: &str) -> Result<(), postgres::Error> {
    session.query("SELECT pg_advisory_xact_lock($1)", &[(&lock_of(sync_id), Type::INT8)]).map(|_| ())
}

/// The number of a sync's advisory lock. Two syncs with one number would only wait for each other.
fn lock_of(sync_id: &str) -> i64 {
    let hash = Sha256::new().chain_update("syncctl sync ").chain_update(sync_id).finalize();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[..8]);
    i64::from_be_bytes(bytes)
}
